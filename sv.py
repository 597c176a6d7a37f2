"""Keeps services running (`SV`, one `Process` each), and the functions of the Python prompt: `from sv import *`.

PID 1 holds one `SV`. The prompt's functions live in prompt/ and are loaded when somebody asks for them.
"""

from __future__ import annotations

import time

import _log
from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import SVError as SVError
from pid1.changes import plan
from pid1.life import Supervisor
from pid1.process import Process, State
from pid1.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pid1.changes import Change
    from pid1.conditions import Conditions
    from pid1.life import Life
    from prompt.functions import *  # noqa: F403
    from tables.rows import Service

ROUNDS = 10  # of conditions in one turn; more of them in the next one
RETRY = 1.0  # seconds until our own code gets another try, where it has failed
ENDED_COMMANDS = 20  # of the prompt, that can still be looked at


def __getattr__(name: str) -> Any:
    """The prompt's functions, loaded when somebody asks for one; `__all__`, which `import *` asks for, lists them."""
    if name == "__all__" or not name.startswith("_"):
        from prompt import functions

        listed = [one for one in vars(functions) if not one.startswith("_")]
        if name == "__all__":
            return listed
        if name in listed:
            return getattr(functions, name)
    raise AttributeError(f"module 'sv' has no attribute {name!r}")


