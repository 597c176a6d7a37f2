"""Board to mothership: exactly once, whatever is lost, repeated or killed in between."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MOSQUITTO, PYTHON, ROOT, Board, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import free_port, plain

sys.path.insert(0, str(ROOT / "mothership"))

from receiver import Receiver
from store import Store

from uplink import wire
from uplink.outbox import Outbox
from uplink.remote import Remote, Tls
from uplink.sender import ASK_FIRST, ASK_MAX, SILENCE, TOLD, WINDOW, Sender

# --- the format --------------------------------------------------------------------------------------------------------
RECORDS = [(18, "wifi", {"a": [1, "é"]}), (20, "evt", None)]


def packed(prev: int, records: list[tuple[int, str, Any]]) -> bytes:
    return wire.pack(prev, [(number, kind, json.dumps(body).encode()) for number, kind, body in records])


def test_a_batch_comes_back_as_it_was() -> None:
    assert wire.unpack(packed(17, RECORDS))[:2] == (17, RECORDS)
    of_a_stream = wire.unpack(wire.pack(0, [(1, "evt", b"7")], "0a1b"))
    assert of_a_stream == wire.Batch(0, [(1, "evt", 7)], "0a1b", len(b'{"outbox":"0a1b","prev":0,"records":[[1,"evt",7]]}'))


def test_a_scan_of_forty_access_points_is_small(record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(1)
    records = []
    for number in range(40):
        bssid = ":".join(f"{chance.randrange(256):02x}" for _ in range(6))
        data = {
            "latitude": 52.510911, "longitude": 13.376493, "accuracy": 5.0, "age": round(chance.random(), 3), "position_source": "gps",
            "event": chance.choice(("seen", "changed")), "bssid": bssid, "ssid": f"harbour-{chance.randrange(10000)}", "security": "WPA2",
            "frequency": chance.choice((2412, 2437, 2462, 5180)), "signal": -chance.randrange(40, 95), "source": "wpa_supplicant",
        }  # fmt: skip
        envelope = {
            "v": 1,
            "boot": "0b3f1c1e-6c66-4b3c-9a3e-1f1d5f0b7c11",
            "from": "wifi_analyzer",
            "seq": number,
            "kind": "wifi",
        }
        when = {"time": 1795535145.6 + number / 1000, "mono": 5753.4 + number / 1000, "clock": "synchronised"}
        records.append((number + 1, "wifi", {**envelope, **when, "data": data, "topic": f"wifi/{bssid}"}))
    size, sent = sum(len(json.dumps(body, separators=(",", ":"))) for _, _, body in records), len(packed(0, records))
    record_property("figure", f"a scan of 40 access points: {size} bytes of records, {sent} on the wire")
    assert sent < size / 5


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\x02abc", b"\x03" + packed(0, RECORDS)[1:], wire.pack(0, [], "a/b"), wire.pack(0, [], "x" * 65), b"\x01not zlib", packed(1, RECORDS)[:-1], packed(1, RECORDS) + b"x", packed(20, RECORDS),
        packed(0, RECORDS[::-1]), packed(-1, RECORDS), packed(0, [(1, "x" * 65, {})]), packed(0, [(2**63, "evt", {})]),
        wire.pack(0, [(1, "evt", b'"' + b"x" * wire.MOST + b'"')]), wire.pack(0, [(1, "evt", b"[" * 100_000)]),
        wire.pack(0, [(1, "evt", b'{"cut')]),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.unpack(payload)


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(payload: bytes) -> None:
    for parse in (
        wire.unpack,
        wire.parse,
        lambda data: wire.unpack(b"\x01" + data),
        lambda data: wire.parse_topic(data.decode("latin1")),
    ):
        try:
            parse(payload)
        except wire.Malformed:
            pass


# --- the sender, over a connection that loses ------------------------------------------------------------------------
class World:
    """One board, one mothership, and a connection between them that a seed makes bad."""

    def __init__(self, folder: Path, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.loss = loss
        self.now = 0.0
        self.store = Store(str(folder / "mothership.db"), lambda: 1e9 + self.now)
        self.receiver = Receiver(self.store, self)  # type: ignore[arg-type]
        self.up: list[tuple[str, bytes]] = []
        self.down: list[tuple[str, bytes]] = []
        self.box = self.make_outbox()
        self.said: list[str] = []
        self.sender = self.make_sender()
        self.put = 0

    log = type("Log", (), {"warning": staticmethod(print)})

    def make_outbox(self) -> Outbox:
        return Outbox(str(self.folder / "box"), 1 << 30, 0, (), print)

    def make_sender(self) -> Sender:
        return Sender(self.box, "b1", self.send, say=self.said.append)

    def send(self, topic: str, payload: bytes) -> bool:
        self.up += [(topic, payload)] * self.copies()
        return True

    def copies(self) -> int:
        return 0 if self.random.random() < self.loss else 2 if self.random.random() < self.loss else 1

    def publish(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.down += [(topic, payload)] * self.copies()
        return True

    def take(self) -> Iterator[tuple[str, bytes]]:
        if self.random.random() < self.loss:
            self.random.shuffle(self.up)
        taken, self.up = self.up, []
        yield from taken

    def record(self, count: int) -> None:
        for _ in range(count):
            self.put += 1
            self.box.put("evt", b'{"n":%d}' % self.put, self.now)

    def turn(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.box.tick(self.now)
        self.sender.tick(self.now)
        self.sender.pump(self.now)
        self.receiver.turn()
        taken, self.down = self.down, []
        for _, payload in taken:
            self.sender.on_ack(payload, self.now)

    def reboot(self) -> None:
        self.box.close(self.now)
        self.box = self.make_outbox()
        self.sender = self.make_sender()
        self.sender.up(self.now)

    def until_empty(self) -> None:
        for _ in range(2000):
            if not self.box.count():
                return
            self.turn()
        raise AssertionError(f"{self.box.count()} records still wait")

    def arrived(self) -> list[int]:
        rows = self.store.database.execute("SELECT body FROM record ORDER BY seq").fetchall()
        return [json.loads(body)["n"] for (body,) in rows]


def test_all_arrive_once_and_in_order(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.record(1000)
    world.turn()
    assert world.arrived() == [], "nothing is sent before a connection has asked what the mothership has"
    world.sender.up(world.now)
    world.until_empty()
    assert world.arrived() == list(range(1, 1001))
    assert world.sender.resent == 0


def test_the_window_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.turn()
    world.loss = 1.0
    world.record(2000)
    world.turn()
    assert world.box.under_way(world.sender.stream, world.sender.sent) <= WINDOW + 100
    world.loss = 0.0
    world.turn(SILENCE)
    world.until_empty()
    assert world.arrived() == list(range(1, 2001))
    assert world.sender.resent > 0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0.0, 0.6),
    st.lists(st.sampled_from(("record", "turn", "reboot", "reconnect", "cut")), max_size=60),
)
def test_exactly_once(tmp_path_factory: pytest.TempPathFactory, seed: int, loss: float, steps: list[str]) -> None:
    world = World(tmp_path_factory.mktemp("world"), seed, loss)
    world.sender.up(0.0)
    for step in steps:
        if step == "record":
            world.record(world.random.randrange(1, 150))
        elif step == "turn":
            world.turn(world.random.random() * 5)
        elif step == "reboot":
            world.reboot()
        elif step == "reconnect":
            world.sender.up(world.now)
        else:
            world.sender.down()
    world.sender.up(world.now)
    world.box.flush(world.now)
    world.until_empty()
    assert world.arrived() == list(range(1, world.put + 1))


def test_a_gap_is_filled_although_more_is_sent_all_the_time(tmp_path: Path) -> None:
    """The mothership answers each batch that misses the one before it: with the number that we know."""
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.turn()
    for second in range(int(SILENCE) + 3):
        world.loss = 1.0 if second == 1 else 0.0
        world.record(1)
        world.box.flush(world.now)
        world.turn()
    assert world.arrived() == list(range(1, world.put + 1))


def test_a_question_is_asked_again_soon_and_then_less_often(tmp_path: Path) -> None:
    """Board and receiver come back to a broker in any order: who asks before the receiver is there is not heard."""
    world = World(tmp_path, 1, 1.0)
    world.sender.up(0.0)
    pauses = []
    for _ in range(10):
        assert world.sender.due is not None
        pauses.append(world.sender.due - world.now)
        world.turn(pauses[-1])
    assert ASK_FIRST / 10 <= pauses[0] <= ASK_FIRST
    assert ASK_MAX / 10 <= pauses[-1] <= ASK_MAX
    world.loss = 0.0
    world.record(10)
    world.until_empty()
    assert world.arrived() == list(range(1, 11))


def test_an_answer_may_take_longer_than_a_board_is_patient(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.receiver.turn()
    answers, world.down = world.down, []
    assert world.sender.due is not None
    world.sender.tick(world.sender.due)
    assert len(world.up) == 1, "it has asked again"
    for _, payload in answers:
        world.sender.on_ack(payload, world.now)
    assert not world.sender.nonce


def test_a_lost_outbox_does_not_reuse_numbers(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.record(100)
    world.until_empty()
    world.box.close(0.0)
    for file in (tmp_path / "box").iterdir():
        file.unlink()
    world.reboot()
    world.record(50)
    world.until_empty()
    assert world.arrived() == list(range(1, 151))


def test_a_new_outbox_that_has_gathered_more_than_the_mothership_has_keeps_all_of_it(tmp_path: Path) -> None:
    """The mothership's last number is one that the new outbox has given too: to a record that was never sent."""
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.record(20)
    world.until_empty()
    world.box.close(0.0)
    for file in (tmp_path / "box").iterdir():
        file.unlink()
    world.box = world.make_outbox()
    world.sender = world.make_sender()
    world.record(50)
    world.box.flush(0.0)
    world.reboot()  # not even what it gave before is remembered as sent
    world.until_empty()
    assert world.arrived() == list(range(1, 71))
    world.record(10)
    world.reboot()
    world.until_empty()
    assert world.arrived() == list(range(1, 81))
    lines = world.store.database.execute("SELECT outbox, seq FROM stream ORDER BY heard").fetchall()
    assert [seq for _, seq in lines] == [20, 60], "each outbox has numbers of its own"


