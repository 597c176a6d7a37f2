"""The kernel's network, by pyroute2: one interface's facts, its addresses and routes (`man 7 rtnetlink`)."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from network.actions import Seen, host

# linux/rtnetlink.h, linux/if.h, linux/if_addr.h
IFF_UP = 0x1
UNUSABLE = 0x40 | 0x08 | 0x20  # IFA_F_TENTATIVE, DADFAILED, DEPRECATED
PERMANENT = 0x80
ONLINK = 0x4  # RTNH_F_ONLINK: a gateway outside the prefix, as some providers have it
PROTO_STATIC, PROTO_DHCP = 4, 16
MAIN_TABLE = 254
ND_ROUTER_SOLICIT = bytes((133, 0, 0, 0, 0, 0, 0, 0))  # RFC 4861, 4.1; the kernel computes the checksum
FOREVER = 0xFFFFFFFF


class Kernel:
    """Questions and changes, each answered at once. OSError where the kernel refuses."""

    def look(self, name: str) -> Seen | None:
        """An interface, its global addresses and its default routes; None where there is none of this name."""
        with IPRoute(strict_check=True) as route:
            try:
                link = route.link("get", ifname=name)[0]
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise OSError(error.code, os.strerror(error.code)) from None
            ifindex = link["index"]
            addresses, dynamic = [], []
            for one in route.addr("dump", index=ifindex):
                flags = one.get_attr("IFA_FLAGS") or one["flags"]
                if one["scope"] == 0 and not flags & UNUSABLE:
                    text = f"{one.get_attr('IFA_LOCAL') or one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}"
                    addresses.append(text)
                    if one["family"] == socket.AF_INET and not flags & PERMANENT:
                        dynamic.append(text)
            routes = []
            for family in (socket.AF_INET, socket.AF_INET6):
                for one in route.route("dump", oif=ifindex, family=family, table=MAIN_TABLE):
                    if one["dst_len"] == 0 and one["type"] == 1:  # RTN_UNICAST
                        routes.append((one.get_attr("RTA_GATEWAY") or "", int(one.get_attr("RTA_PRIORITY") or 0)))
        carrier = link.get_attr("IFLA_OPERSTATE") == "UP" or (
            link.get_attr("IFLA_OPERSTATE") == "UNKNOWN" and bool(link.get_attr("IFLA_CARRIER"))
        )  # UNKNOWN: a driver that does not know the idea, such as a tunnel's
        return Seen(ifindex, bool(link["flags"] & IFF_UP), carrier, tuple(addresses), tuple(routes), tuple(dynamic))

    def _change(self, what: str, command: str, **values: Any) -> None:
        with IPRoute() as route:
            try:
                getattr(route, what)(command, **values)
            except NetlinkError as error:
                raise OSError(error.code, os.strerror(error.code)) from None

    def raise_link(self, ifindex: int) -> None:
        """`ip link set up`."""
        self._change("link", "set", index=ifindex, state="up")

    def add_address(self, ifindex: int, address: str, seconds: float | None) -> None:
        """Add it or change its life; after so many seconds the kernel takes it away."""
        life = FOREVER if seconds is None else max(1, min(int(seconds), FOREVER - 1))
        values: dict[str, Any] = {"address": host(address), "prefixlen": int(address.partition("/")[2])}
        self._change("addr", "replace", index=ifindex, **values, IFA_CACHEINFO={"ifa_preferred": life, "ifa_valid": life})

    def remove_address(self, ifindex: int, address: str) -> None:
        """OSError where it has gone already."""
        self._change("addr", "del", index=ifindex, address=host(address), prefixlen=int(address.partition("/")[2]))

    def add_route(self, ifindex: int, gateway: str, metric: int, source: str) -> None:
        """The default route of this metric."""
        values: dict[str, Any] = {"prefsrc": source} if source and ":" not in source else {}
        values |= {"flags": ONLINK} if ":" not in gateway else {}
        self._change(
            "route", "replace", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway, oif=ifindex,
            priority=metric, proto=PROTO_DHCP if source else PROTO_STATIC, **values,
        )  # fmt: skip

    def remove_route(self, ifindex: int, gateway: str, metric: int) -> None:
        """OSError where it has gone already."""
        destination = "::/0" if ":" in gateway else "0.0.0.0/0"
        self._change("route", "del", dst=destination, gateway=gateway, oif=ifindex, priority=metric)


def solicit(name: str) -> None:
    """Send a router solicitation to all routers of a link."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # or the routers ignore it
        sender.sendto(ND_ROUTER_SOLICIT, ("ff02::2", 0, 0, socket.if_nametoindex(name)))
