"""What an app may ask of wpa_supplicant: to scan, and what it has heard.

Whoever can write to wpa_supplicant's control socket can join any network, make an access point, and have the passphrases
written to a file. So that socket is root's and this service's, which has a socket of its own for wifi_scan.py: the same
protocol (hostap's doc/ctrl_iface.doxygen), of which it passes on what only looks and scans. It is not root either.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import sys

ALLOWED = re.compile(rb"PING|ATTACH|DETACH|SCAN|STATUS|BSS [\w=:. -]{1,80}")
REFUSED = b"FAIL\n"
LARGEST = 65536  # bytes of a message
CLIENTS = 8  # more, and the oldest one is forgotten


class Proxy:
    """A listening socket, and for each client a connection to wpa_supplicant, whose answers and events go back to it."""

    def __init__(self, interface: str, control: str, folder: str) -> None:
        self.target = f"{control}/{interface}"
        self.folder = folder
        for name in os.listdir(folder):  # left by an earlier run
            os.unlink(f"{folder}/{name}")
        self.listener = bound(f"{folder}/{interface}")
        self.clients: dict[str, socket.socket] = {}  # by the address where the answers go

    def turn(self, seconds: float | None = None) -> None:
        """Wait for a message, and pass on what has come."""
        readable, _, _ = select.select([self.listener, *self.clients.values()], [], [], seconds)
        for client, upstream in list(self.clients.items()):
            if upstream in readable:
                self.answered(client, upstream)
        if self.listener in readable:
            with contextlib.suppress(BlockingIOError):
                self.asked(*self.listener.recvfrom(LARGEST))

    def asked(self, command: bytes, client: str | bytes | None) -> None:
        """One command of a client; one whose socket has no name in the file system gets no answer from anybody."""
        if not isinstance(client, str) or not client.startswith("/"):
            return
        if not ALLOWED.fullmatch(command):
            self.reply(client, REFUSED)
            return
        try:
            if client not in self.clients:
                self.clients[client] = self.connect()
            self.clients[client].send(command)
        except OSError as error:  # wpa_supplicant is away, or its successor has another socket
            self.forget(client)
            print(f"<7>{self.target}: {error.strerror}", file=sys.stderr)

    def connect(self) -> socket.socket:
        while len(self.clients) >= CLIENTS:
            self.forget(next(iter(self.clients)))
        used = {one.getsockname() for one in self.clients.values()}
        name = next(name for number in range(CLIENTS + 1) if (name := f"{self.folder}/.{number}") not in used)
        upstream = bound(name)
        try:
            upstream.connect(self.target)
        except OSError:
            upstream.close()
            raise
        return upstream

    def answered(self, client: str, upstream: socket.socket) -> None:
        """An answer, or an event."""
        try:
            message = upstream.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self.forget(client)
            return
        self.reply(client, message)
        if b"CTRL-EVENT-TERMINATING" in message:
            self.forget(client)

    def reply(self, client: str, message: bytes) -> None:
        try:
            self.listener.sendto(message, client)
        except OSError:  # it has gone, or does not read: it asks again
            self.forget(client)

    def forget(self, client: str) -> None:
        if upstream := self.clients.pop(client, None):
            name = upstream.getsockname()
            upstream.close()
            with contextlib.suppress(OSError):
                os.unlink(name)


def bound(path: str) -> socket.socket:
    """A datagram socket of this name, to which everybody may write who may enter its folder."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    one.bind(path)
    os.chmod(path, 0o666)
    return one


def main(arguments: list[str]) -> None:
    """`scan_proxy.py INTERFACE CONTROL_FOLDER FOLDER`: wpa_supplicant's control sockets, and where ours is."""
    proxy = Proxy(*arguments)
    while True:
        proxy.turn()


if __name__ == "__main__":
    main(sys.argv[1:])
