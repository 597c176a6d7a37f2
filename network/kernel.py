"""The kernel's network (`man 7 rtnetlink`): what an interface is like, and the changes to it, each in one message.

With pyroute2's IPRoute the changes were as short to write; its import took network.py 90 ms and 7 MiB, more than all the rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from network.actions import Seen, host
from network.bounds import ADDRESSES, ROUTES
from network.kernel_events import IFLA_IFNAME, RTA_OIF, attribute, messages

# linux/netlink.h, linux/rtnetlink.h, linux/if.h, linux/if_addr.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NEWLINK, GETLINK, NEWADDR, DELADDR, GETADDR, NEWROUTE, DELROUTE, GETROUTE = 16, 18, 20, 21, 22, 24, 25, 26
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE = 0x100 | 0x400  # NLM_F_REPLACE | NLM_F_CREATE
GET_STRICT_CHK = 12
IFLA_OPERSTATE, IFLA_CARRIER = 16, 33
OPER_UNKNOWN, OPER_UP = 0, 6
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 6, 8
RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 5, 6, 7
RTN_UNICAST = 1
IFF_UP = 0x1
UNUSABLE = 0x40 | 0x08 | 0x20  # IFA_F_TENTATIVE, DADFAILED, DEPRECATED
PERMANENT = 0x80
ONLINK = 0x4  # RTNH_F_ONLINK: a gateway outside the prefix, as some providers have it
PROTO_KERNEL, PROTO_STATIC, PROTO_DHCP, PROTO_RA = 2, 4, 16, 9
MAIN_TABLE = 254
ANSWER_TIMEOUT = 5.0  # s for a part of an answer
ND_ROUTER_SOLICIT = bytes((133, 0, 0, 0, 0, 0, 0, 0))  # RFC 4861, 4.1; the kernel computes the checksum
PROC = "/proc/sys/net"
FOREVER = 0xFFFFFFFF


def ask(kind: int, header: bytes, flags: int = 0) -> Iterator[bytes]:
    """The bodies of the kernel's answers to one question, as they come: nothing gathers, however many there are.

    Fixed offsets instead of pyroute2's decoder, which takes 0.3 ms and some kilobytes for each of them.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as wire:
        wire.settimeout(ANSWER_TIMEOUT)
        with contextlib.suppress(OSError):  # older than 4.20: it does not filter, and we do
            wire.setsockopt(270, GET_STRICT_CHK, 1)  # SOL_NETLINK
        wire.bind((0, 0))
        wire.send(struct.pack("=IHHII", 16 + len(header), kind, REQUEST | flags, 1, 0) + header)
        while True:
            for answer, body in messages(wire.recv(65536)):
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code == 0:  # what ACK has asked for: it is done
                        return
                    raise OSError(code, os.strerror(code))
                yield body
            if not flags & DUMP:
                return


