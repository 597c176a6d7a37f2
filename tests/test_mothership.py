"""The mothership's store and receiver, on SQLite and on a real PostgreSQL: nothing lost, nothing twice, nothing that ends them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import EMULATED, MOSQUITTO, PYTHON, ROOT, Board, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Mosquitto, Postgres, free_port, plain, secured, why_no_postgres

sys.path.insert(0, str(ROOT / "mothership"))

import boards
import receiver
from receiver import Receiver, Share
from store import News, Store, Taking, Unavailable

from uplink import certificates, wire
from uplink.outbox import Outbox
from uplink.remote import Remote, Tls
from uplink.sender import Sender

NO_POSTGRES = why_no_postgres()
needs_postgres = pytest.mark.skipif(bool(NO_POSTGRES), reason=NO_POSTGRES or "-")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")
BOOT = "2f1b2c1e-3a5c-4a9f-8f3e-0123456789ab"


def record(mono: float, *, clock: str = "synchronised", wall: float | None = None, **data: Any) -> dict[str, Any]:
    return {"topic": "evt", "boot": BOOT, "mono": mono, "time": wall, "clock": clock, "kind": "evt", "data": data}


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    return list(store.database.rows(query))


def batch(prev: int, *bodies: Any, kind: str = "evt") -> wire.Batch:
    return wire.Batch(prev, [(prev + 1 + index, kind, body) for index, body in enumerate(bodies)])


# --- the store ---------------------------------------------------------------------------------------------------------
def test_each_record_once_and_none_after_a_gap(database: str) -> None:
    store = Store(database)
    assert store.last("b1") == 0
    assert store.take([("b1", batch(0, "a", "b")), ("b2", batch(0, "x"))]) == {("b1", ""): 2, ("b2", ""): 1}
    assert store.take([("b1", batch(0, "a", "b", "c"))]) == {("b1", ""): 3}, "a repeated batch that has grown"
    assert store.take([("b1", batch(5, "f"))]) == {("b1", ""): 3}, "one that misses the one before it"
    assert store.take([("b1", batch(3, "d")), ("b1", batch(4, "e")), ("b1", batch(3, "d"))]) == {("b1", ""): 5}
    found = rows(Store(database), "SELECT board, seq, body FROM record ORDER BY board, seq")
    assert found == [*(("b1", i + 1, json.dumps(body)) for i, body in enumerate("abcde")), ("b2", 1, '"x"')]


def test_a_transaction_that_fails_leaves_nothing(database: str) -> None:
    store = Store(database)
    store.take([("b1", batch(0, "a"))])

    def fail() -> None:
        with store.database.transaction():
            store.database.execute("UPDATE board SET seq = ?", (99,))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.last("b1") == 1


def test_what_was_seen_before_the_clock_was_set_is_placed_once_it_is(database: str) -> None:
    store = Store(database)

    def placed() -> list[float]:
        return [row[0] for row in rows(store, "SELECT at FROM placed ORDER BY seq")]

    began = time.time()
    store.take([("b1", batch(0, record(10.0, clock="unset"), record(12.0, clock="unset")))])
    assert all(began <= at <= time.time() for at in placed()), "for want of a better word, when they came"
    store.take([], [News("b1", "hello", {"nonce": "n", "boot": BOOT, "mono": 100.0})])
    arrived = placed()[0] + 90.0
    assert began <= arrived <= time.time(), "placed by when a message came that said how long the board had been up"
    store.take([], [News("b1", "hello", {"nonce": "n", "boot": BOOT, "mono": 50.0})])
    assert placed()[0] + 90.0 == pytest.approx(arrived), "a message that took longer says less"
    store.take([("b1", batch(2, record(200.0, clock="plausible", wall=5200.0)))])
    assert placed() == [5010.0, 5012.0, 5200.0]
    store.take([("b1", batch(3, record(300.0, wall=1_000_300.0)))])
    assert placed() == [1_000_010.0, 1_000_012.0, 1_000_200.0, 1_000_300.0]
    store.take(
        [
            ("b1", batch(4, record(400.0, clock="plausible", wall=7.0))),
            ("b2", batch(0, record(1.0, clock="plausible", wall=9.0))),
        ]
    )
    store.take([], [News("b1", "hello", {"nonce": "n", "boot": BOOT, "mono": 0.0})])
    assert placed()[0] == 1_000_010.0, "a worse word does not replace a better one, nor another board's"
    assert ("b2", BOOT, 8.0, "plausible") in rows(store, "SELECT * FROM boot")


ODD = [
    ("evt", {"text": "a\0b", "\0": 1}), ("evt", {"text": "\ud800 and \udfff", "\udc80": 2}), ("e\0\ud800", None),
    ("evt", {"number": float("nan"), "more": [float("inf"), float("-inf"), 10**400, 5e-324]}),
    ("evt", {"boot": "\0", "clock": "\ud800", "mono": float("nan"), "time": 10**400}),
    ("evt", {"boot": 7, "clock": [], "mono": True, "time": "now"}),
    ("evt", {"boot": BOOT, "clock": "synchronised", "mono": -1e308, "time": 1e308}),
    ("evt", json.loads("[" * 900 + "]" * 900)), ("evt", [[]] * 10), ("", ""), ("evt", "\\u0000 is text"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), ODD)
def test_what_no_database_stores_alike_is_mended_and_does_not_block_the_board(database: str, kind: str, body: Any) -> None:
    store = Store(database)
    payload = wire.pack(0, [(1, json.dumps(kind)[1:-1], json.dumps(body).encode()), (2, "evt", b'"next"')])
    assert store.take([("b1", wire.unpack(payload))]) == {("b1", ""): 2}
    check = "json_valid(body)" if isinstance(store.database, receiver_sqlite()) else "body::jsonb IS NOT NULL"
    found = rows(store, f"SELECT kind, mono, time, clock, body, {check} FROM placed ORDER BY seq")
    assert [row[-1] for row in found] == [True, True]
    assert found[1][4] == '"next"'
    assert all("\0" not in str(value) for value in found[0])


def receiver_sqlite() -> type:
    from sqlite import Sqlite

    return Sqlite


def test_what_is_mended_loses_only_what_is_odd(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "m.db"))
    store.take([("b1", batch(0, {"ssid": "é\0\ud800", "ok": [1, float("nan"), "\\u0000"], "big": 10**100}))])
    assert json.loads(rows(store, "SELECT body FROM record")[0][0]) == {
        "ssid": "é\ufffd\ufffd",
        "ok": [1, None, "\\u0000"],
        "big": 10**100,
    }


def test_state_and_info_are_kept_and_a_repeated_state_is_no_news(database: str) -> None:
    store = Store(database)
    query = "SELECT name, seq, state, state_since, boot, info FROM board"
    ready = News("b1", "state", {"state": "ready", "boot": BOOT})
    store.take([], [ready, News("b1", "info", {"number": 7, "model": "Zero\0"})])
    first = rows(store, query)
    assert [row[:3] for row in first] == [("b1", 0, "ready")]
    assert json.loads(first[0][5]) == {"number": 7, "model": "Zero\ufffd"}
    store.take([("b1", batch(0, "a"))], [ready])
    assert rows(store, query) == [(*first[0][:1], 1, *first[0][2:])], "its `since` is the first's; records do not touch it"
    store.take([], [News("b1", "state", {"state": "lost", "boot": None})])
    assert rows(store, query)[0][2] == "lost"
    assert rows(store, query)[0][3] > first[0][3]


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db")) as old:
        old.execute("CREATE TABLE board (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen REAL NOT NULL) STRICT")
        old.execute("INSERT INTO board VALUES ('b1', 5, 1.0)")
        old.commit()
    store = Store(str(tmp_path / "m.db"))
    store.take([], [News("b1", "state", {"state": "ready", "boot": BOOT})])
    assert rows(store, "SELECT name, seq, state FROM board") == [("b1", 5, "ready")]


def test_a_database_that_somebody_else_is_making_is_waited_for(tmp_path: Path) -> None:
    """Changing to WAL, SQLite does not wait for others as it does everywhere else: of two receivers one did not start."""
    opened: list[int] = []
    waiting = threading.Thread(target=lambda: opened.append(Store(str(tmp_path / "m.db")).last("b1")))
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE another (one)")
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.execute("ROLLBACK")
        waiting.join(10)
    assert opened == [0]


def test_a_board_is_one_receivers_until_its_commit(database: str) -> None:
    """Two connections: the second one's numbers are those that the first one has committed."""
    first, second = Store(database), Store(database)
    taken: list[dict[tuple[str, str], int | str]] = []
    other = threading.Thread(target=lambda: taken.append(Store(database).take([("b1", batch(0, "x", "y"))])))
    with first.database.transaction():
        Taking(first.database, [], [], 1.0)._claim(["b1"])
        other.start()
        other.join(0.3)
        assert other.is_alive(), "it waits"
        first.database.execute("INSERT INTO record VALUES ('b1', 1, 'evt', NULL, NULL, NULL, NULL, '\"a\"', 1.0)")
        first.database.execute("UPDATE board SET seq = 1 WHERE name = 'b1'")
        first.database.execute("INSERT INTO stream VALUES ('b1', '', 1, 1, 1.0)")
    other.join(10)
    assert taken == [{("b1", ""): 2}]
    assert rows(second, "SELECT body FROM record ORDER BY seq") == [('"a"',), ('"y"',)], "the first record is the first one's"