class SV(Supervisor):
    """All services of the board: who starts when, who has died, and what is due next.

    Every change of a state is noted in one list, `world.changed`. `settle` takes it from there, once a turn, and does all
    that follows: starts those that waited, stops the next ones of a shutdown, forgets what has left the table.
    """

    def __init__(self, life: Life, world: World | None = None) -> None:
        super().__init__()
        self.life = life
        self.loop = life.loop
        self.world = world or World(life)
        self.deaths: dict[int, int] = {}  # wait statuses by pid, of reaped children that no service has taken yet
        self.loggers: list[Process] = []
        self.delays = life.tables.delays()
        self.world.pipes.on_question = self._ask_loggers
        self.escalate: Callable[[str, float], None] = lambda reason, now: None  # what bad health asks for

    # --- once a turn ------------------------------------------------------------------------------------------------
    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        deadlines = [process.deadline for process in self.processes.values() if process.deadline is not None]
        if self.stopping is not None:
            deadlines.append(self.stopping)
        if self.world.changed:
            deadlines.append(0.0)
        if self.conditions and self.stopping is None and (due := self.conditions.next_deadline()) is not None:
            deadlines.append(due)
        if self.deaths:  # our own code failed on them
            deadlines.append(time.monotonic() + RETRY)
        return min(deadlines, default=None)

    def tick(self, now: float) -> None:
        """Handle children that have died and deadlines that have come, and all that follows from both."""
        if self.deaths:
            self.bury(now)
        for process in list(self.processes.values()):
            if process.deadline is not None and process.deadline <= now:
                self._try(process, Process.tick, now)
        self.settle(now)

    def _ask_loggers(self, now: float) -> None:
        """The log daemon has been asked for a sign of life, because somebody prints: without one in time it is killed."""
        for process in self.loggers:
            if process.state == State.RUNNING and process.row.watchdog and process.deadline is None:
                process.deadline = now + process.row.watchdog

    def bury(self, now: float) -> None:
        """Tell each service how its main process ended. A death stays on the list until its service has taken it: without
        it nobody would start that one again."""
        relatives = self.world.relatives
        for pid, status in list(self.deaths.items()):
            process = relatives.owner(pid)
            if process is None or self._ended(process, status, now):
                del self.deaths[pid]
                relatives.reaped(pid)
        for process in self.processes.values():
            relatives.prune(process)
            if process.state == State.STOPPING and process.pid is None:
                process.relative_exited(now)

    def _ended(self, process: Process, status: int, now: float) -> bool:
        def exited(process: Process, now: float) -> None:
            process.exited(status, now, *self.world.died(process, status))

        return self._try(process, exited, now)

    def _try(self, process: Process, event: Callable[[Process, float], object], now: float) -> bool:
        """Pass an event to a process. If our own code raises, its deadline comes again in a second."""
        done = self.loop.guard(process.row.name, lambda now: event(process, now), now)
        if not done:
            process.deadline = now + RETRY
        return done

    def settle(self, now: float) -> None:
        for _ in range(ROUNDS):  # what a condition starts may be what another one asks for
            before = self.world.changed.copy()
            self._follow(now)
            if self.conditions is None or self.stopping is not None or not self.conditions.due(before, now):
                return
            self.loop.guard("conditions", self.conditions.judge, now)
            if not self.world.changed:
                return

    def _follow(self, now: float) -> None:
        changed = self.world.changed
        while changed:  # a list, because a chain of services may be long
            process = changed.pop(0)
            if self.stopping is not None:
                self._stop_next(process, now)
            else:
                self._start_next(process, now)

    # --- who may start ----------------------------------------------------------------------------------------------
    def add(self, row: Service, now: float, environment: dict[str, str] | None = None) -> Process:
        process = self._add(row)
        if environment is not None:
            self.world.spawner.own[row.name] = environment
        process.transient = True
        self._link()
        process.start(now)
        if row.when is not None:
            self.conditions_of_board().stale = True
        return process

    def remove(self, process: Process, now: float) -> None:
        process.removed = True
        process.stop(now)
        self.world.changed.append(process)  # it may have stopped before

    def _add(self, row: Service) -> Process:
        process = self.processes[row.name] = Process(row, self.world, self.delays)
        return process

    def _link(self) -> None:
        self.loggers = [process for process in self.processes.values() if process.row.logger]
        self.world.logs_are_read = bool(self.loggers)
        self.dependents = {name: [] for name in self.processes}
        for name, process in self.processes.items():
            for other in process.row.after:
                if other in self.dependents:
                    self.dependents[other].append(name)

    def _start_next(self, process: Process, now: float) -> None:
        """Start this one if what it waits for is ready; otherwise those that waited for it."""
        if process.state == State.WAITING and self._may_start(process):
            self._try(process, self._go, now)
        elif process.settled:
            waiting = (self.processes[name] for name in self.dependents.get(process.row.name, ()))
            self.world.changed += [other for other in waiting if other.state == State.WAITING and self._may_start(other)]
        if process.row.critical and (reason := self._beyond_repair(process, now)):
            self.escalate(reason, now)
        if process.state == State.STOPPED and not process.wanted:
            self._forget_ended(process)

    def _go(self, process: Process, now: float) -> None:
        if self.world.prepared(process, now):
            process.go(now)

    def _may_start(self, process: Process) -> bool:
        return all(self.processes[name].settled for name in process.row.after if name in self.processes)

    def _forget_ended(self, process: Process) -> None:
        """Forget stopped services that left the table, and ended commands of the prompt but for the last few."""
        if process.transient and not process.removed:
            ended = [other for other in self.processes.values() if other.transient and other.state == State.STOPPED]
            ended.sort(key=lambda other: other.since)
            for other in ended[:-ENDED_COMMANDS]:
                self._forget(other)
        elif process.removed:
            self._forget(process)

    def _forget(self, process: Process) -> None:
        name = process.row.name
        if self.processes.get(name) is process:
            del self.processes[name]
            self.world.forget(name)
            if self.conditions:
                self.conditions.verdicts.pop(name, None)
            self._link()

    def conditions_of_board(self) -> Conditions:
        """What is known of the board and asked of it, loaded at its first use."""
        if self.conditions is None:
            from pid1.conditions import Conditions

            self.conditions = Conditions(self.life, self.world)
            self.conditions.take(self.life.tables, time.monotonic())
        found: Conditions = self.conditions
        return found

    # --- health -----------------------------------------------------------------------------------------------------
    def hopeless(self, now: float) -> bool:
        table = [process for process in self.processes.values() if not process.transient]
        wanted = [process for process in table if process.wanted]
        dying = [process for process in wanted if process.dies_young(now)]
        return not table or (
            bool(dying) and all(process in dying or process.state in (State.WAITING, State.UNMET) for process in wanted)
        )

    @property
    def complete(self) -> bool:
        return all(
            one.first_ready or one.late or one.failed or one.state == State.UNMET or not one.wanted
            for one in self.processes.values()
        )

    def unhealthy(self, now: float) -> str:
        if self.loop.overloaded(now):
            return f"PID 1's loop is too slow: turns of more than {self.loop.limit:g} s"
        critical = (process for process in self.processes.values() if process.row.critical)
        return next(filter(None, (self._beyond_repair(process, now) for process in critical)), "")

    def _beyond_repair(self, process: Process, now: float) -> str:
        times, window = self.life.tables.CRITICAL_FAILURES, self.life.tables.CRITICAL_WINDOW
        failing = process.keeps_failing(now, times, window)
        return f"{process.row.name} is critical and has failed {times} times in {window:g} s" if failing else ""

    # --- going down -------------------------------------------------------------------------------------------------
    def shut_down(self, now: float) -> None:
        if self.stopping is not None:
            return
        self.stopping = now + self.life.tables.SHUTDOWN_TIMEOUT
        self.world.relatives.strays_count = False
        for process in self.processes.values():
            process.wanted = False
        for process in list(self.processes.values()):
            self._stop_if_free(process, now)

    def hurry(self, now: float) -> None:
        """End the wait for services: the global deadline is now. The teardown kills what still runs."""
        if self.stopping is not None and self.stopping > now:
            left = ", ".join(name for name, process in self.processes.items() if process.state != State.STOPPED)
            _log.warning(f"asked again and again to end: does not wait for {left or 'anybody'}")
            self.stopping = now

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
        """Stop it if no service that needs it still runs. The logger is stopped last: it reads what all others print."""
        if process.state in (State.STOPPED, State.STOPPING):
            return
        others: Iterable[Process] = (self.processes[name] for name in self.dependents[process.row.name])
        if process.row.logger:
            others = (other for other in self.processes.values() if other is not process)
        if all(other.state == State.STOPPED for other in others):
            process.stop(now)

    # --- reload -----------------------------------------------------------------------------------------------------
    def reload(self, now: float, *, everything: bool = False) -> dict[str, list[str]]:
        """Take new tables; at boot everything is new. pid1/changes.py plans what happens to each service."""
        tables = self.life.tables
        self.loop.limit = tables.LOOP_TURN_MAX
        self.delays = tables.delays()
        for process in self.processes.values():
            process.delays = self.delays
        done: dict[str, list[str]] = {"started": [], "stopped": [], "restarted": [], "adjusted": [], "taken": []}
        for change in plan(self.processes.values(), tables, everything=everything):
            done[self._carry_out(change, now)].append(change.name)
        self._link()
        if self.conditions or tables.MODES or any(process.row.when is not None for process in self.processes.values()):
            self.conditions_of_board().take(tables, now)
        self.world.changed += self.processes.values()  # what they wait for may be something else now
        del done["taken"]
        return done

    def _carry_out(self, change: Change, now: float) -> str:
        """Do what the plan says to one service, and return what was done."""
        name, what, row = change
        if what == "started" and row:
            process = self._add(row)
            process.wanted = True
            self._try(process, Process.start, now)
            return what
        process = self.processes[name]
        if what == "adjusted" and row and not self.world.adjust(process.row, row, now):
            what = "restarted"
        if what == "restarted":
            self._try(process, Process.restart, now)
        elif what == "stopped":
            self._try(process, Process.stop, now)
        process.row, process.removed = row or process.row, row is None
        process.transient = process.transient and name not in self.life.tables.services
        return what
