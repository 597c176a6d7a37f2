"""What survives a boot: the record of ends from what was left behind, and the keeper on a board in namespaces."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Board, eventually

from base.files import write_atomically
from onboard import boot_ends
from onboard.to_pid1 import SVError
from prompt import functions as prompt
from services import boots

Boot = Callable[..., Board]
PANIC = "Panic#1 Part1\n<6>[    7.1] sysrq: Trigger a crash\n<0>[    7.2] Kernel panic - not syncing: sysrq triggered crash\n"


class Lives:
    """Boots of one board without the board: a disk that stays, a /run that each begins anew."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = folder / "run"
        self.disk = str(folder / "disk")
        self.pstore, self.dog = folder / "pstore", folder / "class" / "watchdog0" / "bootstatus"
        self.pstore.mkdir()
        self.dog.parent.mkdir(parents=True)
        self.uptime = 0.0
        for name in ("RECORD", "ENDING", "STUCK"):
            monkeypatch.setattr(boot_ends, name, str(self.run / name))
        monkeypatch.setattr(boots, "PSTORE", str(self.pstore))
        monkeypatch.setattr(boots, "WATCHDOGS", str(folder / "class"))
        clock = SimpleNamespace(time=lambda: 1.8e9, monotonic=lambda: self.uptime)
        monkeypatch.setattr(boots, "time", clock)

    def boot(self) -> dict[str, Any]:
        self.run.mkdir(exist_ok=True)
        for path in self.run.iterdir():
            path.unlink()
        self.uptime = 0.0
        boots.restore(self.disk)
        return boot_ends.read(boot_ends.RECORD)

    def end(self, cause: str, reason: str = "asked", after: float = 100.0) -> None:
        self.uptime = after
        boot_ends.tell(boot_ends.ENDING, {"cause": cause, "reason": reason})
        boots.save(self.disk)


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    return Lives(tmp_path, monkeypatch)


def last(record: dict[str, Any]) -> tuple[str, str]:
    return record["last_end"]["cause"], record["last_end"]["reason"]


def test_ends_that_were_asked_for_are_counted(lives: Lives) -> None:
    first = lives.boot()
    assert (first["number"], first["last_end"], first["may_escalate"]) == (1, None, False)
    lives.end("reboot", "asked by uid 0")
    assert last(lives.boot()) == ("reboot", "asked by uid 0")
    lives.end("halt")
    lives.boot()
    lives.end("reboot")
    third = lives.boot()
    assert third["number"] == 4
    assert {name: count for name, count in third["counts"].items() if count} == {"reboot": 2, "halt": 1}


def test_no_word_is_a_power_cut(lives: Lives) -> None:
    lives.boot()
    lives.uptime = 4000.0
    boots.save(lives.disk)
    assert last(lives.boot())[0] == "unknown"


def test_a_keeper_that_is_restarted_is_no_boot(lives: Lives) -> None:
    assert lives.boot()["number"] == 1
    boots.save(lives.disk)
    boots.restore(lives.disk)
    assert boot_ends.read(boot_ends.RECORD)["number"] == 1


def test_the_dogs_own_word(lives: Lives) -> None:
    lives.boot()
    lives.dog.write_text("32\n")
    assert last(lives.boot()) == ("watchdog", "PID 1 did not feed it")
    lives.end("reboot", "asked by uid 0")
    assert last(lives.boot()) == ("watchdog", "the shutdown hung; reboot: asked by uid 0")
    lives.dog.write_text("0\n")
    lives.end("reboot")
    assert last(lives.boot())[0] == "reboot"


def test_pid_1s_stack_is_a_word_too(lives: Lives) -> None:
    """Most drivers do not say that they have reset the board."""
    lives.boot()
    boots.stuck(lives.disk, 'Timeout!\n  File "/x.py", line 7 in hang\n')
    record = lives.boot()
    assert last(record)[0] == "watchdog"
    assert "in hang" in record["last_end"]["stack"]
    assert last(lives.boot())[0] == "unknown", "it is told once"
    assert "pid1.last" in os.listdir(lives.disk)