def test_a_mothership_that_lost_its_database_gets_what_is_left(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.record(100)
    world.until_empty()
    world.store.database.execute("DELETE FROM record")
    world.store.database.execute("DELETE FROM board")
    world.store.database.execute("DELETE FROM stream")
    world.record(50)
    world.until_empty()
    assert world.arrived() == list(range(101, 151))


# --- a real broker, killed ---------------------------------------------------------------------------------------------
BOARD = """
import os, sys, time; sys.path.insert(0, {root!r})
import select
from uplink.remote import Remote
from uplink.outbox import Outbox
from uplink.sender import Sender
from uplink import wire
from uplink.remote import Remote, Tls
box = Outbox(sys.argv[1], 1 << 30, 0, (), print)
remote = Remote("b1", (sys.argv[2],), (wire.topic("b1", "ack"),))
sender = Sender(box, "b1", lambda topic, payload: remote.publish(topic, payload, qos=1))
remote.start()
number = int(sys.argv[3])
while True:
    now = time.monotonic()
    number += 1
    box.put("evt", b'{{"n":%d,"life":%d}}' % (number, os.getpid()), now, urgent=number % 10 == 0)
    if number % 10 == 0: print(number, flush=True)
    if select.select([remote.fd], [], [], 0.002)[0]:
        for topic, payload in remote.take():
            sender.on_ack(payload, now) if topic else sender.up(now)
    if not remote.connected: sender.down()
    sender.tick(now); sender.pump(now)
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")
def test_board_broker_and_receiver_are_killed(tmp_path: Path) -> None:
    """A few seconds of what `make chaos` shall do for hours: every number that the board told as committed has arrived, once."""
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    told = 0
    running: dict[str, subprocess.Popen[str]] = {}

    def start(name: str) -> None:
        commands = {
            "broker": [str(MOSQUITTO), "-c", str(config)],
            "receiver": [PYTHON, str(ROOT / "mothership/receiver.py"), f"127.0.0.1:{port}", str(tmp_path / "m.db")],
            "board": [PYTHON, "-c", BOARD.format(root=str(ROOT)), str(tmp_path / "box"), f"127.0.0.1:{port}", str(told)],
        }
        running[name] = subprocess.Popen(commands[name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def kill(name: str) -> None:
        nonlocal told
        running[name].kill()
        printed = running[name].communicate()[0]
        if name == "board":
            told = max([told, *map(int, printed.split("\n")[:-1])])

    chosen = random.Random(5)
    for name in ("broker", "receiver", "board"):
        start(name)
    for _ in range(12):
        time.sleep(chosen.uniform(0.3, 1.5))  # the chaos itself, not a wait for something
        victim = chosen.choice(("broker", "receiver", "board"))
        kill(victim)
        start(victim)
    kill("board")
    assert told > 200
    last = told
    committed = numbers_in(tmp_path / "box" / "outbox.db") | numbers_in(tmp_path / "m.db")
    assert set(range(1, told + 1)) - committed == set(), "told, and then lost"
    start("board")
    try:
        eventually(lambda: set(range(1, last + 1)) <= numbers_in(tmp_path / "m.db"), 60)
    finally:
        for name in running:
            kill(name)
    bodies = [body for (body,) in sqlite3.connect(tmp_path / "m.db").execute("SELECT body FROM record")]
    assert len(bodies) == len(set(bodies)), "none arrived twice"


def numbers_in(path: Path) -> set[int]:
    database = sqlite3.connect(path)
    found = [json.loads(body)["n"] for (body,) in database.execute("SELECT body FROM record")]
    database.close()
    return set(found)


# --- a whole board -----------------------------------------------------------------------------------------------------
MOTHERSHIP = """
UPLINK = ("127.0.0.1:1884",)
SERVICES = (*SERVICES,
    Service("far", ("mosquitto", "-c", "/test/far.conf"), after=("logd",)),
    Service("mothership", ("{PYTHON}", "/test/receiver.py", "127.0.0.1:1884", "/var/mothership.db"), after=("far",),
            env=(("PYTHONPATH", "{LIB}"),)),
    Service("commander", ("{PYTHON}", "/test/commander.py"), after=("far",)),
)
"""
# Says what it hears of the board; sends each command twice until it is answered, and one as a retained message.
COMMANDER = """
import json, select, sys, time
sys.path.insert(0, "/stack/lib/stack")
from uplink.remote import Remote

remote = Remote("commander", ("127.0.0.1:1884",), tuple("v1/laptop/" + what for what in ("state", "info", "sv/+", "diag", "res/+")))
remote.start()
wanted, expires, ready = {"c1": {"op": "restart", "name": "fakegps"}, "c2": {"op": "stop", "name": "broker"}, "c3": {"op": "dance"}}, time.time() + 600, False
while True:
    if not select.select([remote.fd], [], [], 1.0)[0] and ready:
        for name, command in wanted.items():
            for retain in (False, False, *([True] if name == "c1" else [])):
                text = json.dumps({"id": "c4" if retain else name, "expires": expires, **command}).encode()
                remote.publish("v1/laptop/cmd", text, qos=1, retain=retain)
    for topic, payload in remote.take():
        if topic:
            found = json.loads(payload)
            ready = ready or found.get("state") == "ready"
            if not found.get("again"):
                print("HEARD", topic, payload.decode(), flush=True)
                wanted.pop(found.get("id"), None)
"""


@pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")
def test_what_a_board_observes_is_in_the_database(boot: Callable[..., Board], tmp_path: Path) -> None:
    """Real apps under a real PID 1, and the mothership beside them; each link between them is killed once."""
    files = {path.name: path.read_text() for path in (ROOT / "mothership").glob("*.py")}
    files["far.conf"] = "listener 1884 127.0.0.1\nallow_anonymous true\npersistence false\n"
    files["commander.py"] = COMMANDER
    board = boot("", base="SERVICES", settings=MOTHERSHIP, files=files).up()

    def rows(query: str) -> list[Any]:
        """Of a copy, each time another one: SQLite would follow /proc/PID/root to a path of this machine."""
        copy = Path(tempfile.mkdtemp(dir=tmp_path))
        for suffix in ("-wal", ""):
            (copy / f"db{suffix}").write_bytes((board.root / f"var/mothership.db{suffix}").read_bytes())
        with contextlib.closing(sqlite3.connect(copy / "db")) as database:
            return database.execute(query).fetchall()

    def observed() -> int:
        return int(rows("SELECT count(*) FROM record WHERE board = 'laptop' AND kind = 'wifi'")[0][0])

    def heard(topic: str) -> list[dict[str, Any]]:
        lines = (line.partition(f"HEARD v1/laptop/{topic} ")[2] for line in board.log("commander").splitlines())
        return [json.loads(text) for text in lines if text]

    first = eventually(lambda: count if (count := observed()) > 3 else 0, 30)
    boot_id = board.ask("board")["boot_id"]
    assert eventually(lambda: heard("state"), 30)[-1] == {"state": "ready", "boot": boot_id}
    results = [eventually(lambda name=name: heard(f"res/{name}"))[0] for name in ("c1", "c2", "c3")]  # type: ignore[misc]
    assert (results[0]["ok"], results[0]["result"]["name"]) == (True, "fakegps")
    assert board.wait_state("fakegps", "running")["restart"] in (1, 2), (
        "by c1 and c4, which may come in one stop, not by each message"
    )
    if board.stats("uplink")["user"] != "root":
        assert "this board's COMMANDS refuses stop broker; it lists start *, restart *," in results[1]["error"]
        assert board.stats("broker")["restart"] == 0
    assert "there is no command 'dance'" in results[2]["error"]
    info = heard("info")[-1]
    assert (info["boot"], info["kernel"]) == (boot_id, os.uname().release)
    for name in ("mothership", "far", "uplink"):
        board.kill(name)
        board.wait_state(name, "running")
    eventually(lambda: observed() > first + 5, 60)
    crashes = [json.loads(body)["data"]["name"] for (body,) in rows("SELECT body FROM record WHERE kind = 'crash'")]
    assert {"mothership", "far", "uplink"} <= set(crashes), "PID 1's own records come along"
    assert len(rows("SELECT 1 FROM record WHERE kind = 'up'")) == 1, "once, though uplink.py had two lives"
    asked = [json.loads(body)["data"] for (body,) in rows("SELECT body FROM record WHERE kind = 'cmd'")]
    assert sorted(one["id"] for one in asked) == ["c1", "c2", "c3", "c4"], "each once, and so is one that the broker retains"
    assert eventually(lambda: [row for row in heard("sv/uplink") if row["exit"] == "signal KILL"])
    found = rows("SELECT boot, mono, clock, body FROM record WHERE kind = 'wifi'")
    assert all(row[0] == boot_id and row[1] > 0 and row[2] in ("unset", "plausible", "synchronised") for row in found)
    assert len({row[3] for row in found}) == len(found), "each of them once"


# --- the connection ----------------------------------------------------------------------------------------------------
def test_files_that_are_not_there_yet_are_tried_again(tmp_path: Path) -> None:
    """Certificates may come with the boot partition, after the first try."""
    port = free_port()
    remote = Remote(
        "b1",
        (f"127.0.0.1:{port}",),
        ("x",),
        tls=Tls(str(tmp_path / "ca.pem"), str(tmp_path / "b.pem"), str(tmp_path / "b.key")),
    )
    remote.start()
    eventually(lambda: remote._lost)
    assert remote.is_alive()
    remote.end()


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
@pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")
def test_either_version_of_mqtt(tmp_path: Path, protocol: str) -> None:
    """Retained state, a last will, a command that the broker has retained is not delivered: with MQTT 3.1.1 and 5 alike."""
    broker, address = plain(tmp_path)
    will = ("v1/b1/state", b"lost")
    one = Remote("b1", (address,), ("v1/b1/ack", "v1/b1/cmd"), will=will, protocol=protocol)
    other = Remote("m", (address,), ("v1/+/state", "v1/+/ack"), protocol=protocol)
    other.start()

    def taken(remote: Remote) -> list[tuple[str, bytes]]:
        return [(topic, payload) for topic, payload in remote.take() if topic]

    eventually(lambda: other.connected)
    assert other.publish("v1/b1/cmd", b"old", qos=1, retain=True)
    assert other.publish("v1/b1/ack", b"known", qos=1, retain=True)
    assert eventually(lambda: taken(other)) == [("v1/b1/ack", b"known")], "the broker has both"
    one.start()
    assert eventually(lambda: taken(one)) == [("v1/b1/ack", b"known")]
    assert one.publish("v1/b1/state", b"ready", qos=1, retain=True)
    assert eventually(lambda: taken(other)) == [("v1/b1/state", b"ready")]
    assert other.publish("v1/b1/cmd", b"new", qos=1)
    assert eventually(lambda: taken(one)) == [("v1/b1/cmd", b"new")]
    client = one._client
    assert client
    client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    assert eventually(lambda: taken(other)) == [("v1/b1/state", b"lost")]
    one.end()
    other.end()
    broker.end()


def test_a_record_that_the_disk_has_damaged_does_not_block_the_others(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.record(30)
    world.box.flush(0.0)
    world.box.database.execute("UPDATE record SET body = ? WHERE number = 7", (b'{"n":7,"\xff',))
    world.sender.up(0.0)
    for _ in range(30):
        world.turn()
    world.until_empty()
    assert world.arrived() == [number for number in range(1, 31) if number != 7]
    assert world.box.lost == {"evt": 1}


def test_a_disk_that_comes_late_is_sent_too_under_its_own_numbers(tmp_path: Path) -> None:
    """The first life's records wait on the disk, half of them are at the mothership; the second life begins in memory."""
    world = World(tmp_path, 1, 0.0)
    world.record(10)
    world.sender.up(0.0)
    world.until_empty()
    world.record(20)
    world.box.flush(0.0)
    world.sender.pump(0.0)
    world.receiver.turn()  # it has all, and its answer is lost
    world.box.close(0.0)
    (tmp_path / "box/outbox.db").rename(tmp_path / "hidden")
    (tmp_path / "box/outbox.db").mkdir()
    world.now = 1000.0
    world.reboot()
    world.record(30)
    for _ in range(20):
        world.turn()
    assert world.arrived() == list(range(1, 61)), "a disk that stays away does not keep a board silent"
    (tmp_path / "box/outbox.db").rmdir()
    (tmp_path / "hidden").rename(tmp_path / "box/outbox.db")
    world.record(5)
    world.box.tick(2000.0)
    world.until_empty()
    assert (world.arrived(), world.box.durable) == (list(range(1, 66)), True)


class Twins:
    """Two boards of one name, each with an outbox of its own, and one mothership."""

    def __init__(self, folder: Path, *, copied: bool = False, machines: tuple[str, str] = ("", "")) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
        self.first = World(folder / "one", 1, 0.0)
        if copied:
            self.first.box.close(0.0)
            self.first.box = Outbox(str(folder / "one/box"), 1 << 30, 0, (), print, machines[0])
            self.first.sender = self.first.make_sender()
            self.first.record(10)
            self.first.box.close(0.0)
            shutil.copytree(folder / "one/box", folder / "two/box")
            self.first.box = Outbox(str(folder / "one/box"), 1 << 30, 0, (), print, machines[0])
            self.first.sender = self.first.make_sender()
        self.second = World(folder / "two", 2, 0.0)
        self.second.box.close(0.0)
        self.second.box = Outbox(str(folder / "two/box"), 1 << 30, 0, (), print, machines[1])
        self.second.sender = self.second.make_sender()
        self.second.put = 1000
        self.second.store.database.connection.close()  # type: ignore[attr-defined]
        self.second.store = self.first.store
        self.first.store.clock = lambda: 1e9 + max(self.first.now, self.second.now)
        self.second.receiver = Receiver(self.first.store, self.second)  # type: ignore[arg-type]
        for world in (self.first, self.second):
            world.sender.up(0.0)

    def turn(self, seconds: float = 1.0) -> None:
        for world in (self.first, self.second):
            world.turn(seconds)
            taken, world.down = world.down, []
            other = self.second if world is self.first else self.first
            other.down += taken  # one topic: each hears the other one's answers too


def test_of_two_boards_with_one_name_the_second_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    for _ in range(30):
        twins.first.record(5)
        twins.second.record(5)
        twins.turn()
    twins.first.until_empty()
    assert sorted(twins.first.arrived()) == list(range(1, 151))
    assert twins.second.box.count() == 150
    assert any("refuses our records: another outbox" in text and "UPLINK_BOARD" in text for text in twins.second.said)
    assert len(twins.second.said) == 1, "said once"
    assert twins.first.said == []
    rival = twins.first.store.database.execute("SELECT rival FROM board").fetchone()[0]
    assert rival == twins.second.sender.stream.identity
    for _ in range(100):  # the first one is switched off
        twins.second.turn(10.0)
    twins.second.until_empty()
    assert sorted(twins.first.arrived()) == [*range(1, 151), *range(1001, 1151)]
    assert twins.second.said[-1] == "the mothership takes our records again"


def test_a_copied_card_has_numbers_of_its_own(tmp_path: Path) -> None:
    """What waited on the card when it was copied arrives once; what each board adds arrives, whoever sends it."""
    twins = Twins(tmp_path, copied=True, machines=("serial 1", "serial 2"))
    twins.first.record(5)
    twins.second.record(5)
    for _ in range(30):
        twins.turn()
    assert sorted(twins.first.arrived()) == list(range(1, 16))
    for _ in range(100):
        twins.second.turn(10.0)
    twins.second.until_empty()
    assert sorted(twins.first.arrived()) == [*range(1, 16), *range(1001, 1006)]


@pytest.mark.parametrize("before", ["board", "mothership"])
def test_an_older_board_or_mothership_keeps_what_it_has(tmp_path: Path, before: str) -> None:
    """Version 1 had one line of numbers for each board, and no stream's name."""
    folder = tmp_path / "box"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "outbox.db")) as old:
        old.executescript("""
            CREATE TABLE record (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT;
            CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL);
            INSERT INTO meta VALUES ('reserved', 1000021), ('met', 'b1');
        """)
        old.executemany("INSERT INTO record VALUES (?, 'evt', ?)", [(n, b'{"n":%d}' % n) for n in range(11, 21)])
        old.commit()
    if before == "mothership":
        with contextlib.closing(sqlite3.connect(tmp_path / "mothership.db")) as database:
            database.execute("CREATE TABLE board (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen REAL NOT NULL) STRICT")
            database.execute("INSERT INTO board VALUES ('b1', 15, 999999990.0)")
            database.commit()
    world = World(tmp_path, 1, 0.0)
    world.put = 20
    world.record(5)
    world.sender.up(0.0)
    world.until_empty()
    assert world.arrived() == list(range(16 if before == "mothership" else 11, 26))
    streams = dict(world.store.database.execute("SELECT outbox, seq FROM stream"))
    assert streams.pop("") == 20
    assert list(streams.values()) == [5]


