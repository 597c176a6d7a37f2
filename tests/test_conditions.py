"""Conditions of the table: how a function becomes data and runs under a limit, and what follows when it is true or false."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PYTHON, ROOT
from test_changes import service, tables
from test_sv import Kernel

from onboard import facts, to_pid1
from onboard.to_pid1 import SVError, Unreachable
from pid1 import why
from pid1.conditions import MOST_FACTS, Conditions
from pid1.process import State
from pid1.timeline import KEPT, Timeline
from prompt import explain
from tables import when
from tables.load import load
from tables.plain import pack, plain, unpack
from tables.rows import Condition, Mode, Service
from tables.when import Board, compiled, condition_fault, judge

_LOW = 11.5


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


def board_of(modes: dict[str, str] | None = None, **told: Any) -> Board:
    return Board(told, modes or {}, lambda name: name == "broker")


def travelled(function: Any) -> Condition:
    """A function after its way from a profile's process to PID 1."""
    one = unpack(pack(plain(function)))
    assert isinstance(one, Condition)
    return one


# --- how a function travels -----------------------------------------------------------------------------------------------
def helper(b: Any) -> bool:
    return bool(b.voltage < _LOW)


def limit(volts: float) -> Any:
    return lambda b, more=0.5: b.voltage > volts + more and b.online


def test_a_function_comes_with_what_it_uses_of_its_file() -> None:
    low = travelled(lambda b: b.voltage < _LOW)
    assert (low.text, dict(low.names)) == ("b.voltage < _LOW", {"_LOW": 11.5})
    assert judge(compiled(low), board_of(voltage=11.0)) == (True, "")
    assert judge(compiled(low), board_of(voltage=12.0)) == (False, "")
    by_helper = travelled(lambda b: helper(b) or b.online)
    assert judge(compiled(by_helper), board_of(voltage=11.0)) == (True, "")
    assert travelled(helper).text == "helper(b)"
    closed = travelled(limit(12.0))
    assert closed.text == "b.voltage > volts + more and b.online"
    assert judge(compiled(closed), board_of(voltage=12.6, online=True)) == (True, "")
    assert judge(compiled(closed), board_of(voltage=12.4, online=True)) == (False, "")


def test_where_it_stands_in_its_file_makes_no_difference(tmp_path: Path) -> None:
    found = []
    for number, above in enumerate(("", "\n\n# a comment more\n")):
        path = tmp_path / f"{number}.py"
        path.write_text(f"{above}SERVICES = (Service('a', ('true',), when=lambda b: b.online),)\n")
        found.append(load({"stack.profile": str(path)}).services["a"])
    assert found[0] == found[1]
    assert isinstance(found[0].when, Condition)
    assert found[0].when.text == "b.online"


def test_lines_and_brackets() -> None:
    # fmt: off
    one = travelled(lambda b: (b.online or b.synchronised) and
                    b.device("ttyUSB0"))
    # fmt: on
    assert one.text == '(b.online or b.synchronised) and b.device("ttyUSB0")'


# --- what a board is --------------------------------------------------------------------------------------------------------
def test_what_nobody_has_told_is_false_or_compares_false() -> None:
    board = board_of({"power": "good"})
    for function in (
        lambda b: b.online,
        lambda b: b.synchronised,
        lambda b: b.device("eth0"),
        lambda b: b.ready("nobody"),
        lambda b: b.voltage < 11.5,
        lambda b: b.voltage > 11.5,
        lambda b: b.temperature < 85,
        lambda b: b.fact("doors"),
        lambda b: b.mode("power") == "failing",
    ):
        assert judge(function, board) == (False, "")
    told = board_of({"power": "good"}, online=True, clock="synchronised", devices=["ttyUSB0"], doors=2)
    for function in (
        lambda b: b.online,
        lambda b: b.synchronised,
        lambda b: b.device("/dev/ttyUSB0"),
        lambda b: b.ready("broker"),
        lambda b: b.fact("doors") == 2,
        lambda b: b.mode("power") == "good",
    ):
        assert judge(function, told) == (True, "")
    assert told.used == ["online", "clock", "devices", "service broker", "doors", "mode power"]


# --- the limit --------------------------------------------------------------------------------------------------------------
def endless(b: Any) -> bool:
    while True:
        pass


def calls_itself(b: Any) -> bool:
    return bool(calls_itself(b))


def caught(b: Any) -> bool:
    try:
        return bool(b.online)
    except:  # noqa: E722
        return True


def within(b: Any) -> bool:
    with b.online:
        return True


def finally_says(b: Any) -> bool:
    while True:
        try:
            return bool(b.online)
        finally:
            continue  # noqa: B012


def test_an_endless_condition_is_false() -> None:
    before = time.process_time()
    met, error = judge(compiled(travelled(endless)), board_of())
    assert (met, error) == (False, f"TimeoutError: takes more than {when.LIMIT:g} s")
    assert time.process_time() - before < 1.0
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert judge(compiled(travelled(calls_itself)), board_of())[1].startswith(("RecursionError", "NameError"))


