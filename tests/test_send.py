"""`mothership send` through a real broker to a board's real commands: once, answered, and no answer from who is not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MOSQUITTO, PYTHON, ROOT, eventually
from servers import plain

sys.path.insert(0, str(ROOT / "mothership"))

from send import command

from uplink import wire

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")

# A board's end of it: PID 1 is a list of what it was asked. It hears what time it is after three commands only.
BOARD = """
import json, select, sys, time
sys.path.insert(0, sys.argv[1])
from uplink import wire
from uplink.remote import Remote
from uplink.commands import Commands
from onboard.to_pid1 import SVError
from uplink.outbox import Outbox

row, since = {"name": "gps@ttyUSB0", "state": "running", "exit": None, "restart": 0, "pid": 7}, [time.time()]
def ask(request):
    if request["op"] == "stats":
        if row["state"] == "stopping" and time.time() - since[0] >= 1.2:
            row.update(state="running", restart=1)
        return [row]
    print("ASKED", json.dumps(request), flush=True)
    if request["op"] == "restart":
        row.update(state="stopping")
        since[0] = time.time()
        return row
    if request["op"] == "stop":
        raise SVError("this board's COMMANDS refuses stop dropbear; it lists restart *, snooze")
    if request["op"] == "poweroff":
        raise SVError("only root may poweroff the board; you are uid 65534")
    return {"name": request.get("name"), "state": "running", "pid": 7} if "name" in request else "done"

commands = Commands(Outbox(sys.argv[2], 1 << 20, 0, (), print), "boot 1", ask, lambda data: None)
remote = Remote("b1", (sys.argv[3],), (wire.topic("b1", "cmd"),))
remote.start()
count = 0
while True:
    select.select([remote.fd], [], [], 0.05)
    for result in commands.look(time.monotonic(), time.time()):
        remote.publish(wire.topic("b1", f"res/{result['id']}"), json.dumps(result).encode(), qos=1)
    for topic, payload in remote.take():
        if not topic:
            print("CONNECTED", flush=True)
            remote.publish(wire.topic("b1", "state"), b'{"state": "ready", "boot": "boot 1"}', qos=1, retain=True)
            continue
        count += 1
        result = commands.take(payload, time.time() if count > 3 else None, time.monotonic())
        remote.publish(wire.topic("b1", f"res/{result['id']}"), json.dumps(result).encode(), qos=1)
"""


class Board:
    """That process, what it printed, and the broker's address."""

    def __init__(self, folder: Path) -> None:
        self.broker, self.address = plain(folder)
        self.output = folder / "said"
        with self.output.open("wb") as file:
            words = [PYTHON, "-c", BOARD, str(ROOT), str(folder / "box"), self.address]
            self.process = subprocess.Popen(words, stdout=file)
        eventually(lambda: "CONNECTED" in self.output.read_text(), 20)

    def send(self, *words: str, board: str = "b1") -> tuple[int, str, str]:
        argv = [PYTHON, str(ROOT / "mothership"), "send", self.address, board, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line.removeprefix("ASKED ")) for line in self.output.read_text().splitlines() if "ASKED" in line]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.broker.end()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    one = Board(tmp_path)
    yield one
    one.close()


def test_a_command_is_carried_out_once_and_its_result_comes_back(board: Board) -> None:
    code, said, errors = board.send("restart", "gps@ttyUSB0", "--id", "c1")
    assert code == 0
    assert re.fullmatch(r"gps@ttyUSB0: running again after 1\.[2-9] s", said), "it waits for the outcome, as the prompt does"
    assert errors.count("send it again") == 1, "a board that cannot judge it yet is asked again; it is said once"
    assert "b1: restart gps@ttyUSB0 is under way" in errors
    code, said, _ = board.send("restart", "gps@ttyUSB0", "--id", "c1", "--json")
    assert (code, json.loads(said)["state"], json.loads(said)["restart"]) == (0, "running", 1)
    assert board.send("signal", "dropbear", "HUP")[0] == 0
    assert board.send("snooze", "5")[:2] == (0, "done")
    code, _, errors = board.send("poweroff")
    assert (code, errors) == (1, "b1: only root may poweroff the board; you are uid 65534")
    code, _, errors = board.send("stop", "dropbear")
    assert (code, errors) == (1, "b1: this board's COMMANDS refuses stop dropbear; it lists restart *, snooze")
    assert [request["op"] for request in board.asked()] == ["restart", "signal", "snooze", "poweroff", "stop"]


def test_nobody_is_there(board: Board) -> None:
    code, _, errors = board.send("reboot", "--expires", "2", board="b2")
    assert (code, errors) == (2, "no answer from b2 within 2 s; the command has expired")
    assert board.asked() == []


def test_what_cannot_be_sent_is_said_at_once(board: Board) -> None:
    for words, why in (
        (("restart",), "restart takes NAME"), (("signal", "dropbear"), "signal takes NAME and SIGNAL"),
        (("reboot", "now"), "reboot takes no further word"), (("format",), "invalid choice"), (("snooze", "long"), "could not convert"),
        (("reboot", "--id", "a/b"), "is not an id"),
    ):  # fmt: skip
        code, _, errors = board.send(*words)
        assert code != 0
        assert why in errors
    assert "is not a board's name" in board.send("reboot", board="#")[2]


def test_the_format() -> None:
    for operation, fields in wire.COMMANDS.items():
        order = command(operation, ["1"] * len(fields), 60.0)
        assert wire.is_name(order["id"])
        assert {"op", "expires", *fields} < set(order)
