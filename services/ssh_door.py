"""The door of ssh: it accepts connections and runs `dropbear -i` for each, so that strangers cannot lock the owner out.

dropbear by itself takes 30 connections that have not logged in, 5 of an address, and waits 300 s for each: eight addresses
that stay silent lock the owner out. Here a new connection is always accepted. If too many have no session (a
shell, a command), one is closed: the oldest of the address that has the most.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time

STRANGERS = 32  # connections without a session: each is a process of about 1 MiB
BUSY = 0.2  # seconds until the next try where the kernel has no descriptor or process left


class Connection:
    """One client's dropbear."""

    def __init__(self, link: socket.socket, address: str, argv: list[str]) -> None:
        self.address = address
        self.network = network(address)
        self.since = time.monotonic()
        self.child = subprocess.Popen(argv, stdin=link.fileno(), stdout=link.fileno())
        self.ends = os.pidfd_open(self.child.pid)  # becomes readable when the child has ended


def network(address: str) -> str:
    """The /24 or /64 that an address is of: one attacker may own all of its addresses."""
    if ":" not in address:
        return address.rpartition(".")[0]
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8].hex()


def unwelcome(strangers: list[Connection]) -> Connection:
    """The connection to close: of the address with the most, then of the network with the most, the oldest one."""
    addresses = [one.address for one in strangers]
    networks = [one.network for one in strangers]
    return max(strangers, key=lambda one: (addresses.count(one.address), networks.count(one.network), -one.since))


def parents() -> set[int]:
    """Every process that has a child (`man 5 proc`, the fourth field of stat)."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    found.add(int(file.read().rpartition(b")")[2].split()[1]))
            except OSError:  # it has just ended
                continue
    return found


def listeners(port: int) -> list[socket.socket]:
    """Listening sockets for IPv6 and IPv4, where the kernel has them; OSError where it has neither."""
    found = []
    why = OSError(f"no address for port {port}")
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            found.append(socket.create_server((address, port), family=family, backlog=128))
            found[-1].setblocking(False)
        except OSError as error:
            why = error
    if not found:
        raise why
    return found


class Door:
    """The listeners and all connections; closes connections above STRANGERS."""

    def __init__(self, doors: list[socket.socket], argv: list[str]) -> None:
        self.argv = argv
        self.connections: list[Connection] = []
        self.selector = selectors.DefaultSelector()
        for door in doors:
            self.selector.register(door, selectors.EVENT_READ)

    def turn(self) -> None:
        """Wait until a client connects or a dropbear ends."""
        for key, _ in self.selector.select():
            if isinstance(key.fileobj, socket.socket):
                self._accept(key.fileobj)
            else:
                self._forget(key.data)
        if len(self.connections) > STRANGERS:
            busy = parents()
            strangers = [one for one in self.connections if one.child.pid not in busy]
            while len(strangers) > STRANGERS:
                one = unwelcome(strangers)
                strangers.remove(one)
                one.child.kill()
                self._forget(one)

    def _forget(self, one: Connection) -> None:
        self.selector.unregister(one.ends)
        os.close(one.ends)
        one.child.wait()
        self.connections.remove(one)

    def _accept(self, door: socket.socket) -> None:
        try:
            link, address = door.accept()
        except BlockingIOError:  # the client has closed it already
            return
        except OSError as error:
            self._not_served(error)
            return
        with link:
            link.setblocking(True)
            try:
                one = Connection(link, address[0], self.argv)
            except OSError as error:
                self._not_served(error)
                return
        self.connections.append(one)
        self.selector.register(one.ends, selectors.EVENT_READ, one)

    def _not_served(self, error: OSError) -> None:
        print(f"ssh: a connection is not served: {error}", flush=True)
        time.sleep(BUSY)


def main(arguments: list[str]) -> None:
    """`ssh_door PORT dropbear -i ...`"""
    port, *argv = arguments
    door = Door(listeners(int(port)), argv)
    while True:
        door.turn()