@pytest.mark.skipif(EMULATED, reason="a figure of this machine, not of an emulator")
def test_two_thousand_records_a_second(database: str) -> None:
    """Processor's time of this process, batches of 100 observations, each committed alone."""
    data: dict[str, Any] = {"latitude": 48.137154, "longitude": 11.576124, "accuracy": 4.2, "age": 0.512, "position_source": "gps", "event": "seen",
            "bssid": "02:00:00:00:01:02", "ssid": "Café", "frequency": 2437, "signal": -61, "security": "WPA2", "source": "wpa_supplicant"}  # fmt: skip
    payloads = []
    for prev in range(0, 5000, 100):
        bodies = [json.dumps(record(n / 10, wall=1.7e9 + n / 10, **data)).encode() for n in range(prev, prev + 100)]
        payloads.append(wire.pack(prev, [(prev + 1 + index, "wifi", body) for index, body in enumerate(bodies)]))
    store = Store(database)
    began, wall = time.process_time(), time.monotonic()
    for payload in payloads:
        store.take([("b1", wire.unpack(payload))])
    used, took = time.process_time() - began, time.monotonic() - wall
    print(f"\n{database.partition(':')[0]}: {5000 / used:.0f} records a second of processor's time, {5000 / took:.0f} in all")
    assert 5000 / used > 2000


# --- the receiver, without a broker ------------------------------------------------------------------------------------
class Wire:
    """A connection made of lists."""

    def __init__(self) -> None:
        self.inbox: list[tuple[str, bytes]] = []
        self.sent: list[tuple[str, dict[str, Any], bool]] = []
        self.said: list[str] = []
        self.log = self

    def warning(self, text: str, *values: Any) -> None:
        self.said.append(text % values)

    def take(self) -> Iterator[tuple[str, bytes]]:
        while self.inbox:
            yield self.inbox.pop(0)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        assert qos == 1
        self.sent.append((topic, json.loads(payload), retain))
        return True


def packed(prev: int, *bodies: Any) -> bytes:
    return wire.pack(prev, [(prev + 1 + index, "evt", json.dumps(body).encode()) for index, body in enumerate(bodies)])


@pytest.fixture
def link() -> Wire:
    return Wire()


def make(database: str, link: Wire, share: Share = receiver.ALL) -> Receiver:
    return Receiver(Store(database), link, share)  # type: ignore[arg-type]


def test_answers_say_the_number_the_nonce_and_the_time(database: str, link: Wire) -> None:
    link.inbox = [("", b""), ("v1/b1/up", packed(0, 1, 2)), ("v1/b1/hello", b'{"nonce": "n1", "boot": "B", "mono": 5.0}'),
                  ("v1/b2/hello", b'{"nonce": "n2"}'), ("v1/b3/up", packed(0, 1))]  # fmt: skip
    before = time.time()
    make(database, link).turn()
    assert {(topic, answer["seq"], answer["nonce"], retain) for topic, answer, retain in link.sent} == {
        ("v1/b1/ack", 2, "n1", True), ("v1/b2/ack", 0, "n2", True), ("v1/b3/ack", 1, None, True),
    }  # fmt: skip
    assert all(before - 0.001 <= answer["time"] <= time.time() + 0.001 for _, answer, _ in link.sent)
    assert rows(Store(database), "SELECT board, boot, clock FROM boot") == [("b1", "B", "received")]


