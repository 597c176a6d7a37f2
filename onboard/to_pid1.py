"""What a process of the board may ask of PID 1, over its control socket.

A request is one JSON object with "op" and what the operation needs; the reply is {"ok": ...} or {"error": "a sentence"}.
"""

from __future__ import annotations

import os
import sys
import time
from errno import EAGAIN, ECONNRESET, EINTR, ENOTCONN, EPIPE

from base.stdlib import TYPE_CHECKING, json, socket

if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/stack/control"
A_REPLY = 100  # rows of a list in one reply; a client asks for the rest
LONGEST_REPLY = 1024 * 1024  # bytes
# Too many at once, or a signal came while it waited: PID 1 has not read the request, and another try may succeed.
AGAIN = (EAGAIN, EINTR, ENOTCONN, ECONNRESET, EPIPE)
SO_RCVTIMEO, SO_SNDTIMEO = 20, 21  # with a struct timeval of two longs, whatever size this libc's time_t has
LONG = (sys.maxsize.bit_length() + 1) // 8


class SVError(Exception):
    """What was asked cannot be done; the text is a sentence for people."""


class Unreachable(SVError):
    """PID 1 gave no answer at all."""


def ask(path: str, request: dict[str, Any], timeout: float = 10.0) -> Any:
    """Send one request to PID 1 and return its answer; SVError where it refuses, is not there, or does not answer."""
    message = json.dumps(request).encode()
    deadline = time.monotonic() + timeout
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
        try:
            answer = _exchange(client, path, message, deadline - time.monotonic())
            break
        except OSError as error:
            if error.errno not in AGAIN:
                why = f"cannot reach PID 1 at {path}: {error.strerror}; is this the board that stack.py runs?"
                raise Unreachable(why) from None
            if time.monotonic() >= deadline:
                raise Unreachable(f"PID 1 did not answer within {timeout:g} s") from None
        finally:
            client.close()
        time.sleep(0.01)
    if not answer:
        raise Unreachable("PID 1 closed the connection without an answer")
    reply = json.loads(answer)
    if "error" in reply:
        raise SVError(reply["error"])
    return reply["ok"]


def _exchange(client: socket.socket, path: str, message: bytes, seconds: float) -> bytes:
    """One message there and one back. The kernel waits, in the order of arrival: when many connect at once, a socket that
    does not wait would only find that there is no room."""
    wait = max(0.001, seconds)
    timeval = b"".join(part.to_bytes(LONG, sys.byteorder) for part in (int(wait), int(wait % 1 * 1e6)))
    for option in (SO_SNDTIMEO, SO_RCVTIMEO):
        client.setsockopt(socket.SOL_SOCKET, option, timeval)
    client.connect(path)
    client.send(message)
    return client.recv(4 * LONGEST_REPLY)


def notify(message: str) -> None:
    """The other end, for services in Python; nothing happens where nobody listens."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
        try:
            sender.sendto(message.encode(), path)
        finally:
            sender.close()
