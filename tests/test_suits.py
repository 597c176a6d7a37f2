"""When an update may begin: the board's hours, a network that is not metered, good power; and who asks whom about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Board
from test_commands import CLOCK, Lab

from onboard import clock, suits
from onboard.to_pid1 import SVError
from settings import INTERFACES
from tables.check_settings import minutes_of, setting_fault
from tables.rows import Interface
from uplink import commands as module

CELL = (Interface("eth0", metric=100), Interface("wwan0", metric=700, metered=True))
HOURS = ("02:00-05:00", "22:30-00:15")


def at(text: str) -> time.struct_time:
    return time.strptime(f"2026-11-25 {text}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize("text", ["02:00", "04:59", "22:30", "23:59", "00:14"])
def test_within_its_hours(text: str) -> None:
    assert suits.hours(HOURS, at(text)) == ""


@pytest.mark.parametrize("text", ["05:00", "01:59", "22:29", "00:15", "12:00"])
def test_outside_of_them(text: str) -> None:
    assert suits.hours(HOURS, at(text)) == f"its hours 02:00-05:00, 22:30-00:15: it is {text}"


def test_a_clock_that_nobody_has_set_is_no_time_of_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "state", lambda: "unset")
    assert suits.waits_for(HOURS, (), "/nowhere", "/nowhere") == ["a clock that is set: its hours are 02:00-05:00, 22:30-00:15"]
    assert suits.waits_for((), (), "/nowhere", "/nowhere") == []


@pytest.mark.parametrize("value", [(), ("02:00-05:00",), ("00:00-24:00",), ("23:00-01:00",)])
def test_hours_of_the_table(value: Any) -> None:
    assert setting_fault("UPDATE_WINDOW", value) == ""


@pytest.mark.parametrize(
    "text", ["", "2:00-5:00", "02:00-05:60", "24:00-05:00", "02:00-24:01", "02:00-02:00", "02-00:05-00", "٠٢:٠٠-٠٥:٠٠"]
)
def test_what_is_no_hours(text: str) -> None:
    assert minutes_of(text) is None
    assert "hours are like ('02:00-05:00',)" in setting_fault("UPDATE_WINDOW", (text,))
    assert setting_fault("UPDATE_WINDOW", "02:00-05:00")


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([], ""),
        ([("eth0", 100, ["192.0.2.1"]), ("wwan0", 700, ["198.51.100.1"])], ""),
        ([("eth0", 100, []), ("wwan0", 700, ["198.51.100.1"])], "wwan0"),
        ([("wwan0", None, ["198.51.100.1"])], "wwan0"),
        ([("ppp0", 10, ["198.51.100.1"]), ("wwan0", 700, ["198.51.100.1"])], ""),
    ],
)
def test_the_interface_that_carries_the_traffic(rows: Any, name: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"interfaces": [dict(zip(("name", "metric", "gateway"), row, strict=True)) for row in rows]}))
    assert suits.metered(CELL, str(state)) == name
    expected = [f"a network that is not metered: now the traffic goes over {name}"] if name else []
    assert suits.waits_for((), CELL, str(state), str(tmp_path)) == expected


@pytest.mark.parametrize("text", ["", "[]", '{"interfaces": 7}', '{"interfaces": [7, {"gateway": 1}]}'])
def test_a_network_of_which_nothing_is_known_keeps_no_update_back(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    assert suits.metered(CELL, str(tmp_path / "state.json")) == ""


def test_no_interface_of_the_default_table_is_metered() -> None:
    assert not any(row.metered for row in INTERFACES)


def test_a_board_takes_the_columns(boot: Callable[..., Board]) -> None:
    settings = "UPDATE_WINDOW = ('02:00-05:00',)\nINTERFACES = changed(INTERFACES, 'usb0', metered=True)"
    board = boot("", settings=f"from tables.rows import changed\nfrom settings import INTERFACES\n{settings}").up()
    assert board.ask("board")["rejected"] == []
    settings = "UPDATE_WINDOW = ('2-5',)\nINTERFACES = changed(INTERFACES, 'usb0', metered='yes')"
    board = boot("", settings=f"from tables.rows import changed\nfrom settings import INTERFACES\n{settings}").up()
    rejected = board.ask("board")["rejected"]
    assert any("UPDATE_WINDOW has '2-5' in it" in text for text in rejected), rejected
    assert any("usb0: metered" in text for text in rejected), rejected


# --- uplink asks ---------------------------------------------------------------------------------------------------------
class Waiting(Lab):
    """A board whose update waits for what `waits` holds."""

    def boot(self) -> None:
        super().boot()
        self.waiting: list[str] = ["its hours 02:00-05:00"]
        self.commands.waits = lambda: self.waiting

    def ask(self, request: dict[str, Any]) -> Any:
        if "waits_for" not in request:
            return super().ask(request)
        if isinstance(self.answer, SVError):
            raise self.answer
        return {"waits_for": request["waits_for"]}

    def word(self, **more: Any) -> dict[str, Any]:
        return self.take(op="update", url="https://updates.example.org/2.swu", version="2", **more)

    def look(self, seconds: float) -> list[dict[str, Any]]:
        self.now += seconds
        assert (due := self.commands.due(self.now)) is None or due <= self.now + module.ASK_LATER
        return self.commands.look(self.now, CLOCK)


@pytest.fixture
def waiting(tmp_path: Path) -> Any:
    one = Waiting(tmp_path / "out")
    yield one
    one.outbox.close(0.0)


def test_an_update_that_waits_asks_and_begins_with_the_word_that_answers(waiting: Waiting) -> None:
    waiting.answer = "the update to 2 has begun"
    found = waiting.word()
    assert (found["ok"], found["again"], found["waits_for"]) == (False, True, ["its hours 02:00-05:00"])
    assert waiting.look(module.LOOK_LATER) == []
    waiting.waiting = []
    (asks,) = waiting.look(module.LOOK_LATER)
    assert (asks["id"], asks["asks"], asks["again"]) == ("c1", True, True)
    assert waiting.asked == [], "nothing has begun, and nothing does without an answer"
    first = waiting.word()
    assert first == waiting.word() == {"id": "c1", "ok": True, "result": "the update to 2 has begun", "error": None}
    assert [request["op"] for request in waiting.asked] == ["update"], "told twice, it begins once"
    assert waiting.look(10_000.0) == []


def test_one_that_is_not_answered_is_forgotten(waiting: Waiting) -> None:
    waiting.word()
    waiting.waiting = []
    asked = [waiting.look(module.ASK_LATER) for _ in range(10)]
    assert [len(one) for one in asked] == [1] * module.ASKS + [0] * (10 - module.ASKS)
    assert waiting.commands.due(waiting.now) is None
    assert waiting.asked == []


def test_one_that_pid_1_refuses_does_not_wait(waiting: Waiting) -> None:
    waiting.answer = SVError("this board's COMMANDS refuses update")
    assert waiting.word()["error"] == "this board's COMMANDS refuses update"
    assert waiting.commands.due(waiting.now) is None


def test_one_that_a_power_cut_came_between_is_begun_again(waiting: Waiting) -> None:
    """Its id is on the disk, and whether PID 1 has begun it is not known: to begin the same one twice is safe."""
    waiting.waiting = []
    waiting.outbox.remember("c1", "", CLOCK + 600, CLOCK)
    waiting.answer = "the update to 2 is under way"
    assert waiting.word()["result"] == "the update to 2 is under way"
