"""wpa_supplicant's control socket: how one connects, and how its answers are read (hostap's doc/ctrl_iface.doxygen)."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from typing import Any

from base.printable import printable

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b", b'"': b'"', b"\\": b"\\"}
# Lines of the owner's file that ours replace: the board's apps need to know where to ask, and the root is read-only.
RESERVED = re.compile(r"\s*(ctrl_interface|ctrl_interface_group|update_config)\s*=")
# Bits of `BSS ... MASK=` (wpa_ctrl.h). With all that there is, one access point may be longer than an answer of 4,096 bytes.
BSS_ID = 1 << 0
BSS_FIELDS = BSS_ID | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12  # id, bssid, freq, level, age, flags, ssid


def config_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of each line of wpa_supplicant.conf as wpa_supplicant reads it (wpa_config_get_line, config_file.c).

    Without what follows a "#" that stands behind the last quote, and without empty lines.
    """
    for number, line in enumerate(text.split("\n"), 1):
        content = line.lstrip(" \t\r")
        comment = content.find("#", content.rfind('"') if content.count('"') > 1 else 0)
        content = (content if comment < 0 else content[:comment]).rstrip(" \t\r")
        if content:
            yield number, content


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


def parse_bss(answer: str) -> dict[str, Any]:
    """One answer to a BSS command; empty for an empty one. Frequency in MHz, signal in dBm, age in s."""
    told = fields(answer)
    if not {"bssid", "id", "freq", "level"} <= told.keys():
        return {}
    return {
        "id": int(told["id"]), "bssid": told["bssid"], **name_of(unescape(told.get("ssid", ""))),
        "frequency": int(told["freq"]), "signal": int(told["level"]),
        "security": security(told.get("flags", "")), "age": int(told.get("age", 0)),
    }  # fmt: skip


def name_of(ssid: bytes) -> dict[str, Any]:
    """An SSID for people, None for a hidden one (empty or all NUL); and in full, as it was on the air."""
    return {"ssid": printable(ssid.decode("utf-8", "replace")) if ssid.strip(b"\0") else None, "ssid_hex": ssid.hex()}
