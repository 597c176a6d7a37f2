"""The outbox: what must reach the mothership is on disk before it is sent, and stays until the mothership has it.

SQLite with a write-ahead log and synchronous=FULL (sqlite.org/wal.html): what a flush has committed survives a power cut.
Records are numbered, and leave by `acknowledged`, or, where there is no room, in the order of what is given up first.
Beside them are marks (how far a source of records has been read, committed together with what was read) and the ids of
commands.
A number is never given twice. The disk has a number that none has reached yet, so that those given while it refused to be
written are not given again after a power cut; and where this database has been lost and begins anew, the mothership's last
number says so before anything is sent (`heard`), and all that waits is numbered above it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BATCH = 20  # records of one commit...
DELAY = 0.2  # ...or what has come in so many seconds
ROOM = 0.9  # of what is allowed, after something was given up
RETRY = 60.0  # seconds until a disk that failed is tried again
RESERVED = 1_000_000  # numbers ahead of the next one that the disk knows as taken
# Numbers left free above the mothership's last, where it is of an earlier life: some of that may still be under way, and no
# chain of lives that ended by power cuts, RESERVED each, comes so far.
FOREIGN = 1_000_000_000_000
# What the disk, not the file, is to blame for (sqlite.org/rescode.html); with anything else the file is set aside.
FAULTS_OF_DISK = (
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
)  # fmt: skip

PAGE = 2048  # bytes: a commit writes each page that it has touched
LOG_PAGES = (
    256  # of the write-ahead log, then it begins anew: a file that does not grow costs the card no entry in ext4's journal
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS record (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE IF NOT EXISTS command (id TEXT PRIMARY KEY, result TEXT NOT NULL, expires REAL NOT NULL) STRICT;
"""
TABLES = {"record": "(?, ?, ?)", "meta": "(?, ?)", "command": "(?, ?, ?)"}
REMEMBERED = 3600.0  # seconds that a command's id is kept after the command has expired


class Record(NamedTuple):
    """One record as it waits."""

    number: int
    kind: str
    body: bytes


