"""PostgreSQL for store.py: the one module that uses psycopg."""

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
OLDEST = 120000  # server_version_num: what is older is not tested
PAGE = 2000  # rows that a reader has in memory


class Postgres:
    """A connection to PostgreSQL. It connects again at the next statement after a failure."""

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
        self._check(connection)
        connection.execute("SET synchronous_commit = on")  # whatever the server's default: acknowledged is on the disk
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            connection.execute(ours(SCHEMA))
            query = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
            for table, columns in LATER.items():
                have = {row[0] for row in connection.execute(query, (table,))}
                for column in columns:  # only where it is missing: to alter a table waits for all who use it
                    if column.split()[0] not in have:
                        connection.execute(ours(f"ALTER TABLE {table} ADD COLUMN {column}"))
            connection.execute(ADOPT)
        return connection

    def _check(self, connection: psycopg.Connection[Row]) -> None:
        """Refuse a server that would store records and could not return them (encoding, version), before anything is stored."""
        name, version = connection.info.dbname, connection.info.server_version
        if version < OLDEST:
            raise SystemExit(
                f"{url_without_password(self.url)}: PostgreSQL {version // 10000} is too old: {OLDEST // 10000} or newer"
            )
        row = connection.execute("SHOW server_encoding").fetchone()
        if row and row[0] not in ("UTF8", b"UTF8"):
            encoding = row[0].decode() if isinstance(row[0], bytes) else row[0]
            raise SystemExit(
                f"{url_without_password(self.url)}: its encoding is {encoding}, which does not take every text; make one with "
                f"createdb --encoding UTF8 --template template0 {name}"
            )

    def execute(self, statement: str, values: Iterable[Any] = ()) -> psycopg.Cursor[Row]:
        if self.connection.closed:
            self.connection = self._connect()
        return self.connection.execute(translated(statement), tuple(values))

    def executemany(self, statement: str, rows: Iterable[Row]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(translated(statement), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction; its commit is on the server's disk."""
        if self.connection.closed:
            self.connection = self._connect()
        with self.connection.transaction():
            yield

    def rows(self, statement: str, values: Iterable[Any] = ()) -> Iterator[Row]:
        """Rows of a query, one at a time, from a cursor of the server."""
        with self.transaction(), self.connection.cursor(name="rows") as cursor:
            cursor.itersize = PAGE
            yield from cursor.execute(translated(statement), tuple(values))


def ours(text: str) -> Any:
    """SQLite's schema in PostgreSQL's types."""
    for sqlite, postgres in TYPES:
        text = text.replace(sqlite, postgres)
    return text


def translated(statement: str) -> Any:
    """A statement with psycopg's placeholders (%s)."""
    return statement.replace("?", "%s")


def url_without_password(url: str) -> str:
    """A database's URL for messages, without the password between the first : after // and the last @."""
    scheme, _, rest = url.partition("//")
    user, at, host = rest.rpartition("@")
    return f"{scheme}//{user.partition(':')[0]}{at}{host}"
