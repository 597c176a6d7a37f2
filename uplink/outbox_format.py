"""The outbox's database says which format it has (PRAGMA user_version): an update may change that, and be left again.

An older format is copied, and then brought up to date. A newer one is kept under its own name, and the copy that the newer
version has made of ours goes on, in streams of its own: which numbers the newer version has given is not known here. Without
a copy a new outbox begins. When the new slot is committed, the copies are deleted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable

from uplink import outbox_file
from uplink.outbox_file import FORMAT, Unusable, numbering_of, save, transaction

# What makes the next format of one, as SQL: {1: "ALTER TABLE ...", ...}. A table that is new does not need another format; a
# column of `record`, `meta`, `command` or `stream` does.
STEPS: dict[int, str] = {}
SUFFIXES = ("", "-wal", "-shm")


def open_disk(folder: str, say: Callable[[str], object]) -> sqlite3.Connection:
    """The database in a folder, in this version's format. Unusable if the disk takes none."""
    path = f"{folder}/outbox.db"
    try:
        found = version_of(path)
        if found > FORMAT:
            step_aside(folder, found, say)
        elif found < FORMAT and found in STEPS:
            migrate(folder, found, say)
    except (OSError, sqlite3.Error) as error:
        raise Unusable(f"{path} cannot be brought into format {FORMAT}: {error}") from None
    return outbox_file.open_disk(folder, say)


def version_of(path: str) -> int:
    """The format of a database; FORMAT where there is none, or none that can be read: open_database says more of that."""
    if not os.path.isfile(path) or os.path.islink(path) or not os.path.getsize(path):
        return FORMAT
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        try:
            return int(database.execute("PRAGMA user_version").fetchone()[0]) or 1  # before it was written down, it was 1
        except sqlite3.DatabaseError:
            return FORMAT


def migrate(folder: str, found: int, say: Callable[[str], object]) -> None:
    """Copy an older database to outbox.v1.db, whole or not at all, and bring it up to date."""
    path, kept = f"{folder}/outbox.db", f"{folder}/outbox.v{found}.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        remove(f"{kept}.new")
        with contextlib.closing(sqlite3.connect(f"{kept}.new", isolation_level=None)) as target:
            database.backup(target)
        os.rename(f"{kept}.new", kept)
        flush(folder)
        with transaction(database):
            for number in range(found, FORMAT):
                for statement in filter(str.strip, STEPS[number].split(";\n")):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version={FORMAT}")
    say(f"outbox: {path} has format {FORMAT} now; {kept} is a copy of before, for the older version")


def step_aside(folder: str, found: int, say: Callable[[str], object]) -> None:
    """Keep a newer version's database for it, and go on with the copy that it has made of ours."""
    path, kept, ours = f"{folder}/outbox.db", f"{folder}/outbox.v{found}.db", f"{folder}/outbox.v{FORMAT}.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # one file has all of it
    remove(kept)
    os.rename(path, kept)
    remove(path)
    there = os.path.isfile(ours)
    if there:
        with contextlib.closing(sqlite3.connect(ours, isolation_level=None)) as database:
            numbers = numbering_of(database)
            numbers.disown()
            numbers.begin()
            numbers.reserve()
            with transaction(database):
                save(database, numbers)
        os.rename(ours, path)
    flush(folder)
    goes_on = "the copy of before the update goes on" if there else "a new one begins"
    say(f"outbox: {path} has format {found}, of a newer version than this, which has {FORMAT}: it is {kept} now, and {goes_on}")


def forget_copies(folder: str) -> None:
    """Delete the copies for older versions: the newer one is committed."""
    for number in range(1, FORMAT):
        remove(f"{folder}/outbox.v{number}.db")


def remove(path: str) -> None:
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def flush(folder: str) -> None:
    """The names of a folder are on the disk when this returns."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
