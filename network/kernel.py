"""The kernel's network, by pyroute2: events, one interface's facts, addresses and routes; and its DHCP client.

This is the only module that knows pyroute2 (`man 7 rtnetlink`). Two decisions:

- Events are read from a socket of our own: pyroute2's monitor takes ENOBUFS (events were lost: nobody read them in
  time) for the end of its socket. An event only names an interface; what is true is then asked anew. So a lost event
  costs nothing but asking for all of them, and what a fleet of other interfaces does costs no more than a look at the
  name in its messages.
- The DHCP client is asyncio, and some of its faults end one of its tasks silently. It lives in a forked child that
  ends when a task does, and that may be killed at any time; what it has to say is a line of JSON in a pipe.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.dhcp import client as dhcp_client
from pyroute2.dhcp import leases as dhcp_leases
from pyroute2.dhcp.hooks import Hook, Trigger
from pyroute2.netlink.exceptions import NetlinkError

from base.syscalls import PR_SET_PDEATHSIG, prctl
from network.links import Lease, Seen, host

# linux/rtnetlink.h, linux/if.h, linux/if_addr.h
GROUPS = (1, 5, 7, 9, 11, 20)  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, ND_USEROPT
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNDUSEROPT = 16, 17, 20, 21, 24, 25, 68
IFLA_IFNAME, RTA_OIF = 3, 4
IFF_UP = 0x1
UNUSABLE = 0x40 | 0x08 | 0x20  # IFA_F_TENTATIVE, DADFAILED, DEPRECATED
PERMANENT = 0x80
ONLINK = 0x4  # RTNH_F_ONLINK: a gateway outside the prefix, as some providers have it
PROTO_STATIC, PROTO_DHCP = 4, 16
MAIN_TABLE = 254
SO_RCVBUFFORCE = 33
ND_ROUTER_SOLICIT = bytes((133, 0, 0, 0, 0, 0, 0, 0))  # RFC 4861, 4.1; the kernel computes the checksum
ND_ROUTER_ADVERT, ND_OPT_RDNSS = 134, 25  # RFC 8106
FOREVER = 0xFFFFFFFF


class Event(NamedTuple):
    """Something about an interface has changed."""

    ifindex: int
    name: str = ""  # where the message says it
    servers: tuple[tuple[str, float], ...] = ()  # nameservers from a router, and for how many seconds


class Overrun(Exception):
    """Events were lost."""


# --- events ---------------------------------------------------------------------------------------------------------
class Monitor:
    """Events of links, addresses, routes and router advertisements."""

    def __init__(self, receive_buffer: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # root of a user namespace: as much as net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.bind((0, 0))
        for group in GROUPS:
            self._socket.setsockopt(270, 1, group)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Iterator[Event]:
        """All that has arrived. Overrun, at its end, where the kernel had to drop some: ask for everything anew.

        After ENOBUFS the kernel drops on, and does not say so again, until we have emptied the socket
        (NETLINK_S_CONGESTED in net/netlink/af_netlink.c): who asks before that misses what happens next.
        """
        overrun = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overrun = True
                continue
            yield from parse(data)
        if overrun:
            raise Overrun


def parse(data: bytes) -> Iterator[Event]:
    """The events of one datagram. Fixed offsets instead of pyroute2's decoder, which takes 0.3 ms for a link."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        body = data[offset + 16 : offset + length]
        try:
            if kind in (NEWLINK, DELLINK):
                name = attribute(body, 16, IFLA_IFNAME).rstrip(b"\0").decode("utf-8", "replace")
                yield Event(struct.unpack_from("=i", body, 4)[0], name)
            elif kind in (NEWADDR, DELADDR):
                yield Event(struct.unpack_from("=i", body, 4)[0])
            elif kind in (NEWROUTE, DELROUTE) and body[1] == 0:  # a default route: the destination has no bits
                yield Event(int.from_bytes(attribute(body, 12, RTA_OIF), sys.byteorder))
            elif kind == NEWNDUSEROPT:
                yield nameservers(body)
        except (struct.error, IndexError):
            pass  # shorter than it says: not from this kernel
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


# --- facts and changes ----------------------------------------------------------------------------------------------
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


# --- DHCP -------------------------------------------------------------------------------------------------------------
class DhcpClient:
    """pyroute2's DHCP client for one interface, in a child of its own."""

    def __init__(self, name: str, hostname: str) -> None:
        self.name = name
        self._buffer = b""
        self._gone = False
        self.reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pid = os.fork()
        if self.pid == 0:
            _child(name, hostname, writer)
        os.close(writer)

    def read(self) -> list[Lease | None] | None:
        """Leases since the last time, None among them where one was lost; None instead of a list: the child has ended."""
        try:
            data = os.read(self.reader, 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [lease_of(json.loads(line)) for line in lines]

    def end(self) -> None:
        """Kill it: it keeps nothing that needs care, and a lease that is not given back expires."""
        if not self.gone():
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)

    def gone(self) -> bool:
        """Whether it has been reaped. We never wait for it: the kernel may hold it for a while."""
        if not self._gone:  # once reaped, its number may be somebody else's
            self._gone = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self._gone


def lease_of(told: dict[str, Any]) -> Lease | None:
    """What the child wrote."""
    if not told:
        return None
    return Lease(**{**told, "nameservers": tuple(told["nameservers"])})


