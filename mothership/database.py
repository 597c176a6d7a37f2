"""The mothership's tables, and what SQLite and PostgreSQL have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

SCHEMA = """
CREATE TABLE IF NOT EXISTS board (
    name TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen REAL NOT NULL, state TEXT, state_since REAL, boot TEXT, info TEXT,
    rival TEXT, rival_since REAL
) STRICT;
CREATE TABLE IF NOT EXISTS record (
    board TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, boot TEXT, mono REAL, time REAL, clock TEXT,
    body TEXT NOT NULL, received REAL NOT NULL, PRIMARY KEY (board, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boot (
    board TEXT NOT NULL, boot TEXT NOT NULL, "offset" REAL NOT NULL, clock TEXT NOT NULL, PRIMARY KEY (board, boot)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stream (
    board TEXT NOT NULL, outbox TEXT NOT NULL, seq INTEGER NOT NULL, held INTEGER NOT NULL, heard REAL NOT NULL,
    PRIMARY KEY (board, outbox)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (
    name TEXT PRIMARY KEY, version TEXT NOT NULL, url TEXT NOT NULL, sha256 TEXT NOT NULL, fits TEXT NOT NULL,
    added REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS member (
    fleet TEXT NOT NULL, kind TEXT NOT NULL, board TEXT NOT NULL, PRIMARY KEY (fleet, kind, board)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollout (
    id TEXT PRIMARY KEY, of_release TEXT NOT NULL, fleet TEXT NOT NULL, waves TEXT NOT NULL, pause REAL NOT NULL,
    most_bad INTEGER NOT NULL, started REAL NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL, wave INTEGER NOT NULL,
    healthy REAL
) STRICT;
CREATE TABLE IF NOT EXISTS target (
    rollout TEXT NOT NULL, board TEXT NOT NULL, wave INTEGER NOT NULL, told REAL, asked REAL NOT NULL, boot TEXT NOT NULL,
    accepted INTEGER, answer TEXT NOT NULL, updated REAL, bad TEXT NOT NULL, waits TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (rollout, board)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS crashes ON record (board, received) WHERE kind = 'crash';
CREATE INDEX IF NOT EXISTS updates ON record (board, received) WHERE kind = 'update';
CREATE INDEX IF NOT EXISTS boots ON record (board, seq) WHERE kind = 'boot';
CREATE VIEW IF NOT EXISTS placed AS SELECT record.*,
    CASE WHEN record.clock = 'synchronised' AND record.time IS NOT NULL THEN record.time
         ELSE coalesce(record.mono + boot."offset", record.time, record.received) END AS at
    FROM record LEFT JOIN boot ON boot.board = record.board AND boot.boot = record.boot;
"""
# Columns that earlier versions had not, by table.
LATER = {
    "board": ("state TEXT", "state_since REAL", "boot TEXT", "info TEXT", "rival TEXT", "rival_since REAL"),
    "target": ("waits TEXT NOT NULL DEFAULT ''",),
}
# Before there were streams a board had one sequence of numbers; it is the stream "" now. Since then the mothership itself
# numbers a board's records in `board.seq` and `record.seq`, in the order in which they come, whatever their stream.
ADOPT = """
INSERT INTO stream SELECT name, '', seq, 1, seen FROM board
WHERE seq > 0 AND NOT EXISTS (SELECT 1 FROM stream WHERE stream.board = board.name)
"""

Row = tuple[Any, ...]


class Database(Protocol):
    """What SQLite and PostgreSQL have in common: statements with ? for what is filled in."""

    error: tuple[type[Exception], ...]  # the error of a database that is away or locked: try again
    lock: str  # the end of a SELECT that locks its rows until the commit (FOR UPDATE); SQLite locks the whole file

    def execute(self, statement: str, values: Iterable[Any] = ()) -> Any: ...
    def executemany(self, statement: str, rows: Iterable[Row]) -> None: ...
    def transaction(self) -> contextlib.AbstractContextManager[None]: ...
    def rows(self, statement: str, values: Iterable[Any] = ()) -> Iterator[Row]: ...
