"""Who is busy."""

from __future__ import annotations

import time

from prompt.board_facts import board
from prompt.processes import stats_process
from prompt.shapes import table


def top(every: float = 0.0) -> None:
    """Print a table of all services and what each uses, the busiest first; again `every` so many seconds until Ctrl-C."""
    while True:
        rows = stats_process()
        use = ("cpu_usage", "memory_current", "pids_current") if any(row["cgroup"] for row in rows) else ("cpu", "memory")
        rows.sort(key=lambda row: -(row[use[0]] or 0))
        facts = board()
        if every:
            print("\033[H\033[2J", end="")
        print(f"{facts['hostname']}  up {facts['uptime']:.0f} s  {facts['state']}  {len(rows)} services  "
              f"PID 1: {facts['loop']['wakeups']} wake-ups, longest turn {facts['loop']['longest_turn_ms']} ms")  # fmt: skip
        print(table(rows, ("name", "state", "pid", *use, "runtime", "restart", "exit", "status")))
        if not every:
            return
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return
