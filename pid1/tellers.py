"""Whose a fact of the board is: it is believed as long as who has told it lives, or for the seconds that it was told for.

A service owns what its main process tells, or another process of that session. What comes over the bus is told by
diagnostic.py for an app, and belongs to both. What a person or a script tells is nobody's, and holds for some
seconds.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import SVError

if TYPE_CHECKING:
    from typing import Any

    from pid1.life import Life, Supervisor
    from pid1.process import Process

    Owners = tuple[tuple[str, float], ...]

BY_HAND = 60.0  # seconds that a fact holds which no service has told, where nobody says otherwise
SHORTEST, LONGEST = 0.1, 30 * 86400.0  # ...and what may be said


def owners_of(life: Life, by_pid: dict[int, Process], request: dict[str, Any]) -> Owners | None:
    """The services that have to live for this fact, each with when it was started; () where nobody has to.

    None: the app that has said it on the bus has ended since. What it said, which the broker may have kept, is not so any more.
    """
    teller = speaker(life.loop.client.pid if life.loop.client else 0, by_pid)
    if teller is None or "seconds" in request:
        return ()
    heard = request.get("heard")  # diagnostic.py: from whom on the bus, and when that was sent
    if not isinstance(heard, dict):
        return ((teller.row.name, teller.started),)
    app = publisher(life.sv, str(heard.get("from")), str(request.get("name")))
    if app is None or app is teller:
        return ((teller.row.name, teller.started),)
    at = heard.get("at")
    before = isinstance(at, (int, float)) and at + 0.001 < app.started  # it is rounded
    if before or not lives(life.sv, app.row.name, app.started):
        return None
    return ((app.row.name, app.started), (teller.row.name, teller.started))


def speaker(pid: int, by_pid: dict[int, Process]) -> Process | None:
    """The service whose process asks: its main process, or one of the same session."""
    if pid <= 1 or pid in by_pid:
        return by_pid.get(pid)
    try:
        return by_pid.get(os.getsid(pid))
    except OSError:  # it has ended
        return None


def publisher(sv: Supervisor, name: str, fact: str) -> Process | None:
    """The app that publishes under this name, or the only one whose row lists this topic."""
    if name in sv.processes:
        return sv.processes[name]
    topic = fact if fact.startswith("mode/") else f"fact/{fact}"
    listed = [process for process in sv.processes.values() if topic in process.row.publishes]
    return listed[0] if len(listed) == 1 else None


def lives(sv: Supervisor, name: str, started: float) -> bool:
    """Whether that process of a service lives still, or has done its work: a job that ended well keeps its word."""
    process = sv.processes.get(name)
    return process is not None and process.started == started and (process.pid is not None or process.done)


def until(request: dict[str, Any], owners: Owners, now: float) -> float | None:
    """When the fact lapses by itself; None where that is up to its owners. SVError for seconds that cannot be."""
    seconds = request.get("seconds", None if owners else BY_HAND)
    if seconds is None:
        return None
    if type(seconds) not in (int, float) or not SHORTEST <= seconds <= LONGEST:
        raise SVError(f"seconds is {str(seconds)[:64]}; a fact may be told for {SHORTEST:g} to {LONGEST:g} s")
    return now + float(seconds)
