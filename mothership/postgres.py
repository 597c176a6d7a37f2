"""PostgreSQL behind store.py's statements: the one module that knows psycopg."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

try:
    import psycopg
except ImportError as problem:
    raise SystemExit(
        f"a database at postgresql://... takes the library psycopg ({problem}): pip install -r requirements-mothership.txt"
    ) from None

from database import ADOPT, LATER, SCHEMA, Row

TYPES = (
    (" STRICT, WITHOUT ROWID", ""), (" STRICT", ""), (" INTEGER", " BIGINT"), (" REAL", " DOUBLE PRECISION"),
    ("CREATE VIEW IF NOT EXISTS", "CREATE OR REPLACE VIEW"),
)  # fmt: skip
LOCK = 0x57ACC  # of the schema: two receivers that start at once would both create it
PAGE = 2000  # rows that a reader has in memory


class Postgres:
    """A connection that is made anew after each failure. `store.py` says when."""

    error: tuple[type[Exception], ...] = (psycopg.OperationalError, psycopg.InterfaceError)
    lock = " FOR UPDATE"

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.connection = self._connect()
        except psycopg.Error as error:
            raise SystemExit(f"{url_without_password(url)}: PostgreSQL cannot be used: {str(error).strip()}") from None

    def _connect(self) -> psycopg.Connection[Row]:
        connection = psycopg.connect(self.url, autocommit=True, connect_timeout=10, application_name="mothership")
        connection.execute("SET synchronous_commit = on")  # whatever the server's default: acknowledged is on the disk
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            connection.execute(ours(SCHEMA))
            query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'board'"
            have = {row[0] for row in connection.execute(query)}
            for column in LATER:  # only where it is missing: to alter a table waits for all who use it
                if column.split()[0] not in have:
                    connection.execute(ours(f"ALTER TABLE board ADD COLUMN {column}"))
            connection.execute(ADOPT)
        return connection

    def execute(self, statement: str, values: Iterable[Any] = ()) -> psycopg.Cursor[Row]:
        if self.connection.closed:
            self.connection = self._connect()
        return self.connection.execute(translated(statement), tuple(values))

    def executemany(self, statement: str, rows: Iterable[Row]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(translated(statement), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; on the server's disk where it ends well."""
        if self.connection.closed:
            self.connection = self._connect()
        with self.connection.transaction():
            yield

    def rows(self, statement: str, values: Iterable[Any] = ()) -> Iterator[Row]:
        """As they are read, from a cursor of the server."""
        with self.transaction(), self.connection.cursor(name="rows") as cursor:
            cursor.itersize = PAGE
            yield from cursor.execute(translated(statement), tuple(values))


def ours(text: str) -> Any:
    """The schema's words for SQLite in PostgreSQL's."""
    for sqlite, postgres in TYPES:
        text = text.replace(sqlite, postgres)
    return text


def translated(statement: str) -> Any:
    """psycopg's sign for what is filled in."""
    return statement.replace("?", "%s")


def url_without_password(url: str) -> str:
    """For messages: what stands between the first : after // and the last @ is nobody's business."""
    scheme, _, rest = url.partition("//")
    user, at, host = rest.rpartition("@")
    return f"{scheme}//{user.partition(':')[0]}{at}{host}"
