"""The functions of the Python prompt, and the `sv` command: clients of PID 1's control socket.

They return data (lists and dicts that print themselves as a table) and raise `SVError` with a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import settings
from base.printable import printable
from onboard import boot_ends, to_pid1
from onboard.cgroup_files import figures
from onboard.to_pid1 import SVError, notify
from prompt import bootchart as timeline

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
COLUMNS = ("name", "state", "ready", "pid", "runtime", "restart", "exit", "memory", "cpu", "user", "cmd")
NO_RESTART = 125  # an exit status: PID 1 shall not start us again
Stats = dict[str, Any]


class Table(list[Stats]):
    """A list of dicts that shows itself as a table."""

    columns: tuple[str, ...] = COLUMNS

    def __repr__(self) -> str:
        return table(self, self.columns) if self else "(none)"


class NetworkTable(Table):
    """Interfaces."""

    columns = ("name", "state", "since", "addresses", "gateway", "metric", "ssid", "signal", "rung")


class Lines(list[str]):
    """A list of lines that shows itself as lines."""

    def __repr__(self) -> str:
        return "\n".join(self)


class Facts(dict[str, Any]):
    """A dict that shows one fact a line."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())


def table(rows: list[Stats], columns: tuple[str, ...], width: int = 0) -> str:
    """Rows as aligned text; the last column is cut at the terminal's width."""
    width = width or (os.get_terminal_size().columns if sys.stdout.isatty() else 0) or 120  # a serial line says 0
    cells = [[name.upper() for name in columns]] + [[_cell(name, row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths))[:width].rstrip() for line in cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(value)) or "-"
    if name in ("memory", "memory_current"):
        return f"{value / 2**20:.1f}M"
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


def _ask(op: str, **arguments: Any) -> Any:
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), {"op": op, **arguments})


# --- services -------------------------------------------------------------------------------------------------------
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
        return Table(map(_with_proc, _ask("stats", name=name)))
    rows: list[Stats] = []
    while page := _ask("stats", first=len(rows)):
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
    row: Stats = _ask("start", name=name) if known else _ask("run", argv=words)
    return Facts(_with_proc(row))


def stop_process(name: str, timeout: float = 30.0) -> Stats:
    """Stop a service and wait until all of it is gone. Its stats; SVError if it is still there after `timeout` seconds."""
    return _until(_ask("stop", name=name), ("stopped",), timeout)


def restart_process(name: str, timeout: float = 30.0) -> Stats:
    """Stop a service, start it again and wait until it is ready. Its stats."""
    before = stats_process(name)[0]
    return _until(_ask("restart", name=name), ("running", "backoff", "stopped"), timeout, before)


