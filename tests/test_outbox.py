"""The outbox against real SQLite: nothing committed is lost, no number is given twice, and no fault of the disk ends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from uplink import outbox, outbox_file
from uplink.numbering import LEGACY, RESERVED, Numbering, Stream
from uplink.outbox import DELAY, RETRY, Outbox, Record

GIVE_UP = ("diag", "wifi", "evt")


class Lab:
    """A folder, and what the outbox said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []

    def open(self, most: int = 1 << 20, spare: int = 0) -> Outbox:
        return Outbox(str(self.folder), most, spare, GIVE_UP, self.said.append)

    def hide(self) -> None:
        """Where the database was there is something that is none."""
        (self.folder / "outbox.db").rename(self.folder / "hidden")
        (self.folder / "outbox.db").mkdir()

    def show(self) -> None:
        (self.folder / "outbox.db").rmdir()
        (self.folder / "hidden").rename(self.folder / "outbox.db")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "out")


def fill(box: Outbox, count: int, kind: str = "evt", now: float = 0.0) -> None:
    for index in range(count):
        box.put(kind, b"%d" % index, now)
    box.flush(now)


def numbers(box: Outbox) -> list[int]:
    """Of all that waits, whatever stream it is of."""
    return [number for _, number in named(box)]


def named(box: Outbox) -> list[tuple[str, int]]:
    """The stream's name and the number of each record that waits, in order: what the mothership knows it by."""
    ids = [row[0] for row in box.database.execute("SELECT number FROM record ORDER BY number")]
    return [(box.numbers.of(one).identity, one - box.numbers.of(one).shift) for one in ids]


def waiting(box: Outbox) -> list[Record]:
    """What would be sent now: the oldest stream's."""
    return box.waiting(box.sending(), 0, 1 << 30, 1 << 30)


def bodies(box: Outbox) -> list[bytes]:
    return [row[0] for row in box.database.execute("SELECT body FROM record ORDER BY number")]


def acknowledge(box: Outbox, number: int) -> None:
    """Of the stream that is being sent."""
    box.acknowledged(box.sending().identity, number)


def test_records_are_committed_by_number_by_time_and_at_once(lab: Lab) -> None:
    box = lab.open()
    box.put("evt", b"a", 10.0)
    assert (numbers(box), box.next_deadline()) == ([], 10.0 + DELAY)
    box.tick(10.0 + DELAY / 2)
    assert numbers(box) == []
    box.tick(10.0 + DELAY)
    assert (numbers(box), box.next_deadline()) == ([1], None)
    for _ in range(outbox.BATCH):
        box.put("wifi", b"b", 20.0)
    assert len(numbers(box)) == 21
    box.put("boot", b"c", 30.0, urgent=True)
    assert numbers(box) == list(range(1, 23))


def test_what_is_acknowledged_goes_and_its_number_is_not_given_again(lab: Lab) -> None:
    box = lab.open()
    fill(box, 30)
    acknowledge(box, 20)
    assert numbers(box) == list(range(21, 31))
    acknowledge(box, 30)
    assert (box.count(), box.size) == (0, 0)
    box.close(0.0)
    box = lab.open()
    fill(box, 1)
    assert numbers(box) == [31]


def test_a_window_is_bounded_by_number_and_by_size(lab: Lab) -> None:
    box = lab.open()
    fill(box, 50)
    stream = box.sending()
    assert [record.number for record in box.waiting(stream, 10, 5, 1000)] == [11, 12, 13, 14, 15]
    assert [record.number for record in box.waiting(stream, 10, 50, 5)] == [11, 12], "two bytes each, and five at most"
    assert [record.number for record in box.waiting(stream, 10, 50, 1)] == [11], "one that is too large goes alone"
    assert box.waiting(stream, 50, 5, 1000) == []