class Outbox:
    """The records of one board. `now` is monotonic time; nothing here reads a clock."""

    def __init__(self, folder: str, most: int, spare: int, give_up: tuple[str, ...], say: Callable[[str], object]) -> None:
        """At most `most` bytes of records, and `spare` bytes of the disk left free; kinds go in the order of `give_up`."""
        self.folder = folder
        self.most = most
        self.spare = spare
        self.give_up = give_up
        self.say = say
        self.pending: list[tuple[str, bytes]] = []
        self.marks: dict[str, int | str] = {}  # to be committed with them
        self.now = 0.0
        self.due: float | None = None  # of their commit
        self.retry: float | None = None  # when to try the disk again; None: records are on it
        self.heard_of: int | None = None  # the mothership has all up to this one; None: nothing has been sent yet
        self.first_heard: int | None = None  # what it had when we asked it first
        self.unread = False  # the disk may have records that we do not: it could not be read when we left it, or began
        self.left = 0  # the last number that we gave before we left a disk that could not be read
        self.limit: int | None = None  # numbers from here on are not sent: the disk does not know them as taken
        self.file = (0, 0)  # device and inode of the database
        self.reserved = 0
        self.next = 1
        if disk := self._open_disk():
            disk = self._reserve(disk)
        self.unread, self.database = disk is None, disk or self._open(":memory:")
        self.lost = json.loads(self.mark("lost") or "{}")  # records given up, by kind, that no record tells of yet
        self.size = self._size()

    # --- opening ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        return f"{self.folder}/outbox.db"

    @property
    def durable(self) -> bool:
        """Whether what is committed is on the disk."""
        return self.retry is None

    def _open_disk(self) -> sqlite3.Connection | None:
        """The database of the disk, a new one in place of a corrupt one; None where the disk does not take any."""
        for _ in range(2):
            try:
                os.makedirs(self.folder, exist_ok=True)
                database = self._open(self.path)
                self.retry, self.file = None, identity(self.path)
                return database
            except sqlite3.DatabaseError as error:
                why = str(error)
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in FAULTS_OF_DISK:
                    break
                if fault := self._set_aside(why):
                    why = f"{why}, and cannot be set aside: {fault}"
                    break
            except OSError as error:
                why = f"{error.strerror}: {self.folder}"
                break
        self._disk_failed(why)
        return None

    def _reserve(self, disk: sqlite3.Connection) -> sqlite3.Connection | None:
        """Go on from the number that the disk has, and have it remember a higher one, before any number is given: later it may
        refuse. None where it does so already."""
        try:
            row = disk.execute("SELECT value FROM meta WHERE name = 'reserved'").fetchone()
            first = row[0] if row else 1
            disk.execute("REPLACE INTO meta VALUES ('reserved', ?)", (first + RESERVED,))
        except sqlite3.Error as error:
            disk.close()
            self._disk_failed(str(error))
            return None
        self.next, self.reserved = first, first + RESERVED
        return disk

    def _disk_failed(self, why: str) -> None:
        if self.retry is None:
            self.say(f"outbox: {why}; records are in memory alone, until the disk takes them again")
        self.retry = self.now + RETRY

    def _open(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            if (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute(f"PRAGMA page_size={PAGE}")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            database.executescript(SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _set_aside(self, why: str) -> str:
        """Keep a corrupt database for whoever can still read it, instead of the one before it. Why not, where it cannot be."""
        try:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.path + suffix, f"{self.folder}/outbox.bad{suffix}")
        except OSError as error:
            return error.strerror or str(error)
        self.say(f"outbox: {self.path} is corrupt ({why}): it is now outbox.bad, and a new one begins")
        return ""

    def mark(self, name: str) -> Any:
        """A mark that was committed with a record; None where there is none."""
        row = self.database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _size(self) -> int:
        return int(self.database.execute("SELECT coalesce(sum(length(body)), 0) FROM record").fetchone()[0])

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
        if self.durable and identity(self.path) != self.file:  # the data partition has come over it, or it was removed
            self.unread, self.heard_of = True, self.first_heard
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
        taken = [Record(self.next + index, kind, body) for index, (kind, body) in enumerate(self.pending)]
        marks = self.marks
        if (after := taken[-1].number + 1) > self.reserved:
            self.reserved = after + RESERVED
            marks = marks | {"reserved": self.reserved}

        def insert(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", taken)
            database.executemany("REPLACE INTO meta VALUES (?, ?)", marks.items())

        self._write(insert)
        self.pending, self.marks = [], {}
        self.next = after
        self.size += sum(len(record.body) for record in taken)
        self._make_room()

    def _write(self, step: Callable[[sqlite3.Connection], object], *, sync: bool = True) -> None:
        """Commit a step; without `sync` it reaches the disk with the next one. Where the disk refuses, go on in memory."""
        try:
            self.database.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            with transaction(self.database):
                step(self.database)
        except sqlite3.Error as error:
            self._leave_disk(str(error))
            with transaction(self.database):
                step(self.database)

    def _leave_disk(self, why: str) -> None:
        """What is on the disk stays there; what waits, as far as it can be read, is sent from memory."""
        self._disk_failed(why)
        disk, self.database = self.database, self._open(":memory:")
        try:
            copy(disk, self.database)
        except sqlite3.Error:
            self.unread, self.left = True, self.next - 1
        disk.close()
        self.size = self._size()

    def _return_to_disk(self) -> None:
        """Take what has gathered in memory back to the disk, in place of what the disk remembers."""
        disk = self._open_disk()
        if disk is None:
            return
        try:
            if self.unread:
                self._take_unread(disk)
            copy(self.database, disk)
        except sqlite3.Error as error:
            disk.close()
            self._disk_failed(str(error))
            return
        self.database.close()
        self.database, self.limit = disk, None
        self.say("outbox: records are on the disk again")

    def _take_unread(self, disk: sqlite3.Connection) -> None:
        """What the disk has of an earlier life: under its own numbers, and before what has gathered since; where some of that
        has been sent, after it, with new ones, as far as the mothership did not have it when it was asked.

        Numbers that the disk does not know as taken are not sent before it has taken them: it may give, and not take.
        """
        reserved = disk.execute("SELECT value FROM meta WHERE name = 'reserved'").fetchone()
        start = reserved[0] if reserved else 1
        # A last number above all of the disk's is of another life without it, and says nothing of these.
        known = self.heard_of if self.heard_of is not None and self.heard_of < start else 0
        rows = disk.execute("SELECT * FROM record WHERE number > ? ORDER BY number", (known,))
        old, moved = [Record(*row) for row in rows], []
        with transaction(self.database):
            if self.heard_of is None:
                moved = [Record(*row) for row in self.database.execute("SELECT * FROM record ORDER BY number")]
                self.database.execute("DELETE FROM record")
            else:
                start, old, moved = max(start, self.next), [], old
            after = start + len(moved)
            numbered = [record._replace(number=start + index) for index, record in enumerate(moved)]
            self.database.executemany("INSERT INTO record VALUES (?, ?, ?)", old + numbered)
            self.database.execute("REPLACE INTO meta VALUES ('reserved', ?)", (after + RESERVED,))
            for table in ("meta", "command"):
                rows = disk.execute(f"SELECT * FROM {table}")
                self.database.executemany(f"INSERT OR IGNORE INTO {table} VALUES {TABLES[table]}", rows)
        self.next, self.reserved, self.limit, self.unread = after, after + RESERVED, start, False
        self.size = self._size()

    # --- room ------------------------------------------------------------------------------------------------------
    def _make_room(self) -> None:
        """Give up the oldest records of the least kinds until the rest fits; a record tells how many of what."""
        allowed = min(self.most, self.size + self._free() - self.spare)
        if self.size <= allowed:
            return
        over = self.size - max(0, int(allowed * ROOM))
        kinds = [row[0] for row in self.database.execute("SELECT DISTINCT kind FROM record")]
        order = [kind for kind in self.give_up if kind in kinds] + sorted(set(kinds) - set(self.give_up))
        gone: dict[str, int] = {}
        numbers: list[tuple[int]] = []
        for kind in order:
            for number, length in self.database.execute(
                "SELECT number, length(body) FROM record WHERE kind = ? ORDER BY number", (kind,)
            ):
                if over <= 0:
                    break
                numbers.append((number,))
                over -= length
                gone[kind] = gone.get(kind, 0) + 1
        self._give_up("no room", numbers, gone)

    def give_up_damaged(self, most: int) -> None:
        """Of the oldest records, those that the disk has damaged: no mothership takes a batch with one of them."""
        damaged = [record for record in self.waiting(0, most, 1 << 30) if not is_json(record.body)]
        if damaged:
            kinds = [record.kind for record in damaged]
            gone = {kind: kinds.count(kind) for kind in kinds}
            self._give_up("damaged on the disk", [(record.number,) for record in damaged], gone)

    def _give_up(self, why: str, numbers: list[tuple[int]], gone: dict[str, int]) -> None:
        """Delete records, and commit together with that how many of which kind somebody has to be told of."""
        for kind, count in gone.items():
            self.lost[kind] = self.lost.get(kind, 0) + count

        def give_up(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM record WHERE number = ?", numbers)
            database.execute("REPLACE INTO meta VALUES ('lost', ?)", (json.dumps(self.lost),))

        self._write(give_up)
        self.size = self._size()
        self.say(f"outbox: {why}: {', '.join(f'{count} of {kind}' for kind, count in gone.items())} given up")

    def _free(self) -> int:
        """Bytes that the disk could still take; what memory could, where the records are there."""
        if not self.durable:
            return self.most
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    # --- out -------------------------------------------------------------------------------------------------------
    def heard(self, last: int, who: str = "board") -> None:
        """The mothership's last number of this board. It is of an earlier life where it is above what we ever gave, or where
        this database has never been answered before under this name: nothing is sent until then, so nothing of ours can be
        there.
        """
        self.first_heard = last if self.first_heard is None else self.first_heard
        self._hear(last)
        met = self.mark("met") == who
        if met and last < self.next:
            return
        shift = last + FOREIGN if last else 0
        after = self.next + shift

        def renumber(database: sqlite3.Connection) -> None:
            database.execute("REPLACE INTO meta VALUES ('met', ?)", (who,))
            if shift:
                records = [Record(*row) for row in database.execute("SELECT * FROM record")]
                database.execute("DELETE FROM record")
                moved = [record._replace(number=record.number + shift) for record in records]
                database.executemany("INSERT INTO record VALUES (?, ?, ?)", moved)
                database.execute("REPLACE INTO meta VALUES ('reserved', ?)", (after + RESERVED,))

        self._write(renumber)
        self.next, self.reserved = after, after + RESERVED if shift else self.reserved

    def _hear(self, number: int) -> None:
        """The mothership has all up to this one; of what is unread, only as far as its numbers are not those of others too."""
        if self.heard_of is None or not self.unread:
            self.heard_of = max(number, self.heard_of or 0)
        else:
            self.heard_of = max(self.heard_of, min(number, self.left))

    def waiting(self, above: int, most: int, size: int) -> list[Record]:
        """The oldest committed records with a number above this one: at most so many, and of about so many bytes."""
        found: list[Record] = []
        limit = (1 << 62) if self.limit is None else self.limit
        query = "SELECT * FROM record WHERE number > ? AND number < ? ORDER BY number LIMIT ?"
        for row in self.database.execute(query, (above, limit, most)):
            found.append(Record(*row))
            size -= len(found[-1].body)
            if size <= 0:
                break
        return found

    def acknowledged(self, number: int) -> None:
        """The mothership has all up to this one."""
        self._hear(number)
        size = self.database.execute("SELECT sum(length(body)) FROM record WHERE number <= ?", (number,)).fetchone()[0]
        if size is None:
            return  # none of them is here any more: nothing to write
        self.size -= size
        # A power cut may undo it: what is sent again is known there.
        self._write(lambda database: database.execute("DELETE FROM record WHERE number <= ?", (number,)), sync=False)

    def under_way(self, sent: int) -> int:
        """How many records up to this number wait."""
        return int(self.database.execute("SELECT count(*) FROM record WHERE number <= ?", (sent,)).fetchone()[0])

    def count(self) -> int:
        """How many records wait."""
        return int(self.database.execute("SELECT count(*) FROM record").fetchone()[0]) + len(self.pending)

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


def identity(path: str) -> tuple[int, int]:
    """Device and inode; zeroes where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """All that one has, in place of what the other one has."""
    with transaction(target):
        for table, width in TABLES.items():
            target.execute(f"DELETE FROM {table}")
            target.executemany(f"INSERT INTO {table} VALUES {width}", source.execute(f"SELECT * FROM {table}"))


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