def _child(name: str, hostname: str, writer: int) -> None:
    """In the child: be the DHCP client until killed, or until something in it has failed."""
    status = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # not longer than network.py
        os.closerange(3, writer)  # the broker's link, for one: it must end when network.py closes it
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # By the wall clock, a lease would last or end wrongly in the moment when NTP sets a clock that started in 1970.
        dhcp_client.time = dhcp_leases._now = time.monotonic
        asyncio.run(_lease_forever(name, hostname, writer))
        status = 0
    except BaseException as error:
        os.write(2, f"<4>DHCP on {name}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


class _Lease(dhcp_leases.Lease):  # type: ignore[misc]
    """A lease that is kept in memory alone (the server knows our client id), obtained at a monotonic time."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values, obtained=time.monotonic())

    def dump(self) -> None:
        pass

    @classmethod
    def load(cls, interface: str) -> None:
        return None


async def _lease_forever(name: str, hostname: str, writer: int) -> None:
    def tell(lease: dict[str, Any]) -> None:
        os.write(writer, json.dumps(lease).encode() + b"\n")

    async def granted(lease: dhcp_leases.Lease) -> None:
        options = lease.ack["options"]
        seconds = None if lease.lease_time in (-1, FOREVER) else float(lease.lease_time)
        mask = struct.unpack("!I", socket.inet_aton(options.get("subnet_mask") or "255.255.255.0"))[0]
        routers = [router for router in options.get("router") or () if router != "0.0.0.0"]
        tell({
            "address": f"{lease.ip}/{mask.bit_count()}", "gateway": routers[0] if routers else "",
            "nameservers": list(options.get("name_server") or ()), "seconds": seconds,
            "domain": text(options.get("domain_name") or ""),
        })  # fmt: skip

    async def lost(lease: dhcp_leases.Lease) -> None:
        tell({})

    config = dhcp_client.ClientConfig(
        interface=name,
        lease_type=_Lease,
        hooks=(
            Hook(granted, {Trigger.BOUND, Trigger.RENEWED, Trigger.REBOUND}),
            Hook(lost, {Trigger.EXPIRED, Trigger.UNBOUND}),
        ),
        retransmission=functools.partial(dhcp_client.randomized_increasing_backoff, wait_first=2.0),
        release=False,
        handle_signals=False,
        vendor_id=None,
        host_name=hostname or None,
    )
    async with dhcp_client.AsyncDHCPClient(config) as client:
        await client.bootstrap()
        tasks = [task for task in (client._sender_task, client._receiver_task) if task is not None]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # neither should end: the interface went down, or a packet that it cannot read
            task.result()
        raise OSError(errno.ENETDOWN, "the interface went down")


def text(value: str | bytes) -> str:
    """A domain name that may go into a file; empty where it is none. Some servers end it with NUL."""
    name = (value.decode("ascii", "replace") if isinstance(value, bytes) else value).rstrip("\0")
    return name if name.isascii() and name.translate(dict.fromkeys(map(ord, "-_."))).isalnum() else ""


# --- access points ----------------------------------------------------------------------------------------------------
def scan(interface: str) -> list[dict[str, Any]]:
    """Access points that a scan of all channels hears (nl80211). It may never return: call it in a child.

    bssid, ssid_hex, frequency (MHz), signal (dBm), security as wifi_scan.py names it. It needs CAP_NET_ADMIN.
    """
    from pyroute2.iwutil import IW  # 2 s on a slow board, which the network does not need

    index = socket.if_nametoindex(interface)
    Kernel().raise_link(index)
    started = time.monotonic()
    with IW() as radio:
        found = [message.get_attr("NL80211_ATTR_BSS") for message in radio.scan(index)]
    took = (time.monotonic() - started) * 1000
    return [access_point(bss) for bss in found if bss.get_attr("NL80211_BSS_SEEN_MS_AGO") <= took]


def access_point(bss: Any) -> dict[str, Any]:
    """One record of what pyroute2 has parsed. Its SSIDs are bytes."""
    elements = bss.get_attr("NL80211_BSS_INFORMATION_ELEMENTS") or {}
    private = "Privacy" in bss.get_attr("NL80211_BSS_CAPABILITY")["CAPABILITIES"]
    return {
        "bssid": bss.get_attr("NL80211_BSS_BSSID"), "ssid_hex": bytes(elements.get("SSID", b"")).hex(),
        "frequency": bss.get_attr("NL80211_BSS_FREQUENCY"),
        "signal": bss.get_attr("NL80211_BSS_SIGNAL_MBM")["VALUE"] // 100, "security": _security(elements, private),
    }  # fmt: skip


# Key managements (IEEE 802.11, table 9-190); pyroute2 0.9 names those up to 9, and gives others as hexadecimal digits.
SAE = ("SAE", "FT/SAE", "00-0f-ac-18", "00-0f-ac-19")
OWE = "00-0f-ac-12"


def _security(elements: dict[str, Any], private: bool) -> str:
    """The strongest that is offered, as onboard/wpa_control.py names it by wpa_supplicant's flags."""
    if "RSN" in elements:
        suites = elements["RSN"]["auth_suites"]
        if any(suite in SAE for suite in suites):
            return "WPA3"
        return "OWE" if suites and all(suite == OWE for suite in suites) else "WPA2"
    vendors = [bytes(vendor[:4]) for vendor in elements.get("VENDOR", ())]
    if b"\x00\x50\xf2\x01" in vendors:  # Microsoft's, of 2003
        return "WPA"
    if b"\x50\x6f\x9a\x12" in vendors:  # the Wi-Fi Alliance's, for Hotspot 2.0's online sign-up
        return "OSEN"
    return "WEP" if private else "open"


if __name__ == "__main__":  # kernel.py scan INTERFACE
    print(json.dumps(scan(sys.argv[2])))
