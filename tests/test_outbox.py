"""The outbox against real SQLite: nothing committed is lost, no number is given twice, and no fault of the disk ends it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from uplink import outbox
from uplink.outbox import DELAY, FOREIGN, RETRY, Outbox

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
    return [record.number for record in box.waiting(0, 1 << 30, 1 << 30)]


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
    box.acknowledged(20)
    assert numbers(box) == list(range(21, 31))
    box.acknowledged(30)
    assert (box.count(), box.size) == (0, 0)
    box.close(0.0)
    box = lab.open()
    fill(box, 1)
    assert numbers(box) == [31]


def test_a_window_is_bounded_by_number_and_by_size(lab: Lab) -> None:
    box = lab.open()
    fill(box, 50)
    assert [record.number for record in box.waiting(10, 5, 1000)] == [11, 12, 13, 14, 15]
    assert [record.number for record in box.waiting(10, 50, 3)] == [
        11,
        12,
    ]  # two bytes each: the one that exceeds it is the last
    assert box.waiting(50, 5, 1000) == []


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


def test_a_younger_database_is_numbered_above_what_the_mothership_has(lab: Lab) -> None:
    box = lab.open()
    fill(box, 3)
    box.heard(0)
    box.heard(2)
    assert numbers(box) == [1, 2, 3], "it has some of ours"
    box.heard(500)
    first = 500 + FOREIGN + 1
    assert numbers(box) == [first, first + 1, first + 2]
    fill(box, 1)
    assert numbers(box)[-1] == first + 3
    box.close(0.0)
    assert numbers(lab.open())[0] == first


def test_what_was_never_sent_is_not_taken_for_what_the_mothership_has(lab: Lab) -> None:
    """The first answer that a database hears is about an earlier life, however many records have gathered by then."""
    box = lab.open()
    fill(box, 3)
    box.heard(2)
    assert numbers(box) == [2 + FOREIGN + 1, 2 + FOREIGN + 2, 2 + FOREIGN + 3]
    box.close(0.0)
    box = lab.open()
    box.heard(2 + FOREIGN + 1)
    assert len(numbers(box)) == 3, "known by now, and not renumbered again"
    assert numbers(box)[0] == 2 + FOREIGN + 1


def test_a_number_that_was_given_while_the_disk_refused_is_not_given_again(lab: Lab) -> None:
    """The mothership has 21 to 40, the disk never heard of them: a power cut, and what waits there must not be taken for new."""
    box = lab.open()
    fill(box, 20)
    box.heard(0)
    box.database.execute("PRAGMA query_only = ON")
    fill(box, 20)
    assert (box.durable, numbers(box)) == (False, list(range(1, 41)))
    box.acknowledged(40)
    box.database.close()  # the power cut
    box = lab.open()
    assert numbers(box) == list(range(1, 21))
    box.heard(40)
    box.acknowledged(40)
    assert numbers(box) == []
    fill(box, 1)
    assert numbers(box)[0] > 40


@pytest.mark.parametrize("heard", [None, 0, 12])
def test_a_disk_that_comes_late_brings_its_records_along(lab: Lab, heard: int | None) -> None:
    """What the mothership had when it was asked first (12 of them, or none) is not sent again; everything else is, once."""
    box = lab.open()
    fill(box, 20)
    box.put("evt", b"marked", 0.0, urgent=True, marks={"event": 5})
    box.remember("c1", "done", 9e9, 0.0)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    assert (box.retry is None, box.durable) == (False, False)
    for index in range(30):
        box.put("evt", b"new%d" % index, 1.0)
    box.flush(1.0)
    if heard is not None:
        box.heard(heard)
        box.acknowledged(numbers(box)[9])
    lab.show()
    box.tick(RETRY)
    assert (box.retry, box.durable) == (None, True)
    bodies = [record.body for record in box.waiting(0, 1000, 1 << 30)]
    old = [b"%d" % index for index in range(heard or 0, 20)] + [b"marked"]
    new = [b"new%d" % index for index in range(0 if heard is None else 10, 30)]
    assert bodies == (old + new if heard is None else new + old)
    assert (box.mark("event"), box.result("c1")) == (5, "done")
    found = numbers(box)
    assert found == sorted(set(found))
    fill(box, 1)
    assert numbers(box)[-1] > found[-1]


def test_nor_one_that_was_given_by_a_life_whose_disk_refused_from_its_first_record_on(lab: Lab) -> None:
    for _ in range(2):
        box = lab.open()
        fill(box, 20)
        box.heard(0)
        box.database.close()  # a power cut
    box = lab.open()
    box.heard(0)
    box.database.execute("PRAGMA query_only = ON")
    fill(box, 20)
    assert (box.durable, box.count()) == (False, 60)
    last = numbers(box)[-1]
    box.acknowledged(last)
    box.database.close()
    box = lab.open()
    box.heard(last)
    box.acknowledged(last)
    assert numbers(box) == [], "the mothership has all of them"


def test_of_a_disk_that_gives_and_does_not_take_its_own_records_alone_are_sent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that it does not know must not be under way; and its own records go, or there would never be room."""
    box = lab.open()
    fill(box, 20)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 5)
    lab.show()
    real = outbox.copy

    def full(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
        target.execute("PRAGMA query_only = ON")
        real(source, target)

    monkeypatch.setattr(outbox, "copy", full)
    box.tick(RETRY)
    assert (box.durable, box.unread, numbers(box), box.count()) == (False, False, list(range(1, 21)), 25)
    monkeypatch.setattr(outbox, "copy", real)
    box.tick(2 * RETRY)
    assert (box.retry, numbers(box)) == (None, list(range(1, 26)))


def test_an_outbox_without_its_disk_does_not_make_the_disks_records_known(lab: Lab) -> None:
    """A life in memory gets far ahead; what waits on the disk, and was never sent, is not taken for acknowledged."""
    box = lab.open()
    fill(box, 50)
    box.heard(0)
    box.acknowledged(50)
    fill(box, 20)
    for _ in range(2):
        box.database.close()  # a power cut, and a life offline
        box = lab.open()
        fill(box, 5)
    box.database.close()
    lab.hide()
    box = lab.open()
    fill(box, 10)
    box.heard(50)
    taken = numbers(box)[-1]
    box.acknowledged(taken)
    box.database.close()
    lab.show()
    box = lab.open()
    box.heard(taken)
    assert box.count() == 30
    assert numbers(box)[0] > taken


def test_a_partition_that_comes_over_the_outbox_brings_its_records(lab: Lab) -> None:
    """storage.py was slower than we: the first records went to what is hidden now."""
    box = lab.open()
    fill(box, 20)
    box.heard(0)
    box.close(0.0)
    lab.folder.rename(lab.folder.with_name("partition"))
    box = lab.open()
    fill(box, 10)
    box.heard(5)
    box.acknowledged(numbers(box)[3])
    lab.folder.rename(lab.folder.with_name("below"))
    lab.folder.with_name("partition").rename(lab.folder)
    box.tick(1.0)
    assert (box.durable, box.count()) == (True, 15 + 6)
    found = [int(record.body) for record in box.waiting(0, 100, 1 << 30)]
    assert found == [*range(4, 10), *range(5, 20)]
    box.close(1.0)
    assert lab.open().count() == 21


def test_records_of_a_disk_that_comes_late_keep_their_numbers(lab: Lab) -> None:
    """Some of them may be at the mothership already, whose answer is still to come."""
    box = lab.open()
    fill(box, 20)
    box.heard(0)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 5)
    lab.show()
    box.tick(RETRY)
    assert numbers(box) == list(range(1, 26))
    box.heard(15)
    box.acknowledged(15)
    assert numbers(box) == list(range(16, 26))


