"""One service as a state machine: what we want of it, what it is doing, and what happens next.

Events are methods that take the time as an argument; nothing here sleeps, waits or reads a clock. What touches the
kernel comes in through `Actions`, so that every state meets every event in the tests.
"""

from __future__ import annotations

import os

import _log
from base.printable import printable
from base.stdlib import TYPE_CHECKING, signal
from pid1.states import State as State
from pid1.states import describe, jitter, why_not
from tables.rows import Delays, Service
from tables.values import signal_number

if TYPE_CHECKING:
    from collections.abc import Callable

HOPELESS_FAILURES = 3
FAILURES_KEPT, EXITS_KEPT = 100, 5


class Actions:
    """What a process asks of the kernel and of the supervisor; tests record it in lists instead."""

    def __init__(self) -> None:
        self.changed: list[Process] = []  # whose state is another one: SV looks at what follows from that

    def entered(self, process: Process, before: str) -> None:
        """Note that it is in another state now than before."""
        self.changed.append(process)

    def spawn(self, process: Process) -> int:
        """Start the program and return its pid, or raise OSError."""
        raise NotImplementedError

    def kill(self, process: Process, number: int) -> None:
        """Send a signal to the whole group, and to relatives that left it."""
        raise NotImplementedError

    def signal(self, process: Process, number: int) -> bool:
        """Send a signal to its main process alone; whether there was one."""
        raise NotImplementedError

    def lingers(self, process: Process) -> bool:
        """Whether anything that the service started is still alive, apart from a main process already reaped."""
        raise NotImplementedError

    def failed(self, process: Process, now: float) -> None:
        """Tell whoever wants to know that it ended unasked, or could not start."""


