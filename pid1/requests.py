"""Every request of the control socket: who may ask it, what is done, and what is answered.

Anyone may read; root may act. A service may do what the rules in its row's `may` list: it is known by the pid of its main
process, which cannot be reused before PID 1 reaps it; a connection older than that process is refused.
"""

from __future__ import annotations

import os
import sys

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING
from base.syscalls import Reboot
from onboard import boot_ends
from onboard.to_pid1 import SVError
from pid1.instances import fits, instance_row
from pid1.process import Process, State
from pid1.spawn import find
from pid1.timeline import page
from tables.check_services import OWN_NAMES, column_faults, exec_faults, service_faults
from tables.plain import plain, unpack
from tables.rows import Service
from tables.values import signal_number

if TYPE_CHECKING:
    from typing import Any

    from pid1.inside import Inside
    from pid1.life import Life
    from pid1.memory import Memory
    from pid1.watchdog import Watchdog

ACTS = ("start", "stop", "restart", "signal", "run", "reload", "snooze", "push", "update", "reboot", "halt", "poweroff")
ENDS = {name: command for command, name in Reboot.NAMES.items()}  # reboot, halt, poweroff
FACTS = (
    "storage",
    "bootfiles",
    "pushed",
    "update",
)  # what services have found out about the board: /run/stack/NAME.json is NAME of board()