WRITER = """
import sys; sys.path.insert(0, {root!r})
from uplink.outbox import Outbox
box = Outbox(sys.argv[1], 1 << 30, 0, (), print)
number = 0
while True:
    for _ in range(7):
        number += 1
        box.put("evt", b"x" * 200, 0.0)
    box.flush(0.0)
    print(box.count(), flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_committed(lab: Lab) -> None:
    """kill -9 in the middle of it, ten times; a power cut is the kernel ring's."""
    told = 0
    for turn in range(10):
        writer = subprocess.Popen([PYTHON, "-c", WRITER.format(root=str(ROOT)), lab.folder], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        for _ in range(3 + 5 * turn):
            told = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        told = max([told, *map(int, filter(str.strip, writer.stdout.read().split("\n")[:-1]))])
        box = lab.open()
        found = numbers(box)
        assert found == sorted(set(found))
        assert len(found) >= told
        box.database.close()


def test_each_database_has_a_name_of_its_own_and_keeps_it(lab: Lab, tmp_path: Path) -> None:
    box = lab.open()
    fill(box, 3)
    name = box.sending().identity
    assert len(name) == 16
    box.close(0.0)
    box = lab.open()
    assert named(box) == [(name, 1), (name, 2), (name, 3)]
    fill(box, 1)
    assert named(box)[-1] == (name, 4)
    assert Lab(tmp_path / "another").open().sending().identity != name


def test_numbers_are_reserved_before_they_are_given(lab: Lab) -> None:
    """Worked out by hand: 1,000,000 at the first opening; the next life begins there, and a new million is reserved."""
    box = lab.open()
    assert (box.next, box.mark("reserved")) == (1, 1_000_001)
    fill(box, 3)
    assert box.next == 4
    box.database.close()  # a power cut
    box = lab.open()
    assert (box.next, box.mark("reserved")) == (1_000_001, 2_000_001)
    box.close(0.0)
    assert lab.open().next == 1_000_001, "after an end in order none are left out"


def test_the_millionth_number_is_not_given_twice(lab: Lab) -> None:
    """More than was reserved is given in one life, is acknowledged, and the power is cut."""
    box = lab.open()
    box.numbers.next = 1_000_000
    fill(box, 1)  # the last one that is reserved
    assert (numbers(box), box.mark("reserved")) == ([1_000_000], 1_000_001)
    fill(box, 1)
    assert (numbers(box), box.mark("reserved")) == ([1_000_000, 1_000_001], 2_000_002)
    acknowledge(box, 1_000_001)
    box.database.close()  # a power cut
    assert lab.open().next == 2_000_002


def test_a_commit_is_on_the_disk_and_a_deletion_need_not_be(lab: Lab) -> None:
    """PRAGMA synchronous (sqlite.org/pragma.html): 2 is FULL, 1 is NORMAL."""
    box = lab.open()
    fill(box, 2)
    assert box.database.execute("PRAGMA synchronous").fetchone()[0] == 2
    acknowledge(box, 1)
    assert box.database.execute("PRAGMA synchronous").fetchone()[0] == 1
    fill(box, 1)
    assert box.database.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert numbers(box) == [2, 3]


def test_a_number_that_the_mothership_has_and_nobody_gave_gives_the_stream_a_new_name(lab: Lab) -> None:
    box = lab.open()
    fill(box, 3)
    name = box.sending().identity
    assert box.heard(name, 3) is True
    assert box.heard(name, 500) is False
    new = box.sending().identity
    assert (new != name, named(box)) == (True, [(new, 1), (new, 2), (new, 3)])
    box.close(0.0)
    assert named(lab.open())[0] == (new, 1)


def test_a_number_that_was_given_while_the_disk_refused_is_not_given_again(lab: Lab) -> None:
    """The mothership has 1 to 20 of another name, the disk never heard of them: a power cut, and its own 20 are still new."""
    box = lab.open()
    fill(box, 20)
    name = box.sending().identity
    box.database.execute("PRAGMA query_only = ON")
    fill(box, 20)
    assert (box.durable, box.count()) == (False, 40)
    fill(box, 5)
    other = named(box)[-1][0]
    assert (other != name, named(box)[20:]) == (True, [*[(name, n) for n in range(21, 41)], *[(other, n) for n in range(1, 6)]])
    box.acknowledged(other, 5)
    box.database.close()  # the power cut
    box = lab.open()
    assert named(box) == [(name, n) for n in range(1, 21)]
    fill(box, 1)
    assert named(box)[-1] == (name, 1_000_001)


@pytest.mark.parametrize("answered", [None, 0, 12])
def test_a_disk_that_comes_late_brings_its_records_along(lab: Lab, answered: int | None) -> None:
    """Under their own names and numbers, before what has gathered since; nothing is renumbered that may be under way."""
    box = lab.open()
    fill(box, 20)
    name = box.sending().identity
    box.put("evt", b"marked", 0.0, urgent=True, marks={"event": 5})
    box.remember("c1", "done", 9e9, 0.0)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    assert (box.retry is None, box.durable) == (False, False)
    for index in range(30):
        box.put("evt", b"new%d" % index, 1.0)
    box.flush(1.0)
    memory = box.sending().identity
    if answered is not None:
        acknowledge(box, answered)
    lab.show()
    box.tick(RETRY)
    assert (box.retry, box.durable) == (None, True)
    left = range(answered or 0, 30)
    assert bodies(box) == [*(b"%d" % index for index in range(20)), b"marked", *(b"new%d" % index for index in left)]
    assert named(box) == [*((name, n) for n in range(1, 22)), *((memory, n + 1) for n in left)]
    assert (box.mark("event"), box.result("c1")) == (5, "done")
    assert box.numbers.own() == [memory, name]
    fill(box, 1)
    assert named(box)[-1] == (memory, 31)
    box.database.close()  # a power cut
    box = lab.open()
    assert named(box)[-1] == (memory, 31)
    fill(box, 1)
    assert named(box)[-1][1] > 31


def test_a_stream_is_sent_before_the_next_and_each_is_acknowledged_by_its_name(lab: Lab) -> None:
    box = lab.open()
    fill(box, 3)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 2)
    memory = box.sending().identity
    lab.show()
    box.tick(RETRY)
    first = box.sending()
    assert (first.identity != memory, [record.number for record in waiting(box)]) == (True, [1, 2, 3])
    assert (box.under_way(first, 2), box.under_way(first, 99_999_999)) == (2, 5), "ids behind it count as well"
    box.acknowledged(memory, 1)
    assert named(box) == [*((first.identity, n) for n in (1, 2, 3)), (memory, 2)]
    box.acknowledged(first.identity, 3)
    assert (box.sending().identity, [record.number for record in waiting(box)]) == (memory, [2])
    box.acknowledged("nobody's", 99)
    assert box.count() == 1


