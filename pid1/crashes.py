"""Exceptions in PID 1, kept with their tracebacks and local values for `crashes()`, and sent as an event.

PID 1 goes on after an exception (pid1/loop.py); this module is loaded by the first one.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from pid1 import tracebacks
from tables.rows import WifiNetwork

if TYPE_CHECKING:
    from typing import Any

    from tables.tables import Tables

    Rows = dict[tuple[str, str, str, int], dict[str, Any]]

KEPT = 20  # different ones; the oldest goes
SHORTEST = 6  # characters of a secret that is looked for in texts
PLACES = 8  # frames that the event names


def note(rows: Rows, what: str, error: BaseException, tables: Tables, now: float) -> dict[str, Any] | None:
    """Keep one; the event's data where it is new. The same exception at the same place is counted, and not kept again.

    `now` is the monotonic clock's.
    """
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("", 0)
    key = (what, type(error).__name__, *place)
    if row := rows.get(key):
        row["count"] += 1
        row["last"] = round(now, 3)
        return None
    secrets = secret_words(tables)
    said = tracebacks.without(tracebacks.words(error), secrets)
    row = rows[key] = {
        "what": what, "error": f"{type(error).__name__}: {said}", "first": round(now, 3), "last": round(now, 3), "count": 1,
        "frames": tracebacks.frames(error.__traceback__, secrets),
    }  # fmt: skip
    while len(rows) > KEPT:
        del rows[next(iter(rows))]
    places = [f"{one['file'].rpartition('/')[2]}:{one['line']} {one['function']}" for one in row["frames"][-PLACES:]]
    inner = row["frames"][-1]["locals"] if row["frames"] else {}
    return {"what": what, "error": row["error"][:500], "places": places, "locals": inner}


def secret_words(tables: Tables) -> tuple[str, ...]:
    """Values that no text may show: passphrases, and what services have in their environment (see SECRET in
    tables/check_settings.py); the longest first."""
    found: set[str] = set()
    for network in tables.values.get("WIFI_NETWORKS", ()):
        if isinstance(network, WifiNetwork):
            found.update(value for value in network[1:] if isinstance(value, str))
    for row in (*tables.services.values(), *tables.templates.values()):
        found.update(value for name, value in row.env if name != "PATH" and isinstance(value, str))
    found.update(str(value) for name, value in tables.values.get("ENVIRONMENT", ()) if tracebacks.is_hidden(name))
    return tuple(sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True))
