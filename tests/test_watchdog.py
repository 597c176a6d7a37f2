"""The watchdog's logic with a fake clock and a fake dog; PID 1 that feeds a file in its place. Real ones: qemu_watchdog.py."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Board, eventually
from test_process import World

from base.syscalls import Reboot
from onboard import boot_ends
from onboard.to_pid1 import SVError
from pid1 import loop as loop_module
from pid1 import teardown
from pid1.loop import Loop
from pid1.process import Process
from pid1.watchdog import DUMP_AT, RETRY_MAX, Device, Watchdog
from prompt import command
from prompt import functions as prompt
from tables.load import load
from tables.rows import Delays, Service

DEFAULTS = load({}).values

Boot = Callable[..., Board]


class Dog:
    """A driver that takes timeouts up to its `most`, and writes down what happens to it."""

    def __init__(self, most: float = 1000.0) -> None:
        self.most = most
        self.life: list[object] = []

    def set_timeout(self, seconds: float) -> float:
        self.life.append(min(seconds, self.most))
        return min(seconds, self.most)

    def feed(self) -> None:
        self.life.append("fed")

    def disarm(self) -> None:
        self.life.append("disarmed")


class FakeInit:
    """What a Watchdog sees of PID 1."""

    def __init__(self, **settings: object) -> None:
        self.tables = SimpleNamespace(**{**DEFAULTS, "WATCHDOG": "/dev/watchdog", **settings})
        self.loop = Loop()
        self.ill = ""
        self.sv = SimpleNamespace(unhealthy=lambda now: self.ill)
        self.born = 0.0
        self.at_end: list[Any] = []
        self.command: int | None = None
        self.ends: list[tuple[int, str, str]] = []
        self.faults: list[str] = []
        self.dog = Dog()
        self.missing = False
        self.watchdog = Watchdog(self, open_device=self.open_device)  # type: ignore[arg-type]

    def open_device(self, path: str) -> Any:
        if self.missing:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.dog

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def shut_down(self, command: int, reason: str, now: float, cause: str = "") -> None:
        self.command = command
        self.ends.append((command, reason, cause))
        self.watchdog.shut_down(now)

    def live(self, until: float, step: float = 0.5) -> None:
        """Turns of the loop, each when the watchdog's deadline has come or `step` later."""
        now = getattr(self, "now", 0.0)
        while now < until:
            deadline = self.watchdog.next_deadline()
            now = min(now + step, until) if deadline is None else min(max(deadline, now), until)
            self.loop.guard("watchdog", self.watchdog.tick, now)
            if deadline is not None and deadline > until:
                break
        self.now = until


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("RECORD", "ENDING", "STUCK"):
        monkeypatch.setattr(boot_ends, name, str(tmp_path / name))
    monkeypatch.setattr(teardown, "file_systems", lambda: ["/run", "/"])
    yield FakeInit
    faulthandler.cancel_dump_traceback_later()


# --- feeding ----------------------------------------------------------------------------------------------------------
def test_it_is_opened_at_once_and_fed_three_times_in_a_timeout(init: Any) -> None:
    one = init(WATCHDOG_TIMEOUT=30.0)
    one.watchdog.open(0.0)
    assert one.dog.life == [30.0, "fed"]
    one.live(29.0)
    assert one.dog.life == [30.0, "fed", "fed", "fed"]


def test_the_drivers_timeout_counts(init: Any) -> None:
    one = init(WATCHDOG_TIMEOUT=30.0)
    one.dog.most = 9.0
    one.watchdog.open(0.0)
    one.live(8.9)
    assert one.dog.life == [9.0, "fed", "fed", "fed"]
    assert one.watchdog.facts(8.9)["timeout"] == 9.0


def test_a_driver_that_comes_late_is_waited_for_with_growing_pauses(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("_log.warning", said.append)
    one = init()
    one.missing = True
    one.watchdog.open(0.0)
    pauses, now = [], 0.0
    for _ in range(12):
        pauses.append(one.watchdog.next_deadline() - now)
        now = one.watchdog.next_deadline()
        one.watchdog.tick(now)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, RETRY_MAX)
    assert said == ["watchdog: /dev/watchdog: No such file or directory; nobody resets this board when it hangs"]
    assert one.watchdog.facts(now)["error"] == "/dev/watchdog: No such file or directory"
    one.missing = False
    one.watchdog.tick(now + RETRY_MAX)
    assert one.dog.life == [30.0, "fed"]
    assert one.watchdog.facts(now + RETRY_MAX)["error"] == ""