class Process:
    """A service row, and the state of its process."""

    def __init__(self, row: Service, actions: Actions, delays: Delays, *, jitter: Callable[[], float] = jitter) -> None:
        self.row = row
        self.actions = actions
        self.delays = delays
        self.jitter = jitter
        self.transient = False  # came from start_process("a command line"), not from the table
        self.removed = False  # no longer in the table: forgotten as soon as it has stopped
        self.state = State.STOPPED
        self.wanted = False
        self.pid: int | None = None  # the main process, until it is reaped
        self.ready = False
        self.late = False  # its ready timeout has passed: nobody waits for it any more
        self.done = False  # a ready="exit" job that ended well
        self.asked = False  # its end was asked for: not a failure
        self.killed = False  # it did not stop in time
        self.ran = 0.0  # how long the last main process lived
        self.since = 0.0  # entered its state
        self.started = 0.0  # last launch
        self.first_start = self.first_ready = 0.0  # of this boot, for its chart; 0: not yet
        self.deadline: float | None = None
        self.delay = delays.BACKOFF_FIRST
        self.failures = 0  # early deaths in a row
        self.failed: list[float] = []  # when it ended without being asked, or did not start: the last ones
        self.restarts = 0
        self.total_runtime = 0.0
        self.last_exit: str | None = None  # "exit 1", "signal KILL", "No such file or directory: ..."
        self.exits: list[tuple[float, str, float, bool]] = []  # the last ones: when, how, after how many seconds, asked for
        self.met = row.when is None  # whether its condition is true
        self.flaps = False  # its condition was not true for long: the next start has a back-off
        self.status = ""  # its own words, sd_notify's STATUS=
        self.cgroup = ""  # the folder of its control group, where it has one

    # --- events ---------------------------------------------------------------------------------------------------
    def start(self, now: float) -> None:
        """It is to run. SV calls `go` when the services in its `after` are ready."""
        self.wanted = True
        if self.state in (State.STOPPED, State.BACKOFF):
            self.failed.clear()
            self.start_over(now)

    def go(self, now: float) -> None:
        """What it waits for is ready."""
        if self.state == State.WAITING:
            self._launch(now)

    def stop(self, now: float) -> None:
        """It is to run no more: send its stop signal and CONT (a stopped process cannot obey), and KILL at the deadline."""
        self.wanted = False
        self.asked = True
        self.failed.clear()
        if self.state in (State.WAITING, State.BACKOFF, State.UNMET):
            self._enter(State.STOPPED, now)
        elif self.state in (State.STARTING, State.RUNNING):
            self._ask_to_stop(now)

    def restart(self, now: float) -> None:
        """Stop it, and start it again as soon as all of it is gone."""
        self.stop(now)
        self.wanted = True
        if self.state == State.STOPPED:
            self.start(now)

    def condition(self, met: bool, now: float) -> None:
        """Its condition is true now, or no longer. One that changes again and again costs back-off, as failures do."""
        self.met = met
        if met and self.state == State.UNMET:
            again = self._back_off if self.flaps else self._wait
            again(now)
        elif not met and self.state in (State.WAITING, State.BACKOFF):
            self._enter(State.UNMET, now)
        elif not met and self.state in (State.STARTING, State.RUNNING):
            self.asked, self.flaps = True, self.runtime(now) < self.delays.SV_COOLDOWN
            self._ask_to_stop(now)

    def exited(self, status: int, now: float, failure: OSError | None = None, cause: str = "") -> None:
        """Its main process was reaped with this wait status; `failure` is why it never came to its exec, `cause` what is
        known about its death besides."""
        if self.pid is None:
            return
        self.pid = None
        self.last_exit = why_not(failure) if failure else describe(status) + cause
        self.ran = now - self.started
        self.total_runtime += self.ran
        self._keep_exit(now)
        if self.state in (State.STARTING, State.RUNNING):
            _log.info(f"{self.row.name}: died, {self.last_exit}, after {self.ran:.1f} s")
            code = os.waitstatus_to_exitcode(status)
            if self.row.ready == "exit" and code == 0:
                self.done = True
                self.wanted = False
            elif not self._restarts(code):
                self.wanted = False
            if self.wanted or code not in (0, 125):
                self.actions.failed(self, now)
        if self.actions.lingers(self):
            if self.row.kill == "mixed":
                self.killed = True  # what is left is not asked
                self._kill(now)
            elif self.state != State.STOPPING:
                _log.warning(f"{self.row.name}: left processes behind, stopping them")
                self._ask_to_stop(now)
        else:
            self._gone(now)

    def relative_exited(self, now: float) -> None:
        """Something that may have been its child died; after the main process, the last one to go ends the stop."""
        if self.state == State.STOPPING and self.pid is None and not self.actions.lingers(self):
            self._gone(now)

    def notified(self, message: dict[str, str], now: float) -> None:
        """A datagram on its $NOTIFY_SOCKET (`man 3 sd_notify`): READY, STATUS, STOPPING, WATCHDOG, EXTEND_TIMEOUT_USEC."""
        if "STATUS" in message:
            self.status = printable(message["STATUS"][:200])
        if "EXTEND_TIMEOUT_USEC" in message:
            self._extend(message["EXTEND_TIMEOUT_USEC"], now)
        if self.state not in (State.STARTING, State.RUNNING):
            return
        if message.get("READY") == "1":
            self.became_ready(now)
        if message.get("WATCHDOG") == "1" and self.state == State.RUNNING and self.row.watchdog:
            self.deadline = now + self.patience if self.patience else None
        if message.get("WATCHDOG") == "trigger":
            self._bark(now)
        elif message.get("STOPPING") == "1":
            self.status = self.status or "stopping by itself"

    @property
    def patience(self) -> float | None:
        """Seconds between two signs of life; None where none is due. The logger gives one when it is asked (sv.py)."""
        return None if self.row.logger else self.row.watchdog or None

    def _extend(self, microseconds: str, now: float) -> None:
        """Give it the time that it asks for to get ready, or to stop; none once it was killed."""
        if not microseconds.isascii() or not microseconds.isdigit() or len(microseconds) > 12:
            return
        if self.deadline is not None and (self.state == State.STARTING or (self.state == State.STOPPING and not self.killed)):
            self.deadline = max(self.deadline, now + int(microseconds) / 1e6)

    def became_ready(self, now: float) -> None:
        """It sent READY=1, or its path appeared. Its watchdog counts from now on: a slow start is not killed."""
        if self.state == State.STARTING:
            self._is_ready(now)
            self._enter(State.RUNNING, now, self.patience)
        elif self.state == State.RUNNING:
            if not self.ready and self.patience:
                self.deadline = now + self.patience
            self._is_ready(now)

    def tick(self, now: float) -> None:
        """Do what is due at the deadline of its state."""
        if self.deadline is None or now < self.deadline:
            return
        name = self.row.name
        if self.state == State.WAITING:
            if self.row.after:
                _log.warning(f"{name}: still waits for {', '.join(self.row.after)}; starts without")
            self._launch(now)
        elif self.state == State.STARTING:
            _log.warning(f"{name}: not ready after {self.row.ready_timeout:g} s; those that wait for it go on")
            self.late = True
            self._enter(State.RUNNING, now)
        elif self.state == State.RUNNING:
            self._bark(now)
        elif self.state == State.BACKOFF:
            self._wait(now)
        elif self.state == State.STOPPING and self.pid is None and not self.actions.lingers(self):
            self._gone(now)  # its last process died, and nothing told us
        elif self.state == State.STOPPING:
            self._kill(now)
        elif self.wanted:  # SV's start of it failed
            self.start_over(now)

    # --- how others see it ----------------------------------------------------------------------------------------
    @property
    def settled(self) -> bool:
        """Whether those that wait for it may go on: it is ready, late, or not meant to run, or not now."""
        return self.ready or self.late or self.state == State.UNMET or (self.state == State.STOPPED and not self.wanted)

    def dies_young(self, now: float) -> bool:
        """Whether it has failed several times in a row and has not lived long since."""
        return self.failures >= HOPELESS_FAILURES and self.runtime(now) < self.delays.SV_COOLDOWN

    def never_ready(self, now: float) -> bool:
        """Whether it has had its time and has not been ready once; who is ready at once has to live for a while."""
        longest = max(self.ran, self.runtime(now))
        short_lived = not self.row.ready and longest < self.delays.SV_COOLDOWN and self.total_runtime < self.delays.SV_COOLDOWN
        unready = not self.first_ready and bool(self.late or self.failed)
        return not self.transient and (unready or (short_lived and self.wanted and self.failures > 1))

    def keeps_failing(self, now: float, times: int, window: float) -> bool:
        """Whether it has failed so many times in this window, and does not seem to have recovered."""
        recent = sum(now - at <= window for at in self.failed)
        return self.wanted and recent >= min(times, FAILURES_KEPT) and self.runtime(now) < self.delays.SV_COOLDOWN

    def runtime(self, now: float) -> float:
        """Seconds since the launch of the process that is there now."""
        return now - self.started if self.pid is not None else 0.0

    # --- how it gets from one state to the next -------------------------------------------------------------------
    def _enter(self, state: str, now: float, timeout: float | None = None) -> None:
        _log.debug(f"{self.row.name}: {self.state} -> {state}")
        before, self.state = self.state, state
        self.since = now
        self.deadline = None if timeout is None else now + timeout
        if state in (State.WAITING, State.UNMET, State.BACKOFF, State.STOPPING):
            self.ready = self.late = False
        self.actions.entered(self, before)

    def _launch(self, now: float) -> None:
        self.restarts += self.started > 0
        self.started = now
        self.ready = self.late = self.done = self.asked = False
        self.ran = 0.0
        self.status = ""
        try:
            self.pid = self.actions.spawn(self)
        except Exception as error:  # whatever keeps it from starting, it is tried again, with back-off
            self.last_exit = why_not(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            _log.warning(f"{self.row.name}: cannot start, {self.last_exit}")
            self._keep_exit(now)
            self.actions.failed(self, now)
            if self.row.restart == "never":
                self.wanted = False
            self._gone(now)
            return
        _log.info(f"{self.row.name}: started, pid {self.pid}")
        if self.row.ready:
            self._enter(State.STARTING, now, self.row.ready_timeout)
        else:
            self._is_ready(now)
            self._enter(State.RUNNING, now, self.patience)

    def _is_ready(self, now: float) -> None:
        if not self.ready and self.state == State.RUNNING:  # it was late: whoever asks for its readiness looks again
            self.actions.entered(self, self.state)
        self.ready = True
        self.first_ready = self.first_ready or now

    def _restarts(self, code: int) -> bool:
        if code == 125 or self.row.restart == "never":
            return False
        # A signal that asks politely is a clean end too, as systemd has it.
        clean = code in (0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE)
        return self.row.restart == "always" or not clean

    def _ask_to_stop(self, now: float) -> None:
        self.actions.kill(self, signal_number(self.row.stop_signal))
        self.actions.kill(self, signal.SIGCONT)
        self.killed = False
        self._enter(State.STOPPING, now, self.row.stop_timeout)

    def _bark(self, now: float) -> None:
        _log.error(f"{self.row.name}: no WATCHDOG=1 for {self.row.watchdog:g} s, killed")
        self._kill(now)

    def _kill(self, now: float) -> None:
        if self.state == State.STOPPING and not self.killed:
            _log.warning(f"{self.row.name}: did not stop in time, killed")
        self.killed = True
        self.actions.kill(self, signal.SIGKILL)
        self._enter(State.STOPPING, now, self.delays.KILL_RETRY)

    def _gone(self, now: float) -> None:
        """No process of it is left: start it again, wait, or stay stopped."""
        if not self.wanted:
            self._enter(State.STOPPED, now)
            self.ready = self.done
            if self.done:
                self._is_ready(now)
            return
        if self.asked:
            again = self.start_over if not self.flaps else self._back_off if self.met else self._wait
            again(now)
            return
        self.failed = [*self.failed[1 - FAILURES_KEPT :], now]
        if self.ran and self.ran >= self.delays.SV_COOLDOWN:
            self.failures = 0
            self.start_over(now)
        else:
            self.failures += 1
            self._back_off(now)

    def _back_off(self, now: float) -> None:
        self.flaps = False
        self._enter(State.BACKOFF, now, self.delay * self.jitter())
        self.delay = min(2 * self.delay, self.delays.BACKOFF_MAX)

    def _wait(self, now: float) -> None:
        """Wait for its condition, and then for those in its `after`."""
        if self.met:
            self._enter(State.WAITING, now, self.delays.AFTER_TIMEOUT)
        else:
            self._enter(State.UNMET, now)

    def _keep_exit(self, now: float) -> None:
        self.exits = [*self.exits[1 - EXITS_KEPT :], (now, self.last_exit or "", self.ran, self.asked)]

    def start_over(self, now: float) -> None:
        """Start it as soon as what it waits for is ready, with the shortest back-off ahead of it."""
        self.delay, self.flaps = self.delays.BACKOFF_FIRST, False
        self._wait(now)
