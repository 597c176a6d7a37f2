"""wpa_supplicant: its configuration from our tables, written anew before each of its lives; and its control socket.

`supplicant.py INTERFACE` is the service: it writes the file and becomes wpa_supplicant. What is here follows
wpa_supplicant.conf(5) and hostap's doc/ctrl_iface.doxygen.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
from typing import Any

from base.files import write_atomically
from onboard.to_pid1 import of_this_board
from tables.rows import WifiNetwork

RUN = "/run/network"
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b", b'"': b'"', b"\\": b"\\"}
# Ours win over the owner's file: the board's apps need to know where to ask, and the root is read-only.
RESERVED = re.compile(r"\s*(ctrl_interface|ctrl_interface_group|update_config)\s*=")
KEYS = {
    "open": ("key_mgmt=NONE",),
    "psk": ("key_mgmt=WPA-PSK",),
    "sae": ("key_mgmt=SAE", "ieee80211w=2"),  # WPA3 demands protected management frames
    "psk+sae": ("key_mgmt=WPA-PSK SAE", "ieee80211w=1"),
}


# --- the configuration ------------------------------------------------------------------------------------------------
def network_block(row: WifiNetwork) -> str:
    """One `network={...}`, without a quoted string in it: one fault, such as `"a"b#c"`, would cost all networks."""
    ssid = row.ssid if isinstance(row.ssid, bytes) else row.ssid.encode()
    security = row.security or ("psk" if row.psk else "open")
    lines = [f"ssid={ssid.hex()}", *KEYS[security]]
    if "psk" in security:
        lines.append(f"psk={row.psk if len(row.psk) == 64 else pairwise_key(row.psk, ssid)}")
    if "sae" in security:
        lines.append(f"sae_password={row.psk.encode().hex()}")
    if row.hidden:
        lines.append("scan_ssid=1")
    if row.priority:
        lines.append(f"priority={row.priority}")
    if row.frequencies:
        lines.append(f"scan_freq={' '.join(map(str, row.frequencies))}")
    return "network={\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def pairwise_key(passphrase: str, ssid: bytes) -> str:
    """What wpa_passphrase(8) prints: 256 bits as hexadecimal digits (IEEE 802.11i, H.4)."""
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid, 4096, 32).hex()


def configuration(rows: tuple[WifiNetwork, ...], control: str, group: str, country: str = "", owners: str = "") -> str:
    """The whole file; `owners` is the text of the board owner's own."""
    head = f"ctrl_interface=DIR={control} GROUP={group}\nupdate_config=0\n"
    head += f"country={country}\n" if country else ""
    kept = "".join(f"{line}\n" for line in owners.splitlines() if not RESERVED.match(line))
    return head + kept + "".join(map(network_block, rows))


def read_owners(path: str) -> str:
    """The owner's file; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def has_networks(chosen: Any) -> bool:
    """Whether there is anything to join."""
    return bool(chosen.WIFI_NETWORKS) or "network={" in read_owners(chosen.WIFI_CONFIG).replace(" ", "")


# --- the control socket -----------------------------------------------------------------------------------------------
def connect(folder: str, interface: str, own: str) -> socket.socket:
    """A control connection that never blocks; `own` is our end's path, because the answer goes to a bound address."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if os.path.lexists(own):
            os.unlink(own)
        client.bind(own)
        client.connect(f"{folder}/{interface}")
    except OSError:
        client.close()
        raise
    return client


def fields(answer: str) -> dict[str, str]:
    """An answer of lines `name=value`, such as that to STATUS or SIGNAL_POLL."""
    return dict(line.split("=", 1) for line in answer.split("\n") if "=" in line)


def unescape(text: str) -> bytes:
    r"""An SSID as wpa_supplicant prints it (`printf_encode`: \n \r \t \e \" \\ and \xNN) as the bytes that were on the air."""

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if code[:1] == b"x" else ESCAPES[code]

    return re.sub(rb'\\(x[0-9a-fA-F]{2}|[nrte"\\])', one, text.encode("latin-1"))


def make_control(folder: str, group: int) -> None:
    """Its folder, which it removes at its end. It would make it by our umask, which is there so that what it writes by
    SAVE_CONFIG is root's alone, with the passphrases in it."""
    os.makedirs(folder, exist_ok=True)
    os.chown(folder, 0, group)
    os.chmod(folder, 0o750)


def main(arguments: list[str]) -> None:
    """`supplicant.py INTERFACE`: write the file, become wpa_supplicant."""
    interface = arguments[0]
    chosen = of_this_board()
    for fault in chosen.rejected:
        if fault.startswith("WIFI_NETWORKS"):
            print(f"<4>left out: {fault}", file=sys.stderr)
    path = f"{RUN}/{interface}.conf"
    owners = read_owners(chosen.WIFI_CONFIG)
    group = chosen.group_number(chosen.WIFI_GROUP)
    text = configuration(chosen.WIFI_NETWORKS, chosen.WIFI_CONTROL, str(group), chosen.WIFI_COUNTRY, owners)
    make_control(chosen.WIFI_CONTROL, group)
    write_atomically(path, text, 0o600)
    os.execvp("wpa_supplicant", ["wpa_supplicant", "-i", interface, "-D", "nl80211", "-c", path])


if __name__ == "__main__":
    main(sys.argv[1:])
