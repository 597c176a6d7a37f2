"""What PID 1's code must do whatever the board is: a test of the pure parts, which an upgrade runs before it takes new code.

It touches no process, no file and no table of the board, and takes some milliseconds. The tests of the repository prove more;
this one runs on the board, with its Python and its libc.
"""

from __future__ import annotations

import os
import time

from base.stdlib import TYPE_CHECKING, json
from pid1.loop import Loop
from pid1.options import kernel_words, parse_options
from pid1.process import Actions, Process, State
from pid1.readiness import parse_notification
from tables.rows import Delays, Service

if TYPE_CHECKING:
    from collections.abc import Callable

DELAYS = Delays(SV_COOLDOWN=5.0, BACKOFF_FIRST=1.0, BACKOFF_MAX=4.0, AFTER_TIMEOUT=9.0)
EXIT_1 = 1 << 8


class Wrong(Exception):
    """What the code does, and should not."""


def check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"self-test: {what} is {found!r}, not {expected!r}")


class Recorded(Actions):
    """A world that only notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.pids = iter(range(100, 1000))

    def spawn(self, process: Process) -> int:
        return next(self.pids)

    def kill(self, process: Process, number: int) -> None:
        self.sent.append(number)

    def lingers(self, process: Process) -> bool:
        return False


def run() -> None:
    """All of it; Wrong, or whatever the code raises, where it fails."""
    tests: tuple[Callable[[], None], ...] = (a_service_lives, a_service_that_fails, a_service_that_stops, words, the_loop)
    for test in tests:
        test()


def new(**columns: object) -> tuple[Process, Recorded]:
    world = Recorded()
    return Process(Service("one", ("true",), **columns), world, DELAYS, jitter=lambda: 1.0), world  # type: ignore[arg-type]


def a_service_lives() -> None:
    process, _ = new(ready="notify", watchdog=3.0)
    process.start(0.0)
    process.go(0.0)
    check("a service that was started", (process.state, process.pid, process.settled), (State.STARTING, 100, False))
    process.notified(parse_notification(b"READY=1\nSTATUS=up"), 1.0)
    check("the state of one that is ready", (process.state, process.ready, process.status), (State.RUNNING, True, "up"))
    process.notified({"WATCHDOG": "1"}, 2.0)
    check("the deadline of its watchdog", process.deadline, 5.0)


def a_service_that_fails() -> None:
    process, _ = new()
    process.start(1.0)
    process.go(1.0)
    for at, wait in ((2.0, 1.0), (4.0, 2.0), (7.0, 4.0), (12.0, 4.0)):
        process.exited(EXIT_1, at)
        check("a service that has died", (process.state, process.deadline), (State.BACKOFF, at + wait))
        process.tick(at + wait)
        process.go(at + wait)
        check("a service after its back-off", process.state, State.RUNNING)
    check("its restarts and its last exit", (process.restarts, process.last_exit), (4, "exit 1"))


def a_service_that_stops() -> None:
    process, world = new(stop_timeout=2.0)
    process.start(0.0)
    process.go(0.0)
    process.stop(1.0)
    check("a service that is asked to stop", (process.state, world.sent), (State.STOPPING, [15, 18]))
    process.tick(3.0)
    check("one that does not obey", world.sent, [15, 18, 9])
    process.exited(9, 3.5)
    check("one that has gone", (process.state, process.pid), (State.STOPPED, None))


def words() -> None:
    check("options", parse_options(kernel_words('quiet stack.a="b c" -- stack.d')), {"stack.a": "b c"})
    check("JSON", json.loads(json.dumps({"a": [1, None, "ü", 0.5]})), {"a": [1, None, "ü", 0.5]})


def the_loop() -> None:
    """A pipe wakes it, a callback that raises is counted and ends nothing."""
    loop, seen = Loop(), []
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        loop.watch(reader, lambda now: seen.append(os.read(reader, 9)))
        loop.timers.append((lambda: time.monotonic() + 1.0, lambda now: None))
        os.write(writer, b"x")
        loop.turn()
        check("what the loop has read", seen, [b"x"])
        loop.unwatch(reader)
    finally:
        os.close(reader)
        os.close(writer)
        loop._epoll.close()
