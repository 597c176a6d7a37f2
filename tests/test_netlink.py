"""What arrives from the kernel, from the DHCP child and from an earlier life, as plain values."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from network import dhcp, kernel_events
from network import service as network
from network.actions import Lease
from network.kernel_events import Event


def message(kind: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + padded


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(ifindex: int, name: str) -> bytes:
    return message(kernel_events.NEWLINK, struct.pack("=BxHiII", 0, 1, ifindex, 1, 0) + attribute(3, name.encode() + b"\0"))


def route(ifindex: int, length: int) -> bytes:
    return message(kernel_events.NEWROUTE, bytes((2, length)) + bytes(10) + attribute(4, struct.pack("=i", ifindex)))


def advertised(ifindex: int, options: bytes) -> bytes:
    return message(kernel_events.NEWNDUSEROPT, struct.pack("=BxHiBB6x", 10, len(options), ifindex, 134, 0) + options)


def test_events_of_one_datagram() -> None:
    server = socket.inet_pton(socket.AF_INET6, "2001:db8::53")
    rdnss = struct.pack("!BBHI", 25, 3, 0, 600) + server
    data = link(3, "eth0") + route(3, 24) + route(4, 0) + message(kernel_events.NEWADDR, struct.pack("=BBBBi", 2, 24, 0, 0, 5))
    assert list(kernel_events.parse(data)) == [Event(3, "eth0"), Event(4), Event(5)], (
        "a route that is no default route is nothing"
    )
    assert list(kernel_events.parse(advertised(3, rdnss))) == [Event(3, "", (("2001:db8::53", 600.0),))]
    assert list(kernel_events.parse(advertised(3, b"\x1f\x01" + bytes(6)))) == [Event(3)], (
        "a search list (RFC 8106) is left alone"
    )


@given(st.binary(max_size=200), st.sampled_from((16, 17, 20, 21, 24, 25, 68)))
def test_no_datagram_raises(body: bytes, kind: int) -> None:
    list(kernel_events.parse(body))
    list(kernel_events.parse(message(kind, body) + body))


def test_leases_from_the_child() -> None:
    told = {"address": "192.0.2.5/24", "gateway": "", "nameservers": ["192.0.2.1"], "domain": "", "seconds": None}
    assert dhcp.lease_of(told) == Lease("192.0.2.5/24", "", ("192.0.2.1",))
    assert dhcp.lease_of({}) is None


@given(st.one_of(st.text(), st.binary()))
def test_a_domain_is_one_word_or_nothing(value: str | bytes) -> None:
    assert not set(dhcp.text(value)) & set(" \t\r\n#;\0")


def test_known_domains() -> None:
    assert [dhcp.text(value) for value in ("example.org", b"a-b.example\0", "a b", "x\nnameserver 192.0.2.1", "")] == [
        "example.org", "a-b.example", "", "", "",
    ]  # fmt: skip


def test_when_the_ladder_may_reboot(tmp_path: Path) -> None:
    """Monotonic time starts with the boot, so no clock is asked."""
    stamp = tmp_path / "stamp"
    assert network.reboot_after(str(stamp), "this", 3600.0) == 3600.0
    stamp.write_text(json.dumps({"boot": "that", "mono": 9000.0}))
    assert network.reboot_after(str(stamp), "this", 3600.0) == 3600.0, "an earlier boot: this one has to last an hour anyway"
    stamp.write_text(json.dumps({"boot": "this", "mono": 9000.0}))
    assert network.reboot_after(str(stamp), "this", 3600.0) == 12600.0, "asked for in this boot, and it did not happen"
    for rubbish in ("", "[]", "{}", '{"boot": "this", "mono": "soon"}', "\0"):
        stamp.write_text(rubbish)
        assert network.reboot_after(str(stamp), "this", 3600.0) == 3600.0
