"""Runs somebody's code in PID 1 for a limited time, whatever it does, and gives PID 1 back what that code has closed.

A timer's signal comes every TICK. Its handler runs between two steps of the code, and raises Interrupted there once the time is
over; a system call that waits returns with EINTR (PEP 475), so the handler raises from there too. Code that catches every
exception loses its `except`, `finally` and `with` at the third time: they are in its exception table
(InternalDocs/exception_handling.md of CPython), which is empty until the code has ended. A child of PID 1 sends many signals at
once to code that has used up Python's stack, where most handlers cannot be entered.

What nothing in Python can interrupt is one call of C code that never looks for signals (`sum(itertools.repeat(1))`): then the
hardware's watchdog resets the board, because nobody resets its timer when the time is over.
"""

from __future__ import annotations

import os
import sys
import time
from fcntl import F_DUPFD_CLOEXEC, fcntl

import _log
from base.native import ctypes
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import PR_SET_PDEATHSIG, check, libc, limit_memory, prctl
from pid1.closer import fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import partial
    from types import FrameType
else:
    from _functools import partial

TICK = 0.05  # seconds between two looks at the clock and at the client
GENTLE = 3  # the time from which on the code's exception tables are empty
LATE = 0.5  # seconds after its time until the child sends signals too
PAUSE, BURSTS, RARELY = 0.01, 300, 1.0  # so many seconds between so many bursts of them, and then so many
MEMORY = 64 * 1024 * 1024  # bytes that the code may allocate beyond what PID 1 has
ROOM = 50  # calls for our handler on top of the code's
HEADER, EMPTY = (
    bytes.__basicsize__ - 1,
    0x80,
)  # where the bytes of a bytes object begin; a table entry's first byte, with value 0
SYS_PIDFD_GETFD = 438  # linux/unistd.h, the same on all architectures
OVER = "its time is over"
MANY = tuple(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))


class Interrupted(BaseException):
    """The code's time is over, or its client has gone. No `Exception`: the loop's own guards let it pass."""


class TimeLimit:
    """One at a time: `run` is called again only after it has returned."""

    def __init__(self) -> None:
        self.busy = False
        self.until = 0.0
        self.why = ""  # it was interrupted
        self._meanwhile: Callable[[float], str] = lambda now: ""
        self._times = 0
        self._limit = 0  # of calls within calls
        self._tables: dict[int, tuple[bytes, bytes]] = {}  # exception tables that are empty now, and what they were

    def run(self, call: Callable[[], object], seconds: float, meanwhile: Callable[[float], str] = lambda now: "") -> list[str]:
        """Call it; what it raises is raised. Interrupted after so many seconds.

        `meanwhile(now)` is called every TICK while there is time, and says why the code shall end before; empty: it may go on.
        Returns what had to be put right: descriptors that the code has closed.
        """
        if self.busy:
            raise RuntimeError("a statement is running already")
        pid, self._limit, memory = os.getpid(), sys.getrecursionlimit(), limit_memory()
        self.busy, self.why, self._times, self._meanwhile = True, "", 0, meanwhile
        self.until = time.monotonic() + seconds
        before = descriptors()
        child = fork(lambda: _watch(pid, seconds))
        self._catch_signals()
        try:
            _limit_memory(memory)
            signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
            self._call(call)
        finally:
            if os.getpid() != pid:  # the code has forked: there must be no second PID 1
                os._exit(0)
            self._put_tables_back()
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.setrecursionlimit(self._limit)
            limit_memory(memory)
            mended = restore(before, child)
            os.kill(child, signal.SIGKILL)
            self.busy = False
        return mended

    def _call(self, call: Callable[[], object]) -> None:
        """What runs above this frame may be interrupted; this frame, and all below it, never."""
        call()

    # --- the signals' handler -------------------------------------------------------------------------------------------
    def _catch_signals(self) -> None:
        """The handler stays: outside of `_call` it does nothing.

        The code may have used up all calls that Python allows, and no handler in Python can be entered. So it is C code: a
        format of two values, which first takes item N of one, and that is setrecursionlimit(N), and then the text of the other.
        """
        grow = type("Grow", (), {"__getitem__": staticmethod(sys.setrecursionlimit)})()
        tick = type("Tick", (), {"__str__": staticmethod(self._tick)})()
        handler = partial(f"{{0[{self._limit + ROOM}]}}{{1!s}}".format, grow, tick)  # leaves number and frame aside
        for number in (signal.SIGALRM, *MANY):
            signal.signal(number, handler)

    def _tick(self) -> str:
        frame = sys._getframe(1)
        if not self._above(frame):
            return ""
        now = time.monotonic()
        if not self.why:
            self.why = OVER if now >= self.until else self._meanwhile(now)
        try:
            sys.setrecursionlimit(self._limit)
        except RecursionError:  # it has used up all calls; if it went on, it would use up the room for us too
            self.why, self._times = self.why or "it calls itself without end", GENTLE
        if self.why:
            self._times += 1
            if self._times >= GENTLE:
                self._let_nothing_catch(frame)
            raise Interrupted(self.why)
        return ""

    def _above(self, frame: FrameType) -> bool:
        """Whether this frame is of the code that may be interrupted."""
        one = frame.f_back
        while one and one.f_code is not TimeLimit._call.__code__:
            one = one.f_back
        return one is not None

    def _let_nothing_catch(self, frame: FrameType) -> None:
        """Empty the exception tables of all code that runs now: entries of size 0 match no step."""
        one: FrameType | None = frame
        while one and one.f_code is not TimeLimit._call.__code__:
            table = one.f_code.co_exceptiontable
            if table and id(table) not in self._tables:
                self._tables[id(table)] = (table, bytes(bytearray(table)))
                libc.memset(ctypes.c_void_p(id(table) + HEADER), EMPTY, len(table))
            one = one.f_back

    def _put_tables_back(self) -> None:
        for table, copy in self._tables.values():
            libc.memcpy(ctypes.c_void_p(id(table) + HEADER), ctypes.c_char_p(copy), len(copy))
        self._tables.clear()


