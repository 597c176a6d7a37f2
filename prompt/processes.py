"""Services: what runs, start, stop, restart, signal."""

from __future__ import annotations

import os
import shlex
import time

from onboard.cgroup_files import figures
from onboard.to_pid1 import SVError
from prompt.asking import ask
from prompt.shapes import Facts, Stats, Table

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def stats_process(name: str | None = None) -> list[Stats]:
    """What runs: a dict for each service (or for the one of this exact name), the same keys in every state.

    name, cmd, alive, state (stopped, waiting, starting, running, backoff, stopping), pid, runtime (s, this life),
    total_runtime (s), restart (count), exit ("exit 1", "signal KILL", or why it could not start: the last death),
    since (s in this state), next_restart (s from now), ready, status (its own words), user, wanted, after,
    memory (bytes resident, main process), cpu (s, main process).

    Of all its processes together, where it has a control group (else None): cgroup (its folder), memory_current and
    memory_peak (bytes, files that it has read or written included), memory_pressure (% of the last 10 s in which some of
    them waited for memory), pids_current (processes and threads), cpu_usage (s, of all its lives).
    """
    if name is not None:
        return Table(map(_with_proc, ask("stats", name=name)))
    rows: list[Stats] = []
    while page := ask("stats", first=len(rows)):
        rows += page
    return Table(map(_with_proc, rows))


def _with_proc(row: Stats) -> Stats:
    row["cmd"] = shlex.join(row["cmd"])
    row["memory"] = row["cpu"] = None
    row |= figures(row["cgroup"])
    if row["pid"]:
        try:
            with open(f"/proc/{row['pid']}/statm", encoding="ascii") as file:
                row["memory"] = int(file.read().split()[1]) * PAGE
            with open(f"/proc/{row['pid']}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            row["cpu"] = (int(fields[11]) + int(fields[12])) / TICKS
        except OSError:  # it has just died
            pass
    return row


def start_process(name: str) -> Stats:
    """Start a service, an instance of a template ("gps@ttyUSB0"), or run a command line ("sleep 60") until it is stopped.
    Its stats."""
    try:
        words = shlex.split(name)
    except ValueError as error:
        raise SVError(f"{name!r} is not a command line: {error}") from None
    known = any(row["name"] == name for row in stats_process()) or ("@" in name and words == [name] and "/" not in name)
    if not known and not words:
        raise SVError("start what? a service's name or a command line")
    row: Stats = ask("start", name=name) if known else ask("run", argv=words)
    return Facts(_with_proc(row))


def stop_process(name: str, timeout: float = 30.0) -> Stats:
    """Stop a service and wait until all of it is gone. Its stats; SVError if it is still there after `timeout` seconds."""
    return _until(ask("stop", name=name), ("stopped",), timeout)


def restart_process(name: str, timeout: float = 30.0) -> Stats:
    """Stop a service, start it again and wait until it is ready. Its stats."""
    before = stats_process(name)[0]
    return _until(ask("restart", name=name), ("running", "backoff", "stopped"), timeout, before)


def _until(row: Stats, states: tuple[str, ...], timeout: float, before: Stats | None = None) -> Stats:
    """Ask until a service is in one of these states, and, if `before` is given, in a later life than then."""
    deadline, pause = time.monotonic() + timeout, 0.002
    while row["state"] not in states or (before is not None and row["restart"] == before["restart"]):
        if time.monotonic() > deadline:
            raise SVError(f"{row['name']} is still {row['state']} after {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        row = ask("stats", name=row["name"])[0]
    return Facts(_with_proc(row))


def signal_process(name: str, signum: int | str) -> Stats:
    """Send a signal (10, "USR1") to a service's main process. Its stats."""
    return Facts(_with_proc(ask("signal", name=name, signal=signum)))