@pytest.mark.parametrize("at_once", [False, True])
def test_pid_1_that_goes_on_takes_it_back(lives: Lives, at_once: bool) -> None:
    lives.boot()
    for text in ["Timeout!\n" + boot_ends.RECOVERED] if at_once else ["Timeout!\n", boot_ends.RECOVERED]:
        boots.stuck(lives.disk, text)
    assert last(lives.boot())[0] == "unknown"
    assert "Timeout!" in Path(lives.disk, "pid1.late").read_text()


def test_a_panic_is_moved_from_pstore(lives: Lives) -> None:
    lives.boot()
    (lives.pstore / "dmesg-ramoops-0").write_text(PANIC + "y" * 10_000)
    (lives.pstore / "console-ramoops-0").write_text("not ours\n")
    record = lives.boot()
    assert last(record) == ("panic", "Kernel panic - not syncing: sysrq triggered crash")
    assert record["last_end"]["panic"] == (PANIC[PANIC.index("Kernel panic") :] + "y" * 10_000)[: boots.MOST]
    assert os.listdir(lives.pstore) == ["console-ramoops-0"]
    assert os.listdir(f"{lives.disk}/pstore") == ["000001-dmesg-ramoops-0"]


def test_an_oops_that_was_survived_is_no_end(lives: Lives) -> None:
    lives.boot()
    (lives.pstore / "dmesg-ramoops-0").write_text(PANIC.replace("Panic#1", "Oops#1").replace("Kernel panic", "BUG"))
    lives.end("reboot")
    assert last(lives.boot())[0] == "reboot"
    assert os.listdir(f"{lives.disk}/pstore") == ["000001-dmesg-ramoops-0"]


def test_panics_are_bounded_in_number_and_size(lives: Lives) -> None:
    for _ in range(12):
        lives.boot()
        (lives.pstore / "dmesg-erst-1").write_text("x" * 200_000 + "\n" + PANIC)
    lives.boot()
    kept = sorted(Path(lives.disk, "pstore").iterdir())
    assert len(kept) == boots.DUMPS
    assert kept[-1].name.startswith("000012-")
    assert max(path.stat().st_size for path in kept) <= boots.DUMP_SIZE
    assert last(boot_ends.read(boot_ends.RECORD))[0] == "panic"


def test_an_escalation_is_remembered_until_a_boot_has_lived_for_an_hour(lives: Lives) -> None:
    assert not lives.boot()["may_escalate"], "nobody knows yet whether this disk remembers"
    lives.end("reboot")
    assert lives.boot()["may_escalate"]
    lives.end("critical", "the broker keeps failing")
    assert not lives.boot()["may_escalate"]
    lives.end("reboot", after=3000.0)
    assert not lives.boot()["may_escalate"], "none of them has lived for long"
    lives.uptime = 3601.0
    boots.save(lives.disk)  # the hourly one
    assert lives.boot()["may_escalate"], "also after a power cut"
    lives.end("critical", after=5000.0)
    assert not lives.boot()["may_escalate"]


def test_a_boot_that_ended_early_without_a_word_may_have_escalated(lives: Lives) -> None:
    """Its disk may have gone read-only: that is no way around once an hour."""
    lives.boot()
    lives.end("reboot")
    assert lives.boot()["may_escalate"]
    assert not lives.boot()["may_escalate"]
    lives.end("reboot", after=100.0)
    assert not lives.boot()["may_escalate"]
    lives.uptime = 3601.0
    boots.save(lives.disk)
    assert lives.boot()["may_escalate"]