class Requests:
    """What PID 1 does when somebody asks. SVError says in a sentence why it does not."""

    def __init__(self, life: Life, watchdog: Watchdog) -> None:
        self.life = life
        self.watchdog = watchdog
        self._inside: Inside | None = None
        self._memory: Memory | None = None

    def handle(self, request: dict[str, Any], uid: int, now: float) -> Any:
        """One request, and its answer."""
        life, sv = self.life, self.life.sv
        match request:
            case {"op": "board"}:
                return self.board(now)
            case {"op": "bootchart" | "explain" | "timeline" | "facts" | "fact"}:
                from pid1 import why

                return why.answer(life, request, uid, now)
            case {"op": "stats"}:
                return [self.stats(process, now) for process in self._asked(request)]

            case {"op": "console" | "crashes" | "memory"}:
                return self._look_inside(request, uid, now)

            case {"op": "reboot" | "halt" | "poweroff" | "reload" | "snooze" | "push" | "upgrade" | "update" as op} if uid != 0:
                raise SVError(f"only root may {op} the board; you are uid {uid}")
            case {"op": "reboot" | "halt" | "poweroff" as op}:
                life.shut_down(ENDS[op], f"asked by uid {uid}", now)
                return f"{op} has begun"
            case {"op": "reload" | "upgrade" | "snooze" | "push" as op}:
                return self._change_pid_1(op, request, now)

            case {"op": "update", "url": str(), "version": str()}:
                from pid1 import update_word  # at first use: most boards never do

                return update_word.asked(life, request, now)

            case {"op": "start" | "stop" | "restart" | "signal" | "run" as op} if uid != 0:
                raise SVError(f"only root may {op} services; you are uid {uid}")
            case {"op": "start" | "restart" | "run"} if sv.stopping is not None:
                raise SVError("the board is shutting down")
            case {"op": "run", "argv": [str(_), *_]} | {"op": "run", "row": {"Service": {}}}:
                process = self._run_row(request, now) if "row" in request else self._run(request, now)
            case {"op": "start" | "stop" | "restart" as op, "name": str(name)}:
                process = self._act(op, name, now)
            case {"op": "signal", "name": str(name), "signal": str() | int() as number}:
                process = self._named(name)
                send(process, number)
            case _:
                raise SVError(f"no such request: {str(request)[:200]}")
        sv.settle(now)
        return self.stats(process, now)

    def permits(self, pid: int, request: dict[str, Any], since: float) -> bool:
        """Whether this is a service's main process whose row lets it ask that, though it is not root. SVError where its rules
        refuse an act; all may read."""
        alive = (process for process in self.life.sv.processes.values() if process.pid == pid and process.started <= since)
        row = next((process.row for process in alive), None)
        if row is None:
            return False
        if request["op"] == "fact":
            return any(fits(pattern, request.get("name", "")) for pattern in row.tells)
        if not row.may:
            return False
        rules = getattr(self.life.tables, row.may)
        target = request.get("url" if request["op"] == "update" else "name", "")  # what handle() goes by, and no other word
        if any(op == request["op"] and fits(pattern, target) for op, pattern in rules):
            return True
        if request["op"] in ACTS:
            what = " ".join(str(request[word])[:64] for word in ("op", "name", "url") if word in request)
            listed = ", ".join(f"{op} {pattern}".strip() for op, pattern in rules)
            raise SVError(f"this board's {row.may} refuses {what}; it lists {listed or 'nothing'}")
        return False

    def _asked(self, request: dict[str, Any]) -> list[Process]:
        """The service that the request names, or so many of all."""
        name = request.get("name")
        if name is None:
            return page(list(self.life.sv.processes.values()), request)
        if not isinstance(name, str):
            raise SVError(f"{str(name)[:64]} is no service's name")
        return [self._named(name)]

    def _named(self, name: str) -> Process:
        processes = self.life.sv.processes
        if name not in processes:
            raise SVError(f"there is no service {name[:64]!r}; there are {', '.join(processes) or 'none'}")
        return processes[name]

    def _act(self, op: str, name: str, now: float) -> Process:
        """Start, stop or restart a service; of a template, the instance of that name is made first."""
        if "@" in name and name not in self.life.sv.processes and op != "stop":
            return self.life.sv.add(instance_row(self.life.tables, name), now)
        process = self._named(name)
        if op == "stop" and process.row.logger:
            raise SVError(f"{name} reads what all others print: without it they would come to a halt; restart it instead")
        {"start": process.start, "stop": process.stop, "restart": process.restart}[op](now)
        return process

    def _change_pid_1(self, op: str, request: dict[str, Any], now: float) -> Any:
        """What changes PID 1 itself: its tables, its code, what it does about bad health."""
        if op == "reload":
            return {**self.life.reload(now), "rejected": self.life.tables.rejected}
        if op == "upgrade":
            from pid1 import upgrade

            return upgrade.begin(self.life, request, now)
        return self._snooze(request.get("minutes"), now) if op == "snooze" else self._push(request.get("folder"), now)

    def _snooze(self, minutes: Any, now: float) -> dict[str, Any]:
        if not isinstance(minutes, (int, float)) or not minutes >= 0:
            raise SVError(f"snooze for how many minutes? {minutes!r} is no such number")
        return self.watchdog.snooze(minutes, now)

    def _push(self, folder: Any, now: float) -> str:
        from pid1 import again  # at first use: most boards never do

        return again.begin(self.life, str(folder), now)

    def _run(self, request: dict[str, Any], now: float) -> Process:
        """Run a command of the prompt as a service of its own, under its program's name."""
        argv = request["argv"]
        if not all(isinstance(word, str) for word in argv):
            raise SVError(f"no such request: {str(request)[:200]}")
        words = tuple(argv)
        faults = (*column_faults(Service("a", words)), *exec_faults(self.life.tables.environment, words, ()))
        if faults:
            raise SVError(f"this cannot be run: {faults[0]}")
        try:
            find(argv[0], self.life.tables.PATH)
        except OSError as error:
            raise SVError(f"there is neither a service nor a program {argv[0][:64]!r}: {error.strerror}") from None
        base = "".join(c if c.isalnum() or c in "_-." else "_" for c in os.path.basename(argv[0]))[:40] or "command"
        names = (base if count == 1 else f"{base}-{count}" for count in range(1, 1000))
        name = next(name for name in names if name not in (*OWN_NAMES, *self.life.sv.processes))
        return self.life.sv.add(Service(name, words, restart="on-failure"), now)

    def _run_row(self, request: dict[str, Any], now: float) -> Process:
        """Run a row that is not in the table, as tables/plain.py packs it, with all checks that one of the table has."""
        tables = self.life.tables
        try:
            row = plain(unpack(request["row"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SVError(f"this is no row of SERVICES: {error}") from None
        faults = [*column_faults(row)] or [*service_faults(tables, row)]
        if not faults and (row.module or row.logger or row.may or row.name.endswith("@") or not row.argv):
            faults = ["module, logger, may, templates and rows without argv are the table's alone"]
        if faults:
            raise SVError(f"{str(row.name)[:64]} cannot be run: {faults[0]}")
        if row.name in self.life.sv.processes:
            raise SVError(f"{row.name} is there already")
        try:
            find(row.argv[0], dict(row.env).get("PATH", tables.PATH), row.cwd)
        except OSError as error:
            raise SVError(f"{row.name} cannot be run: {error.strerror}: {row.argv[0][:64]!r}") from None
        return self.life.sv.add(row, now)

    # --- inside PID 1, loaded when somebody asks ----------------------------------------------------------------------
    def _look_inside(self, request: dict[str, Any], uid: int, now: float) -> Any:
        if uid != 0:
            raise SVError(f"only root may look into PID 1; you are uid {uid}")
        if request["op"] == "crashes":
            return self.life.crash_list()
        if request["op"] == "memory":
            return self.memory(str(request.get("what", "")))
        from pid1.inside import Inside

        if self._inside is None:
            self._inside = Inside(self.life, self.watchdog, self.handle, self.memory)
        return self._inside.handle(request, now)

    def memory(self, what: str = "") -> dict[str, Any]:
        """Figures of PID 1's memory; "start" and "stop" begin and end tracing."""
        from pid1.memory import Memory

        self._memory = self._memory or Memory()
        return self._memory.facts(what)

    # --- answers ----------------------------------------------------------------------------------------------------
    def board(self, now: float) -> dict[str, Any]:
        """What is known about the board and about PID 1 itself."""
        life, loop, times = self.life, self.life.loop, os.times()
        return {
            "hostname": os.uname().nodename, "boot_id": read_file("/proc/sys/kernel/random/boot_id"),
            "uptime": round(now - life.born, 3), "kernel": os.uname().release, "python": sys.version.split()[0],
            "profile": life.tables.profiles or ["default"], "options": life.options,
            "log_folder": life.tables.LOG, "rejected": life.tables.rejected, "faults": life.faults,
            "state": "stopping" if life.command is not None else "running",
            "complete": life.sv.complete, "services": len(life.sv.processes),
            "modes": dict(life.sv.conditions.modes) if life.sv.conditions else {},
            "asks_for": life.sv.conditions.asked() if life.sv.conditions else [],
            "unmet": [name for name, process in life.sv.processes.items() if process.state == State.UNMET],
            "never_ready": [name for name, process in life.sv.processes.items() if process.never_ready(now)],
            "loop": {
                "turns": loop.turns, "wakeups": loop.wakeups, "errors": loop.errors,
                "longest_turn_ms": round(loop.longest * 1e3, 3), "cpu_s": round(times.user + times.system, 3),
            },
            "watchdog": self.watchdog.facts(now),
            "log": {**_log.counts, "dropped": _log.sink.dropped},
            **{name: facts for name in FACTS if (facts := boot_ends.read(f"/run/stack/{name}.json"))},
            "boot_ms": {name: round(seconds * 1e3, 3) for name, _, seconds in life.steps},
        }  # fmt: skip

    def stats(self, process: Process, now: float) -> dict[str, Any]:
        """What PID 1 knows of a service; the same keys in every state. The prompt adds what /proc knows."""
        row, state = process.row, process.state
        due = process.deadline if state == State.BACKOFF else None
        account = self.life.tables.account(row)
        return {
            "name": row.name, "cmd": list(row.argv), "alive": process.pid is not None, "state": state,
            "pid": process.pid, "runtime": round(process.runtime(now), 3),
            "total_runtime": round(process.total_runtime + process.runtime(now), 3), "restart": process.restarts,
            "exit": process.last_exit, "since": round(now - process.since, 3),
            "next_restart": None if due is None else round(max(0.0, due - now), 3), "ready": process.ready,
            "status": process.status, "user": (row.user or "root") if account.mapped else "root",
            "wanted": process.wanted, "after": list(row.after), "cgroup": process.cgroup or None,
            "when": getattr(row.when, "text", None), "met": process.met,
        }  # fmt: skip


def send(process: Process, name: str | int) -> None:
    """Signal a service's main process."""
    try:
        number = signal_number(name)
    except ValueError as error:
        raise SVError(str(error)) from None
    if not process.actions.signal(process, number):
        raise SVError(f"{process.row.name} is {process.state}: there is no process to signal")