@pytest.mark.parametrize("function", [caught, within, finally_says, lambda b: b.voltage < _LOW or caught(b)])
def test_a_condition_that_could_swallow_its_end_is_refused(function: Any) -> None:
    assert condition_fault(travelled(function), {}).startswith("has try or with in it")


def test_comprehensions_are_no_try() -> None:
    for function in (
        lambda b: any(b.device(name) for name in ("a", "b")),
        lambda b: [name for name in ("a", "b") if b.device(name)],
        lambda b: {name: 1 for name in ("a", "b")} and (lambda: b.online)(),
    ):
        assert condition_fault(travelled(function), {}) == ""


def test_a_condition_reaches_nothing_but_the_board() -> None:
    for text in ("__import__('os')", "open('/etc/passwd')", "os.getpid()", "print(1)", "().__class__.__base__.nix"):
        function = eval(f"lambda b: {text}")
        met, error = judge(compiled(travelled(function)), board_of())
        assert not met
        assert error.startswith(("NameError", "AttributeError")), error


def test_damaged_code_is_a_fault_in_words() -> None:
    assert condition_fault(Condition("b.online", "zz"), {}) == "cannot be read (ValueError)"
    assert "more than" in condition_fault(Condition("b.online", "00" * 100_000), {})
    assert condition_fault("online", {}) == "is not a function such as lambda b: b.online"


# --- the check of the table -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("when='online'", "when is text, not a function such as lambda b: b.online"),
        ("when=lambda b: b.onlin", "when fails: AttributeError: a board has no onlin; did you mean online?"),
        ("when=lambda b: b.mode('powr') == 'good'", "when fails: KeyError: there is no mode 'powr'; did you mean power?"),
        ("when=lambda b: nothing", "when fails: NameError: name 'nothing' is not defined"),
        ("when=lambda b: [x for x in iter(int, 1)]", "when fails: NameError: name 'iter' is not defined"),
        ("when=lambda b: b.online, logger=True, log='none'", "when: all others would wait for the one that reads"),
        ("tells=('a b',)", "tells 'a b' is not the name of a fact"),
        ("tells='voltage'", "tells is text; a comma makes a tuple of it: ('voltage',)"),
    ],
)
def test_a_row_with_a_bad_condition_is_left_out(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(f"MODES = (Mode('power', ('good', 'failing')),)\nSERVICES = (Service('a', ('true',), {text}),)\n")
    board = load({"stack.profile": str(path)})
    assert "a" not in board.services
    assert any(says in fault for fault in board.rejected), board.rejected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Mode('power', ('good',))", "states are from 2 to 16 different words"),
        ("Mode('power', ('good', 'good'))", "states are from 2 to 16 different words"),
        ("Mode('power', 'good')", "states is text"),
        ("Mode('po wer', ('good', 'bad'))", "name 'po wer' is not letters"),
        ("Mode('power', ('good', 'bad'), (('worse', lambda b: b.online),))", "enter has 'worse' in it"),
        ("Mode('power', ('good', 'bad'), (('bad', lambda b: b.nix),))", "enter bad: the condition fails: AttributeError"),
        ("Mode('power', ('good', 'bad'), (('bad', 1),))", "enter bad: the condition is not a function"),
        ("Mode('power', ('good', 'bad'), ('bad',))", "enter has text in it, not a pair"),
        ("Mode('power', ('good', 'bad'), hold=-1)", "hold -1 is not a number of seconds"),
        ("Mode('power', ('good', 'bad'), memory=('worse',))", "memory has 'worse' in it"),
        ("('power', 'good')", "is not a Mode(...) row"),
    ],
)
def test_a_bad_mode_is_left_out(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(f"MODES = ({text},)\n")
    board = load({"stack.profile": str(path)})
    assert board.MODES == ()
    assert any(says in fault for fault in board.rejected), board.rejected


def test_two_modes_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("MODES = (Mode('power', ('good', 'bad')), Mode('power', ('a', 'b')))\n")
    board = load({"stack.profile": str(path)})
    assert [row.states for row in board.MODES] == [("good", "bad")]
    assert "MODES power: there is a mode of this name already; the first one counts; MODES = replaced(" in board.rejected[0]


def test_the_plan_shows_conditions_and_modes(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(
        "MODES = (Mode('power', ('good', 'failing'), (('failing', lambda b: b.voltage < 11.5),)),)\n"
        "SERVICES = (Service('a', ('true',), when=lambda b: b.mode('power') == 'good'),)\n"
    )
    lines = os.popen(f"{PYTHON} -B {ROOT}/stack.py --plan stack.profile={path}").read().splitlines()
    assert "mode      power            good, failing" in lines
    assert f"{'':<26} failing when b.voltage < 11.5" in lines
    assert f"{'':<26} when b.mode('power') == 'good'" in lines


# --- services ---------------------------------------------------------------------------------------------------------------
def conditions(kernel: Kernel) -> Conditions:
    return kernel.sv.conditions_of_board()


def tell(kernel: Kernel, now: float, **told: Any) -> None:
    for name, value in told.items():
        conditions(kernel).tell(name, value, "test", now)  # it is nobody's, and never lapses
    kernel.sv.settle(now)


def held(name: str, function: Any, **columns: Any) -> Service:
    return service(name, when=travelled(function), **columns)


def test_a_service_runs_while_its_condition_is_true(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online))
    assert (kernel.states(), kernel.sv.next_deadline()) == ({"a": "unmet"}, None), "nothing polls"
    assert kernel.sv.complete
    assert not kernel.sv.hopeless(10.0)
    tell(kernel, 20.0, online=True)
    assert (kernel.states(), kernel.pid("a")) == ({"a": "running"}, 101)
    tell(kernel, 40.0, online=False)
    assert kernel.states() == {"a": "stopping"}
    assert (101, signal.SIGTERM) in kernel.signals
    kernel.dies("a", 15, 40.5)
    assert kernel.states() == {"a": "unmet"}
    assert kernel.sv.processes["a"].failed == [], "it was asked to end"
    tell(kernel, 50.0, online=True)
    assert kernel.pid("a") == 102


def test_one_that_becomes_true_while_it_stops_starts_again(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online))
    tell(kernel, 20.0, online=True)
    tell(kernel, 40.0, online=False)
    tell(kernel, 40.1, online=True)
    kernel.dies("a", 15, 40.2)
    assert kernel.states() == {"a": "running"}


