"""Roll-outs: waves over a simulated fleet with a clock of its own and a real database, and the word through a real broker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MOSQUITTO, PYTHON, ROOT, eventually
from servers import plain

sys.path.insert(0, str(ROOT / "mothership"))

import page
import rollout_store
import rollouts
from boards import PROMISE
from boards import boards as boards_table
from rollouts import ABORTED, DONE, PAUSED, RUNNING, STOPPED, Board, Rollout, Target, parse_waves, sizes
from store import News, Store

from uplink import wire
from uplink.commands import LONGEST, Commands
from uplink.outbox import Outbox

NOW = 1_800_000_000.0
WAVES = ("1", "5%", "25%", "100%")
HOUR = 3600.0
SHA = "0" * 64


class Fleet:
    """Simulated boards that say in a real database what they run. `bad` boards fall back; the word is what `look` decides."""

    def __init__(self, database: str, names: list[str], version: str = "1") -> None:
        self.now = NOW
        self.store = Store(database, clock=lambda: self.now)
        self.runs = dict.fromkeys(names, version)
        self.boots = dict.fromkeys(names, 1)
        self.numbers = dict.fromkeys(names, 0)
        self.words: dict[str, int] = dict.fromkeys(names, 0)
        self.away: set[str] = set()
        self.bad: set[str] = set()
        self.silent: set[str] = set()  # become missing after the word
        self.crash: set[str] = set()
        self.trial: set[str] = set()  # run the release, and do not commit it
        self.ends: dict[str, tuple[str, str]] = {}  # what a board's record says of its update, with the reason
        self.says: dict[str, str | None] = dict.fromkeys(names)  # of an update, in info
        self.waits: dict[str, list[str]] = {}  # for what, before they begin
        self.refuse: set[str] = set()
        self.speak()

    def speak(self) -> None:
        """Each board that is there says where it is."""
        news, batches = [], []
        for name in sorted(set(self.runs) - self.away):
            boot = f"boot {self.boots[name]}"
            news += [News(name, "state", {"state": "ready", "boot": boot})]
            info = {"boot": boot, "release": self.runs[name], "board": "rpi3", "number": self.boots[name]}
            news += [News(name, "info", {**info, "update": self.says.get(name)})]
            before, self.numbers[name] = self.numbers[name], self.numbers[name] + 1
            batches.append((name, wire.Batch(before, [(before + 1, "evt", {})], "")))
        self.store.take(batches, news)

    def crashes(self, name: str, service: str) -> None:
        self.record(name, "crash", {"name": service})

    def record(self, name: str, kind: str, data: dict[str, Any]) -> None:
        before, self.numbers[name] = self.numbers[name], self.numbers[name] + 1
        self.store.take([(name, wire.Batch(before, [(before + 1, kind, {"data": data})], ""))])

    def ended(self, name: str, result: str, reason: str, version: str = "2") -> None:
        self.record(name, "update", {"result": result, "reason": reason, "version": version})

    def start(self, name: str = "r", version: str = "2", most_bad: int = 0, waves: tuple[str, ...] = WAVES) -> None:
        rollout_store.add_release(
            self.store, rollout_store.Release(version, version, f"https://example.org/{version}", SHA, "*", self.now)
        )
        with self.store.database.transaction():
            insert = "INSERT INTO member VALUES ('mast', 'pattern', 'b*') ON CONFLICT DO NOTHING"
            self.store.database.execute(insert)
        assert rollout_store.start(self.store, Rollout(name, version, waves, HOUR, most_bad), version, "mast", self.now)

    def obey(self, rollout: str, version: str, board: str) -> None:
        """What a board does with the word: it is told twice and updates once, by the id."""
        self.words[board] += 1
        if board in self.refuse:
            rollout_store.answered(self.store, rollout, board, False, "this board's COMMANDS refuses update")
            return
        if board in self.waits:
            rollout_store.waiting(self.store, rollout, board, "; ".join(self.waits[board]))
            return
        rollout_store.answered(self.store, rollout, board, True, "has begun")
        if board in self.silent:
            self.away.add(board)
            return
        self.now += 1.0
        if board in self.ends:
            self.ended(board, *self.ends[board], version)
            return
        self.boots[board] += 1
        if board in self.bad:
            return  # it has started again, with what it ran before
        self.runs[board] = version
        self.says[board] = "on trial" if board in self.trial else "committed"
        if board in self.crash:
            self.crashes(board, "gps@ttyUSB0")

    def run(self, rollout: str = "r", hours: float = 24, minutes: int = 10, until: str = "") -> list[str]:
        """Turn the clock on; what was said."""
        said: list[str] = []
        for _ in range(int(hours * 60 / minutes)):
            step = rollout_store.look(self.store, rollout, self.now)
            said += step.said
            for board in step.tell:
                self.obey(rollout, step.rollout.version, board)
            if step.rollout.state == until:
                break
            self.now += 60.0 * minutes
            self.speak()
        return said

    def state(self, rollout: str = "r") -> Rollout:
        return rollout_store.one(self.store, rollout).rollout

    def target(self, board: str, rollout: str = "r") -> Target:
        return next(target for target in rollout_store.targets_of(self.store, rollout) if target.board == board)


def names(count: int) -> list[str]:
    return [f"b{number:03}" for number in range(count)]


# --- a fleet -----------------------------------------------------------------------------------------------------------
def test_a_good_release_reaches_all_in_four_waves(database: str) -> None:
    boards = Fleet(database, names(200))
    boards.start()
    said = boards.run(until=DONE)
    assert [text.split(": ")[1] for text in said] == [f"wave {n} of 4 ({WAVES[n - 1]}) opens" for n in (2, 3, 4)] + ["done"]
    assert set(boards.runs.values()) == {"2"}
    assert set(boards.words.values()) == {1}, "each was told once"
    waves = [target.wave for target in rollout_store.targets_of(boards.store, "r")]
    assert [waves.count(wave) for wave in range(4)] == [1, 9, 40, 150]
    assert boards.now - NOW >= 4 * HOUR, "each wave was healthy for the pause"


def test_three_percent_bad_boards_stop_it_in_the_wave_where_the_third_one_falls_back(database: str) -> None:
    boards = Fleet(database, names(200))
    boards.start(most_bad=2)
    order = {wave: [t.board for t in rollout_store.targets_of(boards.store, "r") if t.wave == wave] for wave in range(4)}
    boards.bad = {order[1][0], order[2][0], order[2][1], *order[3][:3]}
    said = boards.run(until=STOPPED)
    state = boards.state()
    assert (state.state, state.wave) == (STOPPED, 2)
    assert state.why.startswith("stopped in wave 3: 3 boards are bad, more than 2: ")
    assert f"{order[2][1]} fell back: it has started again, and it runs 1" in state.why
    assert said[-1] == f"r: {state.why}"
    assert sum(version == "2" for version in boards.runs.values()) == 47
    assert not any(boards.words[board] for board in order[3]), "the last wave has heard nothing"
    boards.run(hours=5)
    assert not any(boards.words[board] for board in order[3])
    with pytest.raises(ValueError, match="--most-bad"):
        rollout_store.set_state(boards.store, "r", RUNNING)
    rollout_store.set_state(boards.store, "r", RUNNING, most_bad=6)
    boards.run(until=DONE)
    assert boards.state().why == "194 updated, 6 bad"


@pytest.mark.parametrize(
    ("what", "why"),
    [("bad", "fell back: it has started again"), ("silent", "is missing for 1."), ("crash", "has new crashes of gps@ttyUSB0")],
)
def test_it_stops_for_each_kind_of_bad_board(what: str, why: str, tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    first = rollout_store.targets_of(boards.store, "r")[0].board
    getattr(boards, what).add(first)
    boards.run(until=STOPPED)
    assert boards.state().state == STOPPED
    assert f"stopped in wave 1: 1 board is bad, more than 0: {first} {why}" in boards.state().why
    assert sum(boards.words.values()) == 1


def test_a_roll_out_that_stopped_is_said_wherever_somebody_looks(database: str) -> None:
    boards = Fleet(database, names(4))
    boards.start(waves=("2", "100%"))
    first, second = (target.board for target in rollout_store.targets_of(boards.store, "r")[:2])
    boards.ends[first] = ("fell back", "<no> ssh")
    boards.waits[second] = ["its hours 02:00-05:00"]
    why = boards.run(hours=1, until=STOPPED)[-1].removeprefix("r: ")
    assert f"{first} fell back: <no> ssh" in why
    notes = {row["name"]: row["note"] for row in boards_table(boards.store, boards.now)}
    assert notes.pop(first) == "r: fell back: <no> ssh"
    assert notes.pop(second) == "r: waits: its hours 02:00-05:00"
    assert set(notes.values()) == {None}
    code, _, said = mothership("boards", database)
    assert (code, said) == (0, f"roll-out r has {why}")
    assert why in mothership("rollout", "status", database)[1]
    assert page.data(boards.store, boards.now)["rollouts"] == [said]
    rollout_store.set_state(boards.store, "r", ABORTED)
    assert mothership("boards", database)[2] == ""
    assert not any(row["note"] for row in boards_table(boards.store, boards.now))


def test_a_board_that_falls_back_after_it_was_good_stops_it_too(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    boards.run(hours=0.5)
    first = rollout_store.targets_of(boards.store, "r")[0].board
    assert boards.target(first).updated
    boards.runs[first], boards.boots[first] = "1", 3
    boards.run(until=STOPPED)
    assert f"{first} fell back: it runs 1" in boards.state().why


def test_crashes_that_were_there_before_are_not_new(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(4))
    for name in boards.runs:
        boards.crashes(name, "gps@ttyUSB0")
    boards.now += 60
    boards.start()
    boards.crash = set(boards.runs)
    boards.run(until=DONE)
    assert boards.state().state == DONE, "one crash before, one since"
    assert rollout_store.new_crashes(boards.store, boards.target("b000"), boards.now) == ()
    boards.crashes("b000", "gps@ttyUSB0")
    assert rollout_store.new_crashes(boards.store, boards.target("b000"), boards.now) == ("gps@ttyUSB0",)


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (("fell back", "slot B (2): no ssh"), "fell back: slot B (2): no ssh"),
        (("failed", "no ssh"), "falls back: no ssh"),
        (("not written", "its signature is not by this board's key"), "could not update: its signature is not"),
        (("not tried", "a power cut"), "has not tried it: a power cut"),
    ],
)
def test_what_a_board_records_of_its_update_counts_at_once(ends: tuple[str, str], why: str, tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    first = rollout_store.targets_of(boards.store, "r")[0].board
    boards.ended(first, "fell back", "that was another release", "1.9")
    boards.ended(first, "fell back", "that was long before the word")
    boards.now += 60.0
    boards.ends[first] = ends
    boards.run(hours=0.4, until=STOPPED)
    assert f"{first} {why}" in boards.state().why
    assert boards.target(first).updated is None
    boards.ended(first, "committed", "by hand")
    boards.runs[first], boards.says[first] = "2", "committed"
    boards.speak()
    boards.now += 1.0
    rollout_store.set_state(boards.store, "r", RUNNING, most_bad=1)
    rollout_store.look(boards.store, "r", boards.now)
    assert (boards.target(first).bad, bool(boards.target(first).updated)) == ("", True), "somebody has mended it"


def test_a_release_on_trial_is_no_update_yet(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    first = rollout_store.targets_of(boards.store, "r")[0].board
    boards.trial = {first}
    boards.run(hours=3)
    assert boards.runs[first] == "2"
    assert (boards.state().state, boards.state().wave, boards.target(first).updated) == (RUNNING, 0, None)
    boards.says[first] = "committed"
    boards.speak()
    boards.run(hours=0.2)
    assert boards.target(first).updated
    other = next(target.board for target in rollout_store.targets_of(boards.store, "r") if target.wave == 2)
    boards.trial.add(other)
    boards.run(hours=8, until=STOPPED)
    assert f"{other} has not committed it within 6 h: it runs 2" in boards.state().why


def test_software_that_says_nothing_of_updates_is_believed_by_its_record() -> None:
    """A board whose info has no word of updates, which is one of before there was any."""
    board, told = Board("2", "boot 2", NOW, there=True), Target("b", 0, told=NOW - 9, boot="boot 1", accepted=True)
    assert rollouts.judge(told, "2", board, NOW, PROMISE).updated is None
    assert rollouts.judge(told, "2", board._replace(ended=("committed", "")), NOW, PROMISE).updated == NOW
    assert rollouts.judge(Target("b", 0), "2", board, NOW, PROMISE).updated == NOW, "it had the release before the word"
    assert rollouts.judge(told, "2", board._replace(update="none"), NOW, PROMISE).updated == NOW
    assert rollouts.judge(told, "2", board._replace(update="on trial"), NOW, PROMISE).updated is None


def test_a_board_that_goes_on_after_a_power_cut_has_not_fallen_back(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(4))
    boards.start(waves=("100%",), most_bad=3)
    boards.bad = {"b000", "b001"}
    boards.says["b001"] = "under way"
    boards.run(hours=2)
    assert boards.target("b000").bad == "fell back: it has started again, and it runs 1"
    assert boards.target("b001").bad == "", "it loads the bundle again"


def test_an_update_whose_service_was_killed_counts(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(4))
    boards.start(waves=("1", "100%"))
    first = rollout_store.targets_of(boards.store, "r")[0].board
    rollout_store.look(boards.store, "r", boards.now)
    rollout_store.answered(boards.store, "r", first, True, "has begun")
    boards.now += 1.0
    boards.crashes(first, "update")
    assert f"{first} could not update: its service update has crashed" in boards.run(hours=1, until=STOPPED)[-1]


# --- who is told -------------------------------------------------------------------------------------------------------
def test_a_late_board_joins_the_newest_release(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(10))
    boards.away = {"b003"}
    boards.now += 2 * PROMISE
    boards.speak()
    boards.start()
    boards.run(until=DONE)
    assert boards.state().why == "9 updated, 1 not told"
    boards.start("newer", "3")
    boards.run("newer", until=DONE)
    boards.away = set()
    boards.runs["b999"], boards.boots["b999"], boards.numbers["b999"], boards.words["b999"] = "1", 1, 0, 0
    boards.speak()
    boards.run("r", hours=1)
    assert boards.words["b003"] == 0, "the older roll-out leaves it to the newer one"
    boards.run("newer", hours=1)
    assert (boards.runs["b003"], boards.words["b003"]) == ("3", 1)
    assert (boards.runs["b999"], boards.words["b999"]) == ("3", 1), "a board that the roll-out did not know joins it too"


def test_who_refuses_is_left_out_and_proves_nothing(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(10))
    boards.start(waves=("1", "100%"))
    first = rollout_store.targets_of(boards.store, "r")[0].board
    boards.refuse = {first}
    boards.run(hours=10)
    assert (boards.state().state, boards.state().wave) == (RUNNING, 0), "nobody of the first wave has updated"
    assert boards.words[first] == 1
    assert rollouts.summary(rollout_store.targets_of(boards.store, "r")) == "1 refused, 9 not told"


def test_a_board_that_waits_begins_when_it_asks_and_an_abort_reaches_it(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(4))
    boards.start(waves=("2", "100%"))
    first, second = (target.board for target in rollout_store.targets_of(boards.store, "r")[:2])
    boards.waits = {first: ["its hours 02:00-05:00"], second: ["its hours 02:00-05:00"]}
    boards.run(hours=5)
    assert boards.target(first).waits == "its hours 02:00-05:00"
    assert boards.words[first] in (5, 6), "it is told again now and then, not each minute"
    assert (boards.state().state, boards.state().wave) == (RUNNING, 0), "the wave waits for it"
    assert "2 waiting" in rollouts.summary(rollout_store.targets_of(boards.store, "r"))
    boards.away = {second}
    boards.run(hours=4)
    assert boards.state().state == RUNNING, "nobody has begun: who is missing now is not bad"
    boards.waits, before = {}, boards.words[first]
    rollout_store.asking(boards.store, "r", first)
    boards.run(hours=0.2)
    assert (boards.words[first], boards.runs[first]) == (before + 1, "2")
    rollout_store.set_state(boards.store, "r", ABORTED)
    before, boards.away = boards.words[second], set()
    rollout_store.asking(boards.store, "r", second)
    boards.run(hours=5)
    assert (boards.words[second], boards.runs[second]) == (before, "1")


def test_a_board_that_waits_for_ever_does_not_hold_the_wave(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(4))
    boards.start(waves=("2", "100%"))
    first = rollout_store.targets_of(boards.store, "r")[0].board
    boards.waits = {first: ["a network that is not metered"]}
    boards.run(hours=24)
    assert boards.state().wave == 0
    boards.run(hours=24, until=DONE)
    assert boards.state().why == "3 updated, 1 waiting"
    boards.waits = {}
    boards.run(hours=2)
    assert boards.runs[first] == "2", "it comes late"


def test_a_board_that_was_started_again_has_forgotten_that_it_waits() -> None:
    board, rollout = Board("1", "boot 2", NOW, there=True), Rollout("r", "2", ("100%",), 0.0, 0)
    target = Target("b", 0, told=NOW - 600, asked=NOW - 600, boot="boot 2", waits="its hours")
    assert not rollouts.due(rollout, target, board, NOW, 60.0)
    assert rollouts.due(rollout, target, board._replace(boot="boot 3"), NOW, 60.0)


def test_pause_resume_and_abort(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    rollout_store.set_state(boards.store, "r", PAUSED)
    boards.run(hours=5)
    assert not any(boards.words.values())
    rollout_store.set_state(boards.store, "r", RUNNING)
    boards.run(hours=0.5)
    assert sum(boards.words.values()) == 1
    rollout_store.set_state(boards.store, "r", ABORTED)
    boards.run(hours=24)
    assert sum(boards.words.values()) == 1, "an abort reaches the boards that have not begun"
    with pytest.raises(ValueError, match="is aborted, and cannot become running"):
        rollout_store.set_state(boards.store, "r", RUNNING)


def test_a_roll_out_begins_once_by_its_id(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(20))
    boards.start()
    again = Rollout("r", "2", WAVES, HOUR, 0)
    assert not rollout_store.start(boards.store, again, "2", "mast", boards.now)
    with pytest.raises(ValueError, match="was begun with another release, group, --wave or --pause"):
        rollout_store.start(boards.store, again._replace(pause=1.0), "2", "mast", boards.now)
    with pytest.raises(ValueError, match="there is no group 'pole'"):
        rollout_store.start(boards.store, again._replace(id="s"), "2", "pole", boards.now)
    with pytest.raises(ValueError, match="there is no release '9'; there are 2"):
        rollout_store.start(boards.store, again._replace(id="s"), "9", "mast", boards.now)
    assert len(rollout_store.every(boards.store)) == 1


def test_a_board_that_does_not_answer_is_told_again_and_counts_in_the_end() -> None:
    board = Board("1", "boot 1", NOW, there=True)
    rollout, targets, told = Rollout("r", "2", ("100%",), 0.0, 0), [Target("b1", 0)], 0
    for minute in range(7 * 60):
        now = NOW + minute * 60.0
        step = rollouts.step(rollout, targets, {"b1": board._replace(heard=now)}, now, PROMISE)
        rollout, targets, told = step.rollout, step.targets, told + len(step.tell)
    assert told == 361
    assert rollout.why == "stopped in wave 1: 1 board is bad, more than 0: b1 has not answered within 6 h: it runs 1"


def test_while_nobody_is_heard_no_board_is_missing(tmp_path: Path) -> None:
    boards = Fleet(str(tmp_path / "m.db"), names(3))
    assert rollout_store.hears(boards.store, boards.now)
    assert not rollout_store.hears(boards.store, boards.now + 2 * PROMISE)
    boards.start(waves=("100%",))
    boards.run(hours=0.5)
    step = rollout_store.look(boards.store, "r", boards.now + 2 * PROMISE, deaf=True)
    assert step.rollout.state != STOPPED
    assert rollout_store.look(boards.store, "r", boards.now + 2 * PROMISE).rollout.state in (STOPPED, DONE)


# --- words -------------------------------------------------------------------------------------------------------------
def test_waves() -> None:
    assert parse_waves("1, 5%,25%,100%") == WAVES
    assert sizes(WAVES, 200) == [1, 10, 50, 200]
    assert sizes(WAVES, 1) == [1, 1, 1, 1]
    for text, why in (
        ("0,100%", "'0' is neither"), ("101%,100%", "'101%' is neither"), ("x,100%", "'x' is neither"), ("1,50%", "ends with 100%"),
        ("", "'' is neither"), (",".join(["1"] * 32 + ["100%"]), "takes at most 32"), ("9" * 5000, "is neither"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            parse_waves(text)
    with pytest.raises(ValueError, match="1 of 200 boards is less than the wave before it"):
        sizes(("5%", "1", "100%"), 200)


def mothership(*words: str) -> tuple[int, str, str]:
    argv = [PYTHON, str(ROOT / "mothership"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_the_commands(tmp_path: Path) -> None:
    database = str(tmp_path / "m.db")
    boards = Fleet(database, names(20))
    add = (
        "release",
        "add",
        database,
        "1.4",
        "https://example.org/1.4.swu",
        "--sha256",
        SHA,
        "--version",
        "1.4",
        "--fits",
        "rpi*",
    )
    assert mothership(*add)[:2] == (0, "release 1.4: version 1.4")
    assert mothership(*add)[:2] == (0, "release 1.4: version 1.4, which is there already")
    assert "another release '1.4'" in mothership(*add[:4], "https://example.org/x", *add[5:])[2]
    assert "no https:// address" in mothership(*add[:4], "http://example.org/x", *add[5:])[2]
    assert "64 hexadecimal digits" in mothership(*add[:6], "ab", *add[7:])[2]
    assert "1.4  1.4  fits rpi*" in mothership("release", "list", database)[1]
    assert mothership("group", "add", database, "mast", "b000", "--pattern", "b01*")[1] == "mast: b000, b01*; 11 known boards"
    assert mothership("group", "remove", database, "mast", "b000")[1] == "mast: b01*; 10 known boards"
    assert mothership("group", "list", database)[1] == "mast: b01*; 10 known boards"
    assert "is not a board's name" in mothership("group", "add", database, "mast", "b*")[2]
    start = ("rollout", "start", database, "1.4", "--group", "mast", "--wave", "1,100%", "--pause", "30s")
    assert mothership(*start)[:2] == (0, "roll-out 1.4-mast: has begun, with 10 boards")
    assert mothership(*start)[:2] == (0, "roll-out 1.4-mast: had begun already, with 10 boards")
    assert "'1 hour' is no time" in mothership(*start[:-1], "1 hour")[2]
    assert "1.4-mast: running, wave 1 of 2 (1): 10 not told" in mothership("rollout", "status", database)[1]
    assert mothership("rollout", "pause", database, "1.4-mast")[1] == "roll-out 1.4-mast: paused"
    assert mothership("rollout", "resume", database, "1.4-mast")[1] == "roll-out 1.4-mast: running"
    assert mothership("rollout", "abort", database, "1.4-mast")[1] == "roll-out 1.4-mast: aborted"
    assert "there is no roll-out 'x'; there are 1.4-mast" in mothership("rollout", "abort", database, "x")[2]
    assert len(json.loads(mothership("rollout", "status", database, "1.4-mast", "--json")[1])[0]["targets"]) == 10
    assert "RELEASE" in mothership("boards", database)[1]
    boards.store.database.connection.close()  # type: ignore[attr-defined]


def test_a_word_is_carried_out_once_also_long_after_it_expired(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any]) -> str:
        if "waits_for" not in request:
            asked.append(request)
        return "the update to 2 has begun"

    commands = Commands(Outbox(str(tmp_path / "box"), 1 << 20, 0, (), print), "boot 1", ask, lambda data: None)
    order = {"id": "rollout.r", "op": "update", "expires": NOW + 600, "url": "https://example.org/2", "version": "2"}
    first = commands.take(json.dumps(order).encode(), NOW, 1.0)
    assert first == {"id": "rollout.r", "ok": True, "result": "the update to 2 has begun", "error": None}
    commands.take(json.dumps({**order, "id": "other", "url": 7}).encode(), NOW + LONGEST / 2, 2.0)  # cleans up
    late = {**order, "expires": NOW + LONGEST / 2 + 600}
    assert commands.take(json.dumps(late).encode(), NOW + LONGEST / 2, 3.0) == first
    assert [request for request in asked if request["url"] != 7] == [
        {"op": "update", "url": "https://example.org/2", "version": "2"}
    ]


# --- the driver --------------------------------------------------------------------------------------------------------
# A board's end of the broker: PID 1 is a list of what it was asked. Its first answer is lost.
BOARD = """
import json, os, select, sys, time
sys.path.insert(0, sys.argv[1])
from uplink import commands as module, wire
from uplink.remote import Remote
from uplink.commands import Commands
from uplink.outbox import Outbox

