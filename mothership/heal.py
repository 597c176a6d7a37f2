"""Reset what the database knows of a board's numbers, after forged records, or to let another board take over a name at once.

A forged record with a number far too high made the mothership drop all later records of a board as already known. This command
sets the number back to the last one that can be right. The next board that connects under the name gets it, without the wait of
five minutes. No record is deleted. A board of the first version may send its last records once more.
"""

from __future__ import annotations

import argparse

from store import Store

from uplink import wire


def heal(store: Store, board: str) -> list[str]:
    """Reset a board's numbers; returns what was done, in sentences, or none if the board is not known."""
    said = []
    with store.database.transaction():
        rows = store.database.execute("SELECT outbox, seq FROM stream WHERE board = ? ORDER BY outbox", (board,)).fetchall()
        for outbox, seq in rows:
            last = seq
            if seq >= wire.HIGHEST:
                query = "SELECT coalesce(max(seq), 0) FROM record WHERE board = ? AND seq < ?"
                last = store.database.execute(query, (board, wire.HIGHEST)).fetchone()[0] if outbox == "" else 0
                said.append(f"{board}: the last number of {outbox or 'its first version'} was {seq}, and is {last} now")
            change = "UPDATE stream SET seq = ?, held = 0 WHERE board = ? AND outbox = ?"
            store.database.execute(change, (last, board, outbox))
        if rows:
            said.append(f"{board}: whoever asks next speaks for this board")
            store.database.execute("UPDATE board SET rival = NULL, rival_since = NULL WHERE name = ?", (board,))
    return said


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DATABASE", help="a path (SQLite), or postgresql://USER@HOST/NAME")
    parser.add_argument("board", metavar="BOARD")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    said = heal(Store(options.database, make=False), options.board)
    if not said:
        raise SystemExit(f"{options.database} knows no board {options.board!r}")
    print("\n".join(said))
