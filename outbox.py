"""The outbox: what must reach the mothership is on disk before it is sent, and stays until the mothership has it.

SQLite with a write-ahead log and synchronous=FULL (sqlite.org/wal.html): what a flush has committed survives a power cut.
Records are numbered, and leave by `acknowledged`, or, where there is no room, in the order of what is given up first.
A number is never given twice: where this database has been lost and begins anew, the mothership's last number says so
before anything is sent (`heard`), and all that waits is numbered above it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import NamedTuple

BATCH = 20  # records of one commit...
DELAY = 0.2  # ...or what has come in so many seconds
ROOM = 0.9  # of what is allowed, after something was given up
RETRY = 60.0  # seconds until a disk that failed is tried again
FOREIGN = 1_000_000  # numbers left free above the mothership's last: an earlier life may still have some under way

SCHEMA = """
CREATE TABLE IF NOT EXISTS record (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""


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
        self.lost: dict[str, int] = {}  # records given up, by kind, that no record tells of yet
        self.pending: list[tuple[str, bytes]] = []
        self.due: float | None = None  # of their commit
        self.retry: float | None = None  # when to try the disk again; None: records are on it
        self.database = self._open_disk(0.0) or self._open(":memory:")
        self.next = self._meta("next", 1)
        self.size = self._size()

    # --- opening ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        return f"{self.folder}/outbox.db"

    def _open_disk(self, now: float) -> sqlite3.Connection | None:
        """The database of the disk, a new one in place of a corrupt one; None where the disk does not take any."""
        for _ in range(2):
            try:
                os.makedirs(self.folder, exist_ok=True)
                database = self._open(self.path)
                self.retry = None
                return database
            except sqlite3.DatabaseError as error:
                why = str(error)
                if isinstance(error, sqlite3.OperationalError):  # disk full, read-only: the file itself may be good
                    break
                self._set_aside(why)
            except OSError as error:
                why = f"{error.strerror}: {self.folder}"
                break
        self._disk_failed(why, now)
        return None

    def _disk_failed(self, why: str, now: float) -> None:
        if self.retry is None:
            self.say(f"outbox: {why}; records are in memory alone, until the disk takes them again")
        self.retry = now + RETRY

    def _open(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            if (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _set_aside(self, why: str) -> None:
        """Keep a corrupt database for whoever can still read it, instead of the one before it."""
        self.say(f"outbox: {self.path} is corrupt ({why}): it is now outbox.bad, and a new one begins")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, f"{self.folder}/outbox.bad{suffix}")

    def _meta(self, name: str, default: int) -> int:
        row = self.database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else default

    def _size(self) -> int:
        return int(self.database.execute("SELECT coalesce(sum(length(body)), 0) FROM record").fetchone()[0])

    # --- in ----------------------------------------------------------------------------------------------------------
    def put(self, kind: str, body: bytes, now: float, *, urgent: bool = False) -> None:
        """Take a record: committed with its batch, after DELAY, or at once where it is urgent."""
        self.pending.append((kind, body))
        self.due = now + DELAY if self.due is None else self.due
        if urgent or len(self.pending) >= BATCH:
            self.flush(now)

    def next_deadline(self) -> float | None:
        return min((time for time in (self.due, self.retry) if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Whatever is due: a commit, or another try of a disk that failed."""
        if self.retry is not None and now >= self.retry:
            self._return_to_disk(now)
        if self.due is not None and now >= self.due:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Commit what is pending. Where the disk refuses, go on in memory."""
        self.due = None
        if not self.pending:
            return
        taken = [Record(self.next + index, kind, body) for index, (kind, body) in enumerate(self.pending)]
        try:
            self._insert(self.database, taken)
        except sqlite3.Error as error:
            self._leave_disk(str(error), now)
            self._insert(self.database, taken)
        self.pending = []
        self.next = taken[-1].number + 1
        self.size += sum(len(record.body) for record in taken)
        self._make_room(now)

    def _insert(self, database: sqlite3.Connection, records: list[Record]) -> None:
        with transaction(database):
            database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", records)
            database.execute("REPLACE INTO meta VALUES ('next', ?)", (records[-1].number + 1,))

    def _leave_disk(self, why: str, now: float) -> None:
        """What is on the disk stays there; what waits, as far as it can be read, is sent from memory."""
        self._disk_failed(why, now)
        disk, self.database = self.database, self._open(":memory:")
        with contextlib.suppress(sqlite3.Error):
            if records := [Record(*row) for row in disk.execute("SELECT * FROM record")]:
                self._insert(self.database, records)
        disk.close()
        self.size = self._size()

    def _return_to_disk(self, now: float) -> None:
        """Take what has gathered in memory back to the disk, in place of what the disk remembers."""
        disk = self._open_disk(now)
        if disk is None:
            return
        try:
            with transaction(disk):
                disk.execute("DELETE FROM record")
                disk.executemany("INSERT INTO record VALUES (?, ?, ?)", self.database.execute("SELECT * FROM record"))
                disk.execute("REPLACE INTO meta VALUES ('next', ?)", (self.next,))
        except sqlite3.Error as error:
            disk.close()
            self._disk_failed(str(error), now)
            return
        self.database.close()
        self.database = disk
        self.say("outbox: records are on the disk again")

    # --- room ------------------------------------------------------------------------------------------------------
    def _make_room(self, now: float) -> None:
        """Give up the oldest records of the least kinds until the rest fits; a record tells how many of what."""
        allowed = min(self.most, self.size + self._free() - self.spare)
        if self.size <= allowed:
            return
        target = max(0, int(allowed * ROOM))
        kinds = [row[0] for row in self.database.execute("SELECT DISTINCT kind FROM record")]
        order = [kind for kind in self.give_up if kind in kinds] + sorted(set(kinds) - set(self.give_up))
        gone: dict[str, int] = {}
        for kind in order:
            for number, length in self.database.execute(
                "SELECT number, length(body) FROM record WHERE kind = ? ORDER BY number", (kind,)
            ).fetchall():
                if self.size <= target:
                    break
                self.database.execute("DELETE FROM record WHERE number = ?", (number,))
                self.size -= length
                gone[kind] = gone.get(kind, 0) + 1
        for kind, count in gone.items():
            self.lost[kind] = self.lost.get(kind, 0) + count
        self.say(f"outbox: no room: {', '.join(f'{count} of {kind}' for kind, count in gone.items())} given up")

    def _free(self) -> int:
        """Bytes that the disk could still take; what memory could, where the records are there."""
        if self.retry is not None:
            return self.most
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    # --- out -------------------------------------------------------------------------------------------------------
    def heard(self, last: int) -> None:
        """The mothership's last number of this board. Above what we ever gave: this database is younger than the board."""
        if last < self.next:
            return
        shift = last + FOREIGN
        with transaction(self.database):
            records = [Record(*row) for row in self.database.execute("SELECT * FROM record")]
            self.database.execute("DELETE FROM record")
            moved = [record._replace(number=record.number + shift) for record in records]
            self.database.executemany("INSERT INTO record VALUES (?, ?, ?)", moved)
            self.next += shift
            self.database.execute("REPLACE INTO meta VALUES ('next', ?)", (self.next,))

    def waiting(self, above: int, most: int, size: int) -> list[Record]:
        """The oldest committed records with a number above this one: at most so many, and of about so many bytes."""
        found: list[Record] = []
        for row in self.database.execute("SELECT * FROM record WHERE number > ? ORDER BY number LIMIT ?", (above, most)):
            found.append(Record(*row))
            size -= len(found[-1].body)
            if size <= 0:
                break
        return found

    def acknowledged(self, number: int) -> None:
        """The mothership has all up to this one."""
        size = self.database.execute("SELECT coalesce(sum(length(body)), 0) FROM record WHERE number <= ?", (number,))
        self.size -= size.fetchone()[0]
        with transaction(self.database):
            self.database.execute("DELETE FROM record WHERE number <= ?", (number,))

    def under_way(self, sent: int) -> int:
        """How many records up to this number wait."""
        return int(self.database.execute("SELECT count(*) FROM record WHERE number <= ?", (sent,)).fetchone()[0])

    def count(self) -> int:
        """How many records wait."""
        return int(self.database.execute("SELECT count(*) FROM record").fetchone()[0]) + len(self.pending)

    def close(self, now: float) -> None:
        """Commit and close."""
        self.flush(now)
        self.database.close()


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