HOSTILE = [
    ("v1/b1/up", b""), ("v1/b1/up", b"\x01garbage"), ("v1/b1/up", b"\x01" + zlib.compress(b"[" * 3_000_000)),
    ("v1/b1/up", b"\x01" + zlib.compress(b'{"prev":0,"records":[[1,5,' + b"[" * 985 + b"]" * 985 + b"]]}")),
    ("v1/b1/up", b"\x01" + zlib.compress(b" " * (wire.MOST + 1))), ("v1/b1/up", b"x" * (receiver.MOST + 1)),
    ("v1/b1/hello", b"[]"), ("v1/b1/hello", b"\xff"), ("v1/b1/hello", b"[" * 20_000), ("v1/b1/hello", b"{" + b" " * receiver.MOST_TOLD),
    ("v1/b1/state", b'{"state": "root"}'), ("v1/b1/state", b'{"state": ["ready"]}'), ("v1/b1/state", b"{}"), ("v1/b1/info", b"null"),
    ("v1/b1;DROP TABLE board/up", packed(0, 1)), ("v1/\x00/up", packed(0, 1)), (f"v1/{'x' * 65}/up", packed(0, 1)),
    ("v2/b1/up", packed(0, 1)), ("v1/b1/ack", b"{}"), ("v1/b1/up/up", packed(0, 1)), ("v1//up", packed(0, 1)), ("\ufeff" * 30_000, b""), ("v1/../../up", packed(0, 1)), ("v1/é/state", b"{}"),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "payload"), HOSTILE)
def test_what_is_hostile_is_refused_counted_and_does_not_stop_the_others(
    link: Wire, tmp_path: Path, topic: str, payload: bytes
) -> None:
    made = make(str(tmp_path / "m.db"), link)
    link.inbox = [(topic, payload), ("v1/good/up", packed(0, 1))]
    made.turn()
    assert (made.counts["refused"], made.counts["records"]) == (1, 1)
    assert [topic for topic, _, _ in link.sent] == ["v1/good/ack"]
    assert len(link.said) == 1
    assert len(link.said[0]) < 500


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=30), st.sampled_from(["v1/b1/up", "v1/b1/hello", "v1/b1/state", "v1/b1/info", "v1/b1/x"])),
    st.one_of(st.binary(max_size=200), st.from_type(type(None)) | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))),
    st.booleans(),
)  # fmt: skip
def test_no_message_does_harm(topic: str, said: Any, squeezed: bool) -> None:
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    link = Wire()
    made = make(":memory:", link)
    body = b'{"prev": 0, "records": [[1, "evt", ' + payload + b"]]}"
    link.inbox = [(topic, b"\x01" + zlib.compress(body) if squeezed else payload)]
    made.turn()
    if squeezed and topic == "v1/b1/up" and not isinstance(said, bytes):
        assert made.counts["records"] == 1, "any JSON is stored"


def test_a_flood_of_nonsense_is_one_line_and_a_count(link: Wire, tmp_path: Path) -> None:
    made = make(str(tmp_path / "m.db"), link)
    link.inbox = [("nonsense\n<0>panic", b"")] * 500
    made.turn()
    assert made.counts["refused"] == 500
    assert len(link.said) == 1
    assert "\n" not in link.said[0]


def test_a_share_takes_its_own_boards_and_all_shares_take_all(link: Wire, tmp_path: Path) -> None:
    names = [f"b{i}" for i in range(50)]
    for index in range(3):
        link.inbox = [(f"v1/{name}/up", packed(0, name)) for name in names]
        link.inbox += [(f"v1/{name}/state", b'{"state": "ready", "boot": null}') for name in names]
        make(str(tmp_path / f"m{index}.db"), link, Share(index, 3)).turn()
    taken = [{row[0] for row in rows(Store(str(tmp_path / f"m{index}.db")), "SELECT name FROM board")} for index in range(3)]
    assert set.union(*taken) == set(names)
    assert sum(map(len, taken)) == len(names)
    assert min(map(len, taken)) > 5


def test_while_the_database_is_locked_nothing_is_acknowledged(
    link: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "RETRY", 0.02)
    made = make(str(tmp_path / "m.db"), link)
    store = made.store
    store.database.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            store.take([("b1", batch(0, 1))])
        link.inbox = [("v1/b1/up", packed(0, 1)), ("v1/b1/hello", b'{"nonce": "n"}')]

        def free() -> None:
            eventually(lambda: made.counts["tries that failed"] >= 3)
            assert link.sent == []
            other.execute("ROLLBACK")

        freeing = threading.Thread(target=free)
        freeing.start()
        made.turn()
        freeing.join()
    assert [(answer["seq"], answer["nonce"]) for _, answer, _ in link.sent] == [(1, "n")]
    assert "locked" in link.said[0]


def test_a_full_disk_is_waited_for(link: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "RETRY", 0.02)
    made = make(str(tmp_path / "m.db"), link)
    pages = made.store.database.execute("PRAGMA page_count").fetchone()[0]
    made.store.database.execute(f"PRAGMA max_page_count = {pages}")
    link.inbox = [("v1/b1/up", packed(0, "x" * 100_000))]

    def wait(seconds: float) -> bool:
        """Somebody makes room."""
        made.store.database.execute("PRAGMA max_page_count = 100000")
        return False

    monkeypatch.setattr(made.ending, "wait", wait)
    made.turn()
    assert "full" in link.said[0]
    assert [answer["seq"] for _, answer, _ in link.sent] == [1]


def test_an_end_while_the_database_is_away_acknowledges_nothing(link: Wire, tmp_path: Path) -> None:
    made = make(str(tmp_path / "m.db"), link)
    made.store.database.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        made.ending.set()
        link.inbox = [("v1/b1/up", packed(0, 1))]
        made.turn()
    assert link.sent == []


def test_what_the_database_refuses_stops_its_own_board_only(link: Wire, tmp_path: Path) -> None:
    """Nothing is known that would be refused: here it is told to."""
    made = make(str(tmp_path / "m.db"), link)
    made.store.database.execute(
        "CREATE TRIGGER no BEFORE INSERT ON record WHEN new.board = 'bad' BEGIN SELECT raise(ABORT, 'no'); END"
    )
    link.inbox = [(f"v1/{name}/up", packed(0, name)) for name in ("b1", "bad", "b2")]
    made.turn()
    assert sorted(topic for topic, _, _ in link.sent) == ["v1/b1/ack", "v1/b2/ack"]
    assert (made.counts["refused"], made.counts["records"]) == (1, 2)


