"""The supervisor with a fake kernel: who starts, stops, is forgotten and may ask for what, with numbers worked out by hand."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_changes import service, tables

from onboard import boot_ends
from onboard.to_pid1 import SVError
from pid1 import loop as loop_module
from pid1.instances import fits
from pid1.life import Life
from pid1.loop import FAILURES, REST, Loop
from pid1.process import Process, State
from pid1.requests import Requests
from pid1.world import World
from sv import ENDED_COMMANDS, RETRY, SV
from tables.rows import Service


class Kernel:
    """What the real World would ask of the kernel: children are numbers, and a signal is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.pids = iter(range(101, 10_000))
        self.signals: list[tuple[int, int]] = []
        self.alive: set[int] = set()
        self.environments: dict[str, dict[str, str]] = {}
        self.life = Life([])
        self.world = World(self.life)
        self.world.notify._folder = str(tmp_path / "notify")
        self.life.sv = self.sv = SV(self.life, self.world)
        self.requests = Requests(self.life, SimpleNamespace(facts=lambda now: {}, snooze=lambda m, now: {"m": m}))  # type: ignore[arg-type]
        monkeypatch.setattr(self.world.spawner, "spawn", self.spawn)
        monkeypatch.setattr(os, "killpg", self.kill)
        monkeypatch.setattr(os, "kill", self.kill)
        monkeypatch.setattr("pid1.relatives.adopted", lambda known: [])
        monkeypatch.setattr("pid1.relatives.descendants", lambda pid: [])
        monkeypatch.setattr(self.life, "tell", lambda *_: None)

    def spawn(self, row: Service, account: Any, extra: dict[str, str], *_: Any) -> int:
        pid = next(self.pids)
        self.environments[row.name] = extra
        self.alive.add(pid)
        return pid

    def kill(self, pid: int, number: int) -> None:
        if pid not in self.alive:
            raise ProcessLookupError(3, "No such process")
        if number:
            self.signals.append((pid, int(number)))

    def boot(self, *rows: Service, now: float = 10.0) -> None:
        self.life.tables = tables(*rows)
        self.sv.reload(now)
        self.sv.tick(now)

    def dies(self, name: str, status: int, now: float) -> None:
        pid = self.sv.processes[name].pid
        assert pid is not None
        self.alive.discard(pid)
        self.sv.deaths[pid] = status
        self.sv.tick(now)

    def states(self) -> dict[str, str]:
        return {name: process.state for name, process in self.sv.processes.items()}

    def pid(self, name: str) -> int | None:
        return self.sv.processes[name].pid


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


# --- turns ------------------------------------------------------------------------------------------------------------
def test_one_turn_starts_a_whole_chain(kernel: Kernel) -> None:
    kernel.boot(service("c", after=("b",)), service("b", after=("a",)), service("a"))
    assert kernel.states() == dict.fromkeys("cba", "running")
    assert [kernel.pid(name) for name in "abc"] == [101, 102, 103]
    assert kernel.world.changed == []
    assert kernel.sv.next_deadline() is None, "and then there is nothing to do"