def test_a_disk_that_opens_and_cannot_be_read_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box = lab.open()
    fill(box, 20)
    box.close(0.0)
    lab.hide()
    box = lab.open()
    fill(box, 5)
    lab.show()
    real = box._take_unread

    def fail(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(box, "_take_unread", fail)
    box.tick(RETRY)
    assert (box.durable, box.unread, box.count()) == (False, True, 5)
    monkeypatch.setattr(box, "_take_unread", real)
    box.tick(2 * RETRY)
    assert (box.retry, numbers(box)) == (None, list(range(1, 26)))


def test_an_outbox_of_another_name_is_another_boards(lab: Lab) -> None:
    """A spare takes the place of a board whose last number lies among its own."""
    box = lab.open()
    fill(box, 50)
    box.heard(0, "spare")
    box.heard(25, "b1")
    assert len(numbers(box)) == 50
    assert numbers(box)[0] > 25


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
    box.acknowledged(10)
    box.tick(5.0 + RETRY)
    assert (box.retry, "disk again" in lab.said[-1]) == (None, True)
    assert numbers(box) == list(range(11, 66))
    box.close(70.0)
    assert numbers(lab.open()) == list(range(11, 66)), "what was acknowledged meanwhile is not sent again"


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
    left = {
        kind: sum(record.kind == kind for record in box.waiting(0, 1000, 1 << 30)) for kind in ("boot", "evt", "wifi", "diag")
    }
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
    for what, amount in steps:
        now += amount
        if what in ("put", "urgent"):
            box.put("evt", b"%d" % put, now, urgent=what == "urgent")
            put += 1
        elif what == "ack":
            if waiting := box.waiting(0, amount, 1 << 30):
                box.acknowledged(waiting[-1].number)
                gone += len(waiting)
        elif what == "reopen" and box.retry is None:
            box.close(now)
            box = lab.open()
        elif what == "heard":
            box.flush(now)
            box.heard(amount)
        elif what == "full" and box.retry is None:
            box.database.execute("PRAGMA max_page_count = 1")
        elif what in ("flush", "tick"):
            getattr(box, what)(now)
        found = box.waiting(0, 1 << 30, 1 << 30)
        assert [int(record.body) for record in found] == list(range(gone, put - len(box.pending)))
        assert [record.number for record in found] == sorted({record.number for record in found})
        assert box.next > (found[-1].number if found else 0)
        assert box.next >= highest
        highest = box.next


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 37), "STRICT tables"