def ask(request):
    if "waits_for" in request:
        return {"waits_for": request["waits_for"]}
    print("ASKED", json.dumps(request), flush=True)
    return "the update to 2 has begun"

def waits():
    return ["its hours"] if os.path.exists(sys.argv[2] + ".waits") else []

module.LOOK_LATER = module.ASK_LATER = 0.1
module.ASKS = 1 << 30
commands = Commands(Outbox(sys.argv[2], 1 << 20, 0, (), print), "boot 1", ask, lambda data: None, waits)
remote = Remote("b1", (sys.argv[3],), (wire.topic("b1", "cmd"),))
remote.start()
heard = 0
while True:
    select.select([remote.fd], [], [], 0.05)
    for result in commands.look(time.monotonic(), time.time()):
        print("MAY IT BEGIN", flush=True)
        remote.publish(wire.topic("b1", f"res/{result['id']}"), json.dumps(result).encode(), qos=1)
    for topic, payload in remote.take():
        if not topic:
            print("CONNECTED", flush=True)
            continue
        heard += 1
        result = commands.take(payload, time.time(), time.monotonic())
        print("HEARD", heard, flush=True)
        if heard > 1:
            remote.publish(wire.topic("b1", f"res/{result['id']}"), json.dumps(result).encode(), qos=1)