def test_a_death_is_told_and_what_waits_for_its_successor_is_due(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    kernel.dies("a", 7 << 8, 11.0)
    process = kernel.sv.processes["a"]
    assert (process.state, process.last_exit, kernel.sv.deaths) == (State.BACKOFF, "exit 7", {})
    deadline = kernel.sv.next_deadline()
    assert deadline is not None
    assert 11.075 <= deadline <= 11.1
    kernel.sv.tick(deadline)
    assert kernel.pid("a") == 102


def test_a_death_that_our_own_code_fails_on_is_not_lost(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.boot(service("a"))

    def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Process, "exited", broken)
        kernel.dies("a", 0, 11.0)
    assert kernel.sv.deaths == {101: 0}
    assert kernel.life.loop.errors == 1
    assert kernel.sv.processes["a"].deadline == 11.0 + RETRY
    kernel.sv.tick(12.0)
    assert kernel.sv.deaths == {}
    assert kernel.sv.processes["a"].last_exit == "exit 0"


def test_an_orphans_death_touches_nobody(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    kernel.sv.deaths[999] = 0
    kernel.sv.tick(11.0)
    assert (kernel.states(), kernel.sv.deaths, kernel.life.loop.errors) == ({"a": "running"}, {}, 0)


def test_dependents_stop_first_and_the_logger_last(kernel: Kernel) -> None:
    kernel.boot(service("logd", logger=True), service("a"), service("b", after=("a",)), now=10.0)
    logd, a, b = (kernel.pid(name) for name in ("logd", "a", "b"))
    kernel.life.tables.values["SHUTDOWN_TIMEOUT"] = 20.0
    kernel.sv.shut_down(50.0)
    kernel.sv.tick(50.0)
    assert kernel.signals == [(b, signal.SIGTERM), (b, signal.SIGCONT)]
    assert kernel.sv.next_deadline() == 55.0, "KILL after its stop_timeout"
    kernel.dies("b", 0, 51.0)
    assert kernel.signals[2:] == [(a, signal.SIGTERM), (a, signal.SIGCONT)]
    assert kernel.states() == {"logd": "running", "a": "stopping", "b": "stopped"}
    kernel.dies("a", 0, 52.0)
    assert kernel.signals[4:] == [(logd, signal.SIGTERM), (logd, signal.SIGCONT)]
    kernel.dies("logd", 0, 53.0)
    assert kernel.sv.down
    ends = []
    for now in (53.0, 54.0, 55.0):
        ends.append(kernel.sv.stopping)
        kernel.sv.hurry(now)
    assert ends == [70.0, 53.0, 53.0]


def test_what_left_the_table_is_forgotten_when_it_has_stopped(kernel: Kernel) -> None:
    kernel.boot(service("a"), service("off"))
    kernel.sv.processes["off"].stop(11.0)
    kernel.dies("off", 0, 11.0)
    kernel.boot(now=12.0)
    assert kernel.states() == {"a": "stopping"}
    kernel.dies("a", 0, 12.5)
    assert kernel.states() == {}


def test_commands_that_run_are_kept_and_of_ended_ones_the_last_few(kernel: Kernel) -> None:
    kernel.boot()
    for number in range(ENDED_COMMANDS + 5):
        kernel.sv.add(service(f"c{number}", restart="never"), 20.0 + number)
        kernel.sv.settle(20.0 + number)
    assert len(kernel.sv.processes) == ENDED_COMMANDS + 5, "all of them run"
    for number in range(2, ENDED_COMMANDS + 5):
        kernel.dies(f"c{number}", 0, 100.0 + number)
    assert list(kernel.sv.processes) == ["c0", "c1", *(f"c{number}" for number in range(5, ENDED_COMMANDS + 5))]


def test_each_service_is_told_what_it_has_to_say(kernel: Kernel) -> None:
    kernel.boot(service("plain"), service("w", watchdog=2.5), service("n", ready="notify"))
    assert kernel.environments["plain"] == {}
    assert kernel.environments["w"]["WATCHDOG_USEC"] == "2500000"
    assert kernel.environments["w"]["NOTIFY_SOCKET"].startswith(kernel.world.notify._folder + "/w.")
    assert set(kernel.environments["n"]) == {"NOTIFY_SOCKET"}


def test_a_messages_sender_counts(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.boot(service("n", ready="notify"))
    process = kernel.sv.processes["n"]

    def said(words: dict[str, str], pid: int, uid: int) -> None:
        kernel.world._notified(process, SimpleNamespace(words=words, pid=pid, uid=uid), 11.0)  # type: ignore[arg-type]

    monkeypatch.setattr("pid1.relatives.group_of", lambda pid: 0)
    monkeypatch.setattr("pid1.relatives.environment_of", lambda pid: b"")
    said({"READY": "1"}, 77, 1000)
    assert not process.ready, "a stranger's word"
    said({"READY": "1"}, 101, 1000)
    assert process.ready, "its main process, whoever that is now"


def test_settle_starts_what_waits_for_it(kernel: Kernel) -> None:
    kernel.boot(service("n", ready="notify"), service("w", after=("n",)))
    assert kernel.states() == {"n": "starting", "w": "waiting"}
    kernel.sv.processes["n"].notified({"READY": "1"}, 11.0)
    assert kernel.sv.next_deadline() == 0.0, "the loop does not sleep"
    kernel.sv.tick(11.0)
    assert kernel.states() == {"n": "running", "w": "running"}


# --- requests ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "name", "fit"),
    [
        ("gps", "gps", True),
        ("gps", "gps@x", False),
        ("gps@*", "gps@x", True),
        ("*", "x", True),
        ("gps@*", "gpsx", False),
        ("gps", 5, False),
    ],
)
def test_fits(pattern: str, name: object, fit: bool) -> None:
    assert fits(pattern, name) is fit


def test_a_service_may_what_its_row_says_as_long_as_it_is_that_service(kernel: Kernel) -> None:
    kernel.boot(service("uplink", may="COMMANDS"), service("other"))
    kernel.life.tables.values["COMMANDS"] = (("restart", "gps@*"), ("reboot", ""))
    uplink, other = kernel.pid("uplink"), kernel.pid("other")
    assert None not in (uplink, other)

    def may(pid: Any, op: str, since: float = 10.0, **more: str) -> bool:
        return kernel.requests.permits(pid, {"op": op, **more}, since)

    def refusal(op: str, **more: str) -> str:
        with pytest.raises(SVError) as error:
            kernel.requests.permits(uplink or 0, {"op": op, **more}, 10.0)
        return str(error.value)

    assert may(uplink, "reboot")
    assert may(uplink, "restart", name="gps@ttyUSB0")
    assert refusal("restart", name="broker") == "this board's COMMANDS refuses restart broker; it lists restart gps@*, reboot"
    assert refusal("stop", name="gps@x").startswith("this board's COMMANDS refuses stop gps@x")
    assert refusal("push", folder="/x").startswith("this board's COMMANDS refuses push; ")
    assert not may(uplink, "board"), "and what all may read needs no rule"
    assert not may(other, "reboot"), "its row says nothing"
    assert not may(4321, "reboot")
    assert not may(uplink, "reboot", since=9.9), "who connected before it began is not it"


def test_the_word_update_runs_sv_update_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "release").write_text("rpi3 1.3\n")
    monkeypatch.setattr("pid1.update_word.RELEASE", str(tmp_path / "release"))
    kernel.boot(service("uplink", may="COMMANDS"))
    kernel.life.tables.values["COMMANDS"] = (("update", "https://updates.example.org/*"),)
    word = {"op": "update", "url": "https://updates.example.org/1.4.swu", "version": "1.4"}
    assert kernel.requests.permits(kernel.pid("uplink") or 0, word, 10.0)
    with pytest.raises(SVError, match=r"COMMANDS refuses update https://example\.org/x; it lists"):
        kernel.requests.permits(kernel.pid("uplink") or 0, {**word, "url": "https://example.org/x"}, 10.0)
    assert kernel.requests.handle({**word, "version": "1.3"}, 0, 11.0) == "this board runs 1.3 already"
    for url in ("http://updates.example.org/x", 'https://x/"; reboot', "https://x/{PATH}", "https://x/" + "a" * 1024):
        with pytest.raises(SVError, match="is no https:// address of at most 1024 plain characters"):
            kernel.requests.handle({**word, "url": url}, 0, 11.0)
    assert kernel.requests.handle(word, 0, 11.0) == "the update to 1.4 has begun"
    row = kernel.sv.processes["update"].row
    assert (row.module, row.argv[1:]) == ("updates.word", (word["url"], "1.4"))
    assert kernel.states()["update"] == "running"
    assert kernel.requests.handle(word, 0, 12.0) == "the update to 1.4 is under way", "told twice"
    with pytest.raises(SVError, match="another update is under way"):
        kernel.requests.handle({**word, "version": "1.5"}, 0, 12.0)
    kernel.dies("update", 256, 13.0)
    kernel.sv.tick(1000.0)
    assert kernel.states()["update"] == "stopped", "it is not tried again by itself"
    assert kernel.requests.handle({**word, "version": "1.5"}, 0, 1001.0) == "the update to 1.5 has begun", "the next release"
    assert kernel.sv.processes["update"].row.argv[2] == "1.5"
    assert kernel.states()["update"] == "running"


def test_what_an_update_waits_for_is_shown(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "release").write_text("rpi3 1.3\n")
    monkeypatch.setattr("pid1.update_word.RELEASE", str(tmp_path / "release"))
    monkeypatch.setattr("onboard.boot_ends.UPDATE", str(tmp_path / "update.json"))
    kernel.boot(service("a"))
    word = {"op": "update", "url": "https://updates.example.org/1.4.swu", "version": "1.4"}

    def show(waits: Any) -> Any:
        return kernel.requests.handle({**word, "waits_for": waits}, 0, 11.0)

    assert show(["its hours"] * 9) == {"waits_for": ["its hours"] * 5}
    assert boot_ends.read(boot_ends.UPDATE) == {"state": "waiting", "version": "1.4", "waits_for": ["its hours"] * 5}
    assert show([]) == {"waits_for": []}
    assert boot_ends.read(boot_ends.UPDATE) == {}
    boot_ends.tell(boot_ends.UPDATE, {"state": "on trial"})
    with pytest.raises(SVError, match="an update is on trial"):
        show(["its hours"])
    assert boot_ends.read(boot_ends.UPDATE) == {"state": "on trial"}
    assert "update" not in kernel.states(), "nothing has begun"
    with pytest.raises(SVError, match="is no version such as"):
        kernel.requests.handle({**word, "version": "1.4; reboot"}, 0, 11.0)


@pytest.mark.parametrize(
    "op", ["update", "start", "stop", "restart", "signal", "run", "reload", "snooze", "push", "reboot", "halt", "poweroff"]
)
def test_only_root_acts(kernel: Kernel, op: str) -> None:
    kernel.boot(service("a"))
    request = {"op": op, "name": "a", "signal": "TERM", "argv": ["sleep", "1"], "minutes": 5}
    with pytest.raises(SVError, match="only root may"):
        kernel.requests.handle(request, 1000, 11.0)
    assert kernel.states() == {"a": "running"}
    assert kernel.life.command is None


def test_requests_act_and_answer_what_came_of_it(kernel: Kernel) -> None:
    kernel.boot(service("a"), service("logd", logger=True))

    def ask(op: str, **more: Any) -> Any:
        return kernel.requests.handle({"op": op, **more}, 0, 11.0)

    assert ask("stop", name="a")["state"] == "stopping"
    kernel.dies("a", 0, 11.0)
    assert ask("start", name="a")["state"] == "running", "not: waiting"
    with pytest.raises(SVError, match="reads what all others print"):
        ask("stop", name="logd")
    assert ask("signal", name="a", signal="USR1")["name"] == "a"
    assert kernel.signals[-1] == (kernel.pid("a"), signal.SIGUSR1)
    for bad in (
        {"op": "signal", "name": "a", "signal": "NONE"},
        {"op": "start", "name": "zz"},
        {"op": "nothing"},
        {"op": "run", "argv": []},
    ):
        with pytest.raises(SVError):
            kernel.requests.handle(bad, 0, 11.0)
    assert ask("run", argv=["/bin/sh", "-c", "x"])["name"] == "sh"
    assert ask("run", argv=["/bin/sh", "-c", "x"])["name"] == "sh-2"
    assert ask("snooze", minutes=0) == {"m": 0}
    for minutes in (-1, "5", None):
        with pytest.raises(SVError, match="how many minutes"):
            ask("snooze", minutes=minutes)
    kernel.sv.stopping = 99.0
    with pytest.raises(SVError, match="shutting down"):
        ask("start", name="a")


# --- the loop ---------------------------------------------------------------------------------------------------------
def test_a_descriptor_that_fails_again_and_again_rests_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: None))
    loop, calls = Loop(), [0]
    ours, theirs = socket.socketpair()
    theirs.send(b"x")

    def broken(now: float) -> None:
        calls[0] += 1
        raise RuntimeError("on purpose")

    loop.watch(ours.fileno(), broken)
    loop.timers.append((lambda: clock[0], lambda now: None))  # do not sleep
    for _ in range(FAILURES + 50):
        loop.turn()
    assert calls[0] == FAILURES, "it is left alone"
    clock[0] += REST + 0.01
    loop.turn()  # wakes it
    loop.turn()
    assert calls[0] == FAILURES + 1
    loop.watch(ours.fileno(), lambda now: ours.recv(1))
    loop.turn()
    assert loop.errors == FAILURES + 1


def test_one_success_clears_the_count_of_failures() -> None:
    loop, calls = Loop(), [0]
    ours, theirs = socket.socketpair()
    theirs.send(b"x")

    def now_and_then(now: float) -> None:
        calls[0] += 1
        if calls[0] % (FAILURES - 1):
            raise RuntimeError("on purpose")

    loop.watch(ours.fileno(), now_and_then)
    loop.timers.append((lambda: 0.0, lambda now: None))
    for _ in range(5 * FAILURES):
        loop.turn()
    assert calls[0] == 5 * FAILURES, "it never failed so often in a row"
