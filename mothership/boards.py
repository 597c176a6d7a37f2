"""`mothership boards`: each board's state and since when, its last records and their age, its boots, why the last one ended."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

from observations import stamp, visible
from store import Store

from uplink.certificates import WARN
from uplink.wire import is_seconds

STATES = ("init", "ready", "stopping", "disconnected", "lost", "unknown")
COLUMNS = ("name", "state", "note", "since", "seen", "lag", "records", "boots", "why", "release", "model", "kernel")

PROMISE = 3600.0  # seconds without a record after which a board is "silent": a healthy one sends sooner
RECENT = 3600.0  # seconds for which a fault or crash is shown
CRASHES = 3  # crashes of one service within RECENT seconds until it counts as failing


def boards(store: Store, now: float) -> list[dict[str, Any]]:
    """One dictionary for each; times are seconds since 1970, `seen_ago` and `lag` seconds.

    `seen` is when records last came, `lag` how old the youngest of them was then: so much is this board behind.
    """
    found, updating = [], of_roll_outs(store)
    query = "SELECT name, seq, seen, state, state_since, boot, info, rival, rival_since FROM board ORDER BY name"
    for name, seq, seen, state, since, boot, info, rival, rival_since in store.database.execute(query).fetchall():
        last = store.database.execute(
            "SELECT at, received FROM placed WHERE board = ? ORDER BY seq DESC LIMIT 1", (name,)
        ).fetchone()
        told = a_dictionary(info) or boot_of_record(store, name)
        silent = now - max(seen if last else 0.0, since or 0.0)
        notes = [f"{one} fails" for one in failing(store, name, now)] if state == "ready" else []
        notes += updating.get(name, [])
        notes += [f"silent for {ago(silent)}"] if state == "ready" and silent > PROMISE else []
        notes += [f"a second board of this name ({rival})"] if rival and now - rival_since < RECENT else []
        end = told.get("certificate_until") or 0.0
        notes += ["its certificate ends " + stamp(end)[:10]] if is_seconds(end) and 0 < end < now + WARN else []
        found.append({
            "name": name, "state": state or "unknown", "note": ", ".join(notes) or None, "since": since,
            "boot": boot or None, "seen": seen if last else None,
            "seen_ago": round(max(0.0, now - seen), 1) if last else None,
            "lag": round(max(0.0, last[1] - last[0]), 1) if last else None,
            "records": store.database.execute("SELECT count(*) FROM record WHERE board = ?", (name,)).fetchone()[0],
            "seq": seq, "boots": told.get("number"), "why": why(told), "release": told.get("release"),
            "model": told.get("model"), "kernel": told.get("kernel"),
        })  # fmt: skip
    return found


def of_roll_outs(store: Store) -> dict[str, list[str]]:
    """What roll-outs that are not aborted say of boards which have not updated: why they are bad, or what they wait for."""
    query = """SELECT target.board, rollout.id, target.bad, target.waits FROM target JOIN rollout ON rollout.id = target.rollout
               WHERE rollout.state <> 'aborted' AND (target.bad <> '' OR (target.waits <> '' AND target.updated IS NULL))
               ORDER BY rollout.started"""
    found: dict[str, list[str]] = {}
    for board, rollout, bad, waits in store.database.execute(query).fetchall():
        found[board] = [f"{rollout}: {bad or f'waits: {waits}'}"]  # the newest roll-out's word counts
    return found


def stopped(store: Store) -> list[str]:
    """A sentence for each roll-out that has stopped by itself: it waits for somebody."""
    query = "SELECT id, why FROM rollout WHERE state = 'stopped' ORDER BY started"
    return [f"roll-out {name} has {why}" for name, why in store.database.execute(query).fetchall()]


def failing(store: Store, board: str, now: float) -> list[str]:
    """Services that crashed again and again of late."""
    query = "SELECT body FROM record WHERE board = ? AND kind = 'crash' AND received > ? ORDER BY seq DESC LIMIT 200"
    names: Counter[str] = Counter()
    for (body,) in store.database.execute(query, (board, now - RECENT)).fetchall():
        data = a_dictionary(body).get("data")
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            names[data["name"][:64]] += 1
    return sorted(name for name, count in names.items() if count >= CRASHES)


def boot_of_record(store: Store, board: str) -> dict[str, Any]:
    """Facts from the last record of a boot, for a board that has sent no info."""
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
    """A duration as people write it, such as "3 min"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(found: list[dict[str, Any]]) -> str:
    """The boards as a table for a terminal."""
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
    parser.add_argument("boards", metavar="BOARD", nargs="*", help="only these; all where none is named")
    parser.add_argument(
        "--state", action="append", default=[], choices=(*STATES, "trouble"), help="only in this state, or with a note"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    store = Store(options.database, make=False)
    found = boards(store, time.time())
    if missing := set(options.boards) - {board["name"] for board in found}:
        known = ", ".join(board["name"] for board in found[:20]) or "none"
        raise SystemExit(visible(f"no board {', '.join(sorted(missing))} is known here; known are {known}"))
    found = [board for board in found if not options.boards or board["name"] in options.boards]
    found = [board for board in found if not options.state or has_state(board, options.state)]
    print(json.dumps(found, indent=2) if options.json else table(found))
    for text in stopped(store):
        print(visible(text), file=sys.stderr)


def has_state(board: dict[str, Any], wanted: list[str]) -> bool:
    """True if a board is in one of the wanted states; "trouble" is a board that was lost or has a note."""
    return board["state"] in wanted or ("trouble" in wanted and bool(board["note"] or board["state"] == "lost"))
