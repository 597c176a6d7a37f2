"""wpa_supplicant's control socket: how one connects, and how its answers are read (hostap's doc/ctrl_iface.doxygen)."""

from __future__ import annotations

import os
import re
import socket

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b", b'"': b'"', b"\\": b"\\"}
# Lines of the owner's file that ours replace: the board's apps need to know where to ask, and the root is read-only.
RESERVED = re.compile(r"\s*(ctrl_interface|ctrl_interface_group|update_config)\s*=")
# Bits of `BSS ... MASK=` (wpa_ctrl.h). With all that there is, one access point may be longer than an answer of 4,096 bytes.
BSS_ID = 1 << 0
BSS_FIELDS = BSS_ID | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12  # id, bssid, freq, level, age, flags, ssid


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


def security(flags: str) -> str:
    """The strongest that the flags name, such as [WPA2-PSK+SAE-CCMP][ESS]: WPA3, WPA2, OWE, WPA, OSEN, WEP or open.

    [OWE-TRANS-OPEN] is an open network that only points at another one, which is encrypted and says [WPA2-OWE-CCMP] of itself.
    """
    offers = [word.partition("-")[::2] for word in re.findall(r"\[([^]]*)]", flags)]
    modern = [suites for kind, suites in offers if kind in ("WPA2", "RSN")]
    if any("SAE" in suites for suites in modern):
        return "WPA3"
    if any(suites for suites in modern if suites.partition("-")[0] != "OWE"):
        return "WPA2"
    kinds = {kind for kind, _ in offers}
    return "OWE" if modern else next((kind for kind in ("WPA", "OSEN", "WEP") if kind in kinds), "open")


def without_comment(line: str) -> str:
    """A line of wpa_supplicant.conf as it is taken (config_file.c): up to a # after the last quote; stripped."""
    line = line.strip()
    if line.startswith("#"):
        return ""
    hash_at = line.find("#", max(0, line.rfind('"')))
    return line if hash_at < 0 else line[:hash_at].rstrip()