# --- the receiver as a process, behind a real broker --------------------------------------------------------------------
class Running:
    """`python3 mothership ...`, and what it printed."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.output = folder / f"output.{words[0]}.{time.monotonic_ns()}"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen([PYTHON, str(ROOT / "mothership"), *words], stdout=file, stderr=file)

    def wait_for(self, word: str, seconds: float = 20.0) -> str:
        return eventually(lambda: [line for line in self.output.read_text().splitlines() if word in line], seconds)[0]

    def end(self, number: int = signal.SIGTERM) -> str:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)
        return self.output.read_text()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*words: str) -> Running:
        started.append(Running(tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of one that lets everybody in."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    running, address = plain(tmp_path)
    yield address
    running.end()


class Fleet:
    """Boards that send: outbox, sender and connection are the real ones; all in this process."""

    def __init__(self, folder: Path, address: str, names: tuple[str, ...], tls: dict[str, Tls] | None = None) -> None:
        self.boards = {}
        self.made = 0
        for name in names:
            box = Outbox(str(folder / f"box.{name}"), 1 << 30, 0, (), print)
            remote = Remote(name, (address,), (wire.topic(name, "ack"),), tls=(tls or {}).get(name))
            sender = Sender(box, name, partial(remote.publish, qos=1))
            remote.start()
            self.boards[name] = (box, remote, sender)

    def record(self, count: int) -> None:
        for box, _, _ in self.boards.values():
            for _ in range(count):
                self.made += 1
                box.put("evt", json.dumps(record(self.made / 10, wall=1.7e9 + self.made / 10, n=self.made)).encode(), 0.0)
            box.flush(0.0)

    def turn(self) -> int:
        """Serve all connections once; how many records still wait."""
        now = time.monotonic()
        select.select([remote.fd for _, remote, _ in self.boards.values()], [], [], 0.02)
        for _, remote, sender in self.boards.values():
            for topic, payload in remote.take():
                sender.on_ack(payload, now) if topic else sender.up(now)
            if not remote.connected:
                sender.down()
            sender.tick(now)
            sender.pump(now)
        return sum(box.count() for box, _, _ in self.boards.values())

    def until_empty(self, seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while left := self.turn():
            assert time.monotonic() < deadline, f"{left} records still wait"

    def end(self) -> None:
        for box, remote, _ in self.boards.values():
            remote.end()
            box.close(0.0)


def all_once(database: str, names: tuple[str, ...], count: int) -> None:
    found = rows(
        Store(database),
        "SELECT board, count(*), min(seq), max(seq), count(DISTINCT body) FROM record GROUP BY board ORDER BY board",
    )
    assert found == [(name, count, 1, count, count) for name in sorted(names)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shares", [("0/1", "0/1"), ("0/2", "1/2")], ids=["the same", "different"])
def test_several_receivers_share_one_database(
    database: str, broker: str, run: Callable[..., Running], tmp_path: Path, shares: tuple[str, str]
) -> None:
    names = ("b1", "b2", "b3", "b4")
    assert {zlib.crc32(name.encode()) % 2 for name in names} == {0, 1}
    receivers = [run("receive", broker, database, "--share", share) for share in shares]
    for one in receivers:
        one.wait_for("connected to")
    fleet = Fleet(tmp_path, broker, names)
    for _ in range(5):
        fleet.record(400)
        fleet.turn()
    fleet.until_empty(100)
    fleet.end()
    all_once(database, names, 2000)
    said = [one.end() for one in receivers]
    assert all(" records" in text and "ends:" in text for text in said), said
    assert not any("Traceback" in text or "refused" in text for text in said), said


@pytest.mark.timeout(120)
@needs_postgres
def test_postgresql_restarts_and_nothing_is_lost(broker: str, run: Callable[..., Running], tmp_path: Path) -> None:
    server = Postgres()
    try:
        database = server.database()
        taker = run("receive", broker, database)
        taker.wait_for("connected to")
        fleet = Fleet(tmp_path, broker, ("b1", "b2"))
        fleet.record(300)
        fleet.until_empty()
        server.stop()
        fleet.record(300)
        eventually(lambda: fleet.turn() and "is away" in taker.output.read_text(), 20)
        assert fleet.turn() == 600, "nothing was acknowledged"
        server.start()
        fleet.until_empty(60)
        fleet.end()
        all_once(database, ("b1", "b2"), 600)
        assert taker.process.poll() is None
    finally:
        server.end()


@pytest.mark.timeout(120)
@needs_mosquitto
def test_counts_are_said_when_asked_and_at_the_end(broker: str, run: Callable[..., Running], tmp_path: Path) -> None:
    taker = run("receive", broker, str(tmp_path / "m.db"))
    taker.wait_for("connected to")
    fleet = Fleet(tmp_path, broker, ("b1",))
    fleet.record(250)
    fleet.until_empty()
    mallory = Remote("mallory", (broker,), ())
    mallory.start()
    eventually(lambda: mallory.connected)
    mallory.publish("v1/b1/up", b"nonsense", qos=1)
    taker.wait_for("refused: ")
    os.kill(taker.process.pid, signal.SIGUSR1)
    assert "250 records" in taker.wait_for("so far: ")
    assert "1 refused" in taker.wait_for("so far: ")
    mallory.end()
    fleet.end()
    assert "250 records" in taker.end().splitlines()[-1]
    assert taker.process.returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("receive", "nowhere", "m.db"), "'nowhere' is not HOST:PORT"),
        (("receive", "localhost:1", "m.db", "--share", "2/2"), "'2/2' is not K/N"),
        (("receive", "localhost:1", "m.db", "--tls", "/a", "/b", "/c"), "--tls /a /b /c: cannot be used"),
        (("boards", "mistyped.db"), "mistyped.db: there is no such database; `mothership receive` makes one"),
        (("map", "mistyped.db"), "mistyped.db: there is no such database"),
        (("export", "mistyped.db", "--format", "kml"), "mistyped.db: there is no such database"),
        (("export", "m.db", "--format", "wigle", "--fake"), "WiGLE takes no invented positions"),
        (("receive", "localhost:1", "/nowhere/m.db"), "/nowhere/m.db: SQLite cannot use it as a database"),
        (("boards", "postgresql://me:secret@localhost:1/x"), "postgresql://me@localhost:1/x: PostgreSQL cannot be used"),
        (("watch", "localhost:67419"), "'localhost:67419' is not HOST:PORT"),  # port 1883, modulo 65,536
        (("watch", "localhost:0"), "'localhost:0' is not HOST:PORT"),
        (("watch", "localhost:1", "a/b"), "'a/b' is not a board's name"),
        (("export", "m.db", "--format", "kml", "--since", "soon"), "'soon' is no time"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_a_sentence(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = subprocess.run([PYTHON, str(ROOT / "mothership"), *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_mistyped_database_is_not_made(tmp_path: Path) -> None:
    for words in (("boards", "m.db"), ("map", "m.db"), ("export", "m.db", "--format", "kml"), ("heal", "m.db", "b1")):
        done = subprocess.run(
            [PYTHON, str(ROOT / "mothership"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "there is no such database" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "m.db").execute("CREATE TABLE other (one)").connection.close()
    done = subprocess.run(
        [PYTHON, str(ROOT / "mothership"), "boards", "m.db"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "no mothership's" in done.stderr


@needs_postgres
def test_a_postgresql_of_another_encoding_is_refused_before_anything_is_stored(server: Postgres, tmp_path: Path) -> None:
    server.run(
        "createdb",
        "-h",
        str(server.folder),
        "-U",
        "stack",
        "--encoding",
        "SQL_ASCII",
        "--locale",
        "C",
        "--template",
        "template0",
        "odd",
    )
    url = f"postgresql://stack@/odd?host={server.folder}"
    with pytest.raises(SystemExit, match=r"its encoding is SQL_ASCII.*createdb --encoding UTF8 --template template0 odd"):
        Store(url)


def test_without_paho_what_needs_no_mqtt_works(tmp_path: Path) -> None:
    Store(str(tmp_path / "m.db")).take([("b1", batch(0, "a"))])
    code = "import sys, runpy; sys.modules['paho'] = None; sys.argv = ['m', *sys.orig_argv[4:]]; runpy.run_path(sys.orig_argv[3], run_name='__main__')"
    for words, said in (
        (("boards", "m.db"), "b1"), (("export", "m.db", "--format", "kml"), "</kml>"), (("map", "m.db"), "1 boards"),
        (("heal", "m.db", "b1"), "speaks for"), (("watch", "localhost:1"), "pip install -r requirements-mothership.txt"),
    ):  # fmt: skip
        command = [PYTHON, "-c", code, str(ROOT / "mothership"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("journal", [True, False])
def test_lines_for_people_have_no_syslog_level(tmp_path: Path, journal: bool) -> None:
    environment = {**os.environ, **({"JOURNAL_STREAM": "8:1"} if journal else {})}
    if not journal:
        environment.pop("JOURNAL_STREAM", None)
    command = [PYTHON, str(ROOT / "mothership"), "receive", f"127.0.0.1:{free_port()}", str(tmp_path / "m.db")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        line = process.stderr.readline()
        process.terminate()
    assert "no connection to 127.0.0.1" in line
    assert line.startswith("<") is journal


def test_a_poisoned_board_is_healed_by_a_command(tmp_path: Path) -> None:
    """A board of the first version, and a record of number 2^61 + 7, stored before there was a bound."""
    store = Store(str(tmp_path / "m.db"))
    store.take([("b1", batch(0, "a", "b", "c")), ("b2", batch(0, "x"))])
    with pytest.raises(wire.Malformed):
        wire.unpack(wire.pack(0, [(2**61 + 7, "evt", b"1")]))
    assert wire.unpack(wire.pack(0, [(2**61, "evt", b"1")])).records == [(2**61, "evt", 1)]
    store.database.execute("UPDATE stream SET seq = ? WHERE board = 'b1'", (2**61 + 7,))
    assert store.take([("b1", batch(3, "d"))]) == {("b1", ""): 2**61 + 7}
    done = subprocess.run(
        [PYTHON, str(ROOT / "mothership"), "heal", str(tmp_path / "m.db"), "b1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == f"b1: the last number of its first version was {2**61 + 7}, and is 3 now"
    assert store.take([("b1", batch(3, "d"))]) == {("b1", ""): 4}
    assert (store.last("b1"), store.last("b2")) == (4, 1)


def test_a_second_outbox_is_refused_until_the_first_is_silent_or_the_name_is_given_away(database: str) -> None:
    now = [1000.0]
    store = Store(database, lambda: now[0])

    def hello(outbox: str, *own: str) -> int | str:
        return store.take([], [News("b1", "hello", {"outbox": outbox, "own": list(own or (outbox,))})])["b1", outbox]

    def up(outbox: str, prev: int, *bodies: Any) -> int | str:
        records = [(prev + 1 + index, "evt", body) for index, body in enumerate(bodies)]
        return store.take([("b1", wire.Batch(prev, records, outbox))])["b1", outbox]

    assert (hello("aa"), up("aa", 0, 1, 2)) == (0, 2)
    assert "another outbox (aa)" in str(hello("bb"))
    assert "another outbox (aa)" in str(up("bb", 0, 9))
    assert rows(store, "SELECT rival FROM board") == [("bb",)]
    assert hello("cc", "cc", "aa") == 0, "the same outbox, after a new beginning"
    assert up("cc", 0, 3) == 1
    now[0] += 299.0
    assert "another outbox" in str(hello("bb"))
    now[0] += 1.0
    assert (hello("bb"), up("bb", 0, 6)) == (0, 1)
    assert "another outbox (bb)" in str(hello("aa"))
    now[0] -= 500.0
    assert hello("aa") == 2, "a clock that was set back makes nobody wait"
    assert [row[0] for row in rows(store, "SELECT body FROM record ORDER BY seq")] == ["1", "2", "3", "6"]


def test_without_psycopg_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['psycopg'] = None; sys.argv = ['m', 'boards', 'postgresql:///x']; runpy.run_path(sys.orig_argv[3], run_name='__main__')"
    done = subprocess.run([PYTHON, "-c", code, str(ROOT / "mothership")], capture_output=True, text=True, check=False)
    assert "pip install -r requirements-mothership.txt" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    importers = [
        path.name
        for path in (ROOT / "mothership").glob("*.py")
        if "psycopg" in path.read_text() and "import psycopg" in path.read_text()
    ]
    assert importers == ["postgres.py"]


# --- access control ------------------------------------------------------------------------------------------------------
def certify(folder: Path, *names: str) -> dict[str, Tls]:
    """Certificates from the script that the README tells of."""
    made = {}
    for name in names:
        hosts = ("localhost", "127.0.0.1") if name == "broker" else ()
        subprocess.run(
            [str(ROOT / "mothership/certificate.sh"), str(folder / "certs"), name, *hosts], check=True, capture_output=True
        )
        made[name] = Tls(f"{folder}/certs/ca.crt", f"{folder}/certs/{name}.crt", f"{folder}/certs/{name}.key")
    return made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mosquitto, str, str, dict[str, Tls]]]:
    """The sample configuration: broker, HOST:PORT for boards and for receivers, certificates."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    folder = tmp_path_factory.mktemp("guarded")
    tls = certify(folder, "broker", "b1", "b2", "mothership")
    running, boards_port, receivers_port = secured(folder)
    yield running, f"127.0.0.1:{boards_port}", f"127.0.0.1:{receivers_port}", tls
    running.end()