def test_a_condition_that_flaps_costs_back_off(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online))
    waits, now = [], 100.0
    for _ in range(5):
        tell(kernel, now, online=True)
        process = kernel.sv.processes["a"]
        if process.state == State.BACKOFF:
            assert process.deadline
            waits.append(round(process.deadline - now, 6))
            now = process.deadline
            kernel.sv.tick(now)
        assert process.state == State.RUNNING
        tell(kernel, now + 0.1, online=False)
        kernel.dies("a", 15, now + 0.2)
        now += 0.3
    assert len(waits) == 4
    assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(waits)), waits
    tell(kernel, now, online=True)
    now = kernel.sv.processes["a"].deadline or 0.0
    kernel.sv.tick(now)
    tell(kernel, now + 60.0, online=False)
    kernel.dies("a", 15, now + 61.0)
    tell(kernel, now + 62.0, online=True)
    assert kernel.states() == {"a": "running"}, "it has run long enough"


def test_who_waits_for_one_that_may_not_run_goes_on(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online), service("b", after=("a",)))
    assert kernel.states() == {"a": "unmet", "b": "running"}


def test_a_service_that_is_ready_is_a_condition_too(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.ready("b")), held("c", lambda b: b.ready("a")), service("b", ready="notify"))
    assert kernel.states() == {"a": "unmet", "c": "unmet", "b": "starting"}
    kernel.sv.processes["b"].became_ready(12.0)
    kernel.sv.settle(12.0)
    assert kernel.states() == {"a": "running", "c": "running", "b": "running"}, "in one turn, over two steps"
    kernel.dies("b", 0, 30.0)
    assert kernel.states()["a"] == "stopping"


def test_a_paradox_does_not_keep_pid_1_busy(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: not b.ready("a")))
    assert kernel.states() == {"a": "stopping"}
    kernel.dies("a", 15, 10.1)
    assert kernel.states() == {"a": "backoff"}


def test_start_stop_and_restart_by_hand(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online))
    ask = kernel.requests.handle
    assert ask({"op": "stop", "name": "a"}, 0, 11.0)["state"] == "stopped"
    tell(kernel, 12.0, online=True)
    assert kernel.states() == {"a": "stopped"}, "nobody wants it"
    tell(kernel, 13.0, online=False)
    assert ask({"op": "start", "name": "a"}, 0, 14.0)["state"] == "unmet"
    assert ask({"op": "restart", "name": "a"}, 0, 15.0)["state"] == "unmet"
    row = ask({"op": "stats", "name": "a"}, 1000, 15.0)[0]
    assert (row["when"], row["met"], row["wanted"]) == ("b.online", False, True)
    assert ask({"op": "explain", "name": "a"}, 1000, 15.0)["state"] == "unmet"


def test_a_job_that_is_done_does_not_run_again(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online, ready="exit"))
    tell(kernel, 11.0, online=True)
    kernel.dies("a", 0, 12.0)
    tell(kernel, 13.0, online=False)
    tell(kernel, 14.0, online=True)
    assert kernel.states() == {"a": "stopped"}


