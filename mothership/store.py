"""The mothership's store: each record of each board once, with its time, and each board's last state.

SQLite where DATABASE is a path, PostgreSQL (postgres.py) where it is postgresql://...: the same statements run on both.

A value that a database cannot store is replaced, never refused: the board would send a refused record again for ever. In texts
NUL and lone surrogates become U+FFFD; NaN, infinities and numbers too large for a double become null; a body that is nested too
deeply becomes {"unreadable": why}. So a body is always JSON (RFC 8259) that `body::jsonb` and `json_extract` take.
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
from streams import Line, admit, surplus

from uplink.wire import LONGEST, Batch

CLOCKS = ("received", "plausible", "synchronised")  # which clock tells when a boot began, the best one last
RANK = "CASE {} WHEN 'synchronised' THEN 2 WHEN 'plausible' THEN 1 ELSE 0 END"
# Wall time minus monotonic time of a boot. A better clock replaces a worse one; of two equal clocks the later value counts.
# "received" includes the time that the message took, so of those the smallest is the best.
PLACE = f"""
INSERT INTO boot VALUES (?, ?, ?, ?)
ON CONFLICT (board, boot) DO UPDATE SET "offset" = excluded."offset", clock = excluded.clock
WHERE {RANK.format("excluded.clock")} > {RANK.format("boot.clock")}
   OR (excluded.clock = boot.clock AND (excluded.clock <> 'received' OR excluded."offset" < boot."offset"))
"""
STATE = """
UPDATE board SET state = ?, boot = ?, state_since = ?
WHERE name = ? AND (coalesce(state, '') <> ? OR coalesce(boot, '') <> ?)
"""  # not where it is the same: the broker sends a retained state again


class Unavailable(Exception):
    """The database cannot be reached or written now: nothing has been committed, and the same may succeed later."""


class News(NamedTuple):
    """A message of a board that is no batch: `what` is "state", "info" or "hello"."""

    board: str
    what: str
    said: dict[str, Any]


def connect(database: str, *, make: bool = True) -> Database:
    """A path, or postgresql://USER@HOST/NAME. Without `make` it must exist: a mistyped path makes no new one."""
    if not database.startswith(("postgresql://", "postgres://")):
        try:
            return Sqlite(database, make=make)
        except sqlite3.Error as error:
            raise SystemExit(f"{database}: SQLite cannot use it as a database: {error}") from None
    import postgres  # its library is needed only for such a database

    return postgres.Postgres(database)


Key = tuple[str, str]  # a board, and a stream of its outbox


class Store:
    """One database. When `take` returns, all of it is committed."""

    def __init__(self, database: str, clock: Callable[[], float] = time.time, *, make: bool = True) -> None:
        self.database = connect(database, make=make)
        self.clock = clock

    def last(self, board: str, outbox: str = "") -> int:
        """The last number of a board's stream; all records up to it are stored."""
        with self._translated():
            query = "SELECT seq FROM stream WHERE board = ? AND outbox = ?"
            row = self.database.execute(query, (board, outbox)).fetchone()
        return int(row[0]) if row else 0

    def take(self, batches: Iterable[tuple[str, Batch]], news: Iterable[News] = ()) -> dict[Key, int | str]:
        """Commit batches and news, all in one transaction; the last number of each stream that was asked about or sent from, or
        why it is refused.

        A record that is stored already is dropped. A batch whose `prev` is not stored is not taken.
        """
        taking = Taking(self.database, list(batches), list(news), self.clock())
        with self._translated(), self.database.transaction():
            return taking.run()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self.database.error as error:
            raise Unavailable(str(error).strip()) from error