class Client:
    """Somebody at the broker."""

    def __init__(self, name: str, address: str, tls: Tls | None, *patterns: str) -> None:
        self.remote = Remote(name, (address,), patterns, tls=tls)
        self.remote.start()

    def connected(self) -> bool:
        return self.remote.connected

    def heard(self) -> list[str]:
        return [topic for topic, _ in list(self.remote.inbox) if topic]


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make_one(*arguments: Any) -> Client:
        made.append(Client(*arguments))
        return made[-1]

    yield make_one
    for one in made:
        one.remote.end()


BOARDS_OWN = ("hello", "up", "state", "info", "diag", "sv/logd", "res/17")


def test_a_board_speaks_for_itself_alone(guarded: Any, client: Callable[..., Client]) -> None:
    _, boards_at, receivers_at, tls = guarded
    all_ = client("all", receivers_at, tls["mothership"], "v1/#")
    board = client("b1", boards_at, tls["b1"])
    eventually(lambda: all_.connected() and board.connected())
    for topic in [f"v1/b2/{what}" for what in (*BOARDS_OWN, "ack", "cmd")] + [
        "v1/b1/ack",
        "v1/b1/cmd",
        "v1/b1/other",
        "v1/b1/sv/a/b",
        "else",
        "$SYS/x",
    ]:
        assert board.remote.publish(topic, b"forged", qos=1)
    for what in BOARDS_OWN:
        assert board.remote.publish(f"v1/b1/{what}", b"mine", qos=1)
    eventually(lambda: len(all_.heard()) >= len(BOARDS_OWN))
    assert all_.heard() == [f"v1/b1/{what}" for what in BOARDS_OWN], (
        "what was forged was said before, and would have come before"
    )