def test_a_reload_changes_a_condition_without_a_restart(kernel: Kernel) -> None:
    kernel.boot(service("a"), service("b"))
    kernel.life.tables = tables(held("a", lambda b: True), held("b", lambda b: b.online))
    assert kernel.sv.reload(20.0)["restarted"] == []
    kernel.sv.tick(20.0)
    assert kernel.states() == {"a": "running", "b": "stopping"}
    kernel.dies("b", 15, 21.0)
    kernel.life.tables = tables(service("a"), service("b"))
    kernel.sv.reload(22.0)
    kernel.sv.tick(22.0)
    assert kernel.states()["a"] == "running"
    assert kernel.states()["b"] in ("running", "backoff")


def test_an_instance_of_a_template_has_its_condition(kernel: Kernel) -> None:
    kernel.boot(service("other"), held("t@", lambda b: b.online))
    assert kernel.requests.handle({"op": "start", "name": "t@x"}, 0, 11.0)["state"] == "unmet"
    tell(kernel, 12.0, online=True)
    assert kernel.states()["t@x"] == "running"


def test_an_exception_is_false_logged_once_and_explained(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("_log.warning", said.append)
    kernel.boot(held("a", lambda b: b.online and 1 / b.fact("zero", 0)))
    tell(kernel, 11.0, online=True)
    tell(kernel, 12.0, temperature=50)
    tell(kernel, 13.0, temperature=51)
    assert kernel.states() == {"a": "unmet"}
    assert len([text for text in said if "ZeroDivisionError" in text]) == 1
    found = why.explain(kernel.life, kernel.sv.processes["a"], 20.0)
    assert found["condition"]["error"] == "ZeroDivisionError: division by zero"
    assert "fails since 10.0s and counts as false: ZeroDivisionError" in explain.sentence(found)
    tell(kernel, 21.0, zero=1)
    assert kernel.states() == {"a": "running"}


# --- modes ------------------------------------------------------------------------------------------------------------------
POWER = Mode("power", ("good", "failing"),
             (("failing", travelled(lambda b: b.voltage < 11.5)), ("good", travelled(lambda b: b.voltage > 12.2))),
             hold=2.0, memory=("failing",))  # fmt: skip


def boot_modes(kernel: Kernel, modes: tuple[Mode, ...], *rows: Service) -> None:
    one = tables(*rows)
    one.values["MODES"] = modes
    kernel.life.tables = one
    kernel.sv.reload(10.0)
    kernel.sv.tick(10.0)


def test_a_mode_changes_when_its_condition_has_held_for_long_enough(kernel: Kernel) -> None:
    boot_modes(kernel, (POWER,), held("scan", lambda b: b.mode("power") == "good"), service("journal", log="disk"))
    assert kernel.states() == {"scan": "running", "journal": "running"}
    tell(kernel, 20.0, voltage=11.0)
    assert conditions(kernel).modes == {"power": "good"}
    assert kernel.sv.next_deadline() == 22.0
    tell(kernel, 21.0, voltage=12.0)
    assert kernel.sv.next_deadline() is None, "a dip"
    tell(kernel, 30.0, voltage=11.0)
    kernel.sv.tick(31.9)
    assert conditions(kernel).modes == {"power": "good"}
    kernel.sv.tick(32.0)
    assert conditions(kernel).modes == {"power": "failing"}
    assert kernel.states()["scan"] == "stopping"
    assert kernel.world.log_policy(service("journal", log="disk")) == "memory"
    tell(kernel, 33.0, voltage=12.0)
    kernel.sv.tick(40.0)
    assert conditions(kernel).modes == {"power": "failing"}, "between the two limits it stays"
    tell(kernel, 41.0, voltage=12.5)
    kernel.sv.tick(43.0)
    assert conditions(kernel).modes == {"power": "good"}
    assert kernel.world.log_policy(service("journal", log="disk")) == "disk"
    moves = [row[2:] for row in kernel.life.timeline.page(0, 500) if row[2] == "mode power"]
    assert moves == [["mode power", "good", "failing", ""], ["mode power", "failing", "good", ""]]


def test_apps_say_a_mode_that_has_no_conditions(kernel: Kernel) -> None:
    boot_modes(kernel, (POWER, Mode("motion", ("idle", "moving"))), held("a", lambda b: b.mode("motion") == "moving"))
    ask = kernel.requests.handle
    assert ask({"op": "fact", "name": "mode/motion", "value": "moving"}, 0, 11.0) == {"asked": False}
    assert kernel.states() == {"a": "running"}
    for name, value, says in (
        ("mode/motion", "flying", "has no state 'flying'; it has idle, moving"),
        ("mode/power", "failing", "follows its conditions; nobody can tell it"),
        ("mode/nix", "x", "there is no mode 'nix'; there are power, motion"),
    ):
        with pytest.raises(SVError, match=says):
            ask({"op": "fact", "name": name, "value": value}, 0, 12.0)
    assert ask({"op": "board"}, 1000, 12.0)["modes"] == {"power": "good", "motion": "moving"}


def test_a_mode_that_stays_in_the_table_keeps_its_state(kernel: Kernel) -> None:
    motion = Mode("motion", ("idle", "moving"))
    boot_modes(kernel, (motion,), service("a"))
    kernel.requests.handle({"op": "fact", "name": "mode/motion", "value": "moving"}, 0, 11.0)
    boot_modes(kernel, (motion, POWER), service("a"))
    assert conditions(kernel).modes == {"motion": "moving", "power": "good"}
    boot_modes(kernel, (Mode("motion", ("parked", "driving")),), service("a"))
    assert conditions(kernel).modes == {"motion": "parked"}


# --- facts ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("online", "yes"), ("voltage", True), ("voltage", "12"), ("clock", 1), ("a b", 1), ("x" * 65, 1), ("", 1), ("x", [1]),
        ("x", {"a": 1}), ("x", "y" * 129), ("x", "a\nb"), ("voltage", float("nan")), ("voltage", float("inf")), ("devices", ["x" * 65]),
        ("devices", ["a"] * 2001), ("devices", [1]), ("ä", 1),
    ],
)  # fmt: skip
def test_a_fact_that_cannot_be_is_refused(kernel: Kernel, name: str, value: Any) -> None:
    kernel.boot(service("a"))
    with pytest.raises(SVError, match="the fact"):
        kernel.requests.handle({"op": "fact", "name": name, "value": value}, 0, 11.0)
    assert conditions(kernel).facts == {}


