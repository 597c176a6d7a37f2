"""How much of what a neighbour sends is kept, and which of it is valid. Pure.

Whoever shares the wire may speak as a router or a DHCP server. What is here is checked before it reaches the state machine:
what cannot be is dropped, what is too much is dropped, and both are counted (`dropped` in the state file).
"""

from __future__ import annotations

import math
import socket
import struct
from typing import Any

from network.actions import Lease

SERVERS = 8  # nameservers of one interface from one source; a resolver reads three
ADDRESSES = 32  # of one interface; the kernel itself makes at most 16 from advertisements (max_addresses in ip-sysctl.rst)
ROUTES = 16  # default routes of one interface and family
CROWD = 256  # routes by advertisements of one interface: more is a flood, and the kernel has no limit of its own
DOMAIN = 253  # characters (RFC 1035, 2.3.4)
LINE = 4096  # bytes of a line from the DHCP client; a packet has 1,500
SSID = 32  # bytes (IEEE 802.11, 9.4.2.2)
COMPLAINTS = 100  # sentences that are remembered so that they are logged once
DATAGRAMS = 500  # of the kernel's events that are read at once; then our deadlines get their turn
MASKS = range(8, 33)  # bits: a lease for a larger network than a /8 is not believed
SHORTEST_LEASE = 5.0  # seconds; shorter ones keep the client busy with renewing
LONGEST_LEASE = 10 * 365 * 86400.0  # seconds


def usable(address: str) -> bool:
    """Whether a host may have this address: IPv4 or IPv6, and not unspecified, loopback, multicast or reserved."""
    try:
        if ":" in address:
            data = socket.inet_pton(socket.AF_INET6, address)
            return data[0] != 0xFF and data[:15] != bytes(15) and data[:12] != bytes(10) + b"\xff\xff"
        data = socket.inet_pton(socket.AF_INET, address)
        return data[0] not in (0, 127) and data[0] < 224
    except (OSError, ValueError):
        return False


def prefix_length(mask: str) -> int:
    """The bits of a subnet mask; ValueError where it has holes or is out of MASKS."""
    try:
        number = struct.unpack("!I", socket.inet_pton(socket.AF_INET, mask))[0]
    except (OSError, TypeError, ValueError):
        raise ValueError("its subnet mask is none") from None
    length: int = number.bit_count()
    if number != 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF:
        raise ValueError(f"its subnet mask {mask} has holes")
    if length not in MASKS:
        raise ValueError(f"its subnet mask {mask} would take {length} bits: at least {MASKS[0]} are wanted")
    return length


def lease_of(told: Any) -> Lease | None:
    """What the DHCP client's child wrote: a lease, or None for one that was lost. ValueError where it cannot be."""
    if told == {}:
        return None
    try:
        address, length, seconds = str(told["address"]), prefix_length(told["mask"]), told["seconds"]
        routers, servers, domain = list(told["routers"]), list(told["nameservers"]), told["domain"]
    except (TypeError, KeyError):
        raise ValueError("a field of it is missing") from None
    if ":" in address or not usable(address):
        raise ValueError(f"its address {address[:40]!r} is none for a host")
    host = struct.unpack("!I", socket.inet_pton(socket.AF_INET, address))[0] & (0xFFFFFFFF >> length)
    if length <= 30 and host in (0, 0xFFFFFFFF >> length):
        raise ValueError(f"its address {address}/{length} is that of the network itself, or of everybody in it")
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= SHORTEST_LEASE and math.isfinite(seconds)):
        raise ValueError(f"it would last {str(seconds)[:40]} s: at least {SHORTEST_LEASE:g} are wanted")
    gateway = next((one for one in routers[:SERVERS] if _is_v4(one) and one != address), "")
    return Lease(
        f"{address}/{length}", gateway, tuple(one for one in servers if _is_v4(one))[:SERVERS], domain_name(domain),
        None if seconds is None else min(float(seconds), LONGEST_LEASE),
    )  # fmt: skip


def _is_v4(address: Any) -> bool:
    return isinstance(address, str) and ":" not in address and usable(address)


def domain_name(value: Any) -> str:
    """A domain name that may go into a file; empty where it is none. Some servers end it with NUL."""
    name = (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).rstrip("\0")
    fine = name.isascii() and len(name) <= DOMAIN and name.translate(dict.fromkeys(map(ord, "-_."))).isalnum()
    return name if fine else ""
