"""Keeps services running (`SV`, one `Process` each), and the functions of the Python prompt: `from sv import *`.

PID 1 holds one `SV`. The prompt's functions live in prompt.py and are loaded when somebody asks for them.
"""

from __future__ import annotations

import os
import time

import _log
from base.stdlib import TYPE_CHECKING, signal, socket
from onboard.to_pid1 import SVError
from pid1.cgroup import Cgroups
from pid1.control import page
from pid1.instances import changed, fits, instance_row
from pid1.log_pipes import LogPipes
from pid1.process import Actions, Process, State
from pid1.readiness import NotifySockets, PathWatch
from pid1.relatives import Relatives
from pid1.spawn import EXEC_FAILED, Spawner, find
from tables.check_services import OWN_NAMES, column_faults, exec_faults
from tables.rows import Service
from tables.tables import Tables
from tables.values import signal_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pid1.loop import Loop
    from prompt.functions import (
        board,
        bootchart,
        halt,
        logs,
        network,
        post_mortem,
        poweroff,
        reboot,
        reload,
        restart_process,
        signal_process,
        snooze,
        start_process,
        stats_process,
        stop_process,
        top,
    )

__all__ = [
    "SVError", "board", "bootchart", "halt", "logs", "network", "post_mortem", "poweroff", "reboot", "reload",
    "restart_process", "signal_process", "snooze", "start_process", "stats_process", "stop_process", "top",
]  # fmt: skip

RETRY = 1.0  # seconds
ENDED_COMMANDS = 20


def __getattr__(name: str) -> Any:
    if name in __all__:
        from prompt import functions as prompt

        return getattr(prompt, name)
    raise AttributeError(f"module 'sv' has no attribute {name!r}")


