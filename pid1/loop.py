"""The one place where PID 1 sleeps: descriptors, deadlines, and a turn that no failure can end."""

from __future__ import annotations

import select
import time

import _log
from base.stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Callback = Callable[[float], object]

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
FAILURES = 100  # a descriptor whose callback fails so often in a row...
REST = 1.0  # ...is left alone for so many seconds
SLOW_TURNS, SLOW_WINDOW = 3, 60.0  # so many slow turns in so many seconds are more than a slow disk


class Loop:
    """Calls `callback(now)` for what is readable and `tick(now)` every turn; sleeps until the next deadline."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._failures: dict[int, int] = {}
        self._resting: dict[int, tuple[float, int]] = {}  # until when, and then for which events
        self.timers: list[tuple[Callable[[], float | None], Callback]] = []  # (next deadline, what to do every turn)
        self.turns = 0
        self.wakeups = 0  # turns that slept first
        self.longest = 0.0  # seconds of work in one turn
        self.limit = float("inf")  # seconds of work that are too many
        self.slow: list[float] = []  # when turns took longer than that: the last ones
        self.errors = 0
        self.excused = 0.0  # seconds of this turn that do not count: a statement of the console, which has a limit of its own
        self.client: Any = None  # the control socket's, whose request is being handled
        self.on_error: Callable[[str, BaseException], object] = lambda what, error: None  # keeps it for crashes()

    def watch(self, fd: int, callback: Callback, events: int = READ) -> None:
        """Call back while `fd` is ready; watching it again replaces callback and events."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed."""
        if self._callbacks.pop(fd, None):
            self._failures.pop(fd, None)
            self._resting.pop(fd, None)
            self._epoll.unregister(fd)

    def turn(self) -> None:
        """Sleep until something is due, then do all of it. An exception in one callback does not touch the others."""
        timeout: float | None = 0.0
        try:
            timeout = self._timeout()
            ready = self._epoll.poll(timeout)
        except Exception as error:  # cannot happen; if it does, PID 1 must neither die nor spin
            self._failed("epoll", error)
            time.sleep(0.05)
            ready = []
        now = time.monotonic()
        self.turns += 1
        self.wakeups += timeout != 0
        self._wake_rested(now)
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback and self.guard(f"descriptor {fd}", callback, now):
                self._failures.pop(fd, None)
            elif callback:
                self._failures[fd] = self._failures.get(fd, 0) + 1
                if self._failures[fd] % FAILURES == 0:
                    _log.error(f"descriptor {fd} failed {FAILURES} times in a row: left alone for {REST:g} s")
                    self._epoll.modify(fd, 0)
                    self._resting[fd] = (now + REST, events)
        for _, tick in self.timers:
            self.guard("timer", tick, now)
        took = time.monotonic() - now - self.excused
        self.excused = 0.0
        self.longest = max(self.longest, took)
        if took > self.limit:
            self.slow = [*self.slow[1 - SLOW_TURNS :], now + took]
            _log.warning(f"a turn of PID 1's loop took {took:.1f} s")

    def overloaded(self, now: float) -> bool:
        """Whether SLOW_TURNS turns in SLOW_WINDOW seconds took too long."""
        return len(self.slow) == SLOW_TURNS and now - self.slow[0] <= SLOW_WINDOW

    def guard(self, what: str, callback: Callback, now: float) -> bool:
        """Call back; log and count what it raises. PID 1 goes on."""
        try:
            callback(now)
        except Exception as error:
            self._failed(what, error)
            return False
        return True

    def _wake_rested(self, now: float) -> None:
        for fd, (until, events) in list(self._resting.items()):
            if until <= now:
                del self._resting[fd]
                self._epoll.modify(fd, events)

    def _timeout(self) -> float | None:
        deadlines = [until for until, _ in self._resting.values()]
        for next_deadline, _ in self.timers:
            try:
                deadline = next_deadline()
            except Exception as error:
                self._failed("timer", error)
                deadline = time.monotonic() + 1.0
            if deadline is not None:
                deadlines.append(deadline)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _failed(self, what: str, error: Exception) -> None:
        self.errors += 1
        _log.error(f"{what}: {trace(error)}")
        self.on_error(what, error)


def trace(error: BaseException) -> str:
    """An exception with the places it came through, on one line; `traceback` would cost PID 1 a megabyte."""
    places, step = [], error.__traceback__
    while step:
        code = step.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    return f"{type(error).__name__}: {error} ({' > '.join(places[-6:])})"