def _until(row: Stats, states: tuple[str, ...], timeout: float, before: Stats | None = None) -> Stats:
    """Ask until a service is in one of these states, and, if `before` is given, in a later life than then."""
    deadline, pause = time.monotonic() + timeout, 0.002
    while row["state"] not in states or (before is not None and row["restart"] == before["restart"]):
        if time.monotonic() > deadline:
            raise SVError(f"{row['name']} is still {row['state']} after {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        row = _ask("stats", name=row["name"])[0]
    return Facts(_with_proc(row))


def signal_process(name: str, signum: int | str) -> Stats:
    """Send a signal (10, "USR1") to a service's main process. Its stats."""
    return Facts(_with_proc(_ask("signal", name=name, signal=signum)))


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


# --- the board ------------------------------------------------------------------------------------------------------
def board() -> Stats:
    """The board and PID 1: boot id, uptime (s), profile, rejected rows, faults, watchdog, the load of PID 1's loop.

    `last_boot` is how the boot before this one ended, {} where that is not known; post_mortem() has more.
    """
    end = boot_ends.read(boot_ends.RECORD).get("last_end") or {}
    return Facts(_ask("board") | {"last_boot": {name: end[name] for name in ("cause", "reason") if name in end}})


def post_mortem() -> Stats:
    """Why the boot before this one ended, and how often boots of this board ended so.

    number (of this boot), cause (reboot, halt, poweroff; critical: a board beyond repair by restarts; watchdog: PID 1 hung;
    panic; unknown: a power cut, or a reset that left no trace), reason, counts, stack (PID 1's, where it hung), panic (the
    kernel's last words).
    """
    record = boot_ends.read(boot_ends.RECORD)
    if not record:
        raise SVError("there is no record of boots; see logs('keeper')")
    end = record["last_end"] or dict.fromkeys(("cause", "reason", "stack", "panic"))
    return Facts({"number": record["number"], "counts": record["counts"], **end})


def snooze(minutes: float = 15.0) -> Stats:
    """No reboot for bad health for so many minutes: time to look at a board that would. 0 ends it. The watchdog's facts."""
    return Facts(_ask("snooze", minutes=minutes))


def bootchart() -> list[Stats]:
    """The boot as bars: what came before PID 1, its imports and steps, and each service from its start until it is ready.

    A row is name, kind (before, python, step, service), start and end in seconds since the kernel's start; end is None for
    a service that has not been ready yet. What the kernel and the interpreter took is told apart where /dev/kmsg can be read.
    """
    rows: list[list[Any]] = []
    while page := _ask("bootchart", first=len(rows)):
        rows += page
    return timeline.chart(rows, timeline.before_pid_1(timeline.kernel_log(), timeline.begun(), rows[0][2]))


def reload() -> Stats:
    """Re-read settings and profile: which services were started, stopped, restarted or got other limits, and rejected rows."""
    return Facts(_ask("reload"))


def reboot() -> str:
    """Stop everything and restart the machine."""
    return str(_ask("reboot"))


def halt() -> str:
    """Stop everything and halt."""
    return str(_ask("halt"))


def poweroff() -> str:
    """Stop everything and switch off."""
    return str(_ask("poweroff"))


def network() -> list[Stats]:
    """The interfaces that network.py keeps: a dict for each, also while the bus is down.

    name, state (absent, down, no carrier, associating, addressing, local, online; with "?" what network.py knew when it
    ended), since (s in this state), addresses, gateway (of its default routes), metric, ssid, signal (dBm), rung (of the
    ladder for Wi-Fi that stays down; 0 is the ground).
    """
    try:
        with open(settings.NETWORK_STATE, encoding="ascii") as file:
            facts = json.load(file)
    except (OSError, ValueError) as error:
        raise SVError(f"network.py has written nothing: {error}; see stats_process('network') and logs('network')") from None
    doubt = "" if os.path.exists(f"/proc/{facts['pid']}") else "?"
    now = time.monotonic()
    return NetworkTable(
        {**row, "state": row["state"] + doubt, "since": round(now - row["since"], 1)} for row in facts["interfaces"]
    )


# --- logs -----------------------------------------------------------------------------------------------------------
def logs(name: str | None = None, lines: int = 50, follow: bool = False) -> list[str]:
    """The last lines that a service (or everything) printed; with `follow`, print new ones until Ctrl-C.

    A line: wall time (UTC), seconds since boot, name, text. PID 1's own log is called "stack".
    """
    try:
        folder = board()["log_folder"]
    except SVError:
        folder = settings.LOG  # the log can be read even when nobody answers
    if name is not None and not os.path.exists(f"{folder}/{name}.log"):
        there = sorted(entry[:-4] for entry in os.listdir(folder) if entry.endswith(".log")) if os.path.isdir(folder) else []
        raise SVError(f"there is no log of {name!r}; there are {', '.join(there) or 'none'}")
    found = Lines(line for _, line in sorted(_read_logs(folder, name, lines), key=lambda item: item[0])[-lines:])
    if not follow:
        return found
    print(repr(found), flush=True)
    _follow(folder, name)
    return Lines()


def _log_names(folder: str, name: str | None) -> list[str]:
    if name is not None:
        return [name]
    return [entry[:-4] for entry in os.listdir(folder) if entry.endswith(".log")] if os.path.isdir(folder) else []


def _read_logs(folder: str, name: str | None, most: int) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    for one in _log_names(folder, name):
        texts: list[str] = []
        for path in (f"{folder}/{one}.log", f"{folder}/{one}.log.1"):
            if len(texts) < most and os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    texts = file.read().removesuffix("\n").split("\n") + texts
        found += [_parsed(one, text) for text in texts[-most:]]
    return found


def _parsed(name: str, text: str) -> tuple[float, str]:
    wall, _, rest = text.partition(" ")
    since, _, words = rest.partition(" ")
    try:
        return float(since), f"{wall} {since:>12} {name}: {words}"
    except ValueError:
        return 0.0, f"{name}: {text}"


def _follow(folder: str, name: str | None) -> None:
    files = {one: _open_end(f"{folder}/{one}.log") for one in _log_names(folder, name)}
    try:
        while True:
            for one in _log_names(folder, name):
                path = f"{folder}/{one}.log"
                file = files.get(one) or open(path, "rb")
                _print_new(one, file)
                if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:  # rotated: the rest of the old one, then the new one
                    _print_new(one, file)
                    file.close()
                    file = open(path, "rb")
                    _print_new(one, file)
                files[one] = file
            time.sleep(0.2)
    except (KeyboardInterrupt, FileNotFoundError):
        pass


def _open_end(path: str) -> BinaryIO:
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    return file


def _print_new(name: str, file: BinaryIO) -> None:
    """The lines that have come since; an unfinished one stays for the next time."""
    start = file.tell()
    whole = file.read().rpartition(b"\n")[0]
    file.seek(start + len(whole) + bool(whole))
    for text in whole.decode(errors="replace").split("\n") if whole else ():
        print(_parsed(name, text)[1], flush=True)


# --- on a console ---------------------------------------------------------------------------------------------------
def rescue() -> None:
    """The last resort on the console: wait for a key, tell PID 1 that somebody is there, become a Python prompt."""
    print("\nrescue: press Enter for a Python prompt on this board", flush=True)
    select.select([sys.stdin], [], [])
    notify("READY=1\nSTATUS=somebody is typing")
    sys.stdin.readline()
    os.execve(*interactive())


def login(kind: str) -> None:
    """What a console offers: "password" (getty and login), "prompt" (Python at once, as root) or "off"."""
    if kind == "prompt":
        os.execve(*interactive())
    if kind == "password":
        term = os.environ.get("TERM", "linux")  # and the terminal that we have, at the speed that it has
        with contextlib.suppress(FileNotFoundError):  # util-linux's refuses the 0 that keeps the speed for busybox's
            os.execvp("agetty", ["agetty", "-L", "--keep-baud", "-", term])
        os.execvp("getty", ["getty", "-L", "0", "-", term])
    if kind != "off":
        print(f'CONSOLE_LOGIN = {kind!r} is not "password", "prompt" or "off": this console stays off', file=sys.stderr)
    sys.exit(NO_RESTART)


def interactive() -> tuple[str, list[str], dict[str, str]]:
    """The prompt as execve(2) takes it: program, arguments, environment."""
    hello = "from sv import *; import sv; print('functions: ' + ', '.join(sv.__all__))"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    return sys.executable, [sys.executable, "-q", "-i", "-c", hello], environment


def console(after: Callable[[], object]) -> None:
    """The Python prompt on this terminal, and `after` it."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the prompt; ignoring it would be inherited by it
    os.spawnve(os.P_WAIT, *interactive())
    after()
    select.select([], [], [])  # until PID 1 stops us: ending by ourselves would start the prompt again


# --- the sv command -------------------------------------------------------------------------------------------------
def main(arguments: list[str]) -> int:
    """`sv`: the same functions for shell scripts. Exit status 1 with the error's sentence where one fails."""
    parser = argparse.ArgumentParser(prog="sv", description="talk to PID 1")
    parser.add_argument("--json", action="store_true", help="print data as JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("status", "services, or one"), ("start", "a service or a command line"), ("stop", "a service"),
                       ("restart", "a service"), ("signal", "send a signal"), ("logs", "what was printed")):  # fmt: skip
        sub = commands.add_parser(name, help=text)
        sub.add_argument("name", nargs="?" if name in ("status", "logs") else None, metavar="NAME")
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name == "signal":
            sub.add_argument("signal", metavar="SIGNAL")
        if name == "logs":
            sub.add_argument("-n", "--lines", type=int, default=50)
            sub.add_argument("-f", "--follow", action="store_true")
    for name, text in (("board", "facts about board and PID 1"), ("network", "its interfaces"),
                       ("bootchart", "where the boot's time went"), ("post_mortem", "why the last boot ended"),
                       ("reload", "re-read the tables"), ("top", "the busiest first"),
                       ("reboot", "stop all, restart"), ("halt", "stop all, halt"), ("poweroff", "stop all, switch off"),
                       ("rescue", "for its row"), ("console", "the prompt, and a halt after it")):  # fmt: skip
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    sub = commands.add_parser("snooze", help="no reboot for bad health for so many minutes")
    sub.add_argument("minutes", type=float, nargs="?", default=15.0)
    sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    sub = commands.add_parser("login", help="what a console offers, for its row")
    sub.add_argument("kind", metavar="password|prompt|off")
    options = parser.parse_args(arguments)
    try:
        answer = _command(options)
    except SVError as error:
        print(f"sv: {error}", file=sys.stderr)
        return 1
    if answer is not None:
        print(json.dumps(answer) if options.json else answer if isinstance(answer, str) else repr(answer))
    return 0


def _command(options: argparse.Namespace) -> Any:
    actions: dict[str, Callable[[], Any]] = {
        "status": lambda: stats_process(options.name),
        "start": lambda: start_process(options.name),
        "stop": lambda: stop_process(options.name),
        "restart": lambda: restart_process(options.name),
        "signal": lambda: signal_process(options.name, options.signal),
        "logs": lambda: logs(options.name, options.lines, options.follow),
        "snooze": lambda: snooze(options.minutes),
        "console": lambda: console(halt),
    }
    actions |= {
        "board": board,
        "bootchart": bootchart,
        "post_mortem": post_mortem,
        "network": network,
        "reload": reload,
        "top": top,
    }
    actions |= {"reboot": reboot, "halt": halt, "poweroff": poweroff}
    actions |= {"rescue": rescue, "login": lambda: login(options.kind)}
    return actions[options.command]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
