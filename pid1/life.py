"""The life of the board as all of PID 1's parts see it: what is known, what went wrong, and how it ends."""

from __future__ import annotations

import time

import _log
from base.stdlib import TYPE_CHECKING
from base.syscalls import Reboot
from onboard import boot_ends, events
from pid1.loop import Loop
from tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sv import SV

FAULTS_KEPT = 50


class Life:
    """What stack.py, the watchdog and the rescue prompt share."""

    sv: SV

    def __init__(self) -> None:
        self.born = time.monotonic()
        self.tables = Tables()
        self.loop = Loop()
        self.events = events.Events()
        self.command: int | None = None  # for reboot(2), once somebody has asked for the end
        self.faults: list[str] = []  # what went wrong in this boot, for board()
        self.booted = False  # every step of the boot has been taken
        self.at_end: list[Callable[[float], None]] = []  # called once, when the shutdown begins

    def fault(self, text: str) -> None:
        """Note something that people should see: in the log, in board(), and as an event for the mothership."""
        self.faults = [*self.faults[1 - FAULTS_KEPT :], text]
        _log.error(text)
        self.tell("fault", {"text": text}, time.monotonic())

    def tell(self, kind: str, data: dict[str, Any], now: float) -> None:
        """Note an event that uplink will bring to the mothership. A failure to write it is logged and nothing more."""

        def write(now: float) -> None:
            try:
                self.events.tell(kind, data, now)
            except OSError as error:
                _log.debug(f"{events.FILE}: {error.strerror}")

        self.loop.guard("events", write, now)

    def shut_down(self, command: int, reason: str, now: float, cause: str = "") -> None:
        """Begin the end. Asked again, the newest wish says how it ends."""
        _log.info(f"{Reboot.NAMES[command]}: {reason}")
        self.command = command
        facts = {"cause": cause or Reboot.NAMES[command], "reason": reason}
        self.loop.guard("the end's reason", lambda now: boot_ends.tell(boot_ends.ENDING, facts), now)
        self.tell("stop", {"command": Reboot.NAMES[command], **facts}, now)
        for step in self.at_end:
            self.loop.guard("end", step, now)
        self.sv.shut_down(now)