def test_facts_are_bounded(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    for number in range(MOST_FACTS):
        tell(kernel, 11.0, **{f"x{number}": number})
    with pytest.raises(SVError, match=f"PID 1 keeps {MOST_FACTS} facts"):
        tell(kernel, 12.0, one_more=1)
    tell(kernel, 13.0, x0=None)
    tell(kernel, 14.0, one_more=1)


def test_who_may_tell_what(kernel: Kernel) -> None:
    kernel.boot(service("a", tells=("voltage", "mode/*")))
    pid = kernel.pid("a")
    assert pid
    for name, may in (("voltage", True), ("voltage/usb", False), ("mode/x", True), ("online", False)):
        request = {"op": "fact", "name": name, "value": 1}
        assert kernel.requests.permits(pid, request, 20.0) == may
        assert not kernel.requests.permits(pid + 1, request, 20.0)
    assert not kernel.requests.permits(pid, {"op": "start", "name": "voltage"}, 20.0)
    with pytest.raises(SVError, match="only root may tell the fact 'online', or a service whose row names it in `tells`"):
        kernel.requests.handle({"op": "fact", "name": "online", "value": True}, 1000, 11.0)
    for broken in ({"op": "fact"}, {"op": "fact", "name": 1, "value": 1}, {"op": "explain"}, {"op": "explain", "name": []}):
        with pytest.raises(SVError):
            kernel.requests.handle(broken, 0, 11.0)


def test_whether_anybody_asks_for_a_fact(kernel: Kernel) -> None:
    kernel.boot(held("a", lambda b: b.online and b.voltage > 11), held("b", lambda b: b.synchronised or b.fact("doors")))
    asks = {
        name: conditions(kernel).asks_for(name) for name in ("online", "voltage", "clock", "doors", "temperature", "devices")
    }
    assert asks == {"online": True, "voltage": True, "clock": True, "doors": True, "temperature": False, "devices": False}


def test_a_teller_says_what_has_changed_and_waits_for_pid_1(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, Any]] = []
    away: list[Exception] = [Unreachable("nobody is there")]

    def ask(_path: str, request: dict[str, Any], _timeout: float) -> Any:
        if away:
            raise away[0]
        heard.append((request["name"], request["value"]))
        return {"asked": request["name"] == "voltage"}

    monkeypatch.setattr(to_pid1, "ask", ask)
    teller = facts.Teller("x")
    teller.tell("online", True, 10.0)
    teller.tell("online", False, 11.0)
    assert (heard, teller.due()) == ([], 15.0)
    away.clear()
    teller.turn(14.9)
    assert heard == []
    teller.turn(15.0)
    assert (heard, teller.due(), teller.asked) == ([("online", False)], None, False)
    teller.tell("online", False, 16.0)
    assert heard == [("online", False)], "nothing new"
    teller.tell("voltage", 12.0, 17.0)
    assert teller.asked
    away.append(SVError("the fact 'x' is refused"))
    teller.tell("x", 1, 18.0)
    assert teller.due() is None
    away.clear()
    teller.tell("x", 1, 19.0)
    assert ("x", 1) not in heard, "not again at once"
    teller.tell("x", 1, 18.0 + facts.RETRY)
    assert ("x", 1) in heard