def _limit_memory(memory: tuple[int, int]) -> None:
    """Soft limit of the address space: what would take the machine's memory is a MemoryError instead. Services that are
    started meanwhile get their own again: World.spawn."""
    with open("/proc/self/statm", encoding="ascii") as file:
        most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    soft, hard = memory
    limit_memory((min(soft, most), hard))


# --- the child ----------------------------------------------------------------------------------------------------------
def _watch(parent: int, seconds: float) -> None:
    """Hold a copy of PID 1's descriptors, until PID 1 kills us; if it does not in time, send it many signals at once."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    time.sleep(seconds + LATE)
    for burst in range(1 << 30):
        for _ in range(10):
            for number in MANY:
                os.kill(parent, number)
        time.sleep(PAUSE if burst < BURSTS else RARELY)


def descriptors() -> dict[int, str]:
    """What is open, by number: the kernel's name of it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the folder's own
            pass
    return found


def restore(before: dict[int, str], child: int) -> list[str]:
    """Put back what is missing, from the child that still has it (`man 2 pidfd_getfd`). epoll has never lost it: it keeps
    the open file, which the child holds."""
    now = descriptors()
    missing = [fd for fd, name in before.items() if fd not in now and not name.startswith("/proc/")]
    mended: list[str] = []
    if not missing:
        return mended
    first = os.pidfd_open(child)  # it gets the lowest free number, which may be one of those
    handle = fcntl(first, F_DUPFD_CLOEXEC, max(before) + 1)
    os.close(first)
    for fd in missing:
        try:
            copy = check(libc.syscall(SYS_PIDFD_GETFD, handle, fd, 0))
            if copy != fd:
                os.dup2(copy, fd, inheritable=False)
                os.close(copy)
            mended.append(f"descriptor {fd} ({before[fd]}) was closed, and is open again")
        except OSError as error:
            mended.append(f"descriptor {fd} ({before[fd]}) was closed, and cannot be opened again: {error.strerror}")
            _log.error(f"console: {mended[-1]}")
    os.close(handle)
    return mended
