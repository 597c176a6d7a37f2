"""Commands of the mothership: carried out once, answered always, and only those of the table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.to_pid1 import SVError
from tables.check_rules import command_fault
from uplink.commands import LONGEST, UNKNOWN, Commands
from uplink.outbox import REMEMBERED, Outbox

CLOCK = 1_800_000_000.0


class Lab:
    """An outbox on a disk, a PID 1 that notes what it is asked, and what is told of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.answer: Any = "reboot has begun"
        self.row: Any = None  # of a service, where it is not the answer
        self.now = 100.0
        self.boot_id = "boot 1"
        self.boot()

    def boot(self) -> None:
        self.outbox = Outbox(str(self.folder), 1 << 20, 0, (), print)
        self.commands = Commands(self.outbox, self.boot_id, self.ask, self.told.append)

    def ask(self, request: dict[str, Any]) -> Any:
        if request["op"] == "stats":
            return [self.row if self.row is not None else self.answer]
        self.asked.append(request)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def take(self, clock: float | None = CLOCK, **command: Any) -> dict[str, Any]:
        result = self.commands.take(
            json.dumps({"id": "c1", "op": "reboot", "boot": "boot 1", "expires": CLOCK + 60, **command}).encode(),
            clock,
            self.now,
        )
        assert result is not None
        return result


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path / "out")
    yield one
    one.outbox.close(0.0)


def test_it_is_carried_out_once_and_answered_each_time(lab: Lab) -> None:
    first = lab.take()
    assert first == {"id": "c1", "ok": True, "result": "reboot has begun", "error": None}
    assert lab.take() == first
    lab.outbox.close(0.0)
    lab.boot_id = "boot 2"
    lab.boot()
    assert lab.take() == first, "after the reboot, too"
    assert lab.asked == [{"op": "reboot"}]
    assert [told["id"] for told in lab.told] == ["c1"], "one record of it"


def test_one_whose_end_is_not_known_is_not_begun_again(lab: Lab) -> None:
    lab.answer = KeyboardInterrupt()  # a death between the act and its result
    with pytest.raises(KeyboardInterrupt):
        lab.take()
    lab.outbox.close(0.0)
    lab.boot()
    assert lab.take() == {"id": "c1", "ok": False, "result": None, "error": UNKNOWN}
    assert len(lab.asked) == 1


def test_what_pid_1_refuses_is_the_answer(lab: Lab) -> None:
    lab.answer = SVError("only root may reboot the board; you are uid 65534")
    assert lab.take()["error"] == "only root may reboot the board; you are uid 65534"
    assert lab.take()["ok"] is False
    assert len(lab.asked) == 1


def test_a_service_is_named_and_its_state_is_the_result(lab: Lab) -> None:
    lab.answer = {"name": "gps@ttyUSB0", "state": "running", "exit": None, "restart": 1, "pid": 17, "cmd": ["a", "b"]}
    found = lab.take(op="signal", name="gps@ttyUSB0", signal="HUP", extra="is not passed on")
    assert found["result"] == {"name": "gps@ttyUSB0", "state": "running", "exit": None, "restart": 1}
    assert lab.asked == [{"op": "signal", "name": "gps@ttyUSB0", "signal": "HUP"}]


def service(state: str, restart: int = 1, died: str | None = None) -> dict[str, Any]:
    return {"name": "gps", "state": state, "exit": died, "restart": restart, "pid": 17}


def test_a_restart_is_answered_when_the_service_runs_again(lab: Lab) -> None:
    lab.answer = lab.row = service("running", 3)
    lab.row = service("running", 3)
    lab.answer = service("stopping", 3)
    begun = lab.take(op="restart", name="gps")
    assert (begun["ok"], begun["again"], begun["error"]) == (False, True, "restart gps is under way")
    assert lab.take(op="restart", name="gps") == begun, "asked again, it waits on"
    assert lab.commands.due(100.0) == pytest.approx(100.1)
    lab.row = service("stopping", 3)
    assert lab.commands.look(100.5, CLOCK) == []
    lab.row = service("running", 4, "exit 0")
    (found,) = lab.commands.look(101.2, CLOCK)
    assert found == {
        "id": "c1", "ok": True, "error": None,
        "result": {"name": "gps", "state": "running", "exit": "exit 0", "restart": 4, "after": 1.2},
    }  # fmt: skip
    assert (lab.commands.due(101.2), lab.take(op="restart", name="gps")) == (None, found)
    assert ([told["id"] for told in lab.told], lab.asked) == (["c1"], [{"op": "restart", "name": "gps"}])