class SV(Actions):
    """All services of the board: who starts when, whose death is whose, and what is due next."""

    def __init__(self, tables: Tables, loop: Loop, spawner: Spawner) -> None:
        self.tables = tables
        self.loop = loop
        self.spawner = spawner
        self.processes: dict[str, Process] = {}  # in start order
        self.cgroups = Cgroups(loop)
        self.relatives = Relatives(self.cgroups)
        self.statuses: dict[str, int] = {}  # deaths that a process has not been told yet
        self.dependents: dict[str, list[str]] = {}
        self.loggers: list[Process] = []
        self.pipes = LogPipes(loop)
        self.notify = NotifySockets(loop)
        self.paths = PathWatch(loop, self._path_appeared)
        self.stopping: float | None = None  # the global deadline, once the board is going down
        self.escalate: Callable[[str, float], None] = lambda reason, now: None  # what bad health asks for
        self.tell: Callable[[str, dict[str, Any], float], None] = lambda kind, data, now: None  # what others want to know
        self._touched: list[Process] = []

    # --- what Process needs from the world ------------------------------------------------------------------------
    def spawn(self, process: Process) -> int:
        row = process.row
        account = self.tables.account(row)
        if not account.mapped:
            _log.info(f"{row.name}: no user {row.user} in this user namespace; runs as root without capabilities")
        extra: dict[str, str] = {}
        if row.ready == "notify" or row.watchdog:
            try:
                extra["NOTIFY_SOCKET"] = self.notify.prepare(process, account.uid if account.mapped else 0, self._notified)
            except OSError as error:  # a /run that cannot be written must not keep the rescue prompt from starting
                _log.warning(f"{row.name}: no notify socket, {error}")
        if row.watchdog:
            extra["WATCHDOG_USEC"] = str(int(row.watchdog * 1e6))
        if row.ready.startswith("/"):
            self.paths.expect(process)
        log = None
        if row.log != "none" and self.loggers:
            log = self.pipes.write_end(row.name, row.log, process.since)
            if account.mapped:
                os.fchown(log, account.uid, account.gid)  # so that it may open its own /dev/stderr
        channel: socket.socket | None = self.pipes.connect() if row.logger else None
        process.first_start = process.first_start or time.monotonic()  # at boot many are started in one turn
        try:
            cgroup = self.cgroups.prepare(row)
            pid = self.spawner.spawn(row, account, extra, log, channel.fileno() if channel else None, cgroup)
        finally:
            if channel:
                channel.close()
        if channel:
            self.pipes.flush(process.since)
        self.relatives.born(process, pid)
        return pid

    def kill(self, process: Process, number: int) -> None:
        self.relatives.kill(process, number)

    def lingers(self, process: Process) -> bool:
        return self.relatives.linger(process)

    def failed(self, process: Process, now: float) -> None:
        row = process.row
        data = {"name": row.name, "exit": process.last_exit, "ran": round(process.ran, 3), "restart": process.restarts}
        self.tell("crash", data, now)

    # --- events -----------------------------------------------------------------------------------------------------
    def _bury(self, process: Process, now: float) -> None:
        """Tell a process how it died. The status stays until it has been taken: without it nobody would start it again."""
        status = self.statuses[process.row.name]
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXEC_FAILED and process.pid is not None
        failure = self.spawner.failure(process.pid) if failed and process.pid else None
        if process.row.logger:
            self.pipes.disconnect()
        killed = status == signal.SIGKILL and not process.asked
        process.exited(status, now, failure, self.cgroups.cause(process.row) if killed else "")
        del self.statuses[process.row.name]

    def _try(self, process: Process, event: Callable[[Process, float], object], now: float) -> None:
        """Let a process meet an event. Where our own code fails on it, its deadline comes again in a second."""
        if not self.loop.guard(process.row.name, lambda now: event(process, now), now):
            process.deadline = now + RETRY
        self._touch(process)

    def reaped(self, deaths: list[tuple[int, int]], now: float) -> None:
        """Wait statuses of all that died, ours or adopted. All are reaped before any is handled: zombies linger too."""
        while deaths:
            pid, status = deaths.pop()
            process = self.relatives.died(pid)
            if process is None:
                continue
            self.statuses[process.row.name] = status
            self._try(process, self._bury, now)
        for process in self.processes.values():
            self.relatives.prune(process)
            if process.state == State.STOPPING and process.pid is None:
                process.relative_exited(now)
                self._touch(process)
        self._settle(now)

    def next_deadline(self) -> float | None:
        deadlines = [process.deadline for process in self.processes.values() if process.deadline is not None]
        if self.stopping is not None:
            deadlines.append(self.stopping)
        return min(deadlines, default=None)

    def tick(self, now: float) -> None:
        """Whatever deadline has come."""
        for process in list(self.processes.values()):
            if process.deadline is not None and process.deadline <= now:
                self._try(process, self._bury if process.row.name in self.statuses else Process.tick, now)
        self._settle(now)

    def _notified(self, process: Process, message: dict[str, str], now: float) -> None:
        if main := message.get("MAINPID", ""):
            self.relatives.adopt(process, main, self.tables.account(process.row))
        process.notified(message, now)
        self._touch(process)
        self._settle(now)

    def _path_appeared(self, process: Process, now: float) -> None:
        process.became_ready(now)
        self._touch(process)
        self._settle(now)

    # --- who may start, who may stop --------------------------------------------------------------------------------
    def add(self, row: Service, now: float) -> Process:
        """A service that is not in the table: a command of the prompt, the rescue prompt."""
        process = self._add(row)
        process.transient = True
        self._link()
        process.start(now)
        self._touch(process)
        self._settle(now)
        return process

    def start(self, process: Process, now: float) -> None:
        """Start one service."""
        process.start(now)
        self._touch(process)
        self._settle(now)

    def stop(self, process: Process, now: float) -> None:
        """Stop one service."""
        process.stop(now)
        self._touch(process)
        self._settle(now)

    def hopeless(self, now: float) -> bool:
        """Whether nothing of the table lives: it is empty, or everything that we want keeps dying young."""
        table = [process for process in self.processes.values() if not process.transient]
        wanted = [process for process in table if process.wanted]
        return not table or (bool(wanted) and all(process.dies_young(now) for process in wanted))

    @property
    def complete(self) -> bool:
        """Whether the boot is over: everything that we want has been ready, is late, or has failed."""
        return all(one.first_ready or one.late or one.failed or not one.wanted for one in self.processes.values())

    def _add(self, row: Service) -> Process:
        process = self.processes[row.name] = Process(row, self, self.tables.delays())
        return process

    def _link(self) -> None:
        self.loggers = [process for process in self.processes.values() if process.row.logger]
        self.dependents = {name: [] for name in self.processes}
        for name, process in self.processes.items():
            for other in process.row.after:
                if other in self.dependents:
                    self.dependents[other].append(name)

    def _touch(self, process: Process) -> None:
        self._touched.append(process)

    def _settle(self, now: float) -> None:
        """Let everything happen that follows from what changed; a list, because a chain of services may be long."""
        while self._touched:
            process = self._touched.pop(0)
            if process.state != State.STARTING:
                self.paths.cancel(process)
            if self.stopping is not None:
                self._stop_next(process, now)
                continue
            if process.state == State.WAITING and self._may_start(process):
                if self.loop.guard(process.row.name, process.go, now):
                    self._touch(process)
                else:
                    process.deadline = now + RETRY
            elif process.settled:
                waiting = (self.processes[name] for name in self.dependents.get(process.row.name, ()))
                self._touched += [other for other in waiting if other.state == State.WAITING and self._may_start(other)]
            self._escalate(process, now)
            if process.state == State.STOPPED and not process.wanted:
                self._forget_ended(process)

    def _forget_ended(self, process: Process) -> None:
        """What left the table goes; of ended commands of the prompt, the last few can still be looked at."""
        if process.transient and not process.removed:
            ended = [other for other in self.processes.values() if other.transient and other.state == State.STOPPED]
            ended.sort(key=lambda other: other.since)
            for other in ended[:-ENDED_COMMANDS]:
                self._remove(other)
        elif process.removed:
            self._remove(process)

    def _may_start(self, process: Process) -> bool:
        return all(self.processes[name].settled for name in process.row.after if name in self.processes)

    def _escalate(self, process: Process, now: float) -> None:
        if process.row.critical and (reason := self._beyond_repair(process, now)):
            self.escalate(reason, now)

    def _beyond_repair(self, process: Process, now: float) -> str:
        times, window = self.tables.CRITICAL_FAILURES, self.tables.CRITICAL_WINDOW
        failing = process.keeps_failing(now, times, window)
        return f"{process.row.name} is critical and has failed {times} times in {window:g} s" if failing else ""

    def unhealthy(self, now: float) -> str:
        """Why the board is not healthy; empty where it is."""
        if self.loop.overloaded(now):
            return f"PID 1's loop is too slow: turns of more than {self.loop.limit:g} s"
        critical = (process for process in self.processes.values() if process.row.critical)
        return next(filter(None, (self._beyond_repair(process, now) for process in critical)), "")

    # --- going down -------------------------------------------------------------------------------------------------
    def shut_down(self, now: float) -> None:
        """Stop everything, dependents first, within the global deadline."""
        if self.stopping is not None:
            return
        self.stopping = now + self.tables.SHUTDOWN_TIMEOUT
        self.relatives.strays_count = False
        for process in self.processes.values():
            process.wanted = False
        for process in list(self.processes.values()):
            self._stop_if_free(process, now)
        self._settle(now)

    @property
    def down(self) -> bool:
        """Whether every service has stopped."""
        return all(process.state == State.STOPPED for process in self.processes.values())

    def _stop_next(self, process: Process, now: float) -> None:
        if process.state != State.STOPPED:
            return
        for name in process.row.after:
            if name in self.processes:
                self._stop_if_free(self.processes[name], now)
        for logger in self.loggers:
            self._stop_if_free(logger, now)

    def _stop_if_free(self, process: Process, now: float) -> None:
        """Stop it if nobody that stands on it is left; the logger hears everybody else's last words."""
        if process.state in (State.STOPPED, State.STOPPING):
            return
        others: Iterable[Process] = (self.processes[name] for name in self.dependents[process.row.name])
        if process.row.logger:
            others = (other for other in self.processes.values() if other is not process)
        if all(other.state == State.STOPPED for other in others):
            process.stop(now)
            self._touch(process)

    # --- reload -----------------------------------------------------------------------------------------------------
    def reload(self, tables: Tables, now: float, *, everything: bool = False) -> dict[str, list[str]]:
        """Take new tables: start what is new, stop what vanished, restart what changed (but for limits that can
        be adjusted), leave the rest alone.

        At boot everything is new. A service whose row has become bad goes on as it was. `everything` restarts all.
        """
        self.tables = tables
        self.loop.limit = tables.LOOP_TURN_MAX
        changes: dict[str, list[str]] = {"started": [], "stopped": [], "restarted": [], "adjusted": []}
        delays = tables.delays()
        for name, process in self.processes.items():
            process.delays = delays
            if name not in tables.services and name not in tables.bad_names and not process.transient:
                process.removed = True
                self._try(process, Process.stop, now)
                changes["stopped"].append(name)
        for process, new in changed(self.processes.values(), tables, everything=everything):
            if new is None or process.wanted:
                self._try(process, Process.restart if new else Process.stop, now)
                changes["restarted" if new else "stopped"].append(process.row.name)
            process.row, process.removed = new or process.row, new is None
        for name in tables.order:
            row, old = tables.services[name], self.processes.get(name)
            if old is None:
                self._add(row).wanted = True
                changes["started"].append(name)
            elif old.row != row and not (everything or old.removed or old.transient) and self.cgroups.adjust(old.row, row):
                old.row = row
                changes["adjusted"].append(name)
            elif everything or old.row != row or old.removed or old.transient:
                if old.wanted or old.removed or old.transient or old.done:
                    self._try(old, Process.restart, now)
                    changes["restarted"].append(name)
                old.row, old.removed, old.transient = row, False, False
        self._link()
        for name in changes["started"]:  # in start order, and each at once: the first need not wait for the last
            self._try(self.processes[name], Process.start, now)
            self.loop.guard(name, self._settle, now)
        for process in self.processes.values():
            self._touch(process)
        self._settle(now)
        return changes

    def _remove(self, process: Process) -> None:
        name = process.row.name
        self.processes.pop(name, None)
        self.relatives.forget(name)
        self.cgroups.forget(name)
        self.notify.forget(name)
        self.pipes.forget(name)
        self._link()

    # --- requests ---------------------------------------------------------------------------------------------------
    def handle(self, request: dict[str, Any], uid: int, now: float) -> Any:
        """Carry out one request of the control socket; SVError says in a sentence why not."""
        match request:
            case {"op": "stats", "name": str(name)}:
                return [self.stats(self._named(name), now)]
            case {"op": "stats"}:
                return [self.stats(process, now) for process in page(list(self.processes.values()), request)]
            case {"op": "start" | "stop" | "restart" | "signal" | "run"} if uid != 0:
                raise SVError(f"only root may {request['op']} services; you are uid {uid}")
            case {"op": "start" | "restart" | "run"} if self.stopping is not None:
                raise SVError("the board is shutting down")
            case {"op": "run", "argv": [str(_), *_] as argv} if all(isinstance(word, str) for word in argv):
                process = self._transient(argv, now)
            case {"op": "start" | "restart", "name": str(name)} if "@" in name and name not in self.processes:
                process = self.add(instance_row(self.tables, name), now)
            case {"op": "start", "name": str(name)}:
                process = self._named(name)
                process.start(now)
            case {"op": "stop", "name": str(name)}:
                process = self._named(name)
                if process.row.logger:
                    raise SVError(
                        f"{name} reads what all others print: without it they would come to a halt; restart it instead"
                    )
                process.stop(now)
            case {"op": "restart", "name": str(name)}:
                process = self._named(name)
                process.restart(now)
            case {"op": "signal", "name": str(name), "signal": str() | int() as number}:
                process = self._named(name)
                self._signal(process, number)
            case _:
                raise SVError(f"no such request: {str(request)[:200]}")
        self._touch(process)
        self._settle(now)
        return self.stats(process, now)

    def permits(self, pid: int, request: dict[str, Any], since: float) -> bool:
        """Whether this is a service's main process whose row lets it ask that, though it is not root."""
        alive = (process for process in self.processes.values() if process.pid == pid and process.started <= since)
        row = next((process.row for process in alive), None)
        rules = getattr(self.tables, row.may) if row and row.may else ()
        return any(op == request["op"] and fits(pattern, request.get("name", "")) for op, pattern in rules)

    def _named(self, name: str) -> Process:
        if name not in self.processes:
            raise SVError(f"there is no service {name[:64]!r}; there are {', '.join(self.processes) or 'none'}")
        return self.processes[name]

    def _signal(self, process: Process, name: str | int) -> None:
        try:
            number = signal_number(name)
            if process.pid is None:
                raise SVError(f"{process.row.name} is {process.state}: there is no process to signal")
            os.kill(process.pid, number)
        except (ValueError, OSError) as error:
            raise SVError(str(error)) from None

    def _transient(self, argv: list[str], now: float) -> Process:
        words = tuple(argv)
        faults = (*column_faults(Service("a", words)), *exec_faults(self.spawner.environment, words, ()))
        if faults:
            raise SVError(f"this cannot be run: {faults[0]}")
        try:
            find(argv[0], self.tables.PATH)
        except OSError as error:
            raise SVError(f"there is neither a service nor a program {argv[0][:64]!r}: {error.strerror}") from None
        base = "".join(c if c.isalnum() or c in "_-." else "_" for c in os.path.basename(argv[0]))[:40] or "command"
        names = (base if count == 1 else f"{base}-{count}" for count in range(1, 1000))
        name = next(name for name in names if name not in (*OWN_NAMES, *self.processes))
        return self.add(Service(name, words, restart="on-failure"), now)

    def stats(self, process: Process, now: float) -> dict[str, Any]:
        """What PID 1 knows of a service; the same keys in every state. The prompt adds what /proc knows."""
        row, state = process.row, process.state
        due = process.deadline if state == State.BACKOFF else None
        account = self.tables.account(row)
        return {
            "name": row.name, "cmd": list(row.argv), "alive": process.pid is not None, "state": state,
            "pid": process.pid, "runtime": round(process.runtime(now), 3),
            "total_runtime": round(process.total_runtime + process.runtime(now), 3), "restart": process.restarts,
            "exit": process.last_exit, "since": round(now - process.since, 3),
            "next_restart": None if due is None else round(max(0.0, due - now), 3), "ready": process.ready,
            "status": process.status, "user": (row.user or "root") if account.mapped else "root",
            "wanted": process.wanted, "after": list(row.after), "cgroup": self.cgroups.folder(row.name) or None,
        }  # fmt: skip

    def chart(self) -> list[list[Any]]:
        """Services of the table by their first start, for bootchart(): name, kind, start, and when ready or None."""
        chosen = [process for process in self.processes.values() if process.first_start and not process.transient]
        chosen.sort(key=lambda process: process.first_start)
        ready = [max(p.first_ready, p.first_start) if p.first_ready else None for p in chosen]
        return [[p.row.name, "service", p.first_start, end] for p, end in zip(chosen, ready, strict=True)]
