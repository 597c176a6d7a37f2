"""What all of PID 1's parts share about the board: its tables, what went wrong, and how the board is to end."""

from __future__ import annotations

import sys
import time

import _log
from base.stdlib import TYPE_CHECKING
from base.syscalls import Reboot
from onboard import boot_ends, events
from pid1.loop import Loop
from pid1.timeline import Timeline
from tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from pid1.control import Control
    from pid1.process import Process
    from tables.rows import Service

FAULTS_KEPT = 50


class Supervisor:
    """What the rest of PID 1 asks of the one that keeps the services running; sv.py has it."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}  # by name, in start order
        self.stopping: float | None = None  # the global deadline, once the board is going down
        self.dependents: dict[str, list[str]] = {}  # who waits for a service, by its name
        self.conditions: Any = None  # conditions.Conditions, where the table has some or a service has told a fact

    def add(self, row: Service, now: float, environment: dict[str, str] | None = None) -> Process:
        """Start a service that is not in the table: a command of the prompt; the rescue prompt, in its own environment."""
        raise NotImplementedError

    def remove(self, process: Process, now: float) -> None:
        """Stop a service, and forget it as soon as it has stopped."""
        raise NotImplementedError

    def settle(self, now: float) -> None:
        """Carry out all that follows from changes of state. The loop calls this each turn, a request before its answer."""
        raise NotImplementedError

    def reload(self, now: float, *, everything: bool = False) -> dict[str, list[str]]:
        """Take the tables that `Life` has now; names by what happened to them. `everything` restarts what runs."""
        raise NotImplementedError

    def conditions_of_board(self) -> Any:
        """What is known of the board and asked of it."""
        raise NotImplementedError

    def hopeless(self, now: float) -> bool:
        """Whether no service stays alive: the table is empty, or all that we want keeps failing soon after its start, or waits
        for what does."""
        raise NotImplementedError

    def unhealthy(self, now: float) -> str:
        """Why the board is not healthy; empty where it is."""
        raise NotImplementedError

    @property
    def complete(self) -> bool:
        """Whether the boot is over: everything that we want has been ready, is late, or has failed."""
        raise NotImplementedError

    def shut_down(self, now: float) -> None:
        """Stop everything, dependents first, within the global deadline."""
        raise NotImplementedError


class Life:
    """What stack.py and all parts of PID 1 share."""

    sv: Supervisor

    def __init__(self, arguments: list[str], began: float = 0.0) -> None:
        self.arguments = arguments
        self.line = sys.orig_argv  # the program and its words, as the kernel has started it
        self.born = time.monotonic()
        self.began = began or self.born  # our first line, before the imports
        self.options: dict[str, str] = {}  # `stack.` words of the kernel command line
        self.tables = Tables()
        self.loop = Loop()
        self.events = events.Events()
        self.steps: list[tuple[str, float, float]] = []  # of the boot: name, start, seconds
        self.command: int | None = None  # for reboot(2), once somebody has asked for the end
        self.into = ""  # the folder of pushed modules with which PID 1 starts anew instead (pid1/again.py)
        self.timeline = Timeline()
        self.faults: list[str] = []  # what went wrong in this boot, for board()
        self.booted = False  # every step of the boot has been taken
        self.control: Control | None = None
        self.upgrading: Any = None  # an upgrade that is under way: pid1/upgrade.py's
        self.crashes: dict[tuple[str, str, str, int], dict[str, Any]] = {}  # exceptions in PID 1: pid1/crashes.py
        self.last_trace: TracebackType | None = None  # of the last one, for the console's debugger
        self.address_space: tuple[int, int] | None = None  # the limits for services, while the console's are in force
        self.loop.on_error = self.crashed
        self.at_end: list[Callable[[float], None]] = []  # called once, when the shutdown begins

    def fault(self, text: str, error: BaseException | None = None) -> None:
        """Note something that people should see: in the log, in board(), and as an event for the mothership; and the exception,
        where there was one, for crashes()."""
        self.faults = [*self.faults[1 - FAULTS_KEPT :], text]
        _log.error(text)
        self.tell("fault", {"text": text}, time.monotonic())
        if error:
            self.crashed(text.partition(f": {type(error).__name__}")[0], error)

    def best_effort(self, what: str, step: Callable[..., object], *arguments: object) -> None:
        """A step whose refusal by the kernel is worth a warning, not a fault."""
        try:
            step(*arguments)
        except OSError as error:
            _log.warning(f"{what}: {error.strerror}")
        except ValueError as error:  # such as a NUL in a name: no reload may end half-way for it
            _log.warning(f"{what}: {error}")

    def tell(self, kind: str, data: dict[str, Any], now: float) -> None:
        """Note an event that uplink will send to the mothership. A failure to write it is logged and nothing more."""

        def write(now: float) -> None:
            try:
                self.events.tell(kind, data, now)
            except OSError as error:
                _log.debug(f"{events.FILE}: {error.strerror}")

        self.loop.guard("events", write, now)

    def crashed(self, what: str, error: BaseException) -> None:
        """Keep an exception in PID 1 with its local values, and send it: each one once."""
        try:
            from pid1.crashes import note

            now = time.monotonic()
            self.last_trace = error.__traceback__
            if data := note(self.crashes, what, error, self.tables, now):
                self.tell("exception", data, now)
        except Exception as failure:  # nothing may come of an exception but that it is kept
            _log.debug(f"an exception is not kept: {type(failure).__name__}: {failure}")

    def crash_list(self) -> list[dict[str, Any]]:
        """All that are kept, the newest last."""
        return list(self.crashes.values())

    def reload(self, now: float) -> dict[str, list[str]]:
        """Read the tables again and take them; SVError, and nothing is changed, where they cannot be read as a whole."""
        raise NotImplementedError

    def shut_down(self, command: int, reason: str, now: float, cause: str = "", into: str = "") -> None:
        """Begin the shutdown. If asked again, the newest request says whether it is a reboot, a halt or a poweroff."""
        _log.info(f"{Reboot.NAMES[command]}: {reason}")
        self.command, self.into = command, into
        self.timeline.note(now, "board", "", Reboot.NAMES[command], reason)
        facts = {"cause": cause or Reboot.NAMES[command], "reason": reason}
        self.loop.guard("the end's reason", lambda now: boot_ends.tell(boot_ends.ENDING, facts), now)
        self.tell("stop", {"command": Reboot.NAMES[command], **facts}, now)
        for step in self.at_end:
            self.loop.guard("end", step, now)
        self.sv.shut_down(now)