def test_a_disk_that_gives_and_does_not_take_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records are sent meanwhile, or there would never be room on it."""
    box = lab.open()
    fill(box, 20)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 5)
    lab.show()
    real = outbox_file.copy

    def full(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
        target.execute("PRAGMA query_only = ON")
        real(source, target)

    monkeypatch.setattr(outbox, "copy", full)
    box.tick(RETRY)
    assert (box.durable, box.unread, box.count()) == (False, False, 25)
    assert [record.number for record in waiting(box)] == list(range(1, 21))
    monkeypatch.setattr(outbox, "copy", real)
    box.tick(2 * RETRY)
    assert (box.retry, numbers(box)) == (None, [*range(1, 21), *range(1, 6)])


@pytest.mark.parametrize("hidden_at_first", [False, True])
def test_a_disk_that_takes_not_even_a_stream_gives_its_records(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, hidden_at_first: bool
) -> None:
    """A disk that is full of records takes no write, not even the name of a stream: they are read, sent, and then deleted."""
    box = lab.open()
    fill(box, 20)
    box.close(0.0)
    real = outbox_file.open_disk

    def full(folder: str, say: Callable[[str], object]) -> sqlite3.Connection:
        disk = real(folder, say)
        disk.execute("PRAGMA query_only = ON")
        return disk

    monkeypatch.setattr(outbox, "open_disk", full)
    if hidden_at_first:
        lab.hide()
    box = lab.open()
    if hidden_at_first:
        assert (box.unread, box.count()) == (True, 0)
        lab.show()
        box.tick(RETRY)
    fill(box, 5)
    assert (box.durable, box.unread, box.count()) == (False, False, 25)
    assert [record.number for record in waiting(box)] == list(range(1, 21))
    acknowledge(box, 20)
    monkeypatch.setattr(outbox, "open_disk", real)
    box.tick(3 * RETRY)
    assert (box.retry, numbers(box)) == (None, list(range(1, 6)))


def test_a_partition_that_comes_over_the_outbox_brings_its_records(lab: Lab) -> None:
    """storage.py was slower than we: the first records went to what is hidden now. Each file goes on with a stream of its own."""
    box = lab.open()
    fill(box, 20)
    partition = box.sending().identity
    box.close(0.0)
    lab.folder.rename(lab.folder.with_name("partition"))
    box = lab.open()
    fill(box, 10)
    hidden = box.sending().identity
    acknowledge(box, 4)
    lab.folder.rename(lab.folder.with_name("below"))
    lab.folder.with_name("partition").rename(lab.folder)
    box.tick(1.0)
    assert (box.durable, box.count()) == (True, 26)
    assert named(box) == [*((partition, n) for n in range(1, 21)), *((hidden, n) for n in range(5, 11))]
    fill(box, 1)
    assert named(box)[-1][0] not in (hidden, partition)
    assert named(box)[-1][1] == 1
    box.close(1.0)
    assert lab.open().count() == 27
    lab.folder.rename(lab.folder.with_name("partition"))
    lab.folder.with_name("below").rename(lab.folder)
    box = lab.open()
    fill(box, 1)
    assert named(box)[-1][0] == hidden, "the hidden file goes on with its own"


def test_a_disk_that_opens_and_cannot_be_read_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box = lab.open()
    fill(box, 20)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 5)
    lab.show()
    real = outbox_file.put_behind

    def fail(*_: object) -> Numbering:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(outbox, "put_behind", fail)
    box.tick(RETRY)
    assert (box.durable, box.unread, box.count()) == (False, True, 5)
    monkeypatch.setattr(outbox, "put_behind", real)
    box.tick(2 * RETRY)
    assert (box.retry, numbers(box)) == (None, [*range(1, 21), *range(1, 6)])


def test_a_disk_that_cannot_even_be_read_when_it_is_left(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box = lab.open()
    fill(box, 3)
    name = box.sending().identity
    real = outbox_file.copy

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(outbox, "copy", fail)
    box.database.execute("PRAGMA query_only = ON")
    fill(box, 2)
    other = box.sending().identity
    assert (box.unread, other != name, bodies(box)) == (True, True, [b"0", b"1"])
    monkeypatch.setattr(outbox, "copy", real)
    box.tick(RETRY)
    assert box.durable
    assert [one for one, _ in named(box)] == [name] * 3 + [other] * 2
    assert bodies(box) == [b"0", b"1", b"2", b"0", b"1"]


def test_streams_that_nothing_waits_of_are_forgotten_but_for_the_last_few(lab: Lab) -> None:
    box = lab.open()
    for _ in range(20):
        box.database.execute("PRAGMA query_only = ON")
        fill(box, 2)
        box.tick(box.now + RETRY)
        assert box.durable
        acknowledge(box, 1 << 60)
        while box.count():
            acknowledge(box, 1 << 60)
    fill(box, 1)
    box.sending()
    assert len(box.numbers.streams) <= 9
    assert len(box.numbers.own()) <= 9


def test_a_card_from_another_board_is_numbered_anew(lab: Lab) -> None:
    """It was copied, and the other board goes on with the stream: ours does not, nor do we claim it."""
    box = Outbox(str(lab.folder), 1 << 20, 0, GIVE_UP, lab.said.append, "serial 1")
    fill(box, 3)
    name = box.sending().identity
    box.close(0.0)
    box = Outbox(str(lab.folder), 1 << 20, 0, GIVE_UP, lab.said.append, "serial 2")
    fill(box, 1)
    assert "comes from the board 'serial 1', this is 'serial 2'" in lab.said[-1]
    new = named(box)[-1][0]
    assert (named(box), box.numbers.own()) == ([(name, 1), (name, 2), (name, 3), (new, 1)], [new])
    assert box.heard(name, 500) is True, "the other board's word on it"
    box.close(0.0)
    box = Outbox(str(lab.folder), 1 << 20, 0, GIVE_UP, lab.said.append, "serial 2")
    assert (len(lab.said), box.numbers.own()) == (1, [new])


@pytest.mark.parametrize("met", [True, False])
def test_a_database_of_before_there_were_streams(lab: Lab, met: bool) -> None:
    """What was numbered then keeps its numbers, under no name; but where nobody ever answered, nothing of it was sent."""
    lab.folder.mkdir()
    with sqlite3.connect(lab.folder / "outbox.db") as old:
        old.executescript("""
            CREATE TABLE record (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT;
            CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL);
            INSERT INTO meta VALUES ('reserved', 31);
            INSERT INTO record VALUES (29, 'evt', x'31'), (30, 'evt', x'32');
        """)
        if met:
            old.execute("INSERT INTO meta VALUES ('met', 'b1')")
    old.close()
    box = lab.open()
    fill(box, 1)
    new = named(box)[-1][0]
    assert new != LEGACY
    assert named(box) == (
        [(LEGACY, 29), (LEGACY, 30), (new, 1)] if met else [*[(named(box)[0][0], n) for n in (29, 30)], (new, 1)]
    )
    assert (named(box)[0][0] == LEGACY) is met
    assert box.numbers.own()[0] == new


def test_numbering_by_hand() -> None:
    """The example of numbering.py."""
    found = Numbering([Stream(1, "a", 0), Stream(6, "b", 5), Stream(9, "c", 8)], 11)
    assert [(found.of(n).identity, n - found.of(n).shift) for n in (1, 5, 6, 8, 9, 10)] == [
        ("a", 1), ("a", 5), ("b", 1), ("b", 3), ("c", 1), ("c", 2),
    ]  # fmt: skip
    assert [found.given(name) for name in ("a", "b", "c", "d")] == [5, 3, 2, 0]
    assert [list(found.up_to(name, 2)) for name in ("a", "b", "c", "d")] == [[(1, 3)], [(6, 8)], [(9, 11)], []]
    assert list(found.up_to("a", 99)) == [(1, 6)]
    assert found.reserve() == 11 + RESERVED
    both, by = Numbering([Stream(1, "m", 0)], 4).behind(found)
    assert (by, both.next) == (1_000_011, 1_000_015)
    assert both.streams[-1] == Stream(1_000_012, "m", 1_000_011)
    assert [(both.of(n).identity, n - both.of(n).shift) for n in (10, 1_000_012, 1_000_014)] == [("c", 2), ("m", 1), ("m", 3)]


def test_a_file_of_another_format_is_set_aside(lab: Lab) -> None:
    box = lab.open()
    fill(box, 5)
    box.close(0.0)
    path = lab.folder / "outbox.db"
    whole = bytearray(path.read_bytes())
    whole[47] = 9  # the schema format number (sqlite.org/fileformat.html)
    path.write_bytes(bytes(whole))
    box = lab.open()
    assert (box.durable, box.count()) == (True, 0)
    assert (lab.folder / "outbox.bad").exists()


def test_a_corrupt_file_that_cannot_be_set_aside_leaves_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.folder.mkdir()
    (lab.folder / "outbox.db").write_bytes(b"this is no database at all" * 100)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    box = lab.open()
    fill(box, 5)
    assert (box.durable, box.count()) == (False, 5)
    assert "cannot be set aside: Read-only file system" in lab.said[0]


@pytest.mark.parametrize("damage", [b"", b"this is no database at all", None])
def test_a_corrupt_database_is_set_aside(lab: Lab, damage: bytes | None) -> None:
    box = lab.open()
    fill(box, 400)
    box.close(0.0)
    path = lab.folder / "outbox.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096) if damage is None else damage)
    box = lab.open()
    fill(box, 1)
    assert (box.count(), box.retry) == (1, None)
    assert bool(lab.said) == (damage != b""), "an empty file is a new database"
    assert (lab.folder / "outbox.bad").exists() == (damage != b"")


def test_a_full_disk_moves_to_memory_and_back(lab: Lab) -> None:
    """SQLite's own error: its file may not grow."""
    box = lab.open()
    fill(box, 20)
    box.database.execute("PRAGMA max_page_count = 1")
    for _ in range(40):
        box.put("evt", b"x" * 3000, 5.0)
    box.flush(5.0)
    assert (box.retry, box.count()) == (5.0 + RETRY, 60)
    assert "memory" in lab.said[-1]
    fill(box, 5, now=6.0)
    acknowledge(box, 10)
    box.tick(5.0 + RETRY)
    assert (box.retry, "disk again" in lab.said[-1]) == (None, True)
    assert numbers(box) == [*range(11, 41), *range(1, 26)]
    box.close(70.0)
    assert numbers(lab.open()) == [*range(11, 41), *range(1, 26)], "what was acknowledged meanwhile is not sent again"


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    lab = Lab(tmp_path / "out")
    box = lab.open()
    fill(box, 30)
    assert (box.count(), box.retry) == (30, RETRY)
    (tmp_path / "out").unlink()
    box.tick(RETRY)
    assert (box.count(), box.retry, numbers(box)) == (30, None, list(range(1, 31)))


