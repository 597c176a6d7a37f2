"""The outbox: a record is on the disk before it is sent, and stays there until the mothership has it.

SQLite with a write-ahead log and synchronous=FULL (sqlite.org/wal.html): what a flush has committed survives a power cut.
numbering.py says how records are numbered. `acknowledged` deletes them. Where there is no room the outbox deletes the oldest
ones, in the order of `give_up`. The database also holds marks (how far a source of records has been read, committed together
with what was read) and the ids of commands.
While the disk takes no write, the outbox keeps records in memory; once it does, they go to the disk, and what could not be read
there is sent too.
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
    put_behind,
    save,
    size_of,
    stamp,
    stamped,
    transaction,
)  # fmt: skip
from uplink.outbox_format import open_disk

BATCH = 20  # records of one commit...
DELAY = 0.2  # ...or what has come in so many seconds
ROOM = 0.9  # of the allowed bytes: down to this it deletes, once there is no room
RETRY = 60.0  # seconds until a disk that failed is tried again
REMEMBERED = 3600.0  # seconds that a command's id is kept after the command has expired


class Record(NamedTuple):
    """One record that waits to be sent."""

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
        self.retry: float | None = None  # when to try the disk again; None while records are on it
        self.hidden = False  # another file system was mounted over our file
        self.file = (0, 0)  # device and inode of the database
        self.numbers, self.database = Numbering(), open_database(":memory:")
        self.unread = True  # the disk may have records that we do not: it could not be read when we left it, or began
        self._begin(self.database, self.numbers)
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
        """True if committed records are on the disk, False if they are in memory alone."""
        return self.retry is None

    @property
    def next(self) -> int:
        """The id of the next record, above all that were given."""
        return self.numbers.next

    def _open_disk(self) -> sqlite3.Connection | None:
        """Open the disk's database and store our numbering in it before a number is given. None if the disk refuses."""
        try:
            disk = open_disk(self.folder, self.say)
        except Unusable as error:
            self._disk_failed(str(error))
            return None
        found = None
        try:
            found = numbering_of(disk)
            if before := stamped(disk, self.machine):  # that board may still be there, and goes on with these numbers
                self.say(f"outbox: {self.path} comes from the board {before!r}, this is {self.machine!r}: a new stream begins")
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
        """Store the numbering in this database, and go on with it."""
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
        """The mark of this name; None if there is none."""
        row = self.database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    # --- in ----------------------------------------------------------------------------------------------------------
    def put(
        self, kind: str, body: bytes, now: float, *, urgent: bool = False, marks: dict[str, int | str] | None = None
    ) -> None:
        """Take a record and marks. They are committed with the batch, after DELAY seconds, or at once if urgent."""
        self.pending.append((kind, body))
        self.marks |= marks or {}
        self.due = now + DELAY if self.due is None else self.due
        if urgent or len(self.pending) >= BATCH:
            self.flush(now)

    def next_deadline(self) -> float | None:
        return min((time for time in (self.due, self.retry) if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Do what is due: commit, or try a disk again that failed."""
        self.now = now
        if self.durable and file_identity(self.path) != self.file:  # the data partition has come over it, or it was removed
            self.unread = self.hidden = True
            self._return_to_disk()
        elif self.retry is not None and now >= self.retry:
            self._return_to_disk()
        if self.due is not None and now >= self.due:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Commit what is pending; in memory, if the disk refuses."""
        self.now, self.due = now, None
        if not self.pending:
            return
        numbers, marks, first = self.numbers, self.marks, self.numbers.next
        taken = [Record(first + index, kind, body) for index, (kind, body) in enumerate(self.pending)]
        numbers.next = first + len(taken)
        known = numbers.next <= numbers.reserved  # to the disk: it will not give these ids again, even if it refuses this write
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
        """Commit a step; in memory, if the disk refuses. Without `sync` it reaches the disk with the next step."""
        try:
            self.database.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            with transaction(self.database):
                step(self.database)
        except sqlite3.Error as error:
            self._leave_disk(str(error), new_from or self.next)
            with transaction(self.database):
                step(self.database)

    def _leave_disk(self, why: str, new_from: int) -> None:
        """Copy the records that can be read to memory, and go on there, in a new stream: the disk does not learn which numbers
        are given from now on."""
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
        """Move the records from memory to the disk, in place of what the disk has."""
        ours, disk = self.numbers, self._open_disk()
        if disk is None:
            return
        theirs, self.numbers = self.numbers, ours
        try:
            if self.unread:
                self.numbers = put_behind(disk, theirs, self.database, ours)
                self.unread, self.size = False, size_of(self.database)
            copy(self.database, disk)
            # The hidden file has this stream too, and a later boot may go on with it there.
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
        """Delete the oldest records, kind by kind in the order of `give_up`, until the rest fits. `lost` counts them."""
        allowed = min(self.most, self.size + self._free() - self.spare)
        if self.size <= allowed:
            return
        over = self.size - max(0, int(allowed * ROOM))
        kinds = [row[0] for row in self.database.execute("SELECT DISTINCT kind FROM record")]
        order = [kind for kind in self.give_up if kind in kinds] + sorted(set(kinds) - set(self.give_up))
        self._give_up("no room", list(oldest_of(self.database, order, over)))

    def give_up_damaged(self, most: int) -> None:
        """Delete the damaged ones of the `most` oldest records: a mothership refuses a batch with one of them."""
        if damaged := list(damaged_of(self.database, most)):
            self._give_up("damaged on the disk", damaged)

    def give_up_oldest(self, why: str) -> None:
        """Delete the oldest record: the mothership refuses it, and it keeps all others back."""
        self._give_up(why, self.database.execute("SELECT number, kind FROM record ORDER BY number LIMIT 1").fetchall())

    def _give_up(self, why: str, records: list[tuple[int, str]]) -> None:
        """Delete records, and in the same commit count them in `lost`, by kind."""
        gone = Counter(kind for _, kind in records)
        self.lost = {kind: self.lost.get(kind, 0) + gone[kind] for kind in self.lost | gone}

        def give_up(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM record WHERE number = ?", [(number,) for number, _ in records])
            database.execute("REPLACE INTO meta VALUES ('lost', ?)", (json.dumps(self.lost),))

        self._write(give_up)
        self.size = size_of(self.database)
        self.say(f"outbox: {why}: {', '.join(f'{count} of {kind}' for kind, count in gone.items())} given up")

    def _free(self) -> int:
        """Free bytes of the disk; `most` while records are in memory."""
        if not self.durable:
            return self.most
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    # --- out -------------------------------------------------------------------------------------------------------
    def sending(self) -> Stream:
        """The stream of the oldest record that waits; the last stream if none waits."""
        oldest = self.database.execute("SELECT min(number) FROM record").fetchone()[0]
        if self.numbers.forget(self.next if oldest is None else oldest):
            self._write(lambda database: save(database, self.numbers), sync=False)
        return self.numbers.streams[-1] if oldest is None else self.numbers.of(oldest)

    def heard(self, identity: str, last: int) -> bool:
        """Compare the mothership's last number of a stream with ours. False if we never gave it: the stream gets a new name.

        Another board has sent under this name, or the disk has lost commits: the mothership would drop our next records.
        """
        if last <= self.numbers.given(identity) or identity not in self.numbers.own():
            return True  # or it is the stream of the board whose card was copied, which goes on with it
        self.numbers.rename(identity)
        self._write(lambda database: save(database, self.numbers))
        self.say(
            f"outbox: the mothership has number {last} of ours, which was never given: its records get the name of a new stream"
        )
        return False

    def waiting(self, stream: Stream, above: int, most: int, size: int) -> list[Record]:
        """The oldest records of a stream above this number: at most `most` records and `size` bytes, but one at least."""
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
        """Delete the records of a stream up to this number: the mothership has them."""
        for first, end in self.numbers.up_to(identity, number):
            if size := size_of(self.database, first, end):  # 0: none of them is here, for no record is empty
                self.size -= size
                # A power cut may undo this: the mothership drops what it has when it is sent again.
                self._write(partial(delete, first=first, end=end), sync=False)

    def under_way(self, stream: Stream, sent: int) -> int:
        """How many records of a stream up to this number are not acknowledged."""
        return count_of(self.database, stream.first, sent + stream.shift + 1)

    def count(self) -> int:
        """How many records wait."""
        return count_of(self.database) + len(self.pending)

    # --- ids of commands ---------------------------------------------------------------------------------------------
    def result(self, name: str) -> str | None:
        """The stored result of a command; None if the command is not known."""
        row = self.database.execute("SELECT result FROM command WHERE id = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def remember(self, name: str, result: str, expires: float, clock: float) -> bool:
        """Commit a command's id and result. True if they are on the disk. Long expired commands are deleted."""

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM command WHERE expires < ?", (clock - REMEMBERED,))
            database.execute("REPLACE INTO command VALUES (?, ?, ?)", (name, result, expires))

        self._write(write)
        return self.durable

    def close(self, now: float) -> None:
        """Commit and close. The next start goes on with the next number."""
        self.flush(now)
        if self.durable:
            self._write(lambda database: database.execute("REPLACE INTO meta VALUES ('reserved', ?)", (self.next,)))
        self.database.close()
