"""What the mothership has of its boards: each record once, when it was, and what each board last said of itself.

SQLite where DATABASE is a path, PostgreSQL (postgres.py) where it is postgresql://...: the same statements run on both.

What no database stores alike is mended, never refused, for a board would send it again for ever: in texts NUL and lone
surrogates become U+FFFD; NaN, infinities and numbers above a double's become null; a body that is nested too deeply to be
written becomes {"unreadable": why}. So a body is always JSON (RFC 8259) that `body::jsonb` and `json_extract` take.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from database import Database, Row
from sqlite import Sqlite

from uplink.wire import LONGEST, Batch

CLOCKS = ("received", "plausible", "synchronised")  # who places a boot in time, the best last
RANK = "CASE {} WHEN 'synchronised' THEN 2 WHEN 'plausible' THEN 1 ELSE 0 END"
# Wall time minus monotonic time. A better clock wins, and of equals the later word: a clock is set, it is not unset.
# "received" contains how long the message took, so that of those the smallest is the best.
PLACE = f"""
INSERT INTO boot VALUES (?, ?, ?, ?)
ON CONFLICT (board, boot) DO UPDATE SET "offset" = excluded."offset", clock = excluded.clock
WHERE {RANK.format("excluded.clock")} > {RANK.format("boot.clock")}
   OR (excluded.clock = boot.clock AND (excluded.clock <> 'received' OR excluded."offset" < boot."offset"))
"""
STATE = """
UPDATE board SET state = ?, boot = ?, state_since = ?
WHERE name = ? AND (coalesce(state, '') <> ? OR coalesce(boot, '') <> ?)
"""  # the broker tells a retained state again: it is not news


class Unavailable(Exception):
    """The database cannot be reached or written now: nothing has been committed, and the same may succeed later."""


class News(NamedTuple):
    """What a board said beside its records: `what` is "state", "info" or "hello"."""

    board: str
    what: str
    said: dict[str, Any]


def connect(database: str) -> Database:
    """A path, or postgresql://USER@HOST/NAME."""
    if not database.startswith(("postgresql://", "postgres://")):
        try:
            return Sqlite(database)
        except sqlite3.Error as error:
            raise SystemExit(f"{database}: SQLite cannot use it as a database: {error}") from None
    import postgres  # only who has such a database needs its library

    return postgres.Postgres(database)


class Store:
    """One database. What `take` has returned from is committed."""

    def __init__(self, database: str) -> None:
        self.database = connect(database)

    def last(self, board: str) -> int:
        """The number up to which everything that this board still has is here."""
        with self._translated():
            row = self.database.execute("SELECT seq FROM board WHERE name = ?", (board,)).fetchone()
        return int(row[0]) if row else 0

    def take(self, batches: Iterable[tuple[str, Batch]], news: Iterable[News] = ()) -> dict[str, int]:
        """Commit batches and news, all in one transaction; the last number of each board that sent a batch.

        A record that is here already is dropped. A batch that misses the one before it is not taken.
        """
        batches, news, now = list(batches), list(news), time.time()
        records: list[Row] = []
        offsets: dict[tuple[str, str], tuple[float, str]] = {}
        with self._translated(), self.database.transaction():
            seqs = self._claim({board for board, _ in batches} | {item.board for item in news}, now)
            for board, batch in batches:
                seq = seqs[board]
                if batch.prev > seq:
                    continue
                for number, kind, body in batch.records:
                    if number > seq:
                        boot, mono, wall, clock = place(body)
                        records.append((board, number, clean(kind), boot, mono, wall, clock, as_text(body), now))
                        if boot and clock in CLOCKS[1:] and mono is not None and wall is not None:
                            note(offsets, board, boot, wall - mono, clock)
                        seqs[board] = number
            self.database.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", records)
            told = {board: seqs[board] for board, _ in batches}
            self.database.executemany("UPDATE board SET seq = ?, seen = ? WHERE name = ?", [(told[b], now, b) for b in told])
            for item in news:
                self._hear(item, offsets, now)
            self.database.executemany(PLACE, [(*boot, *best) for boot, best in offsets.items()])
        return told

    def _claim(self, boards: set[str], now: float) -> dict[str, int]:
        """The boards' last numbers, ours until the commit. In order: no two receivers wait for each other."""
        names = sorted(boards)
        new = "INSERT INTO board (name, seq, seen) VALUES (?, 0, ?) ON CONFLICT DO NOTHING"
        self.database.executemany(new, [(name, now) for name in names])
        ours = "SELECT seq FROM board WHERE name = ?" + self.database.lock
        return {name: int(self.database.execute(ours, (name,)).fetchone()[0]) for name in names}

    def _hear(self, item: News, offsets: dict[tuple[str, str], tuple[float, str]], now: float) -> None:
        board, what, said = item
        boot = clean(str(said.get("boot") or ""))[:LONGEST]
        mono = number(said.get("mono"))
        if what == "state":
            state = clean(str(said.get("state")))[:LONGEST]
            self.database.execute(STATE, (state, boot, now, board, state, boot))
        elif what == "info":
            self.database.execute("UPDATE board SET info = ? WHERE name = ?", (as_text(said), board))
        elif boot and mono is not None:
            note(offsets, board, boot, now - mono, "received")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self.database.error as error:
            raise Unavailable(str(error).strip()) from error


def note(offsets: dict[tuple[str, str], tuple[float, str]], board: str, boot: str, offset: float, clock: str) -> None:
    """Keep the best word on a boot's place in time."""
    before = offsets.get((board, boot))
    if before and before[1] == clock == "received":
        offset = min(offset, before[0])
    if before is None or CLOCKS.index(clock) >= CLOCKS.index(before[1]):
        offsets[board, boot] = (offset, clock)


def place(body: Any) -> tuple[str | None, float | None, float | None, str | None]:
    """Boot id, monotonic time, wall time and clock's state of a record, where it has them."""
    if not isinstance(body, dict):
        return None, None, None, None
    boot, clock = body.get("boot"), body.get("clock")
    return (
        clean(boot)[:LONGEST] if isinstance(boot, str) else None,
        number(body.get("mono")),
        number(body.get("time")),
        clean(clock)[:LONGEST] if isinstance(clock, str) else None,
    )


def number(value: Any) -> float | None:
    """A finite number as a double, None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def clean(text: str) -> str:
    """A text that every database and UTF-8 take."""
    if "\0" not in text and text.isascii():
        return text
    return "".join("\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in text)


encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def as_text(body: Any) -> str:
    """A body as JSON, mended where it must be."""
    try:
        text = encode(body)
        if "\\u0000" not in text and (text.isascii() or text.encode()):  # which fails at a lone surrogate
            return text
    except (ValueError, RecursionError):
        pass
    try:
        return encode(mended(body))
    except (ValueError, RecursionError) as error:
        return encode({"unreadable": clean(str(error))[:200]})


def mended(value: Any) -> Any:
    """The same without what no database stores alike."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): mended(item) for key, item in value.items()}
    return value