# --- who tells them -----------------------------------------------------------------------------------------------------------
def says(kernel: Kernel, who: str, now: float, name: str, value: Any, **more: Any) -> Any:
    """A service's main process tells PID 1 a fact."""
    kernel.life.loop.client = SimpleNamespace(pid=kernel.pid(who) if who else 99_999_999)
    try:
        return kernel.requests.handle({"op": "fact", "name": name, "value": value, "by": who or "somebody", **more}, 0, now)
    finally:
        kernel.life.loop.client = None


def known(kernel: Kernel, name: str, now: float) -> tuple[Any, str, str]:
    one = why.known(kernel.sv, name, now)
    return one["value"], one["by"], one["note"]


def test_a_fact_lapses_some_time_after_its_teller_has_ended(kernel: Kernel) -> None:
    kernel.boot(service("network"), held("a", lambda b: b.online))
    says(kernel, "network", 20.0, "online", True)
    assert (kernel.states()["a"], kernel.sv.next_deadline()) == ("running", None), "nobody waits for anything while it lives"
    assert known(kernel, "online", 21.0) == (True, "network", "")
    kernel.dies("network", 9, 30.0)
    assert kernel.states()["a"] == "running"
    assert known(kernel, "online", 31.0) == (True, "network", "network has ended: believed for 14.0s more")
    kernel.sv.tick(44.9)
    assert kernel.states()["a"] == "running"
    assert kernel.sv.next_deadline() is not None
    kernel.sv.tick(45.0)
    assert kernel.states()["a"] == "stopping"
    assert known(kernel, "online", 46.0) == (None, "network", "network has ended, which told it")
    kernel.dies("a", 15, 46.0)
    assert told(kernel, "a", 48.0) == (
        "a does not run: its condition b.online is not true since 3.0s "
        "(online is not known any more since 3.0s: network has ended, which told it)."
    )
    moves = [row[3:] for row in kernel.life.timeline.page(0, 500) if row[2] == "fact online"]
    assert moves == [["", "True", "says network"], ["True", "", "network has ended, which told it"]]
    says(kernel, "network", 60.0, "online", True)
    assert kernel.states()["a"] == "running"
    assert known(kernel, "online", 61.0) == (True, "network", "")


def test_a_teller_that_is_back_in_time_tells_it_again_and_nothing_stops(kernel: Kernel) -> None:
    kernel.boot(service("network"), held("a", lambda b: b.online))
    says(kernel, "network", 20.0, "online", True)
    says(kernel, "network", 20.0, "network", "local")
    kernel.dies("network", 9, 30.0)
    kernel.sv.tick(31.0)
    assert kernel.states()["network"] == "running"
    says(kernel, "network", 32.0, "online", True)
    kernel.sv.tick(45.0)
    assert (kernel.states()["a"], kernel.pid("a")) == ("running", 102)
    assert known(kernel, "online", 45.0) == (True, "network", "")
    assert known(kernel, "network", 45.0)[0] is None, "what the new process has not told is not known any more"


@pytest.mark.parametrize("how", ["stopped", "out of the table"])
def test_nor_is_it_believed_when_its_teller_is_stopped_or_leaves(kernel: Kernel, how: str) -> None:
    kernel.boot(service("network"), held("a", lambda b: b.online))
    says(kernel, "network", 20.0, "online", True)
    if how == "stopped":
        kernel.requests.handle({"op": "stop", "name": "network"}, 0, 30.0)
    else:
        kernel.life.tables = tables(held("a", lambda b: b.online))
        kernel.sv.reload(30.0)
    kernel.dies("network", 15, 30.0)
    kernel.sv.tick(45.0)
    assert kernel.states()["a"] == "stopping"


def test_a_job_that_ended_well_keeps_its_word(kernel: Kernel) -> None:
    kernel.boot(service("probe", ready="exit"), service("fails", ready="exit", restart="never"))
    says(kernel, "probe", 20.0, "board/revision", 4)
    says(kernel, "fails", 20.0, "board/case", "steel")
    kernel.dies("probe", 0, 21.0)
    kernel.dies("fails", 1 << 8, 21.0)
    kernel.sv.tick(1000.0)
    assert known(kernel, "board/revision", 1000.0)[0] == 4
    assert known(kernel, "board/case", 1000.0)[0] is None


