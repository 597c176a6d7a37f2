"""In the place of pyroute2's AsyncIPRoute, for its DHCP client: the hardware address of an interface, and its changes.

The client asks for nothing else of it. The real one brings the whole of rtnetlink and what watches namespaces: 80 ms and 4 MiB
for each of the board's DHCP clients, and the time until it asks for an address.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import ModuleType

from network.kernel import DUMP, GETLINK, NEWLINK, ask
from network.kernel_events import IFLA_IFNAME, attribute, messages

IFLA_ADDRESS = 1  # linux/if_link.h
PACKAGE, MODULE = "pyroute2.iproute", "pyroute2.iproute.linux"


class Link:
    """What a message of the kernel says of an interface (struct ifinfomsg), by pyroute2's names."""

    def __init__(self, body: bytes) -> None:
        address = attribute(body, 16, IFLA_ADDRESS)
        self._index: int = struct.unpack_from("=i", body, 4)[0]
        self._values = {
            "IFLA_IFNAME": attribute(body, 16, IFLA_IFNAME).rstrip(b"\0").decode("utf-8", "replace"),
            "IFLA_ADDRESS": ":".join(f"{byte:02x}" for byte in address) or None,
        }

    def __getitem__(self, name: str) -> int:
        return {"index": self._index}[name]

    def get(self, name: str) -> str | None:
        """An attribute; None where it is missing."""
        return self._values.get(name)

    get_attr = get


class AsyncIPRoute:
    """As far as pyroute2's AsyncRawSocket uses it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> AsyncIPRoute:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket:
            self._socket.close()

    async def get_links(self) -> AsyncIterator[Link]:
        """All interfaces. OSError where the kernel does not answer."""
        return _links()

    async def bind(self, groups: int) -> None:
        """Hear the events of these groups (`man 7 netlink`)."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, 0)
        self._socket.bind((0, groups))

    async def get(self) -> AsyncIterator[Link]:
        """Interfaces that have changed; all of them where events were lost."""
        if self._socket is None:
            return
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            async for link in _links():
                yield link
            return
        for kind, body in messages(data):
            if kind == NEWLINK and len(body) >= 16:
                yield Link(body)


async def _links() -> AsyncIterator[Link]:
    for body in ask(GETLINK, bytes(16), DUMP):  # the kernel answers at once: nobody else waits for long
        yield Link(body)


@contextmanager
def in_place() -> Iterator[None]:
    """Whoever imports pyroute2's AsyncIPRoute in this block gets ours; the real one can be imported afterwards."""
    ours = {PACKAGE: ModuleType(PACKAGE), MODULE: ModuleType(MODULE)}
    vars(ours[PACKAGE])["__path__"] = []
    vars(ours[MODULE])["AsyncIPRoute"] = AsyncIPRoute
    real = {name: sys.modules.get(name) for name in ours}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, module in real.items():
            del sys.modules[name]
            if module:
                sys.modules[name] = module


__all__ = ["AsyncIPRoute", "Link", "in_place"]