def test_a_mothership_without_streams_gets_nothing_and_the_board_says_so(tmp_path: Path) -> None:
    """Its number is of another line than ours: to believe it would delete records."""
    world = World(tmp_path, 1, 0.0)
    world.record(5)
    world.sender.up(0.0)
    world.sender.on_ack(json.dumps({"seq": 500, "nonce": world.sender.nonce, "time": 1.0}).encode(), 0.0)
    world.sender.pump(0.0)
    assert [topic for topic, _ in world.up] == ["v1/b1/hello"]
    assert (world.box.count(), "update the receiver" in world.said[0]) == (5, True)


def test_a_number_that_was_never_given_makes_no_record_known(tmp_path: Path) -> None:
    """Somebody with this board's certificate has sent a record far ahead under its stream's name."""
    world = World(tmp_path, 1, 0.0)
    world.sender.up(0.0)
    world.record(5)
    world.until_empty()
    forged = wire.pack(0, [(wire.HIGHEST, "evt", b'{"n":0}')], world.sender.stream.identity)
    world.up.append(("v1/b1/up", forged))
    world.turn()
    world.record(5)
    world.reboot()
    world.until_empty()
    assert world.arrived() == [1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10]


def limited(world: World, most: int) -> Callable[[str, bytes], bool]:
    """A broker that drops larger messages without a word."""
    send = world.send
    return lambda topic, payload: send(topic, payload) if len(payload) <= most else True


