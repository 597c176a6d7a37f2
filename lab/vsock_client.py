"""The host's end of services/vsock_door.py: ask a guest's PID 1, follow its events, hear its reports.

    python3 lab/vsock_client.py vsock:3:1024 stats            over AF_VSOCK: CID 3, port 1024
    python3 lab/vsock_client.py ./v.sock:1024 events          over Firecracker's Unix socket of that guest
    python3 lab/vsock_client.py ./v.sock:1024 stop name=cache
    python3 lab/vsock_client.py ./v.sock:1024 console         the Python prompt inside PID 1, line by line
    python3 lab/vsock_client.py ./v.sock:1025 listen          what the guest reports to port 1025 (stack.report=vsock:1025)

Firecracker and its kin have one Unix socket for a guest: the host connects, writes "CONNECT PORT" and reads "OK NUMBER";
what the guest connects to at the host's port P arrives at the socket PATH_P (docs/vsock.md in Firecracker's repository).
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from base.stdlib import json  # a guest's minimal Python has no json

SECONDS = 10.0  # for a connection and a reply
LONGEST = 4 * 1024 * 1024  # bytes of one line


class GuestError(Exception):
    """What was asked cannot be done, or the guest is not there; the text is a sentence."""


def parts(address: str) -> tuple[str | int, int]:
    """CID and port of "vsock:CID:PORT", or path and port of "PATH:PORT"."""
    rest, _, port = address.rpartition(":")
    if not rest or not port.isdigit():
        raise GuestError(f"{address!r} is neither vsock:CID:PORT nor PATH:PORT")
    return (int(rest.removeprefix("vsock:")), int(port)) if rest.startswith("vsock:") else (rest, int(port))


class Lines:
    """A connection that carries lines of JSON."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.heard = b""

    def send(self, value: Any) -> None:
        self.stream.sendall(json.dumps(value).encode() + b"\n")

    def line(self) -> bytes:
        """The next line; empty at the end of the connection."""
        while b"\n" not in self.heard:
            block = self.stream.recv(65536)
            if not block:
                return b""
            self.heard += block
            if len(self.heard) > LONGEST:
                raise GuestError(f"a line of more than {LONGEST} bytes")
        line, _, self.heard = self.heard.partition(b"\n")
        return line

    def close(self) -> None:
        self.stream.close()


def connect(address: str, seconds: float = SECONDS) -> Lines:
    """A connection to a port of the guest; GuestError where there is none."""
    where, port = parts(address)
    try:
        if isinstance(where, int):
            stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            stream.settimeout(seconds)
            stream.connect((where, port))
            return Lines(stream)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(seconds)
        stream.connect(where)
        lines = Lines(stream)
        stream.sendall(f"CONNECT {port}\n".encode())
        answer = lines.line()
    except OSError as error:
        raise GuestError(f"{address} cannot be reached: {error.strerror or error}") from None
    if not answer.startswith(b"OK "):
        stream.close()
        raise GuestError(f"{address}: nobody listens at this port of the guest ({answer.decode(errors='replace') or 'closed'})")
    return lines


def ask(address: str, op: str, seconds: float = SECONDS, **arguments: Any) -> Any:
    """One request to PID 1, and its answer; GuestError where it refuses."""
    lines = connect(address, seconds)
    try:
        lines.send({"op": op, **arguments})
        answer = json.loads(lines.line() or b'{"error": "closed without an answer"}')
    except OSError as error:
        raise GuestError(f"{address}: no answer: {error.strerror or error}") from None
    finally:
        lines.close()
    if "error" in answer:
        raise GuestError(str(answer["error"]))
    return answer["ok"]


def events(address: str, since: int = 0) -> Iterator[dict[str, Any]]:
    """Each event of the guest since that number, as it happens, until the guest ends."""
    lines = connect(address)
    lines.stream.settimeout(None)
    lines.send({"op": "events", "since": since})
    lines.line()
    while line := lines.line():
        yield json.loads(line)


def reports(address: str) -> Iterator[dict[str, Any]]:
    """What the next guest reports that connects to this port of ours: started, exit."""
    where, port = parts(address)
    if isinstance(where, int):
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((0xFFFFFFFF, port))
    else:
        path = f"{where}_{port}"
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
    listener.listen(1)
    stream, _ = listener.accept()
    lines = Lines(stream)
    while line := lines.line():
        yield json.loads(line)


def console(address: str, read: Callable[[str], str], write: Callable[[str], object], limit: float = 5.0) -> None:
    """PID 1's console: `read(prompt)` gives a line or raises EOFError; Ctrl-C interrupts the line that runs."""
    lines = connect(address)
    lines.stream.settimeout(None)

    def said(do: str, **words: Any) -> dict[str, Any]:
        lines.send({"op": "console", "do": do, **words})
        while True:
            try:
                answer = json.loads(lines.line() or b'{"error": "the guest has closed the connection"}')
                break
            except KeyboardInterrupt:
                lines.stream.sendall(b"\n")
        if "error" in answer:
            raise GuestError(str(answer["error"]))
        return dict(answer["ok"])

    opened = said("open", limit=limit)
    session, prompt = opened["session"], opened["prompt"]
    while True:
        try:
            answer = said("line", session=session, line=read(prompt))
        except EOFError:
            break
        if question := answer.get("ask"):
            answer = said("answer", session=session, yes=read(question).strip().lower() in ("y", "yes"))
        write(answer["output"])
        prompt = answer["prompt"]
    said("close", session=session)
    lines.close()


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    address, op, *rest = arguments
    try:
        if op in ("events", "listen"):
            for one in events(address) if op == "events" else reports(address):
                print(json.dumps(one), flush=True)
        elif op == "console":
            console(address, input, lambda text: print(text, end="", flush=True))
        else:
            words: dict[str, Any] = dict(word.split("=", 1) for word in rest)
            print(json.dumps(ask(address, op, **words)))
    except GuestError as error:
        print(f"vsock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