def option(kind: int, value: bytes) -> bytes:
    """An attribute of a question (struct rtattr)."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class Kernel:
    """Questions and changes, each answered at once. OSError where the kernel refuses."""

    def look(self, name: str) -> Seen | None:
        """An interface, its global addresses and its default routes; None where there is none of this name.

        Of addresses and routes the first ones, as bounds.py has it; how many routes came by advertisements is counted.
        """
        named = option(IFLA_IFNAME, name.encode() + b"\0")
        try:
            link = next(ask(GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + named))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        ifindex, flags = struct.unpack_from("=iI", link, 4)
        state, works = attribute(link, 16, IFLA_OPERSTATE), attribute(link, 16, IFLA_CARRIER)
        # UNKNOWN: a driver that does not know the idea, such as a tunnel's
        carrier = state == bytes([OPER_UP]) or (state == bytes([OPER_UNKNOWN]) and works == b"\1")
        addresses, dynamic = self._addresses(ifindex)
        (routes, _), (routes6, crowd) = (self._routes(ifindex, family) for family in (socket.AF_INET, socket.AF_INET6))
        return Seen(ifindex, bool(flags & IFF_UP), carrier, tuple(addresses), (*routes, *routes6), tuple(dynamic), crowd)

    def _addresses(self, ifindex: int) -> tuple[list[str], list[str]]:
        """Those that may be used; and those of IPv4 that expire."""
        addresses: list[str] = []
        dynamic: list[str] = []
        for body in ask(GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, ifindex), DUMP):
            family, length, few, scope, index = struct.unpack_from("=BBBBi", body)
            more = attribute(body, 8, IFA_FLAGS)
            flags = int.from_bytes(more, sys.byteorder) if more else few
            data = attribute(body, 8, IFA_LOCAL) or attribute(body, 8, IFA_ADDRESS)
            if index != ifindex or scope or flags & UNUSABLE or len(data) not in (4, 16) or len(addresses) == ADDRESSES:
                continue
            addresses.append(f"{socket.inet_ntop(family, data)}/{length}")
            if family == socket.AF_INET and not flags & PERMANENT:
                dynamic.append(addresses[-1])
        return addresses, dynamic

    def _routes(self, ifindex: int, family: int) -> tuple[list[tuple[str, int]], int]:
        """Default routes (gateway, metric); and how many routes the kernel has made from advertisements."""
        routes: list[tuple[str, int]] = []
        crowd = 0
        oif = struct.pack("=i", ifindex)
        wanted = struct.pack("=BBBBBBBBI", family, 0, 0, 0, MAIN_TABLE, 0, 0, 0, 0) + option(
            RTA_OIF, struct.pack("=i", ifindex)
        )
        for body in ask(GETROUTE, wanted, DUMP):
            _, length, _, _, table, protocol, _, kind = struct.unpack_from("=BBBBBBBB", body)
            if table != MAIN_TABLE or attribute(body, 12, RTA_OIF) != oif:
                continue
            crowd += protocol in (PROTO_KERNEL, PROTO_RA)
            if length == 0 and kind == RTN_UNICAST and len(routes) < ROUTES:
                gateway, metric = attribute(body, 12, RTA_GATEWAY), attribute(body, 12, RTA_PRIORITY)
                routes.append((socket.inet_ntop(family, gateway) if gateway else "", int.from_bytes(metric, sys.byteorder)))
        return routes, crowd

    def configure(self, name: str, advertised: bool, metric: int, complain: Callable[[str], object]) -> None:
        """The kernel's switches of an interface (Documentation/networking/ip-sysctl.rst)."""
        for switch, value in (
            ("ipv6/conf/{}/accept_ra", 2 if advertised else 0),  # 2: even where the board forwards
            ("ipv6/conf/{}/ra_defrtr_metric", metric),
            ("ipv4/conf/{}/ignore_routes_with_linkdown", 1),  # the next interface takes over without waiting for us
            ("ipv6/conf/{}/ignore_routes_with_linkdown", 1),
        ):
            self._switch(name, switch, value, complain)

    def forget_routers(self, name: str, complain: Callable[[str], object]) -> None:
        """Take no more advertisements, and drop all addresses and routes that came by them: IPv6 is restarted there."""
        for switch, value in (("accept_ra", 0), ("disable_ipv6", 1), ("disable_ipv6", 0)):
            self._switch(name, f"ipv6/conf/{{}}/{switch}", value, complain)

    def _switch(self, name: str, switch: str, value: int, complain: Callable[[str], object]) -> None:
        try:
            with open(f"{PROC}/{switch.format(name)}", "w", encoding="ascii") as file:
                file.write(str(value))
        except OSError as error:  # a kernel without IPv6, or older than 5.12
            complain(f"{name}: {switch.format(name)} = {value}: {error.strerror}")

    def raise_link(self, ifindex: int) -> None:
        """`ip link set up`. OSError where the kernel refuses, as with all that follow."""
        change(NEWLINK, struct.pack("=BxHiII", 0, 0, ifindex, IFF_UP, IFF_UP))

    def add_address(self, ifindex: int, address: str, seconds: float | None) -> None:
        """Add an address or change its lifetime, in seconds; then the kernel removes it."""
        life = FOREVER if seconds is None else max(1, min(int(seconds), FOREVER - 1))
        change(NEWADDR, _address(ifindex, address) + option(IFA_CACHEINFO, struct.pack("=IIII", life, life, 0, 0)), REPLACE)

    def remove_address(self, ifindex: int, address: str) -> None:
        """OSError where it has gone already."""
        change(DELADDR, _address(ifindex, address))

    def add_route(self, ifindex: int, gateway: str, metric: int, source: str) -> None:
        """The default route of this metric; `source` is the address that DHCP gave with it."""
        protocol = PROTO_DHCP if source else PROTO_STATIC
        flags = 0 if ":" in gateway else ONLINK
        preferred = option(RTA_PREFSRC, _packed(source)) if source and ":" not in source else b""
        change(NEWROUTE, _route(ifindex, gateway, metric, protocol, RTN_UNICAST, flags) + preferred, REPLACE)

    def remove_route(self, ifindex: int, gateway: str, metric: int) -> None:
        """OSError where it has gone already."""
        change(DELROUTE, _route(ifindex, gateway, metric, 0, 0, 0))


def change(kind: int, body: bytes, flags: int = 0) -> None:
    """One change, when the kernel has made it."""
    for _ in ask(kind, body, ACK | flags):
        pass


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _address(ifindex: int, address: str) -> bytes:
    """struct ifaddrmsg and the address; in IPv4 it is the local one, and that of the other end."""
    data = _packed(host(address))
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    header = struct.pack("=BBBBi", family, int(address.partition("/")[2]), 0, 0, ifindex)
    return header + option(IFA_ADDRESS, data) + (option(IFA_LOCAL, data) if family == socket.AF_INET else b"")


def _route(ifindex: int, gateway: str, metric: int, protocol: int, kind: int, flags: int) -> bytes:
    """struct rtmsg of a default route, and what it is known by."""
    data = _packed(gateway)
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    header = struct.pack("=BBBBBBBBI", family, 0, 0, 0, MAIN_TABLE, protocol, 0, kind, flags)
    known = option(RTA_GATEWAY, data) + option(RTA_OIF, struct.pack("=i", ifindex))
    return header + known + option(RTA_PRIORITY, struct.pack("=I", metric))


def solicit(name: str) -> None:
    """Send a router solicitation to all routers of a link."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # or the routers ignore it
        sender.sendto(ND_ROUTER_SOLICIT, ("ff02::2", 0, 0, socket.if_nametoindex(name)))
