"""SQLite for store.py, if DATABASE is a path."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from database import ADOPT, LATER, SCHEMA, Row

BUSY = 5.0  # seconds to wait for a locked database


class Sqlite:
    """A database file. Other processes may use it too; a transaction locks it."""

    error: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    lock = ""

    def __init__(self, path: str, *, make: bool = True) -> None:
        if not make and path != ":memory:":
            self._must_be_ours(path)
        self.connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        self._write_ahead()
        self.connection.execute("PRAGMA synchronous=FULL")
        with self.transaction():
            for statement in SCHEMA.split(";\n"):
                self.connection.execute(statement)
            for table, columns in LATER.items():
                have = {row[1] for row in self.connection.execute(f"PRAGMA table_info({table})")}
                for column in columns:
                    if column.split()[0] not in have:
                        self.connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
            self.connection.execute(ADOPT)

    def _must_be_ours(self, path: str) -> None:
        """Exit with a sentence if the file is no database of ours: a mistyped path must not become a new empty one."""
        if not os.path.exists(path):
            raise SystemExit(f"{path}: there is no such database; `mothership receive` makes one")
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY)) as found:
            if not found.execute("SELECT 1 FROM sqlite_master WHERE name = 'board'").fetchone():
                raise SystemExit(f"{path}: this is a database, but no mothership's: it has no boards")

    def _write_ahead(self) -> None:
        """Turn on the write-ahead log. If another process opens the database now, SQLite fails at once here: try again."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                self.connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(statement, tuple(values))

    def executemany(self, statement: str, rows: Iterable[Row]) -> None:
        self.connection.executemany(statement, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction; its commit is on the disk."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def rows(self, statement: str, values: Iterable[Any] = ()) -> Iterator[Row]:
        """Rows of a query, one at a time."""
        yield from self.connection.execute(statement, tuple(values))
