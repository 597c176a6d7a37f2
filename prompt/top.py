"""Who is busy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from onboard.to_pid1 import SVError
from prompt.board_facts import board
from prompt.processes import stats_process
from prompt.shapes import Table, duration, show, terminal_width

FIRST = 0.5  # seconds: the first picture comes soon


class Busy(Table):
    """A table of services by CPU and memory."""

    columns = ("name", "state", "pid", "percent", "memory", "pids_current", "cpu_usage", "runtime", "restart", "exit", "status")
    spare = ("exit", "restart", "pids_current", "cpu_usage", "runtime", "pid", "status")


def top(every: float = 2.0, show: Callable[[Table], object] | None = None) -> None:
    """Services, the busiest first: per cent of one processor in the last `every` seconds, memory in use, CPU time since boot.

    On a terminal again and again in the same place until Ctrl-C; into a pipe once.
    """
    if not every > 0:
        raise SVError(f"top every how many seconds? {every:g} is no such number")
    on_a_terminal = terminal_width() > 0
    before, started = usage(), time.monotonic()
    try:
        if show is None and on_a_terminal:
            print("\033[2J", end="")
        pause = min(FIRST, every)
        while True:
            time.sleep(pause)
            now, rows = time.monotonic(), stats_process()
            busy = busiest(rows, before, now - started)
            before, started, pause = _seconds(rows), now, every
            (show or _draw)(busy)
            if not on_a_terminal:
                return
    except KeyboardInterrupt:
        return


def usage() -> dict[str, float]:
    """Seconds of CPU that each service has used: all its processes where it has a control group, or its main process."""
    return _seconds(stats_process())


def _seconds(rows: Table) -> dict[str, float]:
    return {row["name"]: row["cpu"] or 0.0 if row["cpu_usage"] is None else row["cpu_usage"] for row in rows}


def busiest(rows: Table, before: dict[str, float], seconds: float) -> Busy:
    """The rows with `percent` of one processor since `before`, the largest first. A service that is new begins at 0."""
    for row in rows:
        used = _seconds(Table([row]))[row["name"]]
        earlier = before.get(row["name"], 0.0)
        row["percent"] = round(100 * (used - earlier if used >= earlier else used) / max(seconds, 0.001), 1)
        row["cpu_usage"] = used
        row["memory"] = row["memory"] if row["memory_current"] is None else row["memory_current"]
    return Busy(sorted(rows, key=lambda row: (-row["percent"], -(row["memory"] or 0))))


def _draw(rows: Table) -> None:
    """Draw over the last picture, as many lines as the terminal has."""
    facts = board()
    lines = [
        f"{facts['hostname']}  up {duration(facts['uptime'])}  {facts['state']}  {len(rows)} services  "
        f"load {' '.join(f'{one:.2f}' for one in os.getloadavg())}  Ctrl-C ends",
        *show(rows).split("\n"),
    ]
    if not terminal_width():
        print("\n".join(lines))
        return
    height = os.get_terminal_size(sys.stdout.fileno()).lines or 24
    lines[0] = lines[0][: terminal_width()]
    print("\033[H" + "".join(f"{line}\033[K\n" for line in lines[: height - 1]) + "\033[J", end="", flush=True)