def test_a_board_without_one_has_no_deadline(init: Any) -> None:
    one = init(WATCHDOG="")
    one.watchdog.open(0.0)
    assert one.watchdog.next_deadline() is None
    assert not os.path.exists(boot_ends.STUCK)


def test_a_reload_may_change_its_timeout(init: Any) -> None:
    one = init(WATCHDOG_TIMEOUT=30.0)
    one.watchdog.open(0.0)
    one.tables.WATCHDOG_TIMEOUT = 12.0
    one.live(10.0)
    assert one.dog.life == [30.0, "fed", 12.0, "fed"]


def test_a_loop_that_stands_still_feeds_nothing_and_its_stack_goes_to_the_keeper(init: Any) -> None:
    one = init(WATCHDOG_TIMEOUT=0.3)
    one.watchdog.open(time.monotonic())
    reader = os.open(boot_ends.STUCK, os.O_RDONLY | os.O_NONBLOCK)

    def written() -> str:
        try:
            return os.read(reader, 65536).decode()
        except BlockingIOError:
            return ""

    def stand_still() -> str:
        return eventually(written)

    text = stand_still()
    assert one.dog.life == [0.3, "fed"]
    assert "in stand_still\n" in text
    one.watchdog.tick(time.monotonic())
    assert one.dog.life == [0.3, "fed", "fed"], "it goes on"
    assert written() == boot_ends.RECOVERED
    os.close(reader)


def test_a_keeper_that_takes_nothing_does_not_starve_the_dog(init: Any) -> None:
    one = init(WATCHDOG_TIMEOUT=30.0)
    one.watchdog.open(1.0)
    os.write(one.watchdog.report, bytes(1 << 20))  # as much of it as a pipe takes
    one.loop.guard("watchdog", one.watchdog.tick, 29.0)  # so late that it has something to say
    assert (one.loop.errors, one.watchdog.fed) == (1, 29.0)


def test_the_stack_is_written_before_the_dog_bites() -> None:
    assert 0.5 < DUMP_AT < 0.8


# --- health -----------------------------------------------------------------------------------------------------------
def test_a_board_that_is_not_healthy_reboots_in_order(init: Any) -> None:
    one = init(CRITICAL_INTERVAL=20.0)
    one.watchdog.open(0.0)
    one.ill = "the broker keeps failing"
    one.live(50.0)
    assert one.ends == [(Reboot.RESTART, "the broker keeps failing", "critical")]
    at = one.dog.life.index(teardown.budget(one.tables))
    assert one.dog.life[at:] == [teardown.budget(one.tables), "fed"], "once, for the whole shutdown"


def test_a_driver_that_comes_too_late_for_that_is_fed_for_the_shutdown_alone(init: Any) -> None:
    one = init(CRITICAL_INTERVAL=0.0)
    one.ill = "the broker keeps failing"
    one.watchdog.open(50.0)
    one.now = 50.0
    one.live(500.0)
    assert one.dog.life == [teardown.budget(one.tables), "fed"]


@pytest.mark.parametrize(("record", "allowed"), [({"may_escalate": True}, True), ({"may_escalate": False}, False), ({}, False)])
def test_before_that_the_record_of_boots_decides(init: Any, record: dict[str, Any], allowed: bool) -> None:
    one = init(CRITICAL_INTERVAL=3600.0)
    if record:
        boot_ends.tell(boot_ends.RECORD, record)
    one.watchdog.open(0.0)
    one.ill = "the broker keeps failing"
    one.watchdog.escalate(one.ill, 5.0)
    assert bool(one.ends) is allowed
    one.live(100.0)
    assert bool(one.ends) is allowed
    assert len(one.faults) == (not allowed), "said once"
    if not allowed:
        assert one.dog.life.count("fed") > 9, "what must not reboot must not be bitten either"
        one.live(3601.0)
        assert one.ends


def test_where_the_reboot_cannot_even_begin_the_dog_bites(init: Any) -> None:
    one = init(CRITICAL_INTERVAL=0.0)
    one.watchdog.open(0.0)
    one.ill = "the broker keeps failing"
    one.shut_down = None
    one.live(100.0)
    assert one.dog.life == [30.0, "fed"]
    assert one.loop.errors > 3
    one.ill = ""
    one.live(130.0)
    assert one.dog.life[2:] == ["fed"] * 3, "and healthy again it is fed again"


def test_snoozing_is_capped_and_ends_by_itself(init: Any) -> None:
    one = init(CRITICAL_INTERVAL=0.0, WATCHDOG_SNOOZE_MAX=10.0)
    one.watchdog.open(0.0)
    assert one.watchdog.snooze(9999, 1.0)["snooze"] == 600.0
    one.ill = "the broker keeps failing"
    one.watchdog.escalate(one.ill, 2.0)
    one.live(599.0)
    assert not one.ends
    assert one.dog.life.count("fed") == 60, "fed, whatever its health"
    one.live(602.0)
    assert [reason for _, reason, _ in one.ends] == ["the broker keeps failing"]