@pytest.mark.parametrize(
    ("operation", "row", "at", "why"),
    [
        ("restart", service("backoff", 2, "exit 3"), 101.0, "gps failed, and is tried again: exit 3"),
        ("start", service("backoff", 1, "exit 3"), 101.0, "gps failed, and is tried again: exit 3"),
        ("stop", service("stopping"), 130.0, "gps is still stopping after 30 s"),
        ("restart", service("running", 1), 130.0, "gps is still running after 30 s"),
        ("start", service("starting"), 131.5, "gps is still starting after 31.5 s"),
    ],
)  # fmt: skip
def test_a_command_that_does_not_come_to_its_end_is_a_failure(
    lab: Lab, operation: str, row: dict[str, Any], at: float, why: str
) -> None:
    lab.row, lab.answer = service("running"), service("stopping")
    if operation == "start":
        lab.row = lab.answer = service("starting")
    assert lab.take(op=operation, name="gps")["again"]
    lab.row = row
    if at >= 130.0:
        assert lab.commands.look(129.9, CLOCK) == []
    (found,) = lab.commands.look(at, CLOCK)
    assert (found["ok"], found["error"]) == (False, why)
    assert lab.commands.pending == {}


def test_who_restarts_uplink_itself_is_answered_before_it_ends(lab: Lab) -> None:
    lab.answer = {**service("stopping"), "name": "uplink", "pid": os.getpid()}
    found = lab.take(op="restart", name="uplink")
    assert (found["ok"], found["result"]["state"], lab.commands.pending) == (True, "stopping", {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"op": "format"}, "there is no command 'format'"), ({"op": None}, "there is no command 'None'"), ({"op": ["a"]}, "no command"),
        ({"op": "stop"}, "stop needs name"), ({"op": "signal", "name": "a"}, "signal needs signal"), ({"op": "stop", "name": ["a"]}, "needs name"),
        ({"expires": CLOCK}, "it expired 0 s ago"), ({"expires": CLOCK - 90}, "it expired 90 s ago"),
        ({"expires": None}, "when it expires"), ({"expires": "tomorrow"}, "when it expires"), ({"expires": True}, "when it expires"),
        ({"expires": CLOCK + LONGEST + 1}, "more than 7 days"), ({"expires": float("inf")}, "when it expires"),
    ],
)  # fmt: skip
def test_what_is_refused_is_answered_and_not_done(lab: Lab, change: dict[str, Any], why: str) -> None:
    found = lab.take(**change)
    assert (found["ok"], why in found["error"]) == (False, True), found
    assert lab.asked == []
    assert lab.take(**change) == found
    assert len(lab.told) == 1


def test_without_the_motherships_time_nothing_is_done_yet(lab: Lab) -> None:
    assert "send it again" in lab.take(clock=None)["error"]
    assert lab.take()["ok"] is True


def test_where_an_id_cannot_be_stored_the_board_is_not_rebooted(lab: Lab) -> None:
    lab.outbox.database.execute("PRAGMA max_page_count = 1")
    lab.outbox.database.execute("PRAGMA query_only = ON")
    assert "not on the disk" in lab.take()["error"]
    assert lab.asked == []
    lab.answer = {"state": "running"}
    assert lab.take(id="c2", op="restart", name="gps")["ok"] is True, "twice does no harm"


def test_a_board_that_has_forgotten_the_id_does_not_reboot_again(lab: Lab, tmp_path: Path) -> None:
    """Its disk was lost, or was memory: the command names the boot that it is to end."""
    assert lab.take()["ok"] is True
    lab.folder, lab.boot_id = tmp_path / "another", "boot 2"
    lab.boot()
    assert "must name the boot that it is to end" in lab.take()["error"]
    assert "must name the boot" in lab.take(id="c2", boot=None)["error"]
    assert len(lab.asked) == 1