def test_a_board_reads_its_own_answers_and_commands_alone(guarded: Any, client: Callable[..., Client]) -> None:
    _, boards_at, receivers_at, tls = guarded
    mothership = client("m", receivers_at, tls["mothership"])
    nosy = client(
        "b1", boards_at, tls["b1"], "#", "v1/#", "v1/+/ack", "v1/b2/ack", "v1/b2/cmd", "v1/b2/state", "v1/b1/ack", "v1/b1/cmd"
    )
    other = client("b2", boards_at, tls["b2"], "v1/b2/ack", "v1/b2/cmd")
    eventually(lambda: mothership.connected() and nosy.connected() and other.connected())
    eventually(lambda: subscribed(mothership, nosy, "v1/b1/cmd") and subscribed(mothership, other, "v1/b2/cmd"))
    mothership.remote.publish("v1/b2/ack", b"{}", qos=1)
    mothership.remote.publish("v1/b2/cmd", b"{}", qos=1)
    other.remote.publish("v1/b2/state", b"{}", qos=1)
    mothership.remote.publish("v1/b1/ack", b"{}", qos=1)
    eventually(lambda: "v1/b1/ack" in nosy.heard() and "v1/b2/ack" in other.heard())
    assert set(nosy.heard()) == {"v1/b1/cmd", "v1/b1/ack"}, "what was said to b2 was said before, and would have come before"


def subscribed(mothership: Client, who: Client, topic: str) -> bool:
    mothership.remote.publish(topic, b"{}", qos=1)
    return topic in who.heard()


def test_who_has_no_certificate_of_ours_is_refused(guarded: Any, client: Callable[..., Client], tmp_path: Path) -> None:
    _, boards_at, receivers_at, tls = guarded
    foreign = certify(tmp_path, "b1")["b1"]._replace(ca=tls["b1"].ca)  # the right name, by somebody else's authority
    refused = [
        client("x", boards_at, None),
        client("x", boards_at, Tls(tls["b1"].ca)),
        client("x", boards_at, foreign),
        client("x", receivers_at, Tls(tls["b1"].ca)),
    ]
    eventually(lambda: all(one.remote._lost for one in refused))
    good = client("b1", boards_at, tls["b1"])
    eventually(good.connected)
    assert not any(one.connected() for one in refused)


def test_a_board_does_not_take_a_broker_that_it_cannot_vouch_for(
    guarded: Any, client: Callable[..., Client], tmp_path: Path
) -> None:
    _, boards_at, _, tls = guarded
    deceived = client("b1", boards_at, tls["b1"]._replace(ca=certify(tmp_path, "b1")["b1"].ca))
    eventually(lambda: deceived.remote._lost)
    assert not deceived.connected()


def test_a_board_cannot_throw_another_one_out_by_its_client_identifier(guarded: Any, client: Callable[..., Client]) -> None:
    _, boards_at, _, tls = guarded
    victim = client("b1", boards_at, tls["b1"])
    eventually(victim.connected)
    thief = client("b1", boards_at, tls["b2"])
    eventually(thief.connected)
    again = client("b2", boards_at, tls["b2"])
    eventually(lambda: thief.remote._lost)  # it was b2 all the time, and so the second b2 has thrown it out
    eventually(again.connected)
    assert not victim.remote._lost
    assert victim.connected()


@needs_mosquitto
def test_a_revoked_certificate_is_refused_on_both_listeners_and_its_connection_ended(
    client: Callable[..., Client], run: Callable[..., Running], tmp_path: Path
) -> None:
    """The list is there from the first day; the broker reads it again on SIGHUP."""
    tls = certify(tmp_path, "broker", "mothership", "b1", "b2", "b3")
    broker, boards_port, receivers_port = secured(tmp_path)
    stolen = {}
    for name in ("b1", "b3"):
        for end in ("crt", "key"):
            shutil.copy(tmp_path / "certs" / f"{name}.{end}", tmp_path)
        stolen[name] = tls[name]._replace(certificate=f"{tmp_path}/{name}.crt", key=f"{tmp_path}/{name}.key")
    try:
        address, receivers_at = f"127.0.0.1:{boards_port}", f"127.0.0.1:{receivers_port}"
        there = client("b1", address, stolen["b1"])
        eventually(there.connected)
        for name in ("b1", "b3"):
            revoke = [str(ROOT / "mothership/certificate.sh"), "--revoke", str(tmp_path / "certs"), name]
            said = subprocess.run(revoke, check=True, capture_output=True, text=True).stdout
            assert f"the certificate of {name} is revoked" in said
            assert "SIGHUP" in said
            assert f"mothership disconnect localhost:8884 {name}" in said
        broker.server.send_signal(signal.SIGHUP)
        eventually(lambda: "Reloading config" in broker.config.with_suffix(".log").read_text())
        refused = [client("b3", address, stolen["b3"]), client("b3", receivers_at, stolen["b3"])]
        eventually(lambda: all(one.remote._lost for one in refused))
        assert there.connected(), "the broker itself does not end it"
        run("disconnect", receivers_at, "b1", "--tls", *tls["mothership"]).wait_for("has ended")
        eventually(lambda: there.remote._lost)
        new = certify(tmp_path, "b1")["b1"]
        good = [client("b1", address, new), client("b2", address, tls["b2"])]
        eventually(lambda: all(one.connected() for one in good))
        assert not any(one.connected() for one in [*refused, there])
    finally:
        broker.end()


