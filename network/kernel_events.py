"""The kernel's events of links, addresses, routes and router advertisements (`man 7 rtnetlink`).

They are read from a socket of our own: pyroute2's monitor takes ENOBUFS (events were lost: nobody read them in time) for the
end of its socket. An event only names an interface; what is true is then asked anew. So a lost event costs nothing but asking
for all of them, and what a fleet of other interfaces does costs no more than a look at the name in its messages.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from network.bounds import DATAGRAMS

# linux/rtnetlink.h
GROUPS = (1, 5, 7, 9, 11, 20)  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, ND_USEROPT
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNDUSEROPT = 16, 17, 20, 21, 24, 25, 68
IFLA_IFNAME, RTA_OIF = 3, 4
SO_RCVBUFFORCE = 33
ND_ROUTER_ADVERT, ND_OPT_RDNSS = 134, 25  # RFC 8106


class Event(NamedTuple):
    """Something about an interface has changed."""

    ifindex: int
    name: str = ""  # where the message says it
    servers: tuple[tuple[str, float], ...] = ()  # nameservers from a router, and for how many seconds


class Overrun(Exception):
    """Events were lost."""


class Monitor:
    """Events of links, addresses, routes and router advertisements."""

    def __init__(self, receive_buffer: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # root of a user namespace: as much as net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._overrun = False
        self._socket.bind((0, 0))
        for group in GROUPS:
            self._socket.setsockopt(270, 1, group)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Iterator[Event]:
        """What has arrived, at most DATAGRAMS. Overrun, at the end of all, where some were lost: ask for everything anew.

        After ENOBUFS the kernel drops on, and does not say so again, until we have emptied the socket
        (NETLINK_S_CONGESTED in net/netlink/af_netlink.c): who asks before that misses what happens next.
        """
        for _ in range(DATAGRAMS):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True
                continue
            yield from parse(data)
        else:
            return  # the rest in the next turn
        if self._overrun:
            self._overrun = False
            raise Overrun


def parse(data: bytes) -> Iterator[Event]:
    """The events of one datagram. Fixed offsets instead of pyroute2's decoder, which takes 0.3 ms for a link."""
    for kind, body in messages(data):
        with contextlib.suppress(struct.error, IndexError):  # shorter than it says: not from this kernel
            if kind in (NEWLINK, DELLINK):
                name = attribute(body, 16, IFLA_IFNAME).rstrip(b"\0").decode("utf-8", "replace")
                yield Event(struct.unpack_from("=i", body, 4)[0], name)
            elif kind in (NEWADDR, DELADDR):
                yield Event(struct.unpack_from("=i", body, 4)[0])
            elif kind in (NEWROUTE, DELROUTE) and body[1] == 0:  # a default route: the destination has no bits
                yield Event(int.from_bytes(attribute(body, 12, RTA_OIF), sys.byteorder))
            elif kind == NEWNDUSEROPT:
                yield nameservers(body)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each netlink message in a datagram (struct nlmsghdr)."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attribute(body: bytes, offset: int, wanted: int) -> bytes:
    """The value of a netlink attribute; empty where it is missing."""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        if kind & 0x3FFF == wanted:
            return body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return b""


def nameservers(body: bytes) -> Event:
    """The RDNSS options that the kernel passes on (struct nduseroptmsg; RFC 8106, 5.1)."""
    size, ifindex, kind = struct.unpack_from("=xxHiB", body)
    servers: list[tuple[str, float]] = []
    options = body[16 : 16 + size]
    while len(options) >= 8 and options[1]:
        option, options = options[: options[1] * 8], options[options[1] * 8 :]
        if kind == ND_ROUTER_ADVERT and option[0] == ND_OPT_RDNSS:
            seconds = float(int.from_bytes(option[4:8], "big"))
            addresses = (option[at : at + 16] for at in range(8, len(option) - 15, 16))
            servers += [(socket.inet_ntop(socket.AF_INET6, address), seconds) for address in addresses]
    return Event(ifindex, "", tuple(servers))
