"""Both ends against whoever says what no board and no mothership of ours would say."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "lab"))

import fleet
import fleet_boards
import fleet_programs

from bus import Bus
from uplink import wire
from uplink.outbox import Outbox

MESSAGES = int(os.environ.get("FUZZ", "5000"))  # of the flood against the receiver
SEED = int(os.environ.get("FUZZ_SEED", "7"))
HONEST = "board-00000"
GOOD = {"v": 1, "boot": "b", "from": "app", "seq": 1, "kind": "evt", "time": 1.0, "mono": 1.0, "clock": "unset", "data": {}}


# --- what an attacker makes -------------------------------------------------------------------------------------------
def batch(prev: Any, records: Any) -> bytes:
    return squeeze(json.dumps({"prev": prev, "records": records}).encode())


def squeeze(text: bytes) -> bytes:
    return b"\x01" + zlib.compress(text, 1)


def record(body: bytes, number: int = 1, kind: bytes = b'"evt"') -> bytes:
    return squeeze(b'{"prev":0,"records":[[%d,%s,%s]]}' % (number, kind, body))


BOMB = squeeze(b"0" * 100_000_000)
NUMBERS: tuple[Any, ...] = (-1, -(2**63), 0.5, 1e300, True, False, None, "1", [], {}, 2**62, 2**63, 2**64, 10**400)
ROWS: tuple[Any, ...] = (
    [1], [[]], [[1]], [[1, "evt"]], [[1, "evt", 1, 1]], [{"1": 2}], [[1, None, 1]], [[1, 5, 1]],
    [[1, "x" * 65, 1]], [[2, "evt", 1], [1, "evt", 1]], [[1, "evt", 1], [1, "evt", 1]], {"0": 1},
)  # fmt: skip
MALFORMED: tuple[bytes, ...] = (
    b"", b"\x00", b"\x01", b"\x02" + zlib.compress(b"{}"), b"\x01garbage", BOMB, BOMB[:-5], record(b"1")[:-1], record(b"1") + b"x",
    *(squeeze(text) for text in (b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b'{"prev":0}', b'{"prev":0,"records":null}',
                                 b"[" * 200_000, b'{"a":' * 200_000, b'{"prev":0,"records":' + b"[" * 200_000)),
    *(batch(number, []) for number in NUMBERS), *(batch(0, [[number, "evt", {}]]) for number in NUMBERS),
    *(batch(0, wrong) for wrong in ROWS),
    batch(5, [[5, "evt", 1]]), batch(2**62 - 1, [[2**62, "evt", 1]]), record(b"1" + b"0" * 5000), record(b"{'a': 1}"),
    record(b'"' + b"x" * wire.MOST + b'"'), record(b"1", 0),
)  # fmt: skip
# JSON that a database may choke on: taken, as well as a database can, or refused; never the end of the receiver.
ODD = (
    b"NaN", b"-Infinity", b"1e999", b'{"time":NaN,"mono":-Infinity,"data":NaN}', b'"\\ud800"', b'{"boot":"\\udfff","clock":"\\ud800"}',
    b'"\\u0000"', b'{"boot":"\\u0000"}', b'{"\\u0000":"\\u0000"}', b"1" + b"0" * 400, b'{"mono":1' + b"0" * 400 + b"}", b'{"time":1e400}',
    b'{"mono":"1","time":[],"boot":{},"clock":7}', b"\xed\xa0\x80".join((b'"', b'"')), b"null", b"0", b'""', b"[]", b"[" * 900 + b"]" * 900,
    b'{"boot":"%s"}' % (b"x" * 100_000), b'"%s"' % (b"'; DROP TABLE record; --"), b'{"time":-1e308,"mono":9007199254740993}',
)  # fmt: skip
ODD_KINDS = (b'""', b'"\\u0000"', b'"\\ud800"', b'"\'; DROP TABLE record; --"', b'"../../etc"', b'"\\n"')
HELLOS = (b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff", b"x" * 2000, b"[" * 1000)
ODD_HELLOS = (b"{}", b'{"nonce":null}', b'{"nonce":[[[]]]}', b'{"nonce":"\\ud800"}', b'{"nonce":1e999}', b'{"nonce":{"a":NaN}}',
              b'{"nonce":"%s"}' % (b"n" * 900), b'{"nonce":"n","boot":7,"mono":"x"}', b'{"nonce":"n","boot":"b","mono":NaN}',
              b'{"nonce":"n","boot":"\\u0000","mono":1e999}')  # fmt: skip
NAMES = (
    "",
    "x" * 65,
    "a b",
    "a'; DROP TABLE board; --",
    '"',
    "é",
    "\u202e",
    "a\\b",
    "$SYS",
    "%s",
    "{}",
    "\u2028",
    "ﬀ",
    "-" * 64 + "-",
)
ODD_NAMES = ("..", ".", "...", "-", "_", "NULL", "mothership", "x" * 64)  # names for all that a board's name may be
# What a broker should not even pass on, raw: wildcards, NUL, no UTF-8, nothing at all.
RAW_TOPICS = (b"v1/+/up", b"v1/#", b"#", b"v1/a\x00b/up", b"v1/\xff\xfe/up", b"v1/\xed\xa0\x80/up", b"", b"v1/" + b"/" * 1000 + b"up",
              b"v1/" + b"n" * 60_000 + b"/up", b"$SYS/broker/uptime", b"$share/g/v1/a/up")  # fmt: skip


class Attacker:
    """MQTT 3.1.1 by hand, with QoS 1, so that nothing keeps it from saying what a library would not."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.link: socket.socket | None = None
        self.sent = 0

    def connect(self) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        link.sendall(b"\x10\x14\x00\x04MQTT\x04\x02\x00\x00\x00\x08attacker")
        assert link.recv(4) == b"\x20\x02\x00\x00"
        return link

    def publish(self, topic: bytes, payload: bytes) -> bool:
        """Whether the broker took it."""
        self.link = self.link or self.connect()
        self.sent += 1
        rest = struct.pack("!H", len(topic)) + topic + struct.pack("!H", self.sent % 65535 + 1) + payload
        length, left = b"", len(rest)
        while left or not length:
            length += bytes([left % 128 | (128 if left >= 128 else 0)])
            left //= 128
        try:
            self.link.sendall(b"\x32" + length + rest)
            answer = self.link.recv(4, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if answer[:1] != b"\x40":
            self.link.close()
            self.link = None
            return False
        return True


def mutated(chosen: random.Random) -> bytes:
    """A good batch with some of its bytes changed, before or after it was compressed."""
    text = bytearray(json.dumps({"prev": 0, "records": [[n, "evt", GOOD] for n in range(1, 4)]}).encode())
    if chosen.random() < 0.5:
        text[chosen.randrange(len(text))] = chosen.randrange(256)
        return squeeze(bytes(text))
    data = bytearray(squeeze(bytes(text)))
    for _ in range(chosen.randrange(1, 4)):
        data[chosen.randrange(len(data))] = chosen.randrange(256)
    return bytes(data[: chosen.randrange(1, len(data) + 1)])


def flood(chosen: random.Random, count: int) -> Iterator[tuple[str, bytes, bool | None]]:
    """Topic, payload, and whether the receiver must refuse it; None where it may do either."""
    for number in range(count):
        name, kind = f"evil-{chosen.randrange(200)}", chosen.randrange(8)
        if kind == 0:  # in the honest board's name too: whoever may write there may harm it, but not by what is malformed
            payload = chosen.choice(MALFORMED) if number % 50 == 0 else chosen.choice([m for m in MALFORMED if len(m) < 5000])
            yield wire.topic(chosen.choice((name, HONEST)), "up"), payload, True
        elif kind == 1:
            yield wire.topic(name, "up"), record(chosen.choice(ODD), chosen.randrange(1, 2**62)), None
        elif kind == 2:
            yield wire.topic(name, "up"), record(b"{}", 1, chosen.choice(ODD_KINDS)), None
        elif kind == 3:
            yield wire.topic(chosen.choice((name, HONEST)), "hello"), chosen.choice(HELLOS[1:]), True
        elif kind == 4:
            yield wire.topic(name, "hello"), chosen.choice(ODD_HELLOS), None
        elif kind == 5:
            yield wire.topic(chosen.choice(NAMES), chosen.choice(("up", "hello"))), record(b"{}"), True
        elif kind == 6:
            prev = chosen.choice((0, 1, 2**61, 2**62 - 2, chosen.randrange(2**62)))
            rows: list[list[Any]] = [[number, "evt", GOOD] for number in sorted(chosen.sample(range(1, 1000), 5))]
            yield (
                wire.topic(chosen.choice((name, *ODD_NAMES)), "up"),
                batch(prev, [[prev + row[0], *row[1:]] for row in rows]),
                None,
            )
        else:
            yield wire.topic(name, "up"), mutated(chosen), None


# --- the receiver ------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(120)
@pytest.mark.skipif(fleet_programs.find("mosquitto") is None, reason="no mosquitto here, and only root can install it")
@pytest.mark.xfail(
    not (ROOT / "mothership/postgres.py").exists(), reason="a lone surrogate is the end of this receiver", strict=True
)
def test_the_receiver_survives_and_the_honest_board_loses_nothing(
    tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    """A real broker and receiver, an honest board, and thousands of messages that are none of a board's."""
    chosen = random.Random(SEED)
    with fleet.Fleet("mosquitto", 1, fleet.Chosen(rate=50, period=0.2, workers=1), tmp_path, tmp_path / "disks") as one:
        one.connect()
        one.scan()
        attacker, refusable = Attacker(one.port), 0
        for topic, payload, refused in flood(chosen, MESSAGES):
            assert attacker.publish(topic.encode(), payload) or not refused or payload is BOMB, topic
            refusable += refused is True
        passed = sum(attacker.publish(topic, record(b"{}")) for topic in RAW_TOPICS)
        eventually(lambda: attacker.publish(b"v1/the-last-one/up", record(b'"the last"')))
        eventually(lambda: "the-last-one" in boards_of(one.database), 30)
        one.drain()
        assert one.check() == []
        one.receiver.signal(signal.SIGTERM)
        assert one.receiver.process
        assert one.receiver.process.wait(10) == 0, one.receiver.output.read_text()[-2000:]
        one.receiver.process = None
        text = one.receiver.output.read_text()
        assert refused_of(text) >= refusable, "each refusal is counted"
        assert "Traceback" not in text
    record_property("figure", f"fuzz: {attacker.sent} hostile messages, {refusable} that must be refused, {refused_of(text)} were; "
                    f"{passed} of {len(RAW_TOPICS)} hostile topics passed mosquitto; the honest board lost nothing")  # fmt: skip


def boards_of(database: Path) -> set[str]:
    return {name for (name,) in fleet_programs.query(database, "SELECT name FROM board")}


def refused_of(log: str) -> int:
    """As the receiver counts; without a count, one for each line."""
    counts = re.findall(r"(\d+) refused", log)
    return int(counts[-1]) if counts else log.count("refused: ")


# --- the board ------------------------------------------------------------------------------------------------------------
class Link:
    """A connection made of two lists."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        self.connected = True
        self.down: list[tuple[str, bytes]] = []
        self.up: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.up.append((topic, payload))
        return True

    def take(self) -> Iterator[tuple[str, bytes]]:
        while self.down:
            yield self.down.pop(0)


class World:
    """An uplink, and what of its records was ever sent."""

    def __init__(self, folder: Path) -> None:
        self.link = Link()
        self.box = Outbox(str(folder), 1 << 30, 0, (), print)
        bus = fleet_boards.LocalBus("b1")
        self.asked: list[Any] = []
        self.uplink = fleet_boards.Uplink(bus, self.box, self.link, "b1", fleet_boards.CHOSEN)  # type: ignore[arg-type]
        self.uplink.commands.ask = self.ask
        self.made = 0

    def ask(self, request: dict[str, Any]) -> Any:
        self.asked.append(request)
        return {"state": "running"}

    def record(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            self.uplink.take("evt", "evt", {**GOOD, "seq": self.made})
        self.box.flush(time.monotonic())

    def answer(self, seq: Any, nonce: Any = None) -> bytes:
        """About the stream that was asked for."""
        return json.dumps({"seq": seq, "nonce": nonce, "outbox": self.uplink.sender.stream.identity}).encode()

    def hear(self, what: str, payload: bytes) -> None:
        self.link.down.append((wire.topic("b1", what) if what else "", payload))
        self.uplink.arrived()

    def nonce(self) -> str:
        return self.uplink.sender.nonce

    def sent(self) -> set[int]:
        """The `seq` of what was ever sent: each batch must be one that the mothership takes."""
        batches = [wire.unpack(payload) for topic, payload in self.link.up if topic.endswith("/up")]
        return {body["seq"] for one in batches for _, _, body in one.records}

    def waiting(self) -> set[int]:
        rows = self.box.database.execute("SELECT body FROM record WHERE kind = 'evt'")
        return {json.loads(body)["seq"] for (body,) in rows}

    def close(self) -> None:
        self.box.close(time.monotonic())
        os.close(self.link.fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path / "box")
    yield one
    one.close()


SEQS = st.one_of(
    st.integers(-5, 1000), st.sampled_from((2**31, 2**53, 2**61, 2**62 - 1, 2**62, 2**63, 10**30, 10**400)),
    st.floats(), st.booleans(), st.none(), st.text(max_size=5), st.lists(st.none(), max_size=2),
)  # fmt: skip
ACKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from((b"", b"{", b"[" * 1000, b"[" * 5000, b'{"seq":1' + b"0" * 4000 + b"}", b'{"seq":NaN}', b"\xff\xfe{\x00}\x00", b"null")),
    st.fixed_dictionaries(
        {"seq": SEQS, "outbox": st.sampled_from(("STREAM", "STREAM", "STREAM", "another", "", None, 7))}, optional={"nonce": st.one_of(st.none(), st.text(max_size=12), st.integers(), st.lists(st.none())),
                                 "time": st.one_of(st.floats(), st.none(), st.text(max_size=3), st.integers())}
    ).map(lambda answer: json.dumps(answer).encode()),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(ACKS, st.sampled_from(("record", "connect", "answer", "turn"))), max_size=30))
def test_no_acknowledgement_takes_what_was_not_sent(tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | str]) -> None:
    """Whatever a confused mothership says that has not our nonce."""
    world = World(tmp_path_factory.mktemp("world") / "box")
    world.record(5)
    for step in steps:
        if isinstance(step, bytes):
            world.hear("ack", step.replace(b"STREAM", world.uplink.sender.stream.identity.encode()))
        elif step == "record":
            world.record(3)
        elif step == "connect":
            world.hear("", b"")
        elif step == "answer":
            world.hear("ack", world.answer(0, world.nonce()))
        else:
            world.uplink.turn(time.monotonic() + 60)
        assert set(range(1, world.made + 1)) <= world.waiting() | world.sent()
    world.close()


@pytest.mark.parametrize("seq", [2**53, 2**61, 2**62 - 1, 2**62 - 1_000_001])
def test_no_answer_makes_numbers_that_nobody_takes(world: World, seq: int) -> None:
    """One wrong answer, even with our nonce, must not silence a board for ever: its batches stay ones that are taken."""
    world.record(3)
    for _ in range(3):
        world.hear("", b"")
        world.hear("ack", world.answer(seq, world.nonce()))
    world.hear("", b"")
    world.hear("ack", world.answer(0, world.nonce()))
    assert world.sent() == {1, 2, 3}
    assert world.box.next < 2**62


WRONG: tuple[dict[str, Any], ...] = (  # what of a command may not be so
    {"id": None}, {"id": 7}, {"id": ""}, {"id": "x" * 65}, {"id": "a/b"}, {"id": "+"}, {"id": "é"}, {"id": ["c"]}, {"id": "\0"},
    {"op": None}, {"op": "rm"}, {"op": ["reboot"]}, {"op": {}}, {"op": "Reboot"}, {"op": "reboot\0"}, {"op": "stats"}, {"op": "board"},
    {"expires": None}, {"expires": "9e9"}, {"expires": True}, {"expires": -1}, {"expires": 0}, {"expires": 1e300}, {"expires": 10**30},
    {"expires": float("nan")}, {"expires": float("inf")}, {"expires": []}, {"op": "stop"}, {"op": "stop", "name": None},
    {"op": "stop", "name": []}, {"op": "signal", "name": "a"}, {"op": "signal", "signal": "HUP"}, {"op": "start", "name": {"a": 1}},
)  # fmt: skip
COMMANDS: tuple[bytes, ...] = (
    *(b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff", b"[" * 5000, b'{"a":' * 1000, b"x" * 100_000, b'{"id":"\\ud800"}'),
    *(json.dumps({"id": "c", "op": "reboot", "expires": 9e9, **wrong}).encode() for wrong in WRONG),
)  # fmt: skip


def test_no_malformed_command_is_carried_out(world: World) -> None:
    world.record(3)
    world.hear("", b"")
    world.hear("ack", json.dumps({**json.loads(world.answer(0, world.nonce())), "time": 1e9}).encode())
    for payload in COMMANDS:
        world.hear("cmd", payload)
    assert world.asked == []
    assert world.waiting() >= {1, 2, 3}
    results = [json.loads(payload) for topic, payload in world.link.up if "/res/" in topic]
    assert results
    assert not [result for result in results if result["ok"]]
    world.hear("cmd", json.dumps({"id": "good", "op": "stop", "name": "gps", "expires": 1e9 + 100}).encode())
    assert world.asked[0]["op"] == "stop", "and a good one is"
    assert {request["op"] for request in world.asked[1:]} <= {"stats"}, "it looks how that ends"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=20), st.just("\ud800"), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=10,
)  # fmt: skip
HUGE = (
    b"[" * 900 + b"]" * 900,
    b'{"a":' * 400 + b"1" + b"}" * 400,
    b'{"data":"%s"}' % (b"x" * 5_000_000),
    b'{"data":1' + b"0" * 5000 + b"}",
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=50), st.sampled_from(HUGE)),
        max_size=15,
    )
)
def test_nothing_on_the_local_bus_stops_the_uplink(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    """Through the real bus's own handler: what is recorded of it is always something that the mothership takes."""
    world = World(tmp_path_factory.mktemp("world") / "box")
    with a_bus() as bus:
        bus.subscribe("wifi/+", lambda topic, message: world.uplink.take("wifi", topic, message))
        bus.subscribe("diag", world.uplink.on_diag)
        for payload in payloads:
            for topic in ("wifi/x", "diag"):
                bus._on_message(None, None, SimpleNamespace(topic=topic, payload=payload))  # type: ignore[arg-type]
    world.record(1)
    world.hear("", b"")
    world.hear("ack", world.answer(0, world.nonce()))
    taken = [wire.unpack(payload) for topic, payload in world.link.up if topic.endswith("/up")]
    assert sum(len(one.records) for one in taken) == world.box.count() > 0
    world.close()


@contextlib.contextmanager
def a_bus() -> Iterator[Bus]:
    """One that is not connected; it takes a signal's handler, which is given back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield Bus("fuzz", "/nowhere")
    finally:
        signal.signal(signal.SIGTERM, before)


def report(services: Any, mono: Any = 5.0) -> dict[str, Any]:
    return {"v": 1, "mono": mono, "data": {"services": {"rows": services}}}


GOOD_ROW = {"state": "running", "exit": None, "restart": 0}
BAD_ROWS: tuple[tuple[str, Any], ...] = (
    ("x#", GOOD_ROW), ("a/b", GOOD_ROW), ("+", GOOD_ROW), ("", GOOD_ROW), ("nul\0", GOOD_ROW), ("x" * 65, GOOD_ROW), ("\ud800", GOOD_ROW),
    ("list", []), ("text", "running"), ("none", None), ("big", {**GOOD_ROW, "exit": "x" * 5_000_000}), ("deep", {**GOOD_ROW, "exit": [[[]]]}),
    ("nan", {**GOOD_ROW, "restart": float("nan")}), ("huge", {**GOOD_ROW, "restart": 10**400}),
)  # fmt: skip


@pytest.mark.parametrize(("name", "row"), BAD_ROWS, ids=[repr(name)[:12] for name, _ in BAD_ROWS])
def test_one_bad_service_keeps_no_other_back(world: World, name: str, row: Any) -> None:
    """Neither when it is reported nor after a reconnect, which tells all that is known."""
    world.uplink.on_diag("diag", report({"before": GOOD_ROW, name: row, "behind": GOOD_ROW}))
    world.link.up.clear()
    world.hear("", b"")
    world.record(3)
    world.hear("ack", world.answer(0, world.nonce()))
    told = [topic for topic, _ in world.link.up if "/sv/" in topic]
    assert told == ["v1/b1/sv/before", "v1/b1/sv/behind"]
    assert world.sent() == {1, 2, 3}
    assert world.uplink.dropped["sv"] == 1
    assert max(len(payload) for _, payload in world.link.up) < 1000


@pytest.mark.parametrize("message", [
    [], "x", None, 7, {}, {"data": None}, {"data": []}, {"data": {"services": 5}}, {"data": {"services": {"rows": [1]}}}, report({"a": GOOD_ROW}, "now"),
    report({"a": GOOD_ROW}, None), {"data": {"text": "x" * 1_000_000}, "mono": 1.0}, {"data": {"x": float("nan")}, "mono": 1.0},
])  # fmt: skip
def test_a_report_of_any_shape_is_survived(world: World, message: Any) -> None:
    world.uplink.on_diag("diag", message)
    world.uplink.on_diag("diag", report({"good": GOOD_ROW}))
    assert [topic for topic, _ in world.link.up if "/sv/" in topic] == ["v1/b1/sv/good"]
    assert max((len(payload) for _, payload in world.link.up), default=0) <= 256 * 1024


def test_a_flood_of_service_names_is_bounded_and_said_once(world: World) -> None:
    for first in range(0, 5000, 500):
        world.uplink.on_diag("diag", report({f"s{number}": GOOD_ROW for number in range(first, first + 500)}))
    assert len(world.uplink.services) == 1000
    assert world.uplink.dropped["sv"] == 4000
    assert len(world.uplink.quiet) == 1


def test_a_board_tells_of_its_certificate_by_the_motherships_clock(world: World) -> None:
    """Once a day; its own clock may not be set."""
    ends = {"mine": 1_800_000_000.0}
    world.uplink.certificate = "/certs/b1.crt"
    world.link.address = "localhost:8883"  # type: ignore[attr-defined]
    world.link.broker_certificate = lambda: b""  # type: ignore[attr-defined]
    said: list[str] = []
    world.uplink.bus.log = SimpleNamespace(warning=lambda text, *values: said.append(text % values))  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uplink.certificates.until_of", lambda path: ends["mine"])
        for now in (0.0, 10.0, 86_400.0):
            world.uplink.sender.ahead = None
            world.uplink.check_certificates(now)
            world.uplink.sender.ahead = 1_800_000_000.0 - 10 * 86_400
            world.uplink.check_certificates(now)
    assert [text.split(" is valid until ")[1][:26] for text in said] == [
        "2027-01-15, 10 days from n",
        "2027-01-15, 9 days from no",
    ]
    assert all("the certificate of this board (/certs/b1.crt)" in text for text in said)


def test_what_cannot_be_recorded_is_counted_by_kind(world: World) -> None:
    for message in ([1], None, {"data": "x" * 300_000}, {"data": float("nan")}):
        world.uplink.take("wifi", "wifi/x", message)  # type: ignore[arg-type]
    world.uplink.take("wifi", "wifi/x", {"data": 1})
    assert (world.uplink.dropped["wifi"], world.box.lost["wifi"], world.box.count()) == (4, 4, 1)


def test_the_table_of_what_is_malformed_is_right() -> None:
    for payload in MALFORMED:
        with pytest.raises(wire.Malformed):
            wire.unpack(payload)
    assert wire.unpack(record(b"{}")).records == [(1, "evt", {})]