def test_what_a_person_tells_holds_for_some_seconds_and_goes_before_a_service(kernel: Kernel) -> None:
    kernel.boot(service("adc"), held("a", lambda b: b.voltage > 11))
    says(kernel, "adc", 20.0, "voltage", 12.5)
    says(kernel, "", 30.0, "voltage", 10.0, seconds=5.0)
    assert kernel.states()["a"] == "stopping"
    assert known(kernel, "voltage", 31.0) == (10.0, "somebody", "for 4.0s more")
    says(kernel, "adc", 32.0, "voltage", 12.6)
    assert known(kernel, "voltage", 32.0)[0] == 10.0
    kernel.dies("a", 15, 33.0)
    assert kernel.sv.next_deadline() == 35.0
    kernel.sv.tick(35.0)
    assert known(kernel, "voltage", 35.0) == (12.6, "adc", "")
    says(kernel, "", 36.0, "voltage", 10.0)
    says(kernel, "", 37.0, "voltage", None)
    assert known(kernel, "voltage", 37.0) == (12.6, "adc", ""), "taken back"
    with pytest.raises(SVError, match="'voltage' is what adc tells; say another value"):
        says(kernel, "", 38.0, "voltage", None)
    says(kernel, "", 40.0, "voltage", 10.0)
    says(kernel, "", 40.0, "doors", 2)
    kernel.dies("adc", 9, 41.0)
    kernel.sv.tick(99.9)
    assert (known(kernel, "voltage", 99.9)[0], known(kernel, "doors", 99.9)[0]) == (10.0, 2)
    kernel.sv.tick(100.0)
    assert known(kernel, "voltage", 100.0) == (None, "somebody", "somebody told it for some time only"), "its service has ended"
    assert known(kernel, "doors", 100.0)[0] is None
    for seconds in (0, -1, float("nan"), 1e9, True, "60", [60]):
        with pytest.raises(SVError, match=r"a fact may be told for 0\.1 to"):
            says(kernel, "", 110.0, "doors", 2, seconds=seconds)


def heard(who: str, at: float) -> dict[str, Any]:
    return {"heard": {"from": who, "at": at}}


def test_what_an_app_says_on_the_bus_is_believed_as_long_as_the_app_lives(kernel: Kernel) -> None:
    kernel.boot(service("diagnostic"), service("doors"), held("a", lambda b: b.fact("doors") == 2))
    says(kernel, "diagnostic", 20.0, "doors", 2, **heard("doors", 19.9))
    assert (kernel.states()["a"], known(kernel, "doors", 20.0)) == ("running", (2, "doors", ""))
    kernel.dies("doors", 9, 30.0)
    kernel.sv.tick(45.0)
    assert kernel.states()["a"] == "stopping"
    kernel.dies("a", 15, 45.1)
    says(kernel, "diagnostic", 50.0, "doors", 2, **heard("doors", 19.9))
    assert known(kernel, "doors", 50.0)[0] is None, "the broker has kept it, but whoever said it has ended since"
    says(kernel, "diagnostic", 60.0, "doors", 2, **heard("doors", 59.9))
    assert kernel.states()["a"] in ("running", "backoff")
    kernel.dies("diagnostic", 9, 70.0)
    kernel.sv.tick(85.0)
    assert known(kernel, "doors", 85.0) == (None, "doors", "diagnostic has ended, which told it"), (
        "nobody would pass on what is new"
    )


def test_an_app_with_another_name_on_the_bus_is_known_by_its_row(kernel: Kernel) -> None:
    kernel.boot(service("diagnostic"), service("gate", publishes=("fact/doors",)), service("b", publishes=("fact/b", "fact/c")),
                service("c", publishes=("fact/c",)))  # fmt: skip
    says(kernel, "diagnostic", 20.0, "doors", 2, **heard("app", 19.9))
    says(kernel, "diagnostic", 20.0, "c", 2, **heard("app", 19.9))
    assert (known(kernel, "doors", 20.0)[1], known(kernel, "c", 20.0)[1]) == ("gate", "diagnostic")
    broken: dict[str, Any]
    for broken in ({"heard": 5}, {"heard": {}}, {"heard": {"from": [], "at": "x"}}):
        says(kernel, "diagnostic", 21.0, "x", 2, **broken)
        assert known(kernel, "x", 21.0)[1] == "diagnostic"


def test_a_mode_keeps_its_state_when_who_has_told_it_ends(kernel: Kernel) -> None:
    boot_modes(kernel, (Mode("motion", ("idle", "moving")),), service("gps"))
    says(kernel, "gps", 11.0, "mode/motion", "moving")
    kernel.dies("gps", 9, 12.0)
    kernel.sv.tick(1000.0)
    assert conditions(kernel).modes == {"motion": "moving"}


