"""wpa_supplicant's control socket: how one connects, and how its answers are read (hostap's doc/ctrl_iface.doxygen)."""

from __future__ import annotations

import os
import re
import socket

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b", b'"': b'"', b"\\": b"\\"}
# Lines of the owner's file that ours replace: the board's apps need to know where to ask, and the root is read-only.
RESERVED = re.compile(r"\s*(ctrl_interface|ctrl_interface_group|update_config)\s*=")


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
