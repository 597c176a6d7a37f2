"""SQLite behind store.py's statements: where DATABASE is a path."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any

from database import ADOPT, LATER, SCHEMA, Row

BUSY = 5.0  # seconds that a locked SQLite is waited for, before it is Unavailable


class Sqlite:
    """A file. Other processes may use it too: a transaction has it alone."""

    error: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    lock = ""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        self._write_ahead()
        self.connection.execute("PRAGMA synchronous=FULL")
        with self.transaction():
            for statement in SCHEMA.split(";\n"):
                self.connection.execute(statement)
            have = {row[1] for row in self.connection.execute("PRAGMA table_info(board)")}
            for column in LATER:
                if column.split()[0] not in have:
                    self.connection.execute(f"ALTER TABLE board ADD COLUMN {column}")
            self.connection.execute(ADOPT)

    def _write_ahead(self) -> None:
        """WAL. Where others open the database at the same moment SQLite fails at once here, instead of waiting as elsewhere."""
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
        """All or nothing; written to the disk where it ends well."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def rows(self, statement: str, values: Iterable[Any] = ()) -> Iterator[Row]:
        """As they are read: never all of them in memory."""
        yield from self.connection.execute(statement, tuple(values))
