"""The outbox: what must reach the mothership is on disk before it is sent, and stays until the mothership has it.

SQLite with a write-ahead log and synchronous=FULL (sqlite.org/wal.html): what a flush has committed survives a power cut.
Records are numbered (numbering.py says how), and leave by `acknowledged`, or, where there is no room, in the order of what is
given up first. Beside them are marks (how far a source of records has been read, committed together with what was read) and
the ids of commands.
Where the disk refuses, records are kept in memory until it takes them again, and what it has and we could not read is then
sent too, under its own numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from uplink.numbering import Numbering, Stream
from uplink.outbox_file import (
    Unusable,
    copy,
    count_of,
    damaged_of,
    delete,
    file_identity,
    numbering_of,
    oldest_of,
    open_database,
    open_disk,
    put_behind,
    save,
    size_of,
    stamp,
    stamped,
    transaction,
)  # fmt: skip

BATCH = 20  # records of one commit...
DELAY = 0.2  # ...or what has come in so many seconds
ROOM = 0.9  # of what is allowed, after something was given up
RETRY = 60.0  # seconds until a disk that failed is tried again
REMEMBERED = 3600.0  # seconds that a command's id is kept after the command has expired


class Record(NamedTuple):
    """One record as it waits."""

    number: int
    kind: str
    body: bytes


class Outbox:
    """The records of one board. `now` is monotonic time; nothing here reads a clock."""

    def __init__(
        self, folder: str, most: int, spare: int, give_up: tuple[str, ...], say: Callable[[str], object], machine: str = ""
    ) -> None:
        """At most `most` bytes of records, and `spare` bytes of the disk left free; kinds go in the order of `give_up`.

        `machine` names the hardware, where it has a name: a card that comes from another one begins a stream of its own.
        """
        self.folder = folder
        self.most = most
        self.spare = spare
        self.give_up = give_up
        self.say = say
        self.machine = machine
        self.pending: list[tuple[str, bytes]] = []
        self.marks: dict[str, int | str] = {}  # to be committed with them
        self.now = 0.0
        self.due: float | None = None  # of their commit
        self.retry: float | None = None  # when to try the disk again; None: records are on it
        self.hidden = False  # another file system has come over our file
        self.file = (0, 0)  # device and inode of the database
        self.numbers, self.database = Numbering(), open_database(":memory:")
        self.unread = True  # the disk may have records that we do not: it could not be read when we left it, or began
        self._begin(self.database, Numbering())
        if disk := self._open_disk():
            self.database.close()
            self.unread, self.database = False, disk
        self.lost = json.loads(self.mark("lost") or "{}")  # records given up, by kind, that no record tells of yet
        self.size = size_of(self.database)

    # --- opening ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        return f"{self.folder}/outbox.db"

    @property
    def durable(self) -> bool:
        """Whether what is committed is on the disk."""
        return self.retry is None

    @property
    def next(self) -> int:
        """The id of the next record: none that was given is as high."""
        return self.numbers.next

    def _open_disk(self) -> sqlite3.Connection | None:
        """The disk's database, with our numbering on it before any number is given: later it may refuse. None where it does."""
        try:
            disk = open_disk(self.folder, self.say)
        except Unusable as error:
            self._disk_failed(str(error))
            return None
        found = None
        try:
            found = numbering_of(disk)
            if before := stamped(disk, self.machine):  # that board may still be there, and goes on with these numbers
                self.say(f"outbox: {self.path} comes from the board {before!r}, and this is {self.machine!r}: numbered anew")
                found.disown()
            stamp(disk, self.machine)
            self._begin(disk, found, new=bool(before))
        except sqlite3.Error as error:
            if found and self.unread:
                self._read(disk, found)
            disk.close()
            self._disk_failed(str(error))
            return None
        self.retry, self.file = None, file_identity(self.path)
        return disk

    def _read(self, disk: sqlite3.Connection, found: Numbering) -> None:
        """Copy the records of a disk that takes no write to memory: once they are sent, the disk has room again."""
        with contextlib.suppress(sqlite3.Error):  # it cannot be read either
            self.numbers, self.unread = put_behind(disk, found, self.database, self.numbers), False
            self.size = size_of(self.database)

    def _begin(self, database: sqlite3.Connection, numbers: Numbering, *, new: bool = False) -> None:
        """Number from here on, in this database."""
        numbers = Numbering(numbers.streams, numbers.next)
        if new or not numbers.streams:
            numbers.begin()
        numbers.reserve()
        with transaction(database):
            save(database, numbers)
        self.numbers = numbers

    def _disk_failed(self, why: str) -> None:
        if self.retry is None:
            self.say(f"outbox: {why}; records are in memory alone, until the disk takes them again")
        self.retry = self.now + RETRY

    def mark(self, name: str) -> Any:
        """A mark that was committed with a record; None where there is none."""
        row = self.database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    # --- in ----------------------------------------------------------------------------------------------------------
    def put(
        self, kind: str, body: bytes, now: float, *, urgent: bool = False, marks: dict[str, int | str] | None = None
    ) -> None:
        """Take a record: committed with its batch, after DELAY, or at once where it is urgent. Marks are committed with it."""
        self.pending.append((kind, body))
        self.marks |= marks or {}
        self.due = now + DELAY if self.due is None else self.due
        if urgent or len(self.pending) >= BATCH:
            self.flush(now)

    def next_deadline(self) -> float | None:
        return min((time for time in (self.due, self.retry) if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Whatever is due: a commit, or another try of a disk that failed."""
        self.now = now
        if self.durable and file_identity(self.path) != self.file:  # the data partition has come over it, or it was removed
            self.unread = self.hidden = True
            self._return_to_disk()
        elif self.retry is not None and now >= self.retry:
            self._return_to_disk()
        if self.due is not None and now >= self.due:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Commit what is pending. Where the disk refuses, go on in memory."""
        self.now, self.due = now, None
        if not self.pending:
            return
        numbers, marks, first = self.numbers, self.marks, self.numbers.next
        taken = [Record(first + index, kind, body) for index, (kind, body) in enumerate(self.pending)]
        numbers.next = first + len(taken)
        known = numbers.next <= numbers.reserved  # by the disk: it will not give these ids again, even if it refuses now
        if not known:
            marks = marks | {"reserved": numbers.reserve()}

        def insert(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", taken)
            database.executemany("REPLACE INTO meta VALUES (?, ?)", marks.items())

        self._write(insert, new_from=numbers.next if known else first)
        self.pending, self.marks = [], {}
        self.size += sum(len(record.body) for record in taken)
        self._make_room()

    def _write(self, step: Callable[[sqlite3.Connection], object], *, sync: bool = True, new_from: int = 0) -> None:
        """Commit a step; without `sync` it reaches the disk with the next one. Where the disk refuses, go on in memory."""
        try:
            self.database.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            with transaction(self.database):
                step(self.database)
        except sqlite3.Error as error:
            self._leave_disk(str(error), new_from or self.next)
            with transaction(self.database):
                step(self.database)

    def _leave_disk(self, why: str, new_from: int) -> None:
        """What is on the disk stays there; what waits, as far as it can be read, is sent from memory.

        A new stream begins: the disk does not hear of the numbers that are given from now on.
        """
        self._disk_failed(why)
        disk, self.database = self.database, open_database(":memory:")
        try:
            copy(disk, self.database)
        except sqlite3.Error:
            self.unread, new_from = True, 1
            self.numbers.streams.clear()
        disk.close()
        self.numbers.begin(new_from)
        with transaction(self.database):
            save(self.database, self.numbers)
        self.size = size_of(self.database)

    def _return_to_disk(self) -> None:
        """Take what has gathered in memory back to the disk, in place of what the disk remembers."""
        ours, disk = self.numbers, self._open_disk()
        if disk is None:
            return
        theirs, self.numbers = self.numbers, ours
        try:
            if self.unread:
                self.numbers = put_behind(disk, theirs, self.database, ours)
                self.unread, self.size = False, size_of(self.database)
            copy(self.database, disk)
            # A hidden file has this stream too, and may go on with it after another boot.
            self._begin(disk, self.numbers, new=self.hidden)
        except sqlite3.Error as error:
            disk.close()
            self._disk_failed(str(error))
            return
        self.database.close()
        self.database, self.hidden = disk, False
        self.say("outbox: records are on the disk again")

    # --- room ------------------------------------------------------------------------------------------------------
    def _make_room(self) -> None:
        """Give up the oldest records of the least kinds until the rest fits; a record tells how many of what."""
        allowed = min(self.most, self.size + self._free() - self.spare)
        if self.size <= allowed:
            return
        over = self.size - max(0, int(allowed * ROOM))
        kinds = [row[0] for row in self.database.execute("SELECT DISTINCT kind FROM record")]
        order = [kind for kind in self.give_up if kind in kinds] + sorted(set(kinds) - set(self.give_up))
        self._give_up("no room", list(oldest_of(self.database, order, over)))

    def give_up_damaged(self, most: int) -> None:
        """Of the oldest records, those that the disk has damaged: no mothership takes a batch with one of them."""
        if damaged := list(damaged_of(self.database, most)):
            self._give_up("damaged on the disk", damaged)

    def give_up_oldest(self, why: str) -> None:
        """The oldest record, which nobody takes and which keeps all others back."""
        self._give_up(why, self.database.execute("SELECT number, kind FROM record ORDER BY number LIMIT 1").fetchall())

    def _give_up(self, why: str, records: list[tuple[int, str]]) -> None:
        """Delete records, and commit together with that how many of which kind somebody has to be told of."""
        gone = Counter(kind for _, kind in records)
        self.lost = {kind: self.lost.get(kind, 0) + gone[kind] for kind in self.lost | gone}

        def give_up(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM record WHERE number = ?", [(number,) for number, _ in records])
            database.execute("REPLACE INTO meta VALUES ('lost', ?)", (json.dumps(self.lost),))

        self._write(give_up)
        self.size = size_of(self.database)
        self.say(f"outbox: {why}: {', '.join(f'{count} of {kind}' for kind, count in gone.items())} given up")

    def _free(self) -> int:
        """Bytes that the disk could still take; what memory could, where the records are there."""
        if not self.durable:
            return self.most
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    # --- out -------------------------------------------------------------------------------------------------------
    def sending(self) -> Stream:
        """The stream of the oldest record that waits; the last one where none does."""
        oldest = self.database.execute("SELECT min(number) FROM record").fetchone()[0]
        if self.numbers.forget(self.next if oldest is None else oldest):
            self._write(lambda database: save(database, self.numbers), sync=False)
        return self.numbers.streams[-1] if oldest is None else self.numbers.of(oldest)

    def heard(self, identity: str, last: int) -> bool:
        """The mothership's last number of a stream; False where we never gave it, and so the stream has another name now.

        Somebody else has spoken under this name, or the disk has forgotten more than it may: of what waits nothing may be
        taken for what the mothership has.
        """
        if last <= self.numbers.given(identity) or identity not in self.numbers.own():
            return True  # also a stream that another board goes on with, whose card was copied
        self.numbers.rename(identity)
        self._write(lambda database: save(database, self.numbers))
        self.say(f"outbox: the mothership has number {last} of ours, which was never given: what waits is numbered anew")
        return False

    def waiting(self, stream: Stream, above: int, most: int, size: int) -> list[Record]:
        """The oldest committed records of a stream above this number: at most so many, and so many bytes; one at least."""
        found: list[Record] = []
        query = "SELECT * FROM record WHERE number > ? AND number < ? ORDER BY number LIMIT ?"
        above = max(above + stream.shift, stream.first - 1)
        for number, kind, body in self.database.execute(query, (above, self.numbers.end(stream), most)):
            size -= len(body)
            if size < 0 and found:
                break
            found.append(Record(number - stream.shift, kind, body))
        return found

    def acknowledged(self, identity: str, number: int) -> None:
        """The mothership has all of a stream up to this number."""
        for first, end in self.numbers.up_to(identity, number):
            if size := size_of(self.database, first, end):  # else none of them is here: no record is empty
                self.size -= size
                # A power cut may undo it: what is sent again is known there.
                self._write(partial(delete, first=first, end=end), sync=False)

    def under_way(self, stream: Stream, sent: int) -> int:
        """How many records of a stream up to this number wait."""
        return count_of(self.database, stream.first, sent + stream.shift + 1)

    def count(self) -> int:
        """How many records wait."""
        return count_of(self.database) + len(self.pending)

    # --- ids of commands ---------------------------------------------------------------------------------------------
    def result(self, name: str) -> str | None:
        """What was remembered of a command; None where it is not known."""
        row = self.database.execute("SELECT result FROM command WHERE id = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def remember(self, name: str, result: str, expires: float, clock: float) -> bool:
        """Commit a command's id and result; whether it is on the disk. What has expired by `clock` is forgotten in time."""

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM command WHERE expires < ?", (clock - REMEMBERED,))
            database.execute("REPLACE INTO command VALUES (?, ?, ?)", (name, result, expires))

        self._write(write)
        return self.durable

    def close(self, now: float) -> None:
        """Commit and close; the next life goes on with the next number."""
        self.flush(now)
        if self.durable:
            self._write(lambda database: database.execute("REPLACE INTO meta VALUES ('reserved', ?)", (self.next,)))
        self.database.close()