def test_snooze_ends_without_a_dog_and_when_asked(init: Any) -> None:
    one = init(CRITICAL_INTERVAL=0.0, WATCHDOG="")
    one.watchdog.snooze(1, 0.0)
    one.ill = "x"
    one.live(59.0)
    assert not one.ends
    one.watchdog.snooze(0, 59.0)
    assert one.ends
    other = init(CRITICAL_INTERVAL=0.0, WATCHDOG="")
    other.watchdog.snooze(1, 0.0)
    other.ill = "x"
    other.live(61.0)
    assert other.ends


def test_the_prompt_asks_for_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("onboard.to_pid1.ask", lambda _path, asked: {"asked": [asked["op"], asked["minutes"]]})
    assert prompt.snooze() == {"asked": ["snooze", 15.0]}
    assert command.main(["snooze", "5", "--json"]) == 0
    assert capsys.readouterr().out == '{"asked": ["snooze", 5.0]}\n'


def failing(lives: float = 0.0, delays: Delays | None = None) -> tuple[Process, Callable[[float], None]]:
    """A critical service that dies so long after each start; and what makes time pass."""
    world = World()
    process = Process(Service("c", ("c",), critical=True), world, delays or load({}).delays(), jitter=lambda: 1.0)
    process.start(0.0)
    process.go(0.0)
    clock = [0.0]

    def until(now: float) -> None:
        while clock[0] < now:
            if process.pid is not None:
                clock[0] = process.started + max(lives, 0.01)
                process.exited(1 << 8, clock[0])
            else:
                clock[0] = max(clock[0], process.deadline or 0.0) if process.state == "backoff" else clock[0]
                process.tick(clock[0])
            process.go(clock[0])

    return process, until


@pytest.mark.parametrize("lives", [0.0, 9.0, 15.0, 100.0])
def test_back_off_does_not_hide_a_critical_service(lives: float) -> None:
    """Hours later, with its longest pauses, it is still over its budget; and so is one that dies after a good run."""
    times, window = DEFAULTS["CRITICAL_FAILURES"], DEFAULTS["CRITICAL_WINDOW"]
    process, until = failing(lives)
    for at in (1000.0, 7200.0, 20000.0):
        until(at)
        assert process.keeps_failing(max(at, process.since), times, window), at


def test_a_service_that_recovers_or_was_told_to_is_healthy() -> None:
    process, until = failing()
    until(100.0)
    now = max(100.0, process.since)
    assert process.keeps_failing(now, 5, 600.0)
    while process.pid is None:
        now = max(now, process.deadline or 0.0)
        process.tick(now)
        process.go(now)
    assert process.keeps_failing(now + 9.0, 5, 600.0)
    assert not process.keeps_failing(now + 11.0, 5, 600.0), "it runs"
    process.exited(1 << 8, now + 12.0)
    assert process.keeps_failing(now + 12.0, 5, 600.0)
    process.restart(now + 13.0)
    process.go(now + 13.0)
    assert not process.keeps_failing(now + 13.0, 5, 600.0), "somebody has looked after it"