def test_batches_shrink_where_a_broker_takes_smaller_messages(tmp_path: Path) -> None:
    """60 records that cannot be compressed, of 2 kB each, through a broker that drops what is above 20,000 bytes."""
    world = World(tmp_path, 1, 0.0)
    world.sender.send = limited(world, 20_000)
    for number in range(1, 61):
        world.box.put("evt", json.dumps({"n": number, "x": world.random.randbytes(1000).hex()}).encode(), 0.0)
    world.sender.up(0.0)
    for _ in range(120):
        world.turn()
    assert world.arrived() == list(range(1, 61))


def test_a_record_that_no_broker_takes_does_not_keep_the_others_back(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 0.0)
    world.sender.send = limited(world, 20_000)
    world.record(5)
    world.box.put("big", json.dumps({"n": 0, "x": world.random.randbytes(60_000).hex()}).encode(), 0.0)
    world.record(5)
    world.sender.up(0.0)
    for _ in range(200):
        world.turn()
    assert (world.arrived(), world.box.lost) == (list(range(1, 11)), {"big": 1})


def test_a_silent_mothership_is_told_of_after_a_minute(tmp_path: Path) -> None:
    world = World(tmp_path, 1, 1.0)
    world.sender.up(0.0)
    world.record(7)
    world.turn(0.0)
    for _ in range(int(TOLD) - 1):
        world.turn()
    assert world.said == []
    for _ in range(3):
        world.turn()
    assert world.said == ["the mothership has taken nothing for 60 s: 7 records wait"]
    world.loss = 0.0
    world.until_empty()
    assert world.said[1:] == ["the mothership takes our records again"]