def test_a_motherships_certificate_is_worth_nothing_at_the_boards_port(guarded: Any, client: Callable[..., Client]) -> None:
    """And a board's is worth nothing at the receivers'."""
    _, boards_at, receivers_at, tls = guarded
    board = client("b1", boards_at, tls["b1"], "v1/b1/ack", "v1/b1/cmd")
    mothership = client("m", receivers_at, tls["mothership"], "v1/#")
    outside = client("x", boards_at, tls["mothership"], "v1/#", "v1/mothership/ack")
    inside = client("y", receivers_at, tls["b2"], "v1/#", "v1/b2/ack")
    eventually(lambda: board.connected() and mothership.connected() and outside.connected())
    eventually(lambda: subscribed(mothership, board, "v1/b1/ack"))
    for one in (outside, inside):
        one.remote.publish("v1/b1/cmd", b"{}", qos=1)
        one.remote.publish("v1/b1/up", b"{}", qos=1)
    outside.remote.publish("v1/mothership/state", b"{}", qos=1)
    board.remote.publish("v1/b1/state", b"{}", qos=1)
    eventually(lambda: {"v1/b1/state", "v1/mothership/state"} <= set(mothership.heard()))
    assert "v1/b1/cmd" not in board.heard()
    assert set(mothership.heard()) == {"v1/b1/ack", "v1/b1/state", "v1/mothership/state"}
    assert [topic for topic in outside.heard() + inside.heard() if topic.startswith("v1/b1")] == []