def test_three_slow_turns_in_a_minute_are_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    one, clock = Loop(), [100.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    one.limit = 5.0
    one.timers.append((lambda: clock[0], lambda now: clock.__setitem__(0, clock[0] + 6.0)))
    one.turn()
    one.turn()
    assert not one.overloaded(clock[0])
    one.turn()
    assert one.overloaded(clock[0])
    assert not one.overloaded(clock[0] + 60.0)


def test_settings_that_would_hide_a_fault_are_named(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text("CRITICAL_WINDOW = 60.0\nWATCHDOG = 'watchdog'\nWATCHDOG_TIMEOUT = 0.5\n")
    tables = load({"stack.profile": str(profile)})
    assert (tables.CRITICAL_WINDOW, tables.WATCHDOG, tables.WATCHDOG_TIMEOUT) == (280.0, "/dev/watchdog", 30.0)
    assert [text.partition(" ")[0] for text in tables.rejected] == ["WATCHDOG", "WATCHDOG_TIMEOUT", "CRITICAL_WINDOW"]


# --- the end ----------------------------------------------------------------------------------------------------------
def test_a_shutdown_gets_its_whole_budget_at_once(init: Any) -> None:
    one = init()
    one.watchdog.open(0.0)
    one.watchdog.shut_down(5.0)
    one.watchdog.shut_down(6.0)
    one.live(1000.0)
    assert one.dog.life == [30.0, "fed", teardown.budget(one.tables), "fed"]
    assert one.watchdog.next_deadline() is None


def test_a_driver_that_refuses_so_much_is_fed_until_then_and_never_again(init: Any) -> None:
    one = init()
    one.dog.most = 16.0
    one.watchdog.open(0.0)
    one.watchdog.shut_down(5.0)
    one.live(1000.0)
    meals = one.dog.life.count("fed") - 2
    assert meals == int(teardown.budget(one.tables) / (16.0 / 3))
    assert one.watchdog.next_deadline() is None


@pytest.mark.parametrize("command", [Reboot.HALT, Reboot.POWER_OFF, Reboot.RESTART])
def test_what_is_halted_stays_so(init: Any, monkeypatch: pytest.MonkeyPatch, command: int) -> None:
    one = init()
    one.watchdog.open(0.0)
    monkeypatch.setattr(teardown, "wait_for_children", lambda *_, **__: True)
    monkeypatch.setattr(teardown, "close_disks", lambda *_: one.dog.life.append("disks closed"))
    monkeypatch.setattr(teardown, "reboot", lambda command: one.dog.life.append("reboot(2)"))
    teardown.tear_down(command, one.tables, one.watchdog.wait, one.watchdog.disarm)
    disarmed = [] if command == Reboot.RESTART else ["disarmed"]
    assert one.dog.life[2:] == ["disks closed", *disarmed, "reboot(2)"]


def test_teardowns_waits_feed_a_dog_of_little_patience(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = init()
    one.dog.most = 0.15
    one.watchdog.open(time.monotonic())
    one.watchdog.shut_down(time.monotonic())
    before = one.dog.life.count("fed")
    monkeypatch.setattr(os, "waitpid", lambda *_: (0, 0))
    assert not teardown.wait_for_children(0.5, meanwhile=one.watchdog.wait)
    assert one.dog.life.count("fed") - before >= 5


def test_the_device_is_closed_in_children_and_by_magic(tmp_path: Path) -> None:
    path = tmp_path / "dog"
    path.write_text("")
    device = Device(str(path))
    assert not os.get_inheritable(device.fd)
    assert device.set_timeout(12.5) == 12.5, "no ioctl here: what was asked"
    device.feed()
    device.disarm()
    assert path.read_bytes() == b"\0V"
    with pytest.raises(OSError):
        os.fstat(device.fd)


# --- PID 1 ------------------------------------------------------------------------------------------------------------
def test_pid_1_feeds_what_comes_late_and_nobody_inherits_it(boot: Boot) -> None:
    """A file in place of the device: its size is the number of meals."""
    rows = "Service('driver', ('sh', '-c', 'sleep 1; : >/run/dog; exec sleep 1000')), KEEPER._replace(after=()),"
    board = boot(rows, settings="WATCHDOG, WATCHDOG_TIMEOUT = '/run/dog', 3.0").up()
    assert board.ask("board")["watchdog"]["error"] == "/run/dog: No such file or directory"
    dog = board.root / "run/dog"
    eventually(lambda: dog.read_bytes() == b"\0\0\0")
    facts = board.ask("board")["watchdog"]
    assert (facts["device"], facts["timeout"], facts["unhealthy"], facts["error"]) == ("/run/dog", 3.0, "", "")
    assert facts["fed"] <= 1.5
    holders = []
    for pid in board.processes():
        outside = board.outside(pid)
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{outside}/fd")]
        holders += [pid for link in links if link == "/run/dog"]
    assert holders == [1]
    before = dog.read_bytes()
    with open(dog, "rb") as file:
        board.end(signal.SIGUSR1)
        last_words = file.read()[len(before) :]
    assert last_words.strip(b"\0") == b"V", "halted: the magic close"


def test_root_may_snooze(boot: Boot) -> None:
    board = boot("Service('c', ('false',), critical=True),", settings="CRITICAL_INTERVAL = 5.0\nCRITICAL_FAILURES = 3").up()
    assert board.ask("snooze", minutes=1e9)["snooze"] == 3600.0
    eventually(lambda: board.ask("board")["watchdog"]["unhealthy"])
    time.sleep(max(0.0, 6.0 - board.ask("board")["uptime"]))
    assert board.ask("board")["state"] == "running"
    for minutes in ("x", -1, None):
        with pytest.raises(SVError, match="how many minutes"):
            board.ask("snooze", minutes=minutes)
    board.ask("snooze", minutes=0)
    assert board.launcher.wait(30) == 3, "a reboot"
