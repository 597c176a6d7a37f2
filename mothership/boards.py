"""The boards: state, since when, when they last sent something and how old that was, boots, why the last one ended."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from observations import stamp, visible
from store import Store

COLUMNS = ("name", "state", "since", "seen", "lag", "records", "boots", "why", "model", "kernel")


def boards(store: Store, now: float) -> list[dict[str, Any]]:
    """One dictionary for each; times are seconds since 1970, `seen_ago` and `lag` seconds.

    `seen` is when records last came, `lag` how old the youngest of them was then: so much is this board behind.
    """
    found = []
    rows = store.database.execute("SELECT name, seq, seen, state, state_since, boot, info FROM board ORDER BY name").fetchall()
    for name, seq, seen, state, since, boot, info in rows:
        last = store.database.execute(
            "SELECT at, received FROM placed WHERE board = ? ORDER BY seq DESC LIMIT 1", (name,)
        ).fetchone()
        told = a_dictionary(info) or boot_of_record(store, name)
        found.append({
            "name": name, "state": state or "unknown", "since": since, "boot": boot or None, "seen": seen if last else None,
            "seen_ago": round(max(0.0, now - seen), 1) if last else None,
            "lag": round(max(0.0, last[1] - last[0]), 1) if last else None,
            "records": store.database.execute("SELECT count(*) FROM record WHERE board = ?", (name,)).fetchone()[0],
            "seq": seq, "boots": told.get("number"), "why": why(told), "model": told.get("model"), "kernel": told.get("kernel"),
        })  # fmt: skip
    return found


def boot_of_record(store: Store, board: str) -> dict[str, Any]:
    """What the last record of a boot says, for a board that has sent no info."""
    query = "SELECT body FROM record WHERE board = ? AND kind = 'boot' ORDER BY seq DESC LIMIT 1"
    row = store.database.execute(query, (board,)).fetchone()
    data = a_dictionary(row[0] if row else None).get("data")
    return {"number": data.get("number"), "why": data.get("last_end")} if isinstance(data, dict) else {}


def a_dictionary(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def why(told: dict[str, Any]) -> str | None:
    """Cause and reason of the last end."""
    end = told.get("why")
    if not isinstance(end, dict):
        return None
    return ": ".join(str(end[key]) for key in ("cause", "reason") if end.get(key)) or None


def ago(seconds: float) -> str:
    """A duration for people."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(found: list[dict[str, Any]]) -> str:
    """For a terminal: columns as wide as what they hold."""
    lines = [[name.upper() for name in COLUMNS]]
    for board in found:
        shown: dict[str, Any] = {**board, "since": board["since"] and stamp(board["since"])}
        shown["seen"] = None if board["seen_ago"] is None else f"{ago(board['seen_ago'])} ago"
        shown["lag"] = None if board["lag"] is None else ago(board["lag"])
        lines.append(["-" if shown[name] is None else visible(str(shown[name]))[:60] for name in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DATABASE", help="a path (SQLite), or postgresql://USER@HOST/NAME")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    found = boards(Store(options.database), time.time())
    print(json.dumps(found, indent=2) if options.json else table(found))
