"""What a hostile broker sends: to bus.py over a Unix socket, to uplink/remote.py over TCP, both with the real client library."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import eventually

import bus
from onboard import mqtt
from uplink import remote

HUGE = 250_000_000  # bytes that a header announces
CONNACK = b"\x20\x02\x00\x00"


def packet(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A packet of MQTT 3.1.1; `length`: what its header says instead of the truth."""
    left = len(body) if length is None else length
    header = bytearray([kind])
    while True:
        left, digit = divmod(left, 128)
        header.append(digit | (0x80 if left else 0))
        if not left:
            return bytes(header) + body


def publish(topic: bytes, payload: bytes, flags: int = 0) -> bytes:
    number = b"\x00\x07" if flags & 0x06 else b""
    return packet(0x30 | flags, struct.pack("!H", len(topic)) + topic + number + payload)


ATTACKS = {
    "250 MB": (packet(0x30, b"\x00\x01t" + bytes(200_000), HUGE), "a packet of 250000000 bytes", False),
    "just too large": (packet(0x30, b"\x00\x01t", mqtt.LARGEST + 1), f"a packet of {mqtt.LARGEST + 1} bytes", False),
    "no UTF-8": (publish(b"t/\xff\xfe", b"{}"), "topic is no UTF-8", True),
    "no UTF-8, QoS 1": (publish(b"\xc3", b"{}", 2), "topic is no UTF-8", True),
    "no topic": (publish(b"", b"{}"), "cannot be read", False),
    "QoS 2": (publish(b"t", b"{}", 4), "with QoS 2", False),
    "cut": (packet(0x30, b"\x00\x20t"), "cannot be read", False),
    "empty SUBACK": (packet(0x90, b""), "cannot be read", False),
    "empty CONNACK": (packet(0x20, b""), "cannot be read", False),
}


class Told:
    """A log of warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, message: str, *arguments: object) -> None:
        self.lines.append(message % arguments)


class HostileBroker:
    """It accepts every connection, answers CONNECT and SUBSCRIBE, and then sends the attack, once for each connection."""

    def __init__(self, server: socket.socket, attack: bytes) -> None:
        self.server, self.attack = server, attack
        self.connections = 0
        self.good = threading.Event()  # from now on it sends a message that is right
        self.ending = threading.Event()
        server.listen()
        server.settimeout(0.05)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.ending.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                link, _ = self.server.accept()
                with link:
                    self.connections += 1
                    self._serve(link)

    def _serve(self, link: socket.socket) -> None:
        link.settimeout(0.05)
        attacked = False
        while not self.ending.is_set():
            try:
                got = link.recv(65536)
            except TimeoutError:
                got = None
            if got == b"":
                return
            if got and got[0] & 0xF0 == 0x10:
                link.sendall(CONNACK)
            if got and (at := got.find(b"\x82")) >= 0:
                link.sendall(packet(0x90, got[at + 2 : at + 4] + b"\x00"))
                if self.good.is_set():
                    link.sendall(publish(b"good", b'{"data": 1}'))
                elif not attacked:
                    attacked = True
                    link.sendall(self.attack + publish(b"good", b'{"data": 0}'))

    def end(self) -> None:
        self.ending.set()
        self.thread.join()
        self.server.close()


@pytest.fixture
def hostile() -> Iterator[Callable[[socket.socket, bytes], HostileBroker]]:
    brokers: list[HostileBroker] = []

    def start(server: socket.socket, attack: bytes) -> HostileBroker:
        brokers.append(HostileBroker(server, attack))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.end()


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """What is done in here never has more than 8 MB at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


Start = Callable[[socket.socket, bytes], HostileBroker]


@pytest.mark.parametrize(("attack", "said", "stays"), ATTACKS.values(), ids=ATTACKS.keys())
def test_the_bus_lives_with_a_hostile_broker(hostile: Start, tmp_path: Path, attack: bytes, said: str, stays: bool) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    broker = hostile(server, attack)
    before = signal.getsignal(signal.SIGTERM)
    one = bus.Bus("victim", str(tmp_path / "s"))
    one.dropped.log = told = Told()
    heard: list[object] = []
    one.subscribe("good", lambda _topic, message: heard.append(message["data"]))
    with little_memory():
        for turn, _ in enumerate(one.every(0.02)):
            if one.dropped.count >= (1 if stays else 3):
                broker.good.set()
            if heard and (stays or 1 in heard):
                break
            assert turn < 1500, (one.dropped.count, broker.connections)
    signal.signal(signal.SIGTERM, before)
    assert (broker.connections == 1) == stays
    assert len(told.lines) == 1, "the others are counted"
    assert said in told.lines[0]


@pytest.mark.parametrize(("attack", "said", "stays"), ATTACKS.values(), ids=ATTACKS.keys())
def test_the_uplink_lives_with_a_hostile_broker(
    hostile: Start, monkeypatch: pytest.MonkeyPatch, attack: bytes, said: str, stays: bool
) -> None:
    monkeypatch.setattr(remote, "REMOTE_FIRST", 0.05)
    server = socket.create_server(("127.0.0.1", 0))
    broker = hostile(server, attack)
    one = remote.Remote("victim", (f"127.0.0.1:{server.getsockname()[1]}",), ("good",))
    one.dropped.log = told = Told()
    heard: list[bytes] = []

    def took() -> bool:
        select.select([one.fd], [], [], 0.02)
        heard.extend(payload for topic, payload in one.take() if topic)
        if one.dropped.count >= (1 if stays else 3):
            broker.good.set()
        assert one.is_alive(), "the thread has ended"
        return bool(heard) and (stays or b'{"data": 1}' in heard)

    with little_memory():
        one.start()
        try:
            eventually(took, 30.0)
        finally:
            one.end()
    assert (broker.connections == 1) == stays
    assert len(told.lines) == 1, "the others are counted"
    assert said in told.lines[0]
