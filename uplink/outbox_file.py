"""The outbox's database: opened and checked, set aside where it is corrupt, copied from the disk to memory and back."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from errno import ELOOP

from base.files import open_folder
from uplink.numbering import LEGACY, Numbering, Stream, new_identity

FORMAT = 1  # of these tables (outbox_format.py)
PAGE = 2048  # bytes: a commit writes each page that it has touched
# Pages of the write-ahead log, then it begins anew: a file that does not grow costs the card no entry in ext4's journal.
LOG_PAGES = 256
# Errors of the disk, not of the file (sqlite.org/rescode.html). After any other error the file is set aside.
FAULTS_OF_DISK = (
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
)  # fmt: skip
SCHEMA = """
CREATE TABLE IF NOT EXISTS record (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE IF NOT EXISTS command (id TEXT PRIMARY KEY, result TEXT NOT NULL, expires REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS stream (
    first INTEGER PRIMARY KEY, identity TEXT NOT NULL, shift INTEGER NOT NULL, own INTEGER NOT NULL
) STRICT;
"""
TABLES = {"record": "(?, ?, ?)", "meta": "(?, ?)", "command": "(?, ?, ?)", "stream": "(?, ?, ?, ?)"}


class Unusable(Exception):
    """The disk cannot hold the database now; the text says why."""


def open_disk(folder: str, say: Callable[[str], object]) -> sqlite3.Connection:
    """Open the database in a folder; a corrupt one is set aside, and a new one made. Unusable if the disk takes none."""
    path = f"{folder}/outbox.db"
    for _ in range(2):
        try:
            os.close(open_folder(folder))
            refuse_links(path)
            return open_database(path)
        except sqlite3.DatabaseError as error:
            why = str(error)
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in FAULTS_OF_DISK:
                break
            if fault := set_aside(folder, why, say):
                why = f"{why}, and cannot be set aside: {fault}"
                break
        except OSError as error:
            why = f"{error.strerror}: {folder}"
            break
    raise Unusable(why)


def refuse_links(path: str) -> None:
    """OSError for a symbolic link in the place of a file of the database: SQLite would follow it, wherever it leads."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        if os.path.islink(path + suffix):
            raise OSError(ELOOP, f"{os.path.basename(path)}{suffix} is a symbolic link, which is not followed", path)


def open_database(path: str) -> sqlite3.Connection:
    """Open, check, and bring the tables up to date."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        if (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(verdict)
        database.execute(f"PRAGMA page_size={PAGE}")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        database.executescript(SCHEMA)
        if not database.execute("PRAGMA user_version").fetchone()[0]:
            with contextlib.suppress(sqlite3.OperationalError):  # a disk that takes nothing can be read all the same
                database.execute(f"PRAGMA user_version={FORMAT}")
    except sqlite3.Error:
        database.close()
        raise
    return database


def set_aside(folder: str, why: str, say: Callable[[str], object]) -> str:
    """Rename a corrupt database, for whoever can still read it; it replaces the last one. The reason if that fails, else ""."""
    try:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{folder}/outbox.db{suffix}", f"{folder}/outbox.bad{suffix}")
    except OSError as error:
        return error.strerror or str(error)
    say(f"outbox: {folder}/outbox.db is corrupt ({why}): it is now outbox.bad, and a new one begins")
    return ""


def file_identity(path: str) -> tuple[int, int]:
    """Device and inode of a file; zeroes if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def size_of(database: sqlite3.Connection, first: int = 0, end: int = 1 << 62) -> int:
    """Bytes of the records from this id on, and below that."""
    query = "SELECT coalesce(sum(length(body)), 0) FROM record WHERE number >= ? AND number < ?"
    return int(database.execute(query, (first, end)).fetchone()[0])


def count_of(database: sqlite3.Connection, first: int = 0, end: int = 1 << 62) -> int:
    """How many records there are from this id on, and below that."""
    return int(database.execute("SELECT count(*) FROM record WHERE number >= ? AND number < ?", (first, end)).fetchone()[0])


def damaged_of(database: sqlite3.Connection, most: int) -> Iterator[tuple[int, str]]:
    """Ids and kinds of the damaged records among the `most` oldest."""
    for number, kind, body in database.execute("SELECT * FROM record ORDER BY number LIMIT ?", (most,)):
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            yield number, kind


def delete(database: sqlite3.Connection, first: int, end: int) -> None:
    """Delete the records from id `first` up to, not including, `end`."""
    database.execute("DELETE FROM record WHERE number >= ? AND number < ?", (first, end))


def copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Replace all tables of one database by those of another."""
    with transaction(target):
        for table, width in TABLES.items():
            target.execute(f"DELETE FROM {table}")
            target.executemany(f"INSERT INTO {table} VALUES {width}", source.execute(f"SELECT * FROM {table}"))


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """A transaction: committed at the end of the block, rolled back by an exception."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def numbering_of(disk: sqlite3.Connection) -> Numbering:
    """The numbering that a database stores. One from before there were streams has a single stream."""
    rows = disk.execute("SELECT first, identity, shift, own FROM stream ORDER BY first").fetchall()
    meta = dict(disk.execute("SELECT name, value FROM meta WHERE name IN ('reserved', 'met')").fetchall())
    numbers = Numbering((Stream(*row) for row in rows), meta.get("reserved", 1))
    if not rows and "reserved" in meta:
        # Without the mark "met" none of its records was ever sent.
        numbers.streams = [Stream(1, LEGACY if "met" in meta else new_identity(), 0)]
        numbers.begin()
    return numbers


def save(database: sqlite3.Connection, numbers: Numbering) -> None:
    """Store the streams and `reserved`, inside the caller's transaction."""
    database.execute("DELETE FROM stream")
    database.executemany(f"INSERT INTO stream VALUES {TABLES['stream']}", numbers.rows())
    database.execute("REPLACE INTO meta VALUES ('reserved', ?)", (numbers.reserved,))


def stamped(disk: sqlite3.Connection, machine: str) -> str:
    """The name of the other machine that wrote this card; "" if it is this machine's, or unknown."""
    row = disk.execute("SELECT value FROM meta WHERE name = 'machine'").fetchone()
    return str(row[0]) if row and machine and row[0] != machine else ""


def stamp(disk: sqlite3.Connection, machine: str) -> None:
    """Store the name of this machine, if it has one."""
    if machine:
        disk.execute("REPLACE INTO meta VALUES ('machine', ?)", (machine,))


def put_behind(disk: sqlite3.Connection, others: Numbering, database: sqlite3.Connection, ours: Numbering) -> Numbering:
    """Copy a disk's records into our database, before our own; our marks win. Returns the numbering of both."""
    both, by = ours.behind(others)
    both.reserve()
    with transaction(database):
        rows = database.execute("SELECT * FROM record").fetchall()
        database.execute("DELETE FROM record")
        insert = f"INSERT INTO record VALUES {TABLES['record']}"
        database.executemany(insert, disk.execute("SELECT * FROM record"))
        database.executemany(insert, ((number + by, kind, body) for number, kind, body in rows))
        for table in ("meta", "command"):
            found = disk.execute(f"SELECT * FROM {table}")
            database.executemany(f"INSERT OR IGNORE INTO {table} VALUES {TABLES[table]}", found)
        save(database, both)
    return both


def oldest_of(database: sqlite3.Connection, kinds: list[str], size: int) -> Iterator[tuple[int, str]]:
    """Ids and kinds of records that have `size` bytes together: kind by kind, and of each kind the oldest first."""
    query = "SELECT number, length(body) FROM record WHERE kind = ? ORDER BY number"
    for kind in kinds:
        for number, length in database.execute(query, (kind,)):
            if size <= 0:
                return
            yield number, kind
            size -= length