class Taking:
    """The transaction of one call of `take`."""

    def __init__(self, database: Database, batches: list[tuple[str, Batch]], news: list[News], now: float) -> None:
        self.database = database
        self.batches = batches
        self.news = news
        self.now = now
        self.seqs: dict[str, int] = {}  # the last number that we have given to a record of each board
        self.lines: dict[str, dict[str, Line]] = {}
        self.known: set[Row] = set()  # rows of `stream` as they are in the database
        self.answers: dict[Key, int | str] = {}
        self.offsets: dict[Key, tuple[float, str]] = {}

    def run(self) -> dict[Key, int | str]:
        """Run the transaction; returns the answers."""
        self._claim(sorted({board for board, _ in self.batches} | {item.board for item in self.news}))
        before = dict(self.seqs)
        for item in self.news:
            self._hear(item)
        records = [row for board, batch in self.batches for row in self._records(board, batch)]
        self.database.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", records)
        came = [board for board, _ in self.batches if self.seqs[board] > before[board]]
        seen = "UPDATE board SET seq = ?, seen = ? WHERE name = ?"
        self.database.executemany(seen, [(self.seqs[board], self.now, board) for board in dict.fromkeys(came)])
        self._save_lines()
        self.database.executemany(PLACE, [(*boot, *best) for boot, best in self.offsets.items()])
        return self.answers

    def _claim(self, names: list[str]) -> None:
        """Lock the boards' rows until the commit, in the order of their names, so that two receivers never deadlock."""
        new = "INSERT INTO board (name, seq, seen) VALUES (?, 0, ?) ON CONFLICT DO NOTHING"
        self.database.executemany(new, [(name, self.now) for name in names])
        ours = "SELECT seq FROM board WHERE name = ?" + self.database.lock
        lines = "SELECT outbox, seq, held, heard FROM stream WHERE board = ?"
        for name in names:
            self.seqs[name] = int(self.database.execute(ours, (name,)).fetchone()[0])
            rows = self.database.execute(lines, (name,)).fetchall()
            self.lines[name] = {outbox: Line(int(seq), bool(held), heard) for outbox, seq, held, heard in rows}
            self.known.update((name, *row) for row in rows)

    def _save_lines(self) -> None:
        change = """INSERT INTO stream VALUES (?, ?, ?, ?, ?) ON CONFLICT (board, outbox)
                    DO UPDATE SET seq = excluded.seq, held = excluded.held, heard = excluded.heard"""
        for board in {board for board, _ in self.answers}:
            lines = self.lines[board]
            gone = surplus(lines)
            rows = [(board, name, *line.row()) for name, line in lines.items() if name not in gone]
            self.database.executemany(change, [row for row in rows if row not in self.known])
            self.database.executemany("DELETE FROM stream WHERE board = ? AND outbox = ?", [(board, name) for name in gone])

    def _admit(self, board: str, outbox: str, own: list[str] | None) -> Line | None:
        """The entry of a stream; None if another outbox has the board's name."""
        if why := admit(self.lines[board], outbox, own, self.now):
            self.answers[board, outbox] = why
            query = "UPDATE board SET rival = ?, rival_since = ? WHERE name = ?"
            self.database.execute(query, (outbox, self.now, board))
            return None
        line = self.lines[board][outbox]
        self.answers[board, outbox] = line.seq
        return line

    def _records(self, board: str, batch: Batch) -> Iterator[Row]:
        """Rows of the records in a batch that are new."""
        line = self._admit(board, batch.outbox, None)
        if line is None or batch.prev > line.seq:
            return
        for number, kind, body in batch.records:
            if number <= line.seq:
                continue
            boot, mono, wall, clock = place(body)
            line.seq = number
            self.seqs[board] += 1
            if boot and clock in CLOCKS[1:] and mono is not None and wall is not None:
                note(self.offsets, board, boot, wall - mono, clock)
            yield board, self.seqs[board], clean(kind), boot, mono, wall, clock, as_text(body), self.now
        self.answers[board, batch.outbox] = line.seq

    def _hear(self, item: News) -> None:
        board, what, said = item
        boot = clean(str(said.get("boot") or ""))[:LONGEST]
        mono = number(said.get("mono"))
        if what == "state":
            state = clean(str(said.get("state")))[:LONGEST]
            self.database.execute(STATE, (state, boot, self.now, board, state, boot))
        elif what == "info":
            self.database.execute("UPDATE board SET info = ? WHERE name = ?", (as_text(said), board))
        else:
            outbox = said.get("outbox", "")
            if self._admit(board, outbox, said.get("own", [outbox])) and boot and mono is not None:
                note(self.offsets, board, boot, self.now - mono, "received")


def note(offsets: dict[tuple[str, str], tuple[float, str]], board: str, boot: str, offset: float, clock: str) -> None:
    """Keep the best offset of a boot's wall time."""
    before = offsets.get((board, boot))
    if before and before[1] == clock == "received":
        offset = min(offset, before[0])
    if before is None or CLOCKS.index(clock) >= CLOCKS.index(before[1]):
        offsets[board, boot] = (offset, clock)


def place(body: Any) -> tuple[str | None, float | None, float | None, str | None]:
    """Boot id, monotonic time, wall time and clock's state of a record; None for each that it lacks."""
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
    """A finite number as a double; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def clean(text: str) -> str:
    """A text without NUL and lone surrogates, which SQLite, PostgreSQL or UTF-8 refuse."""
    if "\0" not in text and text.isascii():
        return text
    return "".join("\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in text)


encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def as_text(body: Any) -> str:
    """A body as JSON, with the values replaced that a database cannot store."""
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
    """A copy of a value, with the parts replaced that a database cannot store."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): mended(item) for key, item in value.items()}
    return value
