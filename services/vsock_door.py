"""The host's way in: the control protocol and PID 1's events over AF_VSOCK (`man 7 vsock`), for the CIDs that VSOCK names.

A connection carries lines of JSON. A request of the control socket, {"op": "stats"}, is passed on to PID 1 as root's, and its
reply comes back as a line; {"op": "events", "since": 0} is answered here, and then each event of the board is a line, as PID 1
writes it (onboard/events.py), and the main program's exit of a microVM. Firecracker carries streams alone, so each line is
what a message is on the Unix socket. It runs in a copy of PID 1, which itself knows nothing of AF_VSOCK.
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.files import read_file
from base.stdlib import TYPE_CHECKING, json, signal, socket
from base.syscalls import IN_CREATE, IN_MODIFY, IN_MOVED_TO, inotify_add_watch, inotify_init
from onboard import events
from onboard.to_pid1 import LONGEST_REPLY, SOCKET

if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_REQUEST = 64 * 1024  # bytes of a line, as pid1/control.py has it
MAX_UNSENT = 2 * LONGEST_REPLY  # bytes that wait for a client that does not read; more, and it is dropped
MAX_LINKS = 16
PATIENCE = 10.0  # seconds for a client that says nothing, or for PID 1's reply
LAST = 0.5  # seconds at the machine's end for what has not been sent yet
CONSOLE = "console"  # its requests have no time limit of ours, and its people think for longer than PATIENCE
EXIT = "/run/microvm/exit.json"  # services/workload.py writes it
VMADDR_CID_ANY = 0xFFFFFFFF
READ, WRITE = select.POLLIN, select.POLLOUT


class Dropped(Exception):
    """This connection ends, and why."""


class Link:
    """One connection of the host, and its way to PID 1."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.stream = stream
        self.heard = b""
        self.unsent = b""
        self.pid1: socket.socket | None = None
        self.waits = False  # for PID 1's reply
        self.console = False  # somebody types at PID 1's console
        self.since = time.monotonic()
        self.seen: int | None = None  # the number of the last event that it got; None: it has not asked for any
        self.told_exit = False

    # --- from the host --------------------------------------------------------------------------------------------------
    def read(self) -> None:
        """Take what has come, and pass on the first whole line where no reply is due."""
        block = self.stream.recv(65536)
        if not block:
            raise Dropped("closed")
        self.heard += block
        if len(self.heard) > MAX_REQUEST:
            self.heard = b""
            self.send({"error": f"the request is longer than {MAX_REQUEST} bytes"})
            raise Dropped("too long")
        self.next_line()

    def next_line(self) -> None:
        """A blank line while the console runs a line is Ctrl-C: PID 1 takes anything for it that comes meanwhile."""
        while self.waits and self.console and self.pid1 and self.heard.startswith(b"\n"):
            self.heard = self.heard[1:]
            self.pid1.send(b"\n")
        while not self.waits and b"\n" in self.heard:
            line, _, self.heard = self.heard.partition(b"\n")
            self.since = time.monotonic()
            if line.strip():
                self.request(line)

    def request(self, line: bytes) -> None:
        """One line: ours, or PID 1's."""
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            return self.send({"error": f"the request is not JSON: {error}"})
        op = given.get("op") if isinstance(given, dict) else None
        if op == "events":
            since = given.get("since", 0)
            if not isinstance(since, int):
                return self.send({"error": "since is the number of the last event that you have, or 0"})
            self.seen = max(0, since)
            return self.send({"ok": "events follow"})
        self.console = self.console or op == CONSOLE
        try:
            self.pid1 = to_pid1()
            self.pid1.send(line)
        except OSError as error:
            self.hang_up()
            return self.send({"error": f"PID 1 cannot be asked: {error.strerror}"})
        self.waits = True
        return None

    # --- to the host ----------------------------------------------------------------------------------------------------
    def send(self, answer: dict[str, Any]) -> None:
        self.put(json.dumps(answer).encode())

    def put(self, line: bytes) -> None:
        self.unsent += line + b"\n"
        if len(self.unsent) > MAX_UNSENT:
            raise Dropped("does not read what it asked for")
        self.flush()

    def flush(self) -> None:
        while self.unsent:
            try:
                self.unsent = self.unsent[self.stream.send(self.unsent) :]
            except BlockingIOError:
                return

    def reply(self) -> None:
        """PID 1 has said something, or has closed the connection."""
        if self.pid1 is None:
            return
        message = self.pid1.recv(4 * LONGEST_REPLY)
        self.hang_up()
        if message:
            self.put(message.replace(b"\n", b" "))
        else:
            self.send({"error": "PID 1 closed the connection without an answer"})
        self.since = time.monotonic()
        self.next_line()

    def hang_up(self) -> None:
        if self.pid1:
            self.pid1.close()
        self.pid1, self.waits = None, False

    def news(self) -> None:
        """Send the events that it has not got yet."""
        if self.seen is None:
            return
        for event in events.since(self.seen):
            self.seen = event["seq"]
            self.send(event)
        if not self.told_exit and (text := read_file(EXIT)):
            self.told_exit = True
            self.put(text.encode())

    def late(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        return self.seen is None and not self.console and now - self.since > PATIENCE

    def close(self) -> None:
        self.hang_up()
        self.stream.close()


def to_pid1(path: str = "") -> socket.socket:
    """A connection to the control socket."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
    try:
        one.settimeout(PATIENCE)
        one.connect(path or os.environ.get("STACK_CONTROL", SOCKET))
    except OSError:
        one.close()
        raise
    return one


class Door:
    """The listener and all connections."""

    def __init__(self, listener: socket.socket, peers: set[int]) -> None:
        listener.setblocking(False)
        self.listener = listener
        self.peers = peers
        self.links: list[Link] = []
        self.changes = inotify_init()
        for path in (events.FILE, EXIT):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            inotify_add_watch(self.changes, os.path.dirname(path), IN_MODIFY | IN_CREATE | IN_MOVED_TO)

    def turn(self) -> None:
        """Wait until somebody says something or something happens, and do all of it."""
        poll, timeout = self._waits()
        for fd, _ in poll.poll(timeout):
            if fd == self.listener.fileno():
                self._accept()
            elif fd == self.changes:
                os.read(self.changes, 65536)
            for link in list(self.links):
                if fd == link.stream.fileno():
                    self._try(link, self._speak)
                elif link.pid1 and fd == link.pid1.fileno():
                    self._try(link, Link.reply)
        now = time.monotonic()
        for link in list(self.links):
            self._try(link, Link.news)
            if link.late(now):
                self._drop(link)

    def _speak(self, link: Link) -> None:
        link.flush()
        try:
            link.read()
        except BlockingIOError:
            pass

    def _waits(self) -> tuple[select.poll, float | None]:
        """Whom to wait for, and milliseconds until somebody has been silent for too long."""
        poll = select.poll()
        poll.register(self.listener.fileno(), READ)
        poll.register(self.changes, READ)
        for link in self.links:
            poll.register(link.stream.fileno(), READ | (WRITE if link.unsent else 0))
            if link.pid1:
                poll.register(link.pid1.fileno(), READ)
        return poll, PATIENCE * 1000 if any(link.seen is None for link in self.links) else None

    def _accept(self) -> None:
        try:
            fd, address = self.listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0, fileno=fd)
        if address[0] not in self.peers:
            print(f"<4>vsock: CID {address[0]} is not one of {sorted(self.peers)}; refused", flush=True)
            stream.close()
            return
        self.admit(stream)

    def admit(self, stream: socket.socket) -> None:
        """A new connection. There is always room for one: the longest silent one goes."""
        self.links.append(Link(stream))
        if len(self.links) > MAX_LINKS:
            self._drop(min(self.links, key=lambda link: (link.seen is not None or link.console, link.since)))

    def _try(self, link: Link, step: Any) -> None:
        """One connection's trouble is its own."""
        try:
            step(link)
        except (Dropped, OSError):
            self._drop(link)

    def _drop(self, link: Link) -> None:
        if link in self.links:
            self.links.remove(link)
            link.close()

    def last_words(self) -> None:
        """Send what has happened until now; the machine ends."""
        for link in list(self.links):
            self._try(link, Link.news)
        deadline = time.monotonic() + LAST
        while any(link.unsent for link in self.links) and time.monotonic() < deadline:
            time.sleep(0.01)
            for link in list(self.links):
                self._try(link, Link.flush)
        for link in list(self.links):
            self._drop(link)


def listen(port: int) -> socket.socket:
    """OSError where this kernel has no AF_VSOCK, or no transport of it yet."""
    one = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    one.bind((VMADDR_CID_ANY, port))
    one.listen(MAX_LINKS)
    return one


def main(arguments: list[str]) -> None:
    """`vsock_door PORT CID...`"""

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        listener = listen(int(arguments[0]))
    except OSError as error:
        print(f"<3>vsock: this kernel does not listen on AF_VSOCK: {error.strerror}", flush=True)
        sys.exit(1)
    door = Door(listener, set(map(int, arguments[1:])))
    try:
        while True:
            door.turn()
    finally:
        door.last_words()