"""


class Live:
    """A real broker, a stub of a board around the real commands, and the roll-out's real process."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        broker, self.address = plain(folder)
        stack.callback(broker.end)
        self.database, self.output, self.waits = str(folder / "m.db"), folder / "said", folder / "box.waits"
        with self.output.open("wb") as file:
            words = [PYTHON, "-c", BOARD, str(ROOT), str(folder / "box"), self.address]
            board = subprocess.Popen(words, stdout=file)
        stack.callback(board.wait)
        stack.callback(board.kill)
        eventually(lambda: "CONNECTED" in self.said(), 20)
        self.boards = Fleet(self.database, ["b1"])
        self.boards.now = time.time()
        self.boards.speak()
        self.boards.start(waves=("100%",))

    def said(self) -> str:
        return self.output.read_text()

    def driver(self) -> subprocess.Popen[bytes]:
        words = [PYTHON, str(ROOT / "mothership"), "rollout", "run", self.database, self.address, "--repeat", "1s"]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    with contextlib.ExitStack() as stack:
        yield Live(tmp_path, stack)


def test_the_word_reaches_a_board_once_although_the_driver_is_killed(live: Live) -> None:
    first = live.driver()
    eventually(lambda: "HEARD 1" in live.said(), 20)
    first.kill()
    first.wait()
    assert live.boards.target("b1").told, "the word was in the database before it was sent"
    live.driver()
    eventually(lambda: live.boards.target("b1").accepted, 20)
    assert live.boards.target("b1").answer == "the update to 2 has begun"
    assert "HEARD 2" in live.said(), "it was told again"
    assert live.said().count("ASKED") == 1, "and has carried it out once"


def test_a_pause_reaches_a_board_that_waits_for_its_hours(live: Live) -> None:
    """So do an abort and a stop: whoever asks is told while the roll-out runs alone."""
    live.waits.touch()
    live.driver()
    eventually(lambda: live.boards.target("b1").waits == "its hours", 20)
    rollout_store.set_state(live.boards.store, "r", PAUSED)
    live.waits.unlink()
    eventually(lambda: live.said().count("MAY IT BEGIN") >= 20, 20)
    assert "ASKED" not in live.said(), "it asks, and nobody answers"
    rollout_store.set_state(live.boards.store, "r", RUNNING)
    eventually(lambda: live.boards.target("b1").accepted, 20)
    assert live.said().count("ASKED") == 1