def test_a_disk_that_cannot_be_written_allows_none(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    lives.boot()
    lives.end("reboot")
    (lives.pstore / "dmesg-ramoops-0").write_text(PANIC)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(boots, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            lives.boot()
        record = boot_ends.read(boot_ends.RECORD)
        assert (record["may_escalate"], last(record)[0]) == (False, "panic"), "but it is told"
        assert (lives.pstore / "dmesg-ramoops-0").exists(), "and kept where it is"


def test_a_record_that_is_no_json_is_the_first(lives: Lives) -> None:
    write_atomically(f"{lives.disk}/boot.json", "{")
    assert lives.boot()["number"] == 1


@pytest.mark.parametrize("name", ["boot.json", "pid1.stack"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_on_a_disk_is_not_read(lives: Lives, tmp_path: Path, name: str, kind: str) -> None:
    """Whoever wrote the card may have put it there: root's file would be in the record that anyone may read."""
    os.makedirs(lives.disk, exist_ok=True)
    if name != "boot.json":
        lives.boot()
        lives.end("reboot")
    (tmp_path / "secret").write_text('{"number": 41, "counts": {}, "secret": "x"}')
    place = Path(lives.disk) / name
    if kind == "link":
        place.symlink_to(tmp_path / "secret")
    else:
        os.mkfifo(place)
    record = lives.boot()
    assert record["number"] == (1 if name == "boot.json" else 2)
    assert "secret" not in json.dumps(record)


def test_the_prompt_tells_it(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onboard.to_pid1.ask", lambda _path, _asked: {"hostname": "x"})
    with pytest.raises(SVError, match="no record of boots"):
        prompt.post_mortem()
    assert prompt.board()["last_boot"] == {}
    lives.boot()
    assert prompt.post_mortem()["cause"] is None
    lives.end("critical", "the broker keeps failing")
    lives.boot()
    assert prompt.board()["last_boot"] == {"cause": "critical", "reason": "the broker keeps failing"}
    told = prompt.post_mortem()
    assert (told["number"], told["cause"], told["counts"]["critical"]) == (2, "critical", 1)


# --- a board ----------------------------------------------------------------------------------------------------------
HANGING = """#!/usr/bin/python3
import gc, sys, time
gc.disable()
sys.path.insert(0, "/stack/lib/stack")
import stack
from pid1.requests import Requests
def lose_time(): time.sleep(4.0)
def handle(self, request, uid, now, handle=Requests.handle):
    return lose_time() if request["op"] == "lose time" else handle(self, request, uid, now)
Requests.handle = handle
seed = sys.modules["services.seed"] = type(sys)("services.seed")  # the keeper is a copy of this process
def restore(folder): 1 / 0
def save(folder): open(folder + "/saved", "w")
seed.restore, seed.save = restore, save
sys.exit(stack.main(sys.argv[1:]))
"""


def test_the_keeper(boot: Boot) -> None:
    """Restores, is ready, saves PID 1's stack while PID 1 hangs, is restarted, and what is missing does not stop it."""
    board = boot(
        "KEEPER._replace(after=()), Service('driver', ('sh', '-c', ': >/run/dog; exec sleep 1000')),",
        settings="WATCHDOG, WATCHDOG_TIMEOUT = '/run/dog', 3.0",
        files={"hanging.py": HANGING},
        init="/test/hanging.py",
    ).up()
    board.wait_state("keeper", "running")
    disk = board.root / "var/lib/stack"
    record = json.loads((disk / "boot.json").read_text())
    assert (record["number"], record["last_end"]) == (1, None)
    eventually(lambda: board.log("keeper").count("ZeroDivisionError"))
    eventually(lambda: board.ask("board")["watchdog"]["timeout"] == 3.0)
    board.ask("lose time")
    late = disk / "pid1.late"
    eventually(late.exists)
    assert "in lose_time" in late.read_text()
    assert not (disk / "pid1.stack").exists()
    assert "PID 1 was stuck for" in board.log()
    assert not (disk / "saved").exists()
    board.ask("restart", name="keeper")
    eventually(lambda: board.stats("keeper")["restart"] == 1 and board.stats("keeper")["ready"])
    assert (disk / "saved").exists()
    assert json.loads((disk / "boot.json").read_text())["number"] == 1


def test_diagnostic_publishes_it(boot: Boot) -> None:
    rows = "RIGHTS, BROKER, app('diagnostic', publishes=('boot',)), KEEPER._replace(after=()),"
    rows += "Service('listen', ('{PYTHON}', '{LIB}/bus.py', 'boot'), after=('broker',), groups=('broker',)),"
    board = boot(rows).up()
    eventually(lambda: '"last_end": null' in board.log("listen"))
