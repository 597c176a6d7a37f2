"""Services: what runs, start, stop, restart, signal, and all about one of them."""

from __future__ import annotations

import os
import shlex
import sys
import time

from onboard.cgroup_files import figures
from onboard.proc_files import memory_and_cpu
from onboard.to_pid1 import A_REPLY, SVError
from prompt.asking import ask, service_names
from prompt.logs import logs
from prompt.shapes import Lines, One, Shape, Stats, Table, cell, coloured_line, duration

FORKED = 1.0  # seconds for a zygote to fork a service; one that waits for another service may wait for longer
PAUSE = 0.002  # seconds between two questions, at first

names = service_names  # what Tab completes in this file's functions


def stats_process(name: str | None = None) -> Table:
    """What runs: a dict for each service (or for the one of this exact name), the same keys in every state.

    Where there is one, its keys can be asked for at once: stats_process("gps")["state"].

    name, cmd, alive, state (stopped, waiting, unmet: its condition is not true, starting, running, backoff, stopping), pid,
    runtime (s, this life), total_runtime (s), restart (count), exit ("exit 1", "signal KILL", or why it could not start: the
    last death), since (s in this state), next_restart (s from now), ready, status (its own words), user, wanted, after,
    when (its condition, or None), met (whether that is true),
    memory (bytes resident, main process), cpu (s, main process).

    Of all its processes together, where it has a control group (else None): cgroup (its folder), memory_current and
    memory_peak (bytes, files that it has read or written included), memory_pressure (% of the last 10 s in which some of
    them waited for memory), pids_current (processes and threads), cpu_usage (s, of all its lives).
    """
    if name is not None:
        return _one(ask("stats", name=name)[0])
    rows: list[Stats] = []
    while len(rows) % A_REPLY == 0 and (page := ask("stats", first=len(rows))):
        rows += page
    return Table(map(_with_proc, rows))


def _one(row: Stats) -> One:
    return One([_with_proc(row)])


def _with_proc(row: Stats) -> Stats:
    row["cmd"] = shlex.join(row["cmd"])
    row["memory"], row["cpu"] = memory_and_cpu(row["pid"])
    row |= figures(row["cgroup"])
    return row


def start_process(name: str) -> One:
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
    deadline = time.monotonic() + FORKED
    while row["state"] == "waiting" and time.monotonic() < deadline:
        time.sleep(PAUSE)
        row = ask("stats", name=row["name"])[0]
    return _one(row)


def stop_process(name: str, timeout: float = 30.0) -> One:
    """Stop a service and wait until all of it is gone. Its stats; SVError if it is still there after `timeout` seconds."""
    _ask_first(stats_process(name)[0], "stop")
    return _until(ask("stop", name=name), ("stopped",), timeout)


def restart_process(name: str, timeout: float = 30.0) -> One:
    """Stop a service, start it again and wait until it is ready. Its stats."""
    before = stats_process(name)[0]
    _ask_first(before, "restart")
    return _until(ask("restart", name=name), ("running", "backoff", "stopped", "unmet"), timeout, before)


def _until(row: Stats, states: tuple[str, ...], timeout: float, before: Stats | None = None) -> One:
    """Ask until a service is in one of these states, and, if `before` is given, in a later life than then."""
    deadline, pause = time.monotonic() + timeout, PAUSE
    while row["state"] not in states or (before is not None and row["restart"] == before["restart"]):
        if time.monotonic() > deadline:
            raise SVError(f"{row['name']} is still {row['state']} after {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        row = ask("stats", name=row["name"])[0]
    return _one(row)


def signal_process(name: str, signum: int | str) -> One:
    """Send a signal (10, "USR1") to a service's main process. Its stats."""
    return _one(ask("signal", name=name, signal=signum))


def _ask_first(row: Stats, verb: str) -> None:
    """Whoever types on a console that belongs to this service is asked first; a script is not."""
    if row["pid"] in _ancestors() and sys.stdin.isatty():
        answer = input(f"You are sitting on {row['name']}: {verb} it, and this prompt may end. Do it? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise SVError(f"{row['name']} was left as it is")


def _ancestors() -> set[int]:
    """Pids of this process, its parent, and so on up to PID 1."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


class Status(Shape, dict[str, object]):
    """All about one service, for people."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        row: Stats = dict(self)
        state = row["state"] + ("" if row["state"] != "running" or row["ready"] else ", not ready yet")
        due = "" if row["next_restart"] is None else f", again in {duration(row['next_restart'])}"
        memory, cpu = row["memory_current"], row["cpu_usage"]
        group = f" in {row['pids_current']} processes and threads, at most {cell('memory', row['memory_peak'])}"
        facts = {
            "state": f"{state} for {duration(row['since'])}{due}",
            "process": f"{row['pid'] or 'none'}, as {row['user']}",
            "when": row["when"] and f"{row['when']}: {'true' if row['met'] else 'not true'}",
            "status": row["status"],
            "restarts": f"{row['restart']}" + (f", the last time because of: {row['exit']}" if row["exit"] else ""),
            "exits": ", ".join(f"{one['exit']} after {duration(one['ran'])}" for one in row["exits"]),
            "memory": cell("memory", row["memory"]) if memory is None else cell("memory", memory) + group,
            "cpu": cell("cpu", row["cpu"] if cpu is None else cpu),
            "cmd": row["cmd"],
        }  # fmt: skip
        lines = [f"{row['name']}", *(f"  {name:<8}  {value}" for name, value in facts.items() if value)]
        lines = [line[:width] if width else line for line in lines]
        return "\n".join([*lines, *(coloured_line(line) if colour else line for line in row["log"])])


def status(name: str | None = None) -> Shape:
    """All about one service: its stats, its last exits (of this boot) and its last log lines; without a name, all stats."""
    if name is None:
        return stats_process()
    from onboard import events  # here: it brings ctypes

    row = stats_process(name)[0]
    crashes = [event["data"] for event in events.since(0) if event["kind"] == "crash"]
    exits = [{"exit": one["exit"], "ran": one["ran"]} for one in crashes if one["name"] == name][-5:]
    try:
        log: list[str] = logs(name, lines=10)
    except SVError:  # it has printed nothing yet
        log = []
    return Status({**row, "exits": exits, "log": Lines(log)})
