"""The process machine: every state meets every event, and back-off is arithmetic."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid1.process import Actions, Process, State
from pid1.states import describe
from tables.load import load
from tables.rows import Service
from tables.values import signal_number

EXIT_0, EXIT_1, EXIT_7, EXIT_125 = 0, 1 << 8, 7 << 8, 125 << 8
KILLED = int(signal.SIGKILL)
DELAYS = load({}).delays()


class World(Actions):
    """Records what a process does to the world; `next_pid` None makes starting fail."""

    def __init__(self) -> None:
        super().__init__()
        self.next_pid: int | None = 100
        self.kills: list[int] = []
        self.left_behind = False

    def spawn(self, process: Process) -> int:
        if self.next_pid is None:
            raise FileNotFoundError(2, "No such file or directory", process.row.argv[0])
        self.next_pid += 1
        return self.next_pid

    def kill(self, process: Process, number: int) -> None:
        self.kills.append(int(number))

    def lingers(self, process: Process) -> bool:
        return self.left_behind


def make(world: World, **columns: object) -> Process:
    row = Service("one", ("/bin/one",), **columns)  # type: ignore[arg-type]
    return Process(row, world, DELAYS, jitter=lambda: 1.0)


def run(process: Process, now: float) -> None:
    process.start(now)
    process.go(now)


def invariants(process: Process) -> None:
    """What holds between any two events."""
    state = process.state
    assert state in State.ALL
    if state in (State.STOPPED, State.WAITING, State.UNMET, State.BACKOFF):
        assert process.pid is None
    if state in (State.STARTING, State.RUNNING):
        assert process.pid is not None
    if state in (State.WAITING, State.STARTING, State.BACKOFF, State.STOPPING):
        assert process.deadline is not None, "nobody is given up silently"
    if state in (State.WAITING, State.BACKOFF, State.STARTING, State.RUNNING):
        assert process.wanted or state in (State.STARTING, State.RUNNING)
    if state == State.UNMET:
        assert process.wanted
        assert not process.met
        assert process.deadline is None, "an event ends it"
    if state in (State.WAITING, State.BACKOFF):
        assert process.met
    if state in (State.STOPPED,):
        assert process.deadline is None
        assert not process.wanted
    if process.ready:
        assert state == State.RUNNING or (state == State.STOPPED and process.row.ready == "exit")
    assert DELAYS.BACKOFF_FIRST <= process.delay <= DELAYS.BACKOFF_MAX
    assert process.failures >= 0


def children_go(process: Process, world: World, now: float) -> None:
    world.left_behind = False
    process.relative_exited(now)


EVENTS: dict[str, Callable[[Process, World, float], object]] = {
    "start": lambda p, w, t: p.start(t),
    "go": lambda p, w, t: p.go(t),
    "stop": lambda p, w, t: p.stop(t),
    "restart": lambda p, w, t: p.restart(t),
    "exit 0": lambda p, w, t: p.exited(EXIT_0, t),
    "exit 1": lambda p, w, t: p.exited(EXIT_1, t),
    "exit 125": lambda p, w, t: p.exited(EXIT_125, t),
    "killed": lambda p, w, t: p.exited(KILLED, t),
    "ready": lambda p, w, t: p.notified({"READY": "1", "STATUS": "up"}, t),
    "watchdog": lambda p, w, t: p.notified({"WATCHDOG": "1"}, t),
    "trigger": lambda p, w, t: p.notified({"WATCHDOG": "trigger"}, t),
    "path": lambda p, w, t: p.became_ready(t),
    "deadline": lambda p, w, t: p.tick(t if p.deadline is None else max(t, p.deadline)),
    "early tick": lambda p, w, t: p.tick(0.0),
    "condition false": lambda p, w, t: p.condition(False, t),
    "condition true": lambda p, w, t: p.condition(True, t),
    "children stay": lambda p, w, t: setattr(w, "left_behind", True),
    "children go": children_go,
    "broken": lambda p, w, t: setattr(w, "next_pid", None),
    "mended": lambda p, w, t: setattr(w, "next_pid", 500),
}

ROADS: dict[str, list[str]] = {  # how to get into each state
    State.STOPPED: [],
    State.WAITING: ["start"],
    State.STARTING: ["start", "go"],
    State.RUNNING: ["start", "go", "ready"],
    State.UNMET: ["start", "condition false"],
    State.BACKOFF: ["start", "go", "killed"],
    State.STOPPING: ["start", "go", "stop"],
}


@pytest.mark.parametrize("ready", ["", "notify", "exit", "/run/path"])
@pytest.mark.parametrize("restart", ["always", "on-failure", "never"])
def test_every_state_meets_every_pair_of_events(ready: str, restart: str) -> None:
    for road in ROADS.values():
        for events in itertools.product(EVENTS, repeat=2):
            world = World()
            process = make(world, ready=ready, restart=restart, watchdog=5.0)
            for at, event in enumerate([*road, *events]):
                EVENTS[event](process, world, 100.0 + at)
                invariants(process)


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=60), st.sampled_from(["", "notify", "exit", "/p"]),
       st.sampled_from(["always", "on-failure", "never"]))  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_any_history_keeps_the_invariants(events: list[str], ready: str, restart: str) -> None:
    world, now = World(), 100.0
    process = make(world, ready=ready, restart=restart, watchdog=5.0)
    for event in events:
        now += 1.7
        EVENTS[event](process, world, now)
        invariants(process)
    # whatever happened: left alone with a wish and a world that works, it runs again
    world.left_behind, world.next_pid = False, 900
    process.row = process.row._replace(ready="", restart="always", watchdog=0.0)
    process.start(now)
    process.condition(True, now)
    for _ in range(8):
        now += 100.0
        if process.state == State.STOPPING and process.pid:
            process.exited(KILLED, now)
        process.relative_exited(now)
        process.tick(now)
        process.go(now)
    assert process.state == State.RUNNING


def test_roads_lead_where_they_say() -> None:
    for state, road in ROADS.items():
        world = World()
        process = make(world, ready="notify")
        for event in road:
            EVENTS[event](process, world, 100.0)
        assert process.state == state


def test_back_off_doubles_to_its_cap_and_a_good_run_resets_it() -> None:
    world, now = World(), 100.0
    process = make(world)
    run(process, now)
    waits = []
    for _ in range(12):
        process.exited(EXIT_1, now)
        assert process.state == State.BACKOFF
        waits.append(round(process.deadline - now, 6))  # type: ignore[operator]
        now = process.deadline  # type: ignore[assignment]
        process.tick(now)
        process.go(now)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    assert process.failures == 12
    now += DELAYS.SV_COOLDOWN
    process.exited(EXIT_1, now)
    assert process.state == State.WAITING, "restarted at once"
    process.go(now)
    process.exited(EXIT_1, now)
    assert (process.failures, round(process.deadline - now, 6)) == (1, 0.1)  # type: ignore[operator]


def test_jitter_shortens_a_wait_by_a_quarter_at_most() -> None:
    from pid1.states import jitter

    assert all(0.75 <= jitter() <= 1.0 for _ in range(1000))


def test_failing_to_start_is_dying_early() -> None:
    world = World()
    world.next_pid = None
    process = make(world)
    run(process, 100.0)
    assert process.state == State.BACKOFF
    assert process.last_exit == "ENOENT No such file or directory: /bin/one"


@pytest.mark.parametrize(
    ("restart", "status", "again"),
    [
        ("always", EXIT_0, True), ("always", EXIT_1, True), ("always", EXIT_125, False), ("on-failure", EXIT_0, False),
        ("on-failure", EXIT_7, True), ("on-failure", KILLED, True), ("on-failure", int(signal.SIGTERM), False),
        ("on-failure", EXIT_125, False), ("never", EXIT_1, False), ("never", KILLED, False),
    ],
)  # fmt: skip
def test_restart_policy(restart: str, status: int, again: bool) -> None:
    process = make(World(), restart=restart)
    run(process, 100.0)
    process.exited(status, 101.0)
    assert process.wanted is again
    assert process.state == (State.BACKOFF if again else State.STOPPED)


def test_stop_is_term_cont_deadline_kill() -> None:
    world = World()
    process = make(world, stop_timeout=5.0)
    run(process, 100.0)
    process.stop(101.0)
    assert world.kills == [signal.SIGTERM, signal.SIGCONT]
    process.tick(105.9)
    assert world.kills == [signal.SIGTERM, signal.SIGCONT]
    process.tick(106.0)
    assert world.kills[2:] == [signal.SIGKILL]
    process.tick(107.0)  # unkillable: asked again, never given up
    assert world.kills[2:] == [signal.SIGKILL] * 2
    process.exited(KILLED, 107.5)
    assert process.state == State.STOPPED


def test_what_it_left_behind_goes_before_its_successor_comes() -> None:
    world = World()
    process = make(world)
    run(process, 100.0)
    world.left_behind = True
    process.exited(EXIT_1, 200.0)
    assert process.state == State.STOPPING
    assert world.kills == [signal.SIGTERM, signal.SIGCONT]
    world.left_behind = False
    process.relative_exited(200.1)
    assert process.state == State.WAITING


def test_mixed_asks_the_main_process_and_kills_what_is_left() -> None:
    world = World()
    process = make(world, kill="mixed")
    run(process, 100.0)
    world.left_behind = True
    process.stop(101.0)
    assert world.kills == [signal.SIGTERM, signal.SIGCONT]
    process.exited(EXIT_0, 102.0)
    assert (process.state, world.kills[2:]) == (State.STOPPING, [signal.SIGKILL])
    world.left_behind = False
    process.relative_exited(102.1)
    assert process.state == State.STOPPED


def test_a_start_during_a_stop_starts_it_afterwards_without_back_off() -> None:
    process = make(World())
    run(process, 100.0)
    process.stop(100.1)
    process.start(100.2)
    process.exited(KILLED, 100.3)
    assert (process.state, process.failures) == (State.WAITING, 0)


def test_watchdog() -> None:
    world = World()
    process = make(world, watchdog=5.0)
    run(process, 100.0)
    assert process.deadline == 105.0
    process.notified({"WATCHDOG": "1"}, 104.0)
    assert process.deadline == 109.0
    process.tick(109.0)
    assert world.kills == [signal.SIGKILL]
    process.exited(KILLED, 109.1)
    assert process.wanted


def test_ready_timeout_lets_the_others_go_on() -> None:
    process = make(World(), ready="notify", ready_timeout=3.0)
    run(process, 100.0)
    assert not process.settled
    process.tick(103.0)
    assert (process.state, process.ready, process.settled) == (State.RUNNING, False, True)
    process.notified({"READY": "1"}, 104.0)
    assert process.ready


def test_a_job_is_ready_when_it_has_ended_well() -> None:
    process = make(World(), ready="exit")
    run(process, 100.0)
    process.exited(EXIT_1, 100.1)
    assert (process.state, process.settled) == (State.BACKOFF, False)
    process.tick(110.0)
    process.go(110.0)
    process.exited(EXIT_0, 110.1)
    assert (process.state, process.ready, process.settled) == (State.STOPPED, True, True)


def test_signal_names() -> None:
    assert signal_number("TERM") == signal_number("SIGTERM") == signal_number(15) == signal_number("15") == 15
    for bad in ("", "FOO", "SIG_DFL", "_DFL", 0, 99, -1):
        with pytest.raises(ValueError, match="is not a signal"):
            signal_number(bad)


def test_describe() -> None:
    assert describe(EXIT_7) == "exit 7"
    assert describe(KILLED) == "signal KILL"
    assert describe(KILLED | 0x80) == "signal KILL"
