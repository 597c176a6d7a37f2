"""What arrives from the kernel, from the DHCP child and from an earlier life, as plain values."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT
from hypothesis import given
from hypothesis import strategies as st

from network import bounds, kernel_events, nl80211
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


def test_a_scan_prints_no_more_than_a_pipe_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel knows a thousand; whoever waits for our end before it reads must not wait for ever."""

    class Message(dict[str, Any]):
        get_attr = dict.get

    class Air:
        def __enter__(self) -> Air:
            return self

        def __exit__(self, *_: object) -> None: ...

        def link(self, *_: object, **__: object) -> None: ...

        def scan(self, _index: int) -> list[Any]:
            return [Message(NL80211_ATTR_BSS=bss(number)) for number in range(1000)]

    def bss(number: int) -> Message:
        return Message(
            NL80211_BSS_BSSID=f"02:00:00:00:{number // 256:02x}:{number % 256:02x}", NL80211_BSS_FREQUENCY=2412,
            NL80211_BSS_SIGNAL_MBM={"VALUE": -100 * (number % 90)}, NL80211_BSS_CAPABILITY={"CAPABILITIES": "Privacy"},
            NL80211_BSS_SEEN_MS_AGO=0, NL80211_BSS_INFORMATION_ELEMENTS={"SSID": b"\xff" * 255},
        )  # fmt: skip

    monkeypatch.setattr(nl80211, "IPRoute", Air)
    monkeypatch.setattr(nl80211, "IW", Air)
    assert nl80211.main("lo") == 0
    printed = capsys.readouterr().out
    points = json.loads(printed)
    assert len(printed) < 65536
    assert (len(points), points[0]["signal"], points[-1]["signal"]) == (350, 0, -30), "the strongest"
    assert all(len(point["ssid_hex"]) == 64 for point in points)


def test_a_radio_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert nl80211.main("wlan99") == 1
    assert capsys.readouterr().err == "<4>nl80211: wlan99 cannot scan: no interface with this name\n"


TOLD = {"address": "192.0.2.5", "mask": "255.255.255.0", "routers": ["192.0.2.1"], "nameservers": ["192.0.2.1"], "domain": "",
        "seconds": 600}  # fmt: skip