def test_ids_are_forgotten_after_they_have_expired(lab: Lab) -> None:
    lab.take()
    lab.take(clock=CLOCK + 60 + REMEMBERED + 1, id="c2", expires=CLOCK + 9e4)
    assert lab.outbox.result("c1") is None
    assert "expired" in lab.take(clock=CLOCK + 60 + REMEMBERED + 1)["error"], "and still not carried out"


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(["id", "op", "name", "expires", "signal", "x"]), some, max_size=6),
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_nothing_that_arrives_does_harm(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    lab = Lab(tmp_path_factory.mktemp("out"))
    lab.answer = {"state": "running"}
    result = lab.commands.take(payload, CLOCK, 100.0)
    assert result is None or result["ok"] in (True, False)
    lab.outbox.close(0.0)


ASKER = """
import json, sys, time
sys.path.insert(0, "/stack/lib/stack")
from onboard import to_pid1
found = {}
for request in json.loads(sys.argv[1]):
    try:
        to_pid1.ask(to_pid1.SOCKET, request)
        found[json.dumps(request)] = "done"
    except to_pid1.SVError as error:
        found[json.dumps(request)] = str(error)
print(json.dumps(list(found.values())), flush=True)
time.sleep(1000)
"""


def test_a_service_may_ask_what_its_row_lists_and_nobody_else_may(boot: Any) -> None:
    """Not as root: on a board of an ordinary user there is no other user, and the test proves nothing."""
    requests = [
        {"op": "restart", "name": "worker"}, {"op": "restart", "name": "other"}, {"op": "stop", "name": "worker"},
        {"op": "stop", "name": "w"}, {"op": "reboot"}, {"op": "run", "argv": ["true"]},
    ]  # fmt: skip
    row = f'("{{PYTHON}}", "/test/asker.py", {json.dumps(requests)!r}), after=("worker", "other"), user="nobody"'
    board = boot(
        f'Service("worker", ("sleep", "1000")), Service("other", ("sleep", "1000")), Service("trusted", {row}, may="COMMANDS"),'
        f'Service("stranger", {row}),',
        settings='COMMANDS = (("restart", "work*"), ("snooze", ""))',
        files={"asker.py": ASKER},
    ).up()  # fmt: skip
    if not uid_of(board, "trusted"):
        pytest.skip("this board has one user alone, its root")
    trusted, stranger = (said(board, name) for name in ("trusted", "stranger"))
    assert trusted[0] == "done"
    assert trusted[1:] == [
        f"this board's COMMANDS refuses {what}; it lists restart work*, snooze"
        for what in ("restart other", "stop worker", "stop w", "reboot", "run")
    ]
    assert all("only root may" in text for text in stranger)


def test_the_word_update_is_for_the_addresses_that_commands_lists(boot: Any) -> None:
    """The board in namespaces is no image of `make image`: that is where the word ends here; tests/test_sv.py goes on."""
    addresses = (
        "https://evil.example.org/a.swu",
        "https://updates.example.org/a.swu;reboot",
        "https://updates.example.org/a.swu",
    )
    requests = [{"op": "update", "url": url, "version": "2"} for url in addresses]
    requests.append({**requests[0], "name": addresses[2]})  # judged is what would be fetched, whatever else is said
    row = f'("{{PYTHON}}", "/test/asker.py", {json.dumps(requests)!r}), user="nobody"'
    board = boot(
        f'Service("trusted", {row}, may="COMMANDS"), Service("stranger", {row}),',
        settings='COMMANDS = (("update", "https://updates.example.org/*"),)',
        files={"asker.py": ASKER},
    ).up()
    if not uid_of(board, "trusted"):
        pytest.skip("this board has one user alone, its root")
    trusted = said(board, "trusted")
    rule = "it lists update https://updates.example.org/*"
    assert trusted[0] == f"this board's COMMANDS refuses update https://evil.example.org/a.swu; {rule}"
    assert trusted[1].startswith("'https://updates.example.org/a.swu;reboot' is no https:// address")
    assert trusted[3].startswith("this board's COMMANDS refuses update "), trusted[3]
    assert trusted[2].startswith("/etc/stack-release does not say which version this is")
    assert all("only root may update the board" in text for text in said(board, "stranger"))


@pytest.mark.parametrize("pattern", ["", "*", "http://updates.example.org/*", "https://updates.example.org*", "https://*/x"])
def test_update_takes_an_address_to_the_end_of_its_host(pattern: str) -> None:
    assert command_fault(None, ("update", pattern))
    assert command_fault(None, ("update", "https://updates.example.org/*")) == ""


def uid_of(board: Board, name: str) -> int:
    pid = eventually(lambda: board.stats(name)["pid"])
    return int(
        next(
            line.split()[1] for line in (board.root / f"proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")
        )
    )


def said(board: Board, name: str) -> list[str]:
    line = eventually(lambda: next(line for line in board.log(name).splitlines() if "[" in line))
    found: list[str] = json.loads(line[line.index("[") :])
    return found
