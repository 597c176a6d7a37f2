"""What PID 1 tells of the board: appended to a file of memory, read by whoever sends it on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually

from onboard import events


def numbers(above: int = 0) -> list[int]:
    return [event["seq"] for event in events.since(above)]


def test_each_event_is_an_envelope() -> None:
    one = events.Events()
    one.tell("crash", {"name": "é"}, 12.34567)
    (found,) = events.since(0)
    assert (found["kind"], found["from"], found["seq"], found["mono"], found["data"]) == (
        "crash",
        "stack",
        1,
        12.346,
        {"name": "é"},
    )
    assert found["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (found["time"] is None) == (found["clock"] == "unset")


def test_the_file_is_bounded_and_a_gap_tells_of_it() -> None:
    one = events.Events()
    for _ in range(1000):
        one.tell("crash", {"text": "x" * 500}, 1.0)
    size = sum(os.path.getsize(f"{events.FILE}{suffix}") for suffix in (".1", "") if os.path.exists(f"{events.FILE}{suffix}"))
    assert size < 2 * events.MOST + 1000
    found = numbers()
    assert found == list(range(found[0], 1001))
    assert found[0] > 1
    assert numbers(995) == [996, 997, 998, 999, 1000]


def test_a_line_that_is_being_written_waits() -> None:
    events.Events().tell("crash", {}, 1.0)
    with open(events.FILE, "a") as file:
        file.write('{"seq": 2, "ki')
    assert numbers() == [1]


def test_a_line_that_was_cut_off_costs_itself_alone() -> None:
    """/run was full, and has room again."""
    one = events.Events()
    one.tell("crash", {}, 1.0)
    with open(events.FILE, "a") as file:
        file.write('{"seq": 2, "ki')
    one.number = 2
    one.tell("crash", {}, 2.0)
    assert numbers() == [1, 3]


def test_what_is_told_before_there_is_a_run_is_written_later() -> None:
    one = events.Events()
    one.hold()
    one.tell("fault", {}, 1.0)
    assert not os.path.exists(events.FILE)
    one.release()
    one.tell("fault", {}, 2.0)
    assert numbers() == [1, 2]


def test_a_run_that_takes_nothing_costs_the_event_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stack

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(events, "FILE", str(tmp_path / "file/events"))
    stack.Init([]).tell("crash", {}, 1.0)


def test_what_cannot_be_told_does_not_touch_who_tells_it() -> None:
    """A fault, or the end of the board, is nothing that JSON has no word for."""
    import stack

    init = stack.Init([])
    init.tell("fault", {"text": object()}, 1.0)
    assert init.loop.errors == 1


def test_what_happens_on_a_board(boot: Callable[..., Board]) -> None:
    services = """
Service("dies", ("sh", "-c", "exit 7")), Service("job", ("true",), ready="exit"), Service("missing", ("no-such-program",)),
Service("stays", ("sleep", "1000")), Service("enough", ("sh", "-c", "exit 125")),
Service("mute", ("sleep", "1000"), ready="notify", ready_timeout=0.2),
"""
    board = boot(services).up()

    def told() -> list[dict[str, Any]]:
        path = board.root / "run/stack/events"
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    eventually(lambda: {"dies", "missing"} <= {event["data"].get("name") for event in told()})
    board.ask("stop", name="stays")
    board.wait_state("stays", "stopped")
    board.ask("start", name="stays")
    board.kill("stays")
    last = eventually(lambda: next(e for e in told() if e["data"].get("name") == "stays"))
    assert (last["kind"], last["data"]["exit"], last["data"]["restart"]) == ("crash", "signal KILL", 1)
    found = told()
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert {event["kind"] for event in found} == {"up", "crash"}
    exits = {event["data"]["name"]: event["data"]["exit"] for event in found if event["kind"] == "crash"}
    assert exits["dies"] == "exit 7"
    assert exits["missing"].startswith("ENOENT")
    assert not exits.keys() & {"job", "enough"}, "what ends well, or wants no more, is no crash"
    assert eventually(lambda: board.ask("board")["complete"])