def test_what_was_forgotten_is_bounded(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    for turn in range(3):
        for number in range(MOST_FACTS):
            says(kernel, "", 100.0 * turn, f"x{turn}/{number}", 1, seconds=1.0)
        kernel.sv.tick(100.0 * turn + 1)
    assert (len(conditions(kernel).facts), len(conditions(kernel).lost)) == (0, MOST_FACTS)
    assert next(iter(conditions(kernel).lost)) == "x2/0"


def test_what_an_app_says_again_and_again_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(_path: str, request: dict[str, Any], _timeout: float) -> Any:
        asked.append(request)
        return {"asked": False}

    monkeypatch.setattr(to_pid1, "ask", ask)
    teller = facts.Teller("diagnostic")
    for number in range(101):
        teller.tell("doors", 2, 10.0 + number / 10, {"from": "doors", "at": number})
    assert [one["heard"]["at"] for one in asked] == [0, 50, 100]
    teller.tell("doors", 3, 20.1, {"from": "doors", "at": 101})
    assert (asked[-1]["value"], teller.due()) == (3, None), "what is new is told at once"
    teller.tell("doors", 3, 20.2, {"from": "doors", "at": 102})
    assert teller.due() == 20.1 + facts.REPEAT


# --- explain and timeline ---------------------------------------------------------------------------------------------------
def told(kernel: Kernel, name: str, now: float) -> str:
    return explain.sentence(why.explain(kernel.life, kernel.sv.processes[name], now))


def test_sentences(kernel: Kernel) -> None:
    kernel.boot(
        service("a", ready="exit"), service("b", after=("a",), ready="exit"), service("c", after=("b",)),
        held("d", lambda b: b.online and b.device("ttyUSB0")), service("e", restart="never"), service("f"),
    )  # fmt: skip
    assert told(kernel, "a", 12.0) == "a was started 2.0s ago, pid 101, and has not said yet that it is ready."
    assert told(kernel, "c", 12.0) == "c waits for b, over 2 steps since 2.0s; in 58.0s it starts without."
    found = why.explain(kernel.life, kernel.sv.processes["c"], 12.0)
    assert [(one["for"], one["name"], one["steps"], one["state"]) for one in found["waits_for"]] == [
        ("c", "b", 1, "waiting"), ("b", "a", 2, "starting"),
    ]  # fmt: skip
    assert why.explain(kernel.life, kernel.sv.processes["a"], 12.0)["needed_by"] == ["b"]
    tell(kernel, 13.0, online=True)
    assert told(kernel, "d", 15.0) == (
        'd does not run: its condition b.online and b.device("ttyUSB0") is not true since 5.0s '
        "(devices is not known: nobody has told it)."
    )
    tell(kernel, 15.0, online=False)
    assert "(online is False since 1.0s, says test)" in told(kernel, "d", 16.0)
    kernel.dies("a", 7 << 8, 17.0)
    assert told(kernel, "a", 17.0).startswith("a does not run: its last process ended with exit 7; it is started again in 0.1s")
    found = why.explain(kernel.life, kernel.sv.processes["c"], 17.0)
    assert explain.Reason({"why": "x", **found, "exits": []}).text().splitlines()[1:] == [
        "  c waits for b, which is waiting since 7.0s",
        "    b waits for a, which is backoff since 0.0s, after exit 7, again in 0.1s",
    ]
    kernel.dies("e", 3 << 8, 20.0)
    assert told(kernel, "e", 21.0) == "e is stopped since 1.0s: it ended with exit 3, and its row has restart='never'."
    kernel.dies("f", 125 << 8, 20.0)
    assert "status 125 means: do not restart me" in told(kernel, "f", 21.0)


def test_a_chain_is_bounded_and_ends(kernel: Kernel) -> None:
    names = [f"s{number}" for number in range(300)]
    rows = [service(names[0], ready="notify")]
    rows += [service(name, after=(before,)) for before, name in itertools.pairwise(names)]
    kernel.boot(*rows)
    found = why.chain(kernel.sv, kernel.sv.processes["s299"], 12.0)
    assert len(found) == why.LONGEST_CHAIN
    assert [one["steps"] for one in found] == list(range(1, why.LONGEST_CHAIN + 1))
    assert why.chain(kernel.sv, kernel.sv.processes["s50"], 12.0)[-1]["name"] == "s0"


def test_last_deaths_are_kept(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    for number in range(8):
        kernel.dies("a", (number + 1) << 8, 100.0 + 100 * number)
        kernel.sv.tick(199.0 + 100 * number)
    exits = why.explain(kernel.life, kernel.sv.processes["a"], 1000.0)["exits"]
    assert [one["exit"] for one in exits] == [f"exit {number}" for number in range(4, 9)]


def test_the_ring_keeps_the_last_500_and_its_pages_follow_each_other() -> None:
    ring = Timeline()
    for number in range(1200):
        ring.note(float(number), "a", "x", "y", "z" * 1000)
    rows: list[list[Any]] = []
    while page := ring.page(rows[-1][0] + 1 if rows else 0, 100):
        rows += page
        ring.note(5000.0, "b", "", "new")  # more comes while somebody reads
        if len(rows) > 600:
            break
    assert [row[0] for row in rows[:KEPT]] == list(range(701, 1201))
    assert len(rows[0][5]) == 200
    assert ring.page("x", 10) == ring.page(None, 10) == ring.page(-5, 10)


def test_transitions_come_with_their_reasons(kernel: Kernel) -> None:
    kernel.boot(service("a"))
    kernel.dies("a", 7 << 8, 11.0)
    rows = [row[2:] for row in kernel.requests.handle({"op": "timeline"}, 1000, 12.0)]
    assert rows == [
        ["a", "stopped", "waiting", ""], ["a", "waiting", "running", ""], ["a", "running", "backoff", "exit 7"],
    ]  # fmt: skip