def test_what_is_given_up_first_is_a_table_and_counted(lab: Lab) -> None:
    box = lab.open(most=100_000)
    for kind, count in (("boot", 30), ("evt", 30), ("wifi", 60), ("diag", 30)):
        for _ in range(count):
            box.put(kind, b"x" * 1000, 0.0)
    box.flush(0.0)
    left = {kind: sum(record.kind == kind for record in waiting(box)) for kind in ("boot", "evt", "wifi", "diag")}
    assert left["boot"] == left["evt"] == 30
    assert left["diag"] < 30
    assert 0 < left["wifi"] < 60
    lost = {"diag": 30 - left["diag"], "wifi": 60 - left["wifi"]}
    assert box.lost == lost
    assert box.size <= 100_000
    box.database.close()
    box = lab.open(most=100_000)
    assert box.lost == lost, "a death before somebody was told does not forget them"
    box.lost = {}
    box.put("lost", b"told", 0.0, urgent=True, marks={"lost": "{}"})
    again = box.lost
    box.database.close()
    assert lab.open(most=100_000).lost == again, "told of, but for what was given up since"


def test_space_is_left_for_others(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box = lab.open(spare=50_000)
    monkeypatch.setattr(box, "_free", lambda: 40_000)
    for _ in range(30):
        box.put("evt", b"x" * 1000, 0.0)
    box.flush(0.0)
    assert 0 < box.size <= 20_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("put", "urgent", "flush", "ack", "reopen", "heard", "full", "tick")), st.integers(0, 60)),
        max_size=40,
    )
)
def test_numbers_rise_and_records_are_there_until_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    lab = Lab(tmp_path_factory.mktemp("box"))
    box = lab.open()
    put, gone, now, highest = 0, 0, 0.0, 0
    given: dict[tuple[str, int], bytes] = {}
    for what, amount in steps:
        now += amount
        if what in ("put", "urgent"):
            box.put("evt", b"%d" % put, now, urgent=what == "urgent")
            put += 1
        elif what == "ack":
            stream = box.sending()
            if found := box.waiting(stream, 0, amount, 1 << 30):
                box.acknowledged(stream.identity, found[-1].number)
                gone += len(found)
        elif what == "reopen" and box.retry is None:
            box.close(now)
            box = lab.open()
        elif what == "heard":
            box.flush(now)
            box.heard(box.sending().identity, amount)
        elif what == "full" and box.retry is None:
            box.database.execute("PRAGMA max_page_count = 1")
        elif what in ("flush", "tick"):
            getattr(box, what)(now)
        assert [int(body) for body in bodies(box)] == list(range(gone, put - len(box.pending)))
        for body, name in zip(bodies(box), named(box), strict=True):
            assert given.setdefault(name, body) == body, "no number is given twice, and none to two records"
        assert box.next >= highest
        highest = box.next


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 37), "STRICT tables"


@pytest.mark.parametrize("where", ["outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.db-journal", ""])
def test_no_symbolic_link_on_a_disk_is_followed(lab: Lab, tmp_path: Path, where: str) -> None:
    """Whoever wrote the card may have put one there, to have the uplink write somewhere else; records wait in memory."""
    elsewhere = tmp_path / "elsewhere"
    if where:
        lab.folder.mkdir()
        elsewhere.write_bytes(b"")
        (lab.folder / where).symlink_to(elsewhere)
    else:
        elsewhere.mkdir()
        lab.folder.symlink_to(elsewhere)
    box = lab.open()
    fill(box, 3)
    box.flush(100.0)
    assert any("is a symbolic link, which is not followed" in line for line in lab.said), lab.said
    assert (list(elsewhere.iterdir()) if elsewhere.is_dir() else elsewhere.read_bytes()) in ([], b"")
    assert len(waiting(box)) == 3
