"""What a process of the board may ask of PID 1, over its control socket.

A request is one JSON object with "op" and what the operation needs; the reply is {"ok": ...} or {"error": "a sentence"}.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING, json, socket

if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/stack/control"
LONGEST_REPLY = 1024 * 1024  # bytes


class SVError(Exception):
    """What was asked cannot be done; the text is a sentence for people."""


class Unreachable(SVError):
    """PID 1 gave no answer at all."""


def ask(path: str, request: dict[str, Any], timeout: float = 10.0) -> Any:
    """Send one request to PID 1 and return its answer; SVError where it refuses, is not there, or does not answer."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
    client.settimeout(timeout)
    try:
        client.connect(path)
        client.send(json.dumps(request).encode())
        message = client.recv(4 * LONGEST_REPLY)
    except TimeoutError:
        raise Unreachable(f"PID 1 did not answer within {timeout:g} s") from None
    except OSError as error:
        raise Unreachable(f"cannot reach PID 1 at {path}: {error.strerror}; is this the board that stack.py runs?") from None
    finally:
        client.close()
    if not message:
        raise Unreachable("PID 1 closed the connection without an answer")
    reply = json.loads(message)
    if "error" in reply:
        raise SVError(reply["error"])
    return reply["ok"]


def notify(message: str) -> None:
    """The other end, for services in Python; nothing happens where nobody listens."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
        try:
            sender.sendto(message.encode(), path)
        finally:
            sender.close()
