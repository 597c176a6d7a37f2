"""What the mothership has of its boards, in SQLite: each record once, and each board's last number."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wire import Batch

SCHEMA = """
CREATE TABLE IF NOT EXISTS board (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS record (
    board TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, boot TEXT, mono REAL, time REAL, clock TEXT,
    body TEXT NOT NULL, received REAL NOT NULL, PRIMARY KEY (board, seq)
) STRICT, WITHOUT ROWID;
"""


class Store:
    """One database. What `take` has returned from is committed."""

    def __init__(self, path: str) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=FULL")
        self.database.executescript(SCHEMA)

    def last(self, board: str) -> int:
        """The number up to which everything that this board still has is here."""
        row = self.database.execute("SELECT seq FROM board WHERE name = ?", (board,)).fetchone()
        return int(row[0]) if row else 0

    def take(self, batches: Iterable[tuple[str, Batch]]) -> dict[str, int]:
        """Commit batches, all in one transaction; the last number of each of their boards.

        A record that is here already is dropped. A batch that misses the one before it is not taken.
        """
        seqs: dict[str, int] = {}
        now = time.time()
        self.database.execute("BEGIN IMMEDIATE")  # other receivers may share the database
        try:
            for board, batch in batches:
                seq = seqs.get(board)
                if seq is None:
                    seq = self.last(board)
                if batch.prev <= seq:
                    fresh = [row for row in batch.records if row[0] > seq]
                    self.database.executemany(
                        "INSERT OR IGNORE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        [
                            (board, number, kind, *place(body), json.dumps(body, ensure_ascii=False), now)
                            for number, kind, body in fresh
                        ],
                    )
                    seq = batch.records[-1][0] if fresh else seq
                seqs[board] = seq
            self.database.executemany("REPLACE INTO board VALUES (?, ?, ?)", [(name, seq, now) for name, seq in seqs.items()])
            self.database.execute("COMMIT")
        except BaseException:
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise
        return seqs


def place(body: Any) -> tuple[Any, ...]:
    """Boot id, monotonic time, wall time and clock's state of a record, where it has them."""
    found = body if isinstance(body, dict) else {}

    def number(name: str) -> float | None:
        value = found.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def text(name: str) -> str | None:
        value = found.get(name)
        return value[:64] if isinstance(value, str) else None

    return text("boot"), number("mono"), number("time"), text("clock")
