"""The board's health: PID 1's own loop resets the hardware watchdog's timer, and an unhealthy board is rebooted.

Each time the loop resets the timer ("feeds" it), it asks `SV.unhealthy`: a board that is not healthy reboots in an orderly
way, at most once in CRITICAL_INTERVAL over all boots. If the loop hangs for the whole timeout, the hardware resets the board
(Documentation/watchdog/watchdog-api.rst). If it hangs for two thirds of it, its Python stack is saved to disk before that.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from fcntl import ioctl

import _log
from base.stdlib import TYPE_CHECKING
from base.syscalls import WDIOC_GETTIMEOUT, WDIOC_SETTIMEOUT, Reboot
from onboard import boot_ends
from pid1.teardown import budget

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pid1.life import Life

FEEDS = 3  # times that the timer is reset in one timeout
DUMP_AT = 2 / 3  # of the timeout: a loop that hangs for so long has its stack written, and there is time left to save it
RETRY_FIRST, RETRY_MAX = 0.5, 60.0  # seconds between two looks for a device that is not there yet


class Device:
    """An open watchdog. It runs from now on, even if PID 1 ends: only the magic close stops it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: the table may name anything

    def set_timeout(self, seconds: float) -> float:
        """Ask for a timeout; the one that it has from now on, for the driver may refuse or choose another."""
        for request, value in ((WDIOC_SETTIMEOUT, int(-(-seconds // 1))), (WDIOC_GETTIMEOUT, 0)):
            try:
                answer = ioctl(self.fd, request, value.to_bytes(4, sys.byteorder))
                return float(max(1, int.from_bytes(answer, sys.byteorder)))
            except OSError as error:
                _log.debug(f"watchdog: timeout of {seconds:g} s: {error.strerror}")
        return seconds

    def feed(self) -> None:
        os.write(self.fd, b"\0")

    def disarm(self) -> None:
        """The magic close: after a V, closing stops it."""
        os.write(self.fd, b"V")
        os.close(self.fd)


class Watchdog:
    """When the timer is reset, when the board reboots instead, and what board() shows of it."""

    def __init__(self, life: Life, *, open_device: Callable[[str], Device] = Device) -> None:
        self.life = life
        self.open_device = open_device
        self.device: Device | None = None
        self.error = ""  # why there is none
        self.asked = 0.0  # the timeout that the table wants...
        self.timeout = 0.0  # ...and the one that the driver gave
        self.fed = 0.0
        self.due: float | None = None  # when to reset the timer next, or to look for the device again
        self.pause = RETRY_FIRST
        self.snoozed: float | None = None  # until when nobody asks for its health
        self.ending: float | None = None  # by when the shutdown must be over
        self.refused = ""  # the last reboot that was not allowed
        self.report = -1  # where PID 1's stack goes
        life.at_end.append(self.shut_down)
        life.loop.timers.append((self.next_deadline, self.tick))

    # --- the loop's side --------------------------------------------------------------------------------------------
    def next_deadline(self) -> float | None:
        return min((one for one in (self.due, self.snoozed) if one is not None), default=None)

    def tick(self, now: float) -> None:
        """Look for the device, feed it, or end the snooze."""
        if self.snoozed is not None and now >= self.snoozed:
            self.snooze(0, now)
        if self.due is None or now < self.due:
            return
        if self.device is None:
            self.open(now)
        else:
            self.due = now + self.timeout / FEEDS
            self.look_after(now)

    def open(self, now: float) -> None:
        """Open the device, which starts it. Its driver may come late: then again, with growing pauses."""
        path = self.life.tables.WATCHDOG
        self.due = None
        if not path or self.ending is not None:
            return
        try:
            self.report = boot_ends.open_stuck() if self.report < 0 else self.report
        except OSError:  # a /run that cannot be written
            self.report = _log.sink.console
        try:
            self.device = self.open_device(path)
        except OSError as error:
            self.error = f"{path}: {error.strerror}"
            self.due = now + self.pause
            if RETRY_MAX / 4 <= self.pause < RETRY_MAX / 2:  # half a minute has passed: say so, once
                _log.warning(f"watchdog: {self.error}; nobody resets this board when it hangs")
            self.pause = min(2 * self.pause, RETRY_MAX)
            return
        self.error = ""
        self.due = now + self.pause  # if the first write fails, another one is tried
        self.look_after(now)
        if self.life.command is None:
            self.due = now + self.timeout / FEEDS
        _log.info(f"watchdog: {path} resets the board when PID 1 hangs for {self.timeout:g} s")

    def look_after(self, now: float) -> None:
        """Reset the timer, unless the time for a shutdown is over. If this raises, it is not reset: that is its purpose."""
        if self.ending is not None:  # the driver did not take the whole budget at once
            if now < self.ending:
                self.feed(now)
            else:
                self.due = None
            return
        self.check(now)
        if self.life.command is not None:  # check() has begun a shutdown, and shut_down() has set the timer for that
            return
        late = now - self.fed if self.fed else 0.0
        stuck = late and late >= DUMP_AT * self.timeout
        if self.asked != self.life.tables.WATCHDOG_TIMEOUT:
            self.asked = self.life.tables.WATCHDOG_TIMEOUT
            self.set_timeout(self.asked)
        self.feed(now)
        if stuck:
            _log.error(f"PID 1 was stuck for {late:.1f} s; its stack is in {self.life.tables.KEEP}/pid1.late")
            os.write(self.report, boot_ends.RECOVERED.encode())

    def set_timeout(self, seconds: float) -> None:
        if self.device:
            self.timeout = self.device.set_timeout(seconds)

    def feed(self, now: float) -> None:
        """Reset the timer, and put off the writing of PID 1's stack."""
        if self.device:
            self.device.feed()
            self.fed = now
            # A thread of C code writes it, without Python's lock: also where PID 1 waits in the kernel for a dead disk,
            # and a signal would have to wait with it. Setting it costs 0.1 ms.
            faulthandler.dump_traceback_later(DUMP_AT * self.timeout, file=self.report)

    # --- health -----------------------------------------------------------------------------------------------------
    def check(self, now: float) -> None:
        """A board that is not healthy reboots, if it may."""
        if self.snoozed is None and (reason := self.life.sv.unhealthy(now)):
            self.escalate(reason, now)

    def escalate(self, reason: str, now: float) -> None:
        """Reboot for this reason, at most once in CRITICAL_INTERVAL.

        It is allowed if this boot has lasted that long, or if the record of boots says that a boot has lasted that long since
        the last such reboot. This needs no clock. Without a record only the first counts.
        """
        life = self.life
        if life.command is not None or self.snoozed is not None:
            return
        interval = life.tables.CRITICAL_INTERVAL
        if now - life.born >= interval or boot_ends.read(boot_ends.RECORD).get("may_escalate") is True:
            life.shut_down(Reboot.RESTART, reason, now, "critical")
        elif reason != self.refused:
            self.refused = reason
            life.fault(f"{reason}; no reboot for that before the board is up for {interval:g} s")

    def snooze(self, minutes: float, now: float) -> dict[str, Any]:
        """Do not reboot for bad health for so many minutes, WATCHDOG_SNOOZE_MAX at most; 0 ends it."""
        minutes = min(minutes, self.life.tables.WATCHDOG_SNOOZE_MAX)
        was, self.snoozed = self.snoozed, now + 60 * minutes if minutes > 0 else None
        if self.snoozed is not None:
            _log.warning(f"watchdog: snoozes for {minutes:g} min: no reboot for bad health")
        elif was is not None:
            _log.info("watchdog: the snooze is over")
            self.check(now)
        return self.facts(now)

    # --- the end ----------------------------------------------------------------------------------------------------
    def shut_down(self, now: float) -> None:
        """Set the timer to all the time that a shutdown may take, once: a shutdown that hangs ends in a reset."""
        if self.ending is not None:
            return
        seconds = budget(self.life.tables)
        self.ending = now + seconds
        self.snoozed = self.due = None
        if self.device:
            self.report = _log.sink.console  # the keeper goes with the others
            self.set_timeout(seconds)
            self.feed(now)
            if self.timeout < seconds:
                self.due = now + self.timeout / FEEDS

    def wait(self) -> None:
        """The loop has ended, and the teardown waits for something: go on resetting the timer."""
        self.tick(time.monotonic())

    def disarm(self) -> None:
        """Stop it: a board that was halted must stay halted."""
        faulthandler.cancel_dump_traceback_later()
        if self.device:
            self.device.disarm()
            self.device = self.due = None

    def facts(self, now: float) -> dict[str, Any]:
        """For board()."""
        return {
            "device": self.life.tables.WATCHDOG, "error": self.error, "timeout": self.timeout if self.device else None,
            "fed": round(now - self.fed, 3) if self.device else None, "unhealthy": self.life.sv.unhealthy(now),
            "snooze": None if self.snoozed is None else round(self.snoozed - now, 3),
        }  # fmt: skip
