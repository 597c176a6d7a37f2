"""The last resort: a Python prompt on the console, where nothing else could be started or somebody asked for it."""

from __future__ import annotations

import os
import sys

from base.stdlib import TYPE_CHECKING
from base.syscalls import Reboot
from onboard import to_pid1
from pid1.process import Process, State
from tables.rows import Service
from tables.tables import FALLBACK, LIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from pid1.life import Life

# Whatever ENVIRONMENT and RESCUE say: a variable such as LD_PRELOAD or PYTHONHOME keeps any Python from starting.
ENVIRONMENT = {**dict(FALLBACK["ENVIRONMENT"]), "PATH": FALLBACK["PATH"], "LANG": "C.UTF-8"}
BUILT_IN = Service(
    "rescue", (sys.executable or "/usr/bin/python3", "-P", f"{LIB}/prompt/console.py", "rescue"), ready="notify",
    tty="/dev/console", env=(("PYTHONPATH", LIB),),
)  # fmt: skip


class Rescue:
    """Opens the prompt, takes the console for it, gives it back; reboots a hopeless board on which nobody types."""

    def __init__(self, life: Life, open_control: Callable[[], None]) -> None:
        self.life = life
        self.open_control = open_control  # where no boot has come so far
        self.process: Process | None = None
        self.until: float | None = None
        self.displaced: list[Process] = []  # services whose terminal it has taken
        self.boot_waits = False  # it comes before the services
        life.loop.timers.append((self.deadline, self.tick))

    def open(self, reason: str, now: float) -> None:
        """A Python prompt on the console, supervised like any service; a reboot if nobody uses it."""
        life, tables, sv = self.life, self.life.tables, self.life.sv
        if not os.path.exists(to_pid1.SOCKET):
            life.loop.guard("control", lambda now: self.open_control(), now)
        self.displaced = [p for p in sv.processes.values() if p.row.tty == tables.CONSOLE and p.wanted]
        for process in self.displaced:
            process.stop(now)
        timeout = tables.RESCUE_TIMEOUT
        life.fault(f"rescue prompt on {tables.CONSOLE}: {reason}; it ends in {timeout:g} s unless somebody presses a key")
        self.until = now + timeout
        self.start(tables.rescue, now)

    def start(self, row: Service, now: float) -> None:
        """The table's row, or the built-in one, in an environment that is no setting."""
        timeout, restart = self.life.tables.RESCUE_TIMEOUT, "on-failure" if self.boot_waits else "always"
        environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "linux")}
        self.process = self.life.sv.add(row._replace(ready_timeout=timeout, restart=restart), now, environment)

    def deadline(self) -> float | None:
        """When a rescue prompt that nobody uses ends; None while somebody uses it."""
        used = self.life.command is not None or (self.process is not None and self.process.ready)
        return None if used else self.until

    def tick(self, now: float) -> None:
        """Every turn: is a rescue prompt needed, used, or over?"""
        life = self.life
        if life.command is not None or not life.booted:
            return
        hopeless = life.sv.hopeless(now)
        if self.process is None:
            if hopeless and life.tables.RESCUE.name not in life.sv.processes:  # an earlier one may be on its way out
                self.open("no service stays alive", now)
            return
        if self.process.dies_young(now) and self.process.state == State.BACKOFF and self.process.row.argv != BUILT_IN.argv:
            self.life.fault(f"{self.process.row.name}: {self.process.last_exit}, again and again; the built-in one is started")
            self.life.sv.remove(self.process, now)
            self.start(BUILT_IN, now)
        ended = self.process.state == State.STOPPED
        over = self.until is not None and now >= self.until and not self.process.ready
        if over and not self.boot_waits and hopeless:
            life.shut_down(Reboot.RESTART, "nobody came to the rescue", now)
        elif over or ended:
            self.close(self.process, now)

    def close(self, rescue: Process, now: float) -> None:
        """Give the console back, and go on with a boot that waited."""
        self.process = self.until = None
        self.life.sv.remove(rescue, now)
        if self.boot_waits:
            self.boot_waits = False
            self.life.sv.reload(now)
        for process in self.displaced:
            if not process.removed:  # by a reload meanwhile
                process.start(now)