def test_leases_from_the_child() -> None:
    assert bounds.lease_of(TOLD) == Lease("192.0.2.5/24", "192.0.2.1", ("192.0.2.1",), "", 600.0)
    assert bounds.lease_of({}) is None
    assert bounds.lease_of({**TOLD, "mask": "255.255.255.255"}) == Lease("192.0.2.5/32", "192.0.2.1", ("192.0.2.1",), "", 600.0)
    odd = {"routers": ["0.0.0.0", "224.0.0.1", "192.0.2.9"], "nameservers": ["0.0.0.0", "127.0.0.1", "x", 7, "192.0.2.2"] * 99}
    taken = bounds.lease_of({**TOLD, **odd, "domain": "a b", "seconds": 1e300})
    assert taken == Lease("192.0.2.5/24", "192.0.2.9", ("192.0.2.2",) * 8, "", 10 * 365 * 86400.0)
    assert bounds.lease_of({**TOLD, "routers": ["192.0.2.5"]}) == Lease("192.0.2.5/24", "", ("192.0.2.1",), "", 600.0)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"mask": "0.0.0.0"}, "would take 0 bits"), ({"mask": "254.0.0.0"}, "would take 7 bits"), ({"mask": "255.0.255.0"}, "holes"),
        ({"mask": "255.255.255.256"}, "none"), ({"mask": 24}, "none"),
        ({"address": "0.0.0.0"}, "none for a host"), ({"address": "127.0.0.9"}, "none for a host"),
        ({"address": "224.0.0.5"}, "none for a host"), ({"address": "255.255.255.255"}, "none for a host"),
        ({"address": "2001:db8::5"}, "none for a host"), ({"address": "192.0.2.5\nx"}, "none for a host"),
        ({"address": "192.0.2.0"}, "network itself"), ({"address": "192.0.2.255"}, "network itself"),
        ({"seconds": 0}, "would last"), ({"seconds": -3.0}, "would last"), ({"seconds": float("nan")}, "would last"),
        ({"seconds": "600"}, "would last"), ({"routers": None}, "missing"),
    ],
)  # fmt: skip
def test_a_lease_that_cannot_be(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bounds.lease_of({**TOLD, **wrong})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_line_of_the_child_breaks_us(told: Any) -> None:
    for one in (told, *({**TOLD, name: told} for name in TOLD)):
        with contextlib.suppress(ValueError):
            bounds.lease_of(one)


def test_addresses_that_a_host_may_have() -> None:
    good = ("192.0.2.1", "10.0.0.1", "169.254.1.1", "223.255.255.255", "2001:db8::1", "fe80::1", "fd00::1")
    bad = ("0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "ff02::1",
           "::ffff:127.0.0.1", "", "x", "192.0.2.1/24", "fe80::1%eth0", "1.2.3")  # fmt: skip
    assert [one for one in good if not bounds.usable(one)] == []
    assert [one for one in bad if bounds.usable(one)] == []


@given(st.one_of(st.text(), st.binary()))
def test_a_domain_is_one_word_or_nothing(value: str | bytes) -> None:
    assert not set(bounds.domain_name(value)) & set(" \t\r\n#;\0")


def test_known_domains() -> None:
    assert [bounds.domain_name(value) for value in ("example.org", b"a-b.example\0", "a b", "x\nnameserver 192.0.2.1", "")] == [
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


def run(code: str, *before: str) -> str:
    """What this prints in an interpreter of its own."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([*before, PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_parts_of_pyroute2_that_are_named_are_loaded() -> None:
    """Its own __init__ would load all of them. Who asks for a name that only that has gets it all the same."""
    code = """
import network.service
early = [name for name in ("pyroute2", "asyncio", "subprocess") if name in sys.modules]
import network.dhcp
parts = "pyroute2.ndb.main", "pyroute2.conntrack", "pyroute2.ipset", "pyroute2.iproute.linux", "pyroute2.netlink.nlsocket", "sqlite3"
dear = [name for name in parts if name in sys.modules]
from pyroute2 import NDB, netns
import pyroute2.iproute.linux
print(early, dear, NDB.__module__, netns.__name__, pyroute2.IPRoute is pyroute2.iproute.linux.IPRoute)
"""
    assert run(code) == "[] [] pyroute2.ndb.main pyroute2.netns True"


def test_the_dhcp_clients_socket_knows_the_hardware_address_and_its_changes() -> None:
    """With our AsyncIPRoute in the place of pyroute2's: of the right interface, now and whenever it is another one."""
    code = """
import asyncio, subprocess
import network.dhcp
from pyroute2.ext.rawsocket import AsyncRawSocket

def ip(*words):
    subprocess.run(["ip", "link", *words], check=True)

async def main():
    for number in range(3):
        ip("add", f"v{number}", "address", f"02:00:00:00:00:0{number}", "type", "veth", "peer", "name", f"w{number}")
    async with AsyncRawSocket("v1") as wire:
        print(wire.l2addr, wire.ifindex == __import__("socket").if_nametoindex("v1"))
        await asyncio.sleep(0)
        ip("set", "v2", "address", "02:00:00:00:00:99")
        ip("set", "v1", "address", "02:00:00:00:00:77")
        async with asyncio.timeout(10):
            while wire.l2addr == "02:00:00:00:00:01":
                await asyncio.sleep(0.01)
        print(wire.l2addr)
    try:
        async with AsyncRawSocket("v9"):
            pass
    except OSError as error:
        print(error)

asyncio.run(main())
"""
    unshare = ("unshare", "--user", "--map-root-user", "--net")
    assert run(code, *unshare).splitlines() == ["02:00:00:00:00:01 True", "02:00:00:00:00:77", "[Errno 2] Link not found"]


def test_a_change_that_the_kernel_refuses_is_an_error() -> None:
    """Each change is one message, whose answer is waited for."""
    code = """
import socket, subprocess
from network.kernel import Kernel
subprocess.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], check=True)
kernel, v0 = Kernel(), socket.if_nametoindex("v0")
kernel.raise_link(v0)
kernel.add_address(v0, "192.0.2.5/24", 600.0)
kernel.add_address(v0, "192.0.2.5/24", None)
kernel.add_route(v0, "192.0.2.1", 70, "192.0.2.5")
seen = kernel.look("v0")
print(seen.up, seen.addresses, seen.routes, seen.dynamic)
kernel.remove_route(v0, "192.0.2.1", 70)
kernel.remove_address(v0, "192.0.2.5/24")
seen = kernel.look("v0")
print(seen.addresses, seen.routes)
for refused in (
    lambda: kernel.remove_address(v0, "192.0.2.5/24"), lambda: kernel.remove_route(v0, "192.0.2.1", 70),
    lambda: kernel.add_route(v0, "192.0.2.1", 70, "192.0.2.99"), lambda: kernel.raise_link(99),
):
    try:
        refused()
    except OSError as error:
        print(error.strerror)
"""
    assert run(code, "unshare", "--user", "--map-root-user", "--net").splitlines() == [
        "True ('192.0.2.5/24',) (('192.0.2.1', 70),) ()",
        "() ()",
        "Cannot assign requested address", "No such process", "Invalid argument", "No such device",
    ]  # fmt: skip