def test_the_script_says_in_words_what_it_has_made(tmp_path: Path) -> None:
    script = [str(ROOT / "mothership/certificate.sh"), str(tmp_path / "certs")]

    def said(*words: str) -> str:
        return subprocess.run([*script, *words], check=True, capture_output=True, text=True).stdout

    first = said("broker", "broker.example.org", "10.0.0.1")
    assert "a new authority" in first
    assert "of a broker that is reached as broker.example.org, 10.0.0.1, valid until" in first
    assert (tmp_path / "certs/revoked.pem").read_text().startswith("-----BEGIN X509 CRL-----")
    assert "of receivers, watch and send, valid until" in said("mothership")
    assert "of the board b1 (its UPLINK_BOARD, or its host name), valid until" in said("b1")
    wrong = subprocess.run([script[0], "--revoke", script[1], "b7"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "there is no" in wrong.stderr) == (1, True)


def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(tmp_path: Path) -> None:
    """UTCTime up to 2049, GeneralizedTime from 2050 on (RFC 5280, 4.1.2.5)."""
    for name, days in (("b1", 5), ("b2", 20_000)):
        script = [str(ROOT / "mothership/certificate.sh"), str(tmp_path / "certs"), name]
        subprocess.run(script, check=True, capture_output=True, env={**os.environ, "DAYS": str(days)})
        found = certificates.until_of(f"{tmp_path}/certs/{name}.crt")
        shown = subprocess.run(
            ["openssl", "x509", "-noout", "-enddate", "-in", f"{tmp_path}/certs/{name}.crt"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert found == ssl.cert_time_to_seconds(shown.strip().removeprefix("notAfter="))
        assert found == pytest.approx(time.time() + 86400 * days, abs=100)
    assert certificates.until_of("/nowhere") is None
    (tmp_path / "odd").write_text("-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n")
    assert certificates.until_of(str(tmp_path / "odd")) is None


def test_the_end_of_a_certificate_is_told_by_name() -> None:
    end = 1_800_000_000.0  # 2027-01-15 08:00 UTC
    assert certificates.warning("mine", end, end - 31 * 86400) == ""
    assert certificates.warning("mine", end, end - 29 * 86400).startswith("mine is valid until 2027-01-15, 29 days from now")
    assert certificates.warning("theirs", end, end + 1).startswith("theirs has expired on 2027-01-15")


@needs_mosquitto
def test_a_receiver_tells_of_certificates_that_end_soon(run: Callable[..., Running], tmp_path: Path) -> None:
    environment = {**os.environ, "DAYS": "20"}
    for name in (("broker", "127.0.0.1"), ("mothership",)):
        script = [str(ROOT / "mothership/certificate.sh"), str(tmp_path / "certs"), *name]
        subprocess.run(script, check=True, capture_output=True, env=environment)
    broker, _, port = secured(tmp_path)
    try:
        files = [f"{tmp_path}/certs/{name}" for name in ("ca.crt", "mothership.crt", "mothership.key")]
        taker = run("receive", f"127.0.0.1:{port}", str(tmp_path / "m.db"), "--tls", *files)
        assert "20 days from now" in taker.wait_for(f"our certificate ({files[1]}) is valid until")
        assert "20 days from now" in taker.wait_for(f"the certificate of 127.0.0.1:{port} is valid until")
    finally:
        broker.end()


@pytest.mark.timeout(60)
def test_what_a_board_retains_is_bounded_by_the_brokers_memory(
    guarded: Any, client: Callable[..., Client], tmp_path: Path
) -> None:
    """With a limit of 32 MB: 300 names of 400 kB each would be 120."""
    certify(tmp_path, "broker", "b1")
    text = (ROOT / "mothership/mosquitto.conf").read_text()
    assert "memory_limit 536870912" in text
    small = tmp_path / "small"
    small.mkdir()
    (small / "certs").symlink_to(tmp_path / "certs")
    port = free_port()
    config = text.split("# Receivers")[0].replace("memory_limit 536870912", "memory_limit 33554432")
    config = config.replace("/etc/mosquitto/certs", f"{small}/certs").replace(
        "/etc/mosquitto/acl", str(ROOT / "mothership/acl")
    )
    broker = Mosquitto(small, config.replace("listener 8883", f"listener {port} 127.0.0.1"), port)
    try:
        tls = Tls(*(f"{small}/certs/{name}" for name in ("ca.crt", "b1.crt", "b1.key")))
        hostile = client("b1", f"127.0.0.1:{port}", tls)
        eventually(hostile.connected, 20)
        for number in range(300):
            hostile.remote.publish(f"v1/b1/sv/s{number}", bytes(400_000), qos=0, retain=True)
        # Until all is said, or the broker has had enough.
        eventually(lambda: hostile.remote._lost or not hostile.remote._client._out_packet, 30)  # type: ignore[union-attr]
        status = Path(f"/proc/{broker.server.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 80_000
        assert broker.server.poll() is None
    finally:
        broker.end()


@pytest.mark.timeout(120)
def test_boards_and_receiver_through_tls(guarded: Any, run: Callable[..., Running], tmp_path: Path) -> None:
    _, boards_at, receivers_at, tls = guarded
    taker = run("receive", receivers_at, str(tmp_path / "m.db"), "--tls", *tls["mothership"])
    taker.wait_for("connected to")
    fleet = Fleet(tmp_path, boards_at, ("b1", "b2"), tls)
    fleet.record(300)
    fleet.until_empty()
    fleet.end()
    all_once(str(tmp_path / "m.db"), ("b1", "b2"), 300)
    assert "refused" not in taker.end()


# --- to look at -----------------------------------------------------------------------------------------------------------
def test_the_table_of_boards(database: str) -> None:
    store = Store(database)
    info = {"number": 7, "model": "Pi\x1b[31m", "kernel": "6.12", "why": {"cause": "watchdog", "reason": "PID 1 hung"}}
    store.take(
        [("b1", batch(0, record(1.0, wall=time.time() - 7200.0)))],
        [News("b1", "info", info), News("b1", "state", {"state": "lost", "boot": None})],
    )
    end = {"number": 3, "last_end": {"cause": "reboot", "reason": ""}}
    store.take([("b2", batch(0, {"data": end}, kind="boot"))])
    store.take([], [News("b3", "state", {"state": "ready", "boot": BOOT})])
    found = boards.boards(store, time.time() + 300.0)
    assert [(board["name"], board["state"], board["records"], board["boots"], board["why"]) for board in found] == [
        ("b1", "lost", 1, 7, "watchdog: PID 1 hung"), ("b2", "unknown", 1, 3, "reboot"), ("b3", "ready", 0, None, None),
    ]  # fmt: skip
    assert found[0]["lag"] == pytest.approx(7200.0, abs=5.0)
    assert found[0]["seen_ago"] == pytest.approx(300.0, abs=5.0)
    assert found[2]["seen_ago"] is None
    lines = boards.table(found).splitlines()
    assert len(lines) == 4
    assert "2 h" in lines[1]
    assert "5 min ago" in lines[1]
    assert "\x1b" not in boards.table(found)
    command = [PYTHON, str(ROOT / "mothership"), "boards", database, "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [board["name"] for board in printed] == ["b1", "b2", "b3"]


def test_a_board_that_is_not_well_is_noted_and_found_by_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.db")
    store, now = Store(path), time.time()
    ready = [News(name, "state", {"state": "ready", "boot": BOOT}) for name in ("good", "crashing", "silent", "twin")]
    crashes = [{"data": {"name": name}} for name in ("gps", "gps", "gps", "logd", "logd")]
    store.take([("crashing", batch(0, *crashes, kind="crash")), ("good", batch(0, *crashes[3:], kind="crash"))], ready)
    store.database.execute("UPDATE board SET seen = ?, state_since = ? WHERE name = 'silent'", (now - 7300, now - 7300))
    store.take([], [News("twin", "hello", {"outbox": "aa", "own": ["aa"]}), News("lost", "state", {"state": "lost"})])
    store.take(
        [],
        [
            News("good", "info", {"certificate_until": now + 31 * 86400}),
            News("lost", "info", {"certificate_until": now + 86400}),
        ],
    )
    store.take([], [News("twin", "hello", {"outbox": "bb", "own": ["bb"]})])
    notes = {board["name"]: board["note"] for board in boards.boards(store, now)}
    assert notes == {
        "good": None, "crashing": "gps fails", "silent": "silent for 2 h", "twin": "a second board of this name (bb)",
        "lost": "its certificate ends " + time.strftime("%Y-%m-%d", time.gmtime(now + 86400)),
    }  # fmt: skip

    def shown(*words: str) -> list[str]:
        command = [PYTHON, str(ROOT / "mothership"), "boards", path, *words, "--json"]
        return [
            board["name"] for board in json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        ]

    assert shown("good", "twin") == ["good", "twin"]
    assert shown("--state", "lost") == ["lost"]
    assert shown("--state", "trouble") == ["crashing", "lost", "silent", "twin"]
    assert shown("good", "--state", "lost") == []
    done = subprocess.run(
        [PYTHON, str(ROOT / "mothership"), "boards", path, "godo"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no board godo is known here; known are crashing, good" in done.stderr) == (1, True)


REAL = """
UPLINK = ("127.0.0.1:1884",)
SERVICES = (*SERVICES,
    Service("far", ("mosquitto", "-c", "/test/far.conf"), after=("logd",)),
    Service("mothership", ("{PYTHON}", "/test/receiver.py", "127.0.0.1:1884", "/var/mothership.db"), after=("far",),
            env=(("PYTHONPATH", "{LIB}"),)),
)
"""


@needs_mosquitto
def test_what_a_real_board_says_of_itself_is_in_the_table(boot: Callable[..., Board], tmp_path: Path) -> None:
    """stack.py as PID 1 with its own uplink: state, info, and its boot placed in time."""
    files = {path.name: path.read_text() for path in (ROOT / "mothership").glob("*.py")}
    files["far.conf"] = "listener 1884 127.0.0.1\nallow_anonymous true\npersistence false\n"
    board = boot("", base="SERVICES", settings=REAL, files=files).up()

    def found() -> dict[str, Any]:
        copy = tmp_path / f"copy.{time.monotonic_ns()}"  # SQLite would follow /proc/PID/root to a path of this machine
        for suffix in ("-wal", ""):
            Path(f"{copy}{suffix}").write_bytes((board.root / f"var/mothership.db{suffix}").read_bytes())
        store = Store(str(copy))
        placed = rows(store, 'SELECT "offset" FROM boot')
        return {**boards.boards(store, time.time())[0], "placed": placed}

    told = eventually(lambda: one if (one := found())["state"] == "ready" and one["kernel"] and one["seen"] else {}, 40)
    assert (told["name"], told["boot"], told["kernel"]) == ("laptop", board.ask("board")["boot_id"], os.uname().release)
    assert told["placed"][0][0] == pytest.approx(time.time() - time.monotonic(), abs=5.0)
    assert told["lag"] < 60


@needs_mosquitto
def test_watch_prints_what_arrives(broker: str, run: Callable[..., Running], client: Callable[..., Client]) -> None:
    watching, one = run("watch", broker), run("watch", broker, "b2")
    said = client("x", broker, None)
    eventually(said.connected)
    said.remote.publish("v1/b1/state", b'{"state": "ready", "boot": "B"}', qos=1, retain=True)
    said.remote.publish("v1/b2/state", b'{"state": "lost"}', qos=1, retain=True)
    assert watching.wait_for("b1 state").endswith('b1 state {"state": "ready", "boot": "B"}')
    one.wait_for("b2 state")
    for topic, payload in (
        ("v1/b1/up", packed(0, {"data": {"ssid": "\x1b[2Jé"}})),
        ("v1/b1/up", b"nonsense"),
        ("v1/b1/sv/logd", b"{}"),
        ("v1/b2/res/1", b"{}"),
    ):
        said.remote.publish(topic, payload, qos=1)
    one.wait_for("b2 res/1 {}")
    watching.wait_for("v1/b1/up is malformed")
    watching.wait_for("b1 sv/logd {}")
    assert watching.wait_for("b1 evt 1").endswith('{"ssid": "\\u001b[2Jé"}')
    assert " b1 " not in one.end(signal.SIGINT)
    watching.end(signal.SIGINT)
