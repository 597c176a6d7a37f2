"""wpa_supplicant: its configuration from our tables (wpa_supplicant.conf(5)), written before each of its starts.

`supplicant.py INTERFACE` is the service: it writes the file and becomes wpa_supplicant.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import sys
from typing import Any

from base.files import write_atomically
from network.kernel_events import Monitor, Overrun
from onboard.board_table import board_table
from onboard.wpa_control import RESERVED, config_lines
from tables.rows import WifiNetwork

RUN = "/run/network"
RECEIVE_BUFFER = 65536  # bytes: only that something has come matters
KEYS = {
    "open": ("key_mgmt=NONE",),
    "psk": ("key_mgmt=WPA-PSK",),
    "sae": ("key_mgmt=SAE", "ieee80211w=2"),  # WPA3 demands protected management frames
    "psk+sae": ("key_mgmt=WPA-PSK SAE", "ieee80211w=1"),
}


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
    lines = (line for _, line in config_lines(read_owners(chosen.WIFI_CONFIG)))
    return bool(chosen.WIFI_NETWORKS) or "network={" in lines


def wait_for(interface: str) -> None:
    """Return when the kernel has this interface: a radio may come late, or never."""
    monitor = Monitor(RECEIVE_BUFFER)  # opened before the first check, so that no event is missed
    said = False
    while interface not in (name for _, name in socket.if_nameindex()):
        if not said:
            print(f"<5>there is no {interface}: waiting for it", file=sys.stderr, flush=True)
            said = True
        select.select([monitor.fileno()], [], [])
        with contextlib.suppress(Overrun):
            for _ in monitor.read():
                pass


def make_control(folder: str, group: int) -> None:
    """Its folder, which it removes at its end. It would make it by our umask, which is there so that what it writes by
    SAVE_CONFIG is root's alone, with the passphrases in it."""
    os.makedirs(folder, exist_ok=True)
    try:
        os.chown(folder, 0, group)
    except OSError as error:  # EINVAL: this user namespace has no such group, nor a scan_proxy of its own
        print(f"<6>{folder} stays root's alone: {error.strerror}", file=sys.stderr)
    os.chmod(folder, 0o750)


def main(arguments: list[str]) -> None:
    """`supplicant.py INTERFACE`: write the file, become wpa_supplicant."""
    interface = arguments[0]
    wait_for(interface)
    chosen = board_table()
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
