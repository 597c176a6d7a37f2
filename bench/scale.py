"""PID 1 with 2,000 services: start, an idle time, a reload with one change, stop; its restarts; and 200 apps forked at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from costs import memory, namespace, row

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COUNT = 2000
ALL_TARGET, RELOAD_TARGET = 1500.0, 100.0  # ms: all services, from exec; PID 1's CPU for a reload of all rows with one change
IDLE = 10.0  # seconds
RESTARTS = 10_000
AT_ONCE = 200
TICK = 1000.0 / os.sysconf("SC_CLK_TCK")  # ms
SLEEPER = "import time\ntime.sleep(1000)\n"
# One user for all: two of 200 names would have the same number as users of their own.
ROW = "app(f'a{n}')._replace(argv=('{PYTHON}', '-P', '/test/first.py'), after=(), user='nobody')"
APPS = f"SERVICES += tuple({ROW} for n in range({AT_ONCE}))\n"


def cpu(pid: int) -> float:
    """Milliseconds of CPU of a process so far, its children apart; the kernel counts in ticks of ten."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def many(start: Callable[[int], tuple[Any, Path]], switches: Callable[[list[int]], int]) -> None:
    """Print what 2,000 services cost."""
    run, folder = start(COUNT)
    try:
        times = [when / 1e6 for _, when, _ in run.wait_for(COUNT, 120)]
        print(f"\n{COUNT} services")
        time.sleep(2.0)
        row("first, all", [f"{min(times):.0f} ms", f"{max(times):.0f} ms", f"target {ALL_TARGET:.0f} ms"])
        row("PID 1 so far", [f"{cpu(run.pid):.0f} ms CPU", f"{memory([run.pid], 'Pss'):.1f} MiB PSS"])
        before = switches([run.pid]), cpu(run.pid)
        time.sleep(IDLE)
        row(f"idle, {IDLE:g} s", [f"{switches([run.pid]) - before[0]} wake-ups", f"{cpu(run.pid) - before[1]:.0f} ms CPU"])
        profile = folder / "conf" / "settings.py"
        profile.write_text(
            profile.read_text() + "SERVICES = (SERVICES[0]._replace(argv=(*SERVICES[0].argv, 'x')), *SERVICES[1:])\n"
        )
        spent, sent = cpu(run.pid), time.monotonic_ns()
        os.kill(run.pid, signal.SIGHUP)
        told = run.wait_for(COUNT + 1)[-1][1] + run.started
        time.sleep(1.0)
        words = [f"{(told - sent) / 1e6:.0f} ms", f"{cpu(run.pid) - spent:.0f} ms CPU", f"target {RELOAD_TARGET:.0f} ms CPU"]
        row("reload", words)
    finally:
        run.end()


def again(start: Callable[[int], tuple[Any, Path]]) -> None:
    """Print PID 1's memory after ten services have been killed and restarted over and over."""
    run, _ = start(10)
    sizes = []
    try:
        done = 10
        run.wait_for(done)
        for part in range(11):
            while done < 10 + part * RESTARTS // 10:
                victims = [pid for pid, comm in namespace(run.pid).items() if comm == "stamp"]
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                done += len(victims)
                run.wait_for(done)
            sizes.append(memory([run.pid], "Pss"))
        row(f"{RESTARTS} restarts", [f"{size:.2f}" for size in (sizes[0], sizes[1], sizes[-1])])
        print("PSS of PID 1 in MiB: at first, after a tenth of them, after all")
    finally:
        run.end()


def at_once(board: Callable[[str, str, float], object]) -> None:
    """Print how long a zygote takes for 200 apps."""
    with board(APPS, SLEEPER, 12.0) as init:  # type: ignore[attr-defined]
        found = [pid for pid in namespace(init) if Path(f"/proc/{pid}/comm").read_text().strip()[1:].isdigit()]
        boot = min(started(pid) for pid in namespace(init))
        times = sorted(started(pid) - boot for pid in found)
        mother = next(pid for pid in namespace(init) if b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
        sizes = [f"{memory([mother], 'Pss'):.1f}", f"{memory(found, 'Pss') / len(found):.1f}"]
    row(f"{AT_ONCE} apps at once", [f"{len(found)} there", f"{times[-1] - times[0]:.2f} s"])
    row("PSS, MiB", [f"zygote {sizes[0]}", f"each {sizes[1]}"])


def started(pid: int) -> float:
    """Seconds after the kernel's start, to a hundredth."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


__all__ = ["again", "at_once", "many"]
if __name__ == "__main__":
    sys.exit("python3 bench/bench.py --only scale")
