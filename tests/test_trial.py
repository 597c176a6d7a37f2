"""The trial of a new slot: what healthy means, when it is committed or left, what the old slot says, and all of it on a board.

The firmware is that of test_slots.py. Boards in namespaces have no card: there updates.slots finds the partitions of one that is
a FAT in a file, and that alone is replaced.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Board, eventually
from test_fuzz import World
from test_slots import Firmware, card, run

from laptop.namespaces import FOREIGN_ROOT
from onboard import boot_ends
from settings import DROPBEAR
from tables.tables import Tables
from updates import health, ledger, trial
from updates.health import Seen
from updates.slots import AUTOBOOT, FileFlag, partitions_of
from updates.trial import BAD, GOOD, ON_TRIAL, Judge, Trial, fate

__all__ = ["card"]  # a fixture
only_fat12 = pytest.mark.parametrize("card", ["FAT12"], indirect=True)
WELL = {"complete": True, "faults": [], "rejected": [], "never_ready": [], "boot_id": "old", "uptime": 1.0}
APP = {
    "name": "app",
    "alive": True,
    "wanted": True,
    "state": "running",
    "restart": 0,
    "runtime": 500.0,
    "ready": True,
    "exit": None,
}
LOCAL = {"interfaces": [{"name": "eth0", "state": "no carrier"}, {"name": "wlan0", "state": "local"}]}
ONLINE = {"interfaces": [{"name": "eth0", "state": "online"}]}


# --- the predicate -------------------------------------------------------------------------------------------------------
def lacks(before: dict[str, Any], *rows: dict[str, Any], critical: tuple[str, ...] = (), network: Any = (), ssh: str = "", **board: Any) -> list[str]:  # fmt: skip
    return health.missing(Seen(WELL | board, list(rows or (APP,)), dict(network), critical, ssh), before, 60.0)


def test_a_board_that_lacks_nothing_is_healthy() -> None:
    assert lacks({}) == []
    assert lacks({"online": True, "mothership": True}, critical=("app",), network=ONLINE) == []


@pytest.mark.parametrize(
    ("changes", "row", "says"),
    [
        ({"complete": False}, {}, "services are still being started"),
        ({"critical": ("app",)}, {"ready": False, "state": "starting"}, "app, which is critical, is not ready: it is starting"),
        ({"critical": ("app",)}, {"runtime": 59.0}, "app, which is critical, has not run for 60 s yet"),
        ({"critical": ("other",)}, {}, "other, which is critical, is not there"),
        ({"faults": ["loop: it went wrong"]}, {}, "loop: it went wrong"),
        ({"rejected": ["gps: no such user"]}, {}, "rejected: gps: no such user"),
        ({"never_ready": ["network"]}, {}, "network has not become ready"),
        ({}, {"state": "backoff", "alive": False, "exit": "exit 1"}, "app does not stay up: exit 1"),
        ({}, {"restart": 3, "runtime": 2.0, "exit": "signal SEGV"}, "app does not stay up: signal SEGV"),
        ({"ssh": "Connection refused on port 22"}, {}, "ssh does not answer: Connection refused on port 22"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], row: dict[str, Any], says: str) -> None:
    assert lacks({}, APP | row, **changes) == [says]


def test_a_critical_job_that_has_ended_well_is_steady() -> None:
    assert lacks({}, APP | {"alive": False, "state": "stopped", "runtime": 0.0}, critical=("app",)) == []


def test_a_pid_1_that_does_not_answer_is_not_healthy() -> None:
    assert health.missing(Seen({}, [], {}), {}, 60.0) == ["PID 1 does not answer"]


def test_what_the_old_slot_could_not_do_is_not_asked() -> None:
    """A fault of both is none of the update's, also with another pid in it; a new one beside it is."""
    old = WELL | {"faults": ["gps[231] died 3 times"]}
    flapping = APP | {"state": "backoff", "alive": False, "exit": "exit 1"}
    before = health.before(old, [flapping], {})
    assert (before["boot"], before["online"], before["mothership"]) == ("old", False, False)
    assert lacks(before, flapping, faults=["gps[77] died 12 times"]) == []
    assert lacks(before, flapping, faults=["gps[77] died 12 times", "no memory"]) == ["no memory"]


def test_online_and_acknowledged_as_before() -> None:
    reached = health.before(WELL, [APP], ONLINE)
    assert len(lacks(reached)) == 2
    (only,) = lacks(reached, network=LOCAL)
    assert only.startswith("the mothership has acknowledged nothing")
    assert lacks(health.before(WELL, [APP], LOCAL), network=LOCAL) == []
    (only,) = lacks(health.before(WELL, [APP], LOCAL), network={"interfaces": []})
    assert only.startswith("no interface has an address")


def test_what_is_noted_of_the_old_slot_is_bounded() -> None:
    noted = health.before(WELL | {"faults": [f"{'x' * 1000}{chr(97 + number % 26)}" for number in range(500)]}, [], {})
    assert len(json.dumps(noted)) < 40_000


# --- time ------------------------------------------------------------------------------------------------------------------
def test_it_is_good_when_nothing_was_missing_for_long_enough() -> None:
    judge = Judge(60.0, 600.0)
    assert [judge.turn([], age) for age in (10.0, 40.0, 69.0)] == [ON_TRIAL] * 3
    assert judge.missing == ["all is well; it has to stay so for 60 s"]
    assert judge.turn(["ssh does not answer"], 69.5) == ON_TRIAL
    assert judge.missing == ["ssh does not answer"]
    assert [judge.turn([], age) for age in (70.0, 129.0, 130.0)] == [ON_TRIAL, ON_TRIAL, GOOD]


def test_it_is_bad_at_the_deadline() -> None:
    judge = Judge(60.0, 600.0)
    assert [judge.turn(["x"], age) for age in (5.0, 599.0, 600.0)] == [ON_TRIAL, ON_TRIAL, BAD]
    late = Judge(60.0, 600.0)
    assert [late.turn([], age) for age in (541.0, 600.0)] == [ON_TRIAL, BAD], "it was not well for long enough"
    assert Judge(60.0, 10.0).deadline == 120.0, "a deadline that nobody could meet is none"


# --- the state machine on a card -------------------------------------------------------------------------------------------
class Lab:
    """A board after update(): slot B was written, with what health is compared with; the clock is the caller's."""

    def __init__(self, folder: Path, card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.card = card
        self.firmware = Firmware(card, folder)
        self.folder = str(folder / "update")
        os.mkdir(self.folder)
        self.logs = folder / "log"
        self.logs.mkdir()
        (self.logs / "stack.log").write_text("PID 1 says what it did")
        for name in ("UPDATE", "RECORD"):
            monkeypatch.setattr(boot_ends, name, str(folder / name))
        before = health.before(WELL, [APP], LOCAL)
        facts = {"slot": "B", "version": "2.0", "from": "A", **before}
        ledger.note(self.folder, B={"state": "written", "version": "2.0"}, trial=facts)
        self.firmware.start().try_next()

    def trial(self) -> Trial:
        one = Trial(self.folder, self.firmware.reboot(), Judge(60.0, 600.0), str(self.logs))
        one.begin()
        return one

    def told(self) -> dict[str, Any]:
        return boot_ends.read(boot_ends.UPDATE)

    def default(self) -> str:
        return "A" if partitions_of(run("mtype", "-i", self.card, f"::{AUTOBOOT}"))[0] == 2 else "B"

    def on_the_old_slot(self, end: dict[str, Any]) -> dict[str, Any]:
        boot_ends.tell(boot_ends.RECORD, {"last_end": end})
        Path(boot_ends.UPDATE).unlink(missing_ok=True)
        board = self.firmware.start()
        trial.report(self.folder, board.current(), board.default())
        return self.told()


@pytest.fixture
def lab(tmp_path: Path, card: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, card, monkeypatch)


def seen(network: Any = LOCAL, **board: Any) -> Seen:
    return Seen(WELL | board, [APP], network)


@only_fat12
def test_a_healthy_slot_is_committed(lab: Lab) -> None:
    one = lab.trial()
    assert one.turn(seen({}), 5.0) == ON_TRIAL
    assert lab.told()["missing"] == ["no interface has an address, and one had before the update"]
    assert (lab.told()["state"], lab.told()["slot"], lab.told()["version"]) == ("on trial", "B", "2.0")
    assert [one.turn(seen(), age) for age in (10.0, 69.0)] == [ON_TRIAL, ON_TRIAL]
    assert lab.default() == "A"
    assert one.turn(seen(), 70.0) == GOOD
    assert lab.default() == "B"
    assert (lab.told()["state"], lab.told()["verdict"]["reason"]) == ("committed", "healthy for 60 s")
    known = ledger.ledger(lab.folder)
    assert (known["B"]["state"], known["trial"], known["last"]["result"]) == ("good", None, "committed")
    assert not os.path.exists(f"{lab.folder}/{trial.WORDS}")


@only_fat12
def test_one_that_is_not_healthy_in_time_is_left_with_its_last_words(lab: Lab) -> None:
    one = lab.trial()
    assert [one.turn(seen(faults=["the radio is gone"]), age) for age in (5.0, 599.0, 600.0)] == [ON_TRIAL, ON_TRIAL, BAD]
    told = lab.told()
    assert (told["state"], told["reason"]) == ("failed", "not healthy after 600 s: the radio is gone")
    assert told["verdict"]["words"].endswith("PID 1 says what it did")
    assert "the radio is gone" in Path(f"{lab.folder}/{trial.WORDS}").read_text()
    assert ledger.ledger(lab.folder)["B"]["state"] == "bad"
    back = lab.on_the_old_slot({"cause": "reboot", "reason": "asked by uid 0"})
    assert (back["state"], back["reason"]) == ("fell back", "slot B (2.0): not healthy after 600 s: the radio is gone")
    assert back["verdict"]["words"].endswith("PID 1 says what it did")
    again = lab.on_the_old_slot({"cause": "unknown"})
    assert again == back, "the next boot still shows it, as the same record"


@only_fat12
def test_a_person_may_commit_it_or_have_it_wait(lab: Lab) -> None:
    one = lab.trial()
    asleep = {"snooze": 300.0}
    assert one.turn(seen(faults=["x"], watchdog=asleep), 700.0) == ON_TRIAL, "somebody looks at it"
    ledger.commit(lab.folder, one.slots, "I have looked")
    assert one.turn(seen(faults=["x"]), 701.0) == GOOD
    assert lab.told()["verdict"]["reason"] == "I have looked"


@only_fat12
def test_a_slot_that_cannot_be_committed_is_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab.trial()
    one.turn(seen(), 10.0)
    lab.card.rename(lab.card.with_suffix(".gone"))
    assert one.turn(seen(), 80.0) == ON_TRIAL
    assert "cannot be read" in lab.told()["missing"][0]
    assert one.turn(seen(), 600.0) == BAD


@only_fat12
def test_no_data_partition_is_no_reason_to_stay(lab: Lab, tmp_path: Path) -> None:
    """The new kernel does not find it: nothing is known of the trial but what the firmware says, and that is enough."""
    one = Trial("/proc/nowhere", lab.firmware.reboot(), Judge(60.0, 600.0), str(lab.logs))
    one.begin()
    assert [one.turn(seen(faults=["x"]), age) for age in (5.0, 600.0)] == [ON_TRIAL, BAD]


# --- what the old slot says ------------------------------------------------------------------------------------------------
END = {"cause": "watchdog", "reason": "PID 1 did not feed it", "boot_id": "new", "stack": "in hang()"}


@only_fat12
def test_a_trial_that_hung_is_told_with_pid_1s_stack(lab: Lab) -> None:
    one = lab.trial()
    one.turn(seen(), 5.0)
    back = lab.on_the_old_slot({**END, "boot_id": one.facts["tried"]})
    assert back["reason"] == "slot B (2.0): its boot ended on trial: watchdog: PID 1 did not feed it"
    assert back["verdict"]["stack"] == "in hang()"
    assert back["verdict"]["words"].endswith("PID 1 says what it did"), "the first look has kept them"
    assert ledger.ledger(lab.folder)["trial"] is None


@only_fat12
def test_a_cut_between_the_sector_and_the_note_is_a_commit(lab: Lab) -> None:
    lab.trial().slots.mark_good("healthy")
    assert lab.on_the_old_slot({"cause": "unknown"})["state"] == "committed"
    assert ledger.ledger(lab.folder)["B"]["state"] == "good"


@only_fat12
def test_an_update_that_waits_for_its_reboot_is_not_reported(lab: Lab) -> None:
    known = ledger.ledger(lab.folder)["trial"]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ledger.note(lab.folder, trial={**known, "boot": boot_id})
    assert lab.on_the_old_slot({"cause": "reboot"}) == {}
    assert ledger.ledger(lab.folder)["trial"]


@pytest.mark.parametrize(
    ("trial", "end", "result", "why"),
    [
        ({"boot": "old", "verdict": "no ssh", "tried": "new"}, {"cause": "reboot", "boot_id": "new"}, "fell back", "no ssh"),
        (
            {"boot": "old", "tried": "new"},
            {"cause": "unknown", "reason": "a power cut", "boot_id": "new"},
            "fell back",
            "a power cut",
        ),
        (
            {"boot": "old", "tried": "new"},
            {"cause": "critical", "reason": "app", "boot_id": "new"},
            "fell back",
            "critical: app",
        ),
        ({"boot": "old", "tried": "new"}, {}, "fell back", "not known"),
        ({"boot": "old"}, {"cause": "reboot", "boot_id": "old"}, "fell back", "does not start"),
        ({"boot": "old"}, {"cause": "panic", "reason": "Kernel panic - no init", "boot_id": "old"}, "fell back", "no init"),
        ({"boot": "old"}, {"cause": "unknown", "reason": "a power cut", "boot_id": "old"}, "not tried", "a power cut"),
        ({"boot": "old"}, {"cause": "poweroff", "reason": "asked", "boot_id": "old"}, "not tried", "poweroff"),
    ],
)
def test_how_a_trial_ended(trial: dict[str, Any], end: dict[str, Any], result: str, why: str) -> None:
    found = fate(trial, end)
    assert found[0] == result
    assert why in found[1]


def test_last_words_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_ends, "RECORD", str(tmp_path / "none"))
    for number in range(100):
        (tmp_path / f"app{number}.log").write_text("a line of a service\n" * 5000)
    (tmp_path / "stack.log").write_text("a line of PID 1\n" * 5000 + "the last one\n")
    text = trial.last_words(str(tmp_path), {"missing": ["x"]}, {"faults": ["y"] * 100_000})
    assert len(text) < 256 * 1024
    assert text.endswith("a line of PID 1\nthe last one\n")


# --- what it asks -----------------------------------------------------------------------------------------------------------
def test_ssh_greets_or_it_is_said_why_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        for says, why in (
            (b"SSH-2.0-dropbear_2022.83\r\n", ""),
            (b"220 mail\r\n", f"what listens on port {port} is no ssh server"),
        ):
            threading.Thread(target=greet, args=(door, says), daemon=True).start()
            assert health.greeting(port) == why
    assert health.greeting(port) == f"Connection refused on port {port}"


def greet(door: socket.socket, says: bytes) -> None:
    link, _ = door.accept()
    with link:
        link.sendall(says)


def test_a_silent_door_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as door:
        assert "timed out" in health.greeting(door.getsockname()[1])


def test_where_ssh_is_asked() -> None:
    tables = Tables({})
    for rows, port in (((), 0), ((DROPBEAR,), 22), ((DROPBEAR._replace(argv=("ssh_door", "2222", "dropbear")),), 2222)):
        tables.services = {row.name: row for row in rows}
        assert health.ssh_port(tables) == port


def test_the_uplink_records_each_verdict_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_ends, "UPDATE", str(tmp_path / "update.json"))
    world = World(tmp_path / "box")
    what = {"slot": "B", "version": "2.0", "from": "A"}
    for result in ("on trial", "failed", "failed", "fell back", "fell back"):
        verdict = trial.verdict_of(result, "no ssh", what, {})
        facts = {"state": result, **what} if result == "on trial" else trial.in_short(verdict)
        boot_ends.tell(boot_ends.UPDATE, facts)
        world.uplink.read_events()
    world.box.flush(time.monotonic())
    records = world.box.database.execute("SELECT body FROM record WHERE kind = 'update' ORDER BY rowid").fetchall()
    assert [json.loads(body)["data"]["result"] for (body,) in records] == ["failed", "fell back"]
    assert json.loads(records[0][0])["data"]["reason"] == "no ssh"
    assert world.box.mark("update of") == verdict["id"], "an uplink that is started again knows it too"
    world.close()


def test_info_says_where_an_update_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that is on trial is not told as one that stays, also before the service `trial` has said a word."""
    monkeypatch.setattr(boot_ends, "UPDATE", str(tmp_path / "update.json"))
    world, words = World(tmp_path / "box"), {"stack.tryboot": ""}
    world.uplink.updates.options = lambda: words

    def told() -> list[str | None]:
        infos = [payload for topic, payload in world.link.up if topic.endswith("/info")]
        return [json.loads(payload)["update"] for payload in infos]

    world.hear("", b"")  # it is connected
    for state in ("on trial", "on trial", "committed"):
        boot_ends.tell(boot_ends.UPDATE, {"state": state, "missing": []})
        world.uplink.read_events()
    assert told() == ["on trial", "on trial", "committed"], "by the firmware's word; by the service; and then no more"
    os.unlink(boot_ends.UPDATE)
    words.clear()
    world.uplink.read_events()
    assert told()[-1] is None
    world.close()


# --- on a board -----------------------------------------------------------------------------------------------------------
RUN = "from updates import slots, trial; slots.partitions = lambda: {1: '/data/boot.vfat', 5: 'a', 6: 'b'}; trial.main([])"
ROWS = f"KEEPER._replace(after=()), Service('trial', ('{{PYTHON}}', '-P', '-c', {RUN!r}), ('keeper',), restart='on-failure', env=(('PYTHONPATH', '{{LIB}}'),)),"  # fmt: skip
SETTINGS = "from settings import KEEPER\nKEEP = '/data/keep'\nUPDATE_STEADY, UPDATE_DEADLINE = 1.0, 6.0"
SICK = "Service('sick', ('sh', '-c', 'echo I am sick; sleep 1000'), ready='/run/never', ready_timeout=1.0),"


@pytest.fixture
def two_slots(boot: Callable[..., Board], card: Path, tmp_path: Path) -> Callable[..., Board]:
    """Boards of one card and one data partition: `start("A")`, `start("B", "stack.tryboot")`. Slot A was left by update()."""
    data = tmp_path / "data"
    data.mkdir()
    card.rename(data / "boot.vfat")
    folder = str(data / "keep/update")
    os.makedirs(folder)

    def start(slot: str, *words: str, rows: str = "") -> Board:
        if os.getuid() == 0:
            for path in (data, *data.rglob("*")):
                os.chown(path, FOREIGN_ROOT, FOREIGN_ROOT)
        return boot(ROWS + rows, settings=SETTINGS, data=data, words=(f"stack.slot={slot}", *words)).up()

    old = start("A")
    old.wait_state("trial", "stopped")
    assert "update" not in old.ask("board"), "there is no trial, and it says nothing"
    assert old.ask("board")["rejected"] == [], "PID 1 knows the firmware's words"
    eventually(lambda: old.ask("board")["complete"])
    before = health.before(old.ask("board"), list(old.all_stats().values()), {})
    before["boot"] = "of slot A"  # boards in namespaces share one kernel, and its boot id
    ledger.note(folder, B={"state": "written"}, trial={"slot": "B", "version": "2.0", "from": "A", **before})
    FileFlag(str(data / "boot.vfat"), {"stack.slot": "A"}).try_next()
    old.end()
    return start


@only_fat12
def test_a_board_commits_a_healthy_slot(two_slots: Callable[..., Board], tmp_path: Path) -> None:
    board = two_slots("B", "stack.tryboot")
    told = eventually(lambda: board.ask("board")["update"]["state"] == "committed" and board.ask("board")["update"], 20)
    assert told["verdict"]["reason"] == "healthy for 1 s"
    board.wait_state("trial", "stopped")
    assert FileFlag(str(tmp_path / "data/boot.vfat"), {"stack.slot": "B"}).default() == "B"


@only_fat12
def test_a_board_leaves_a_sick_slot_and_the_old_one_says_why(two_slots: Callable[..., Board], tmp_path: Path) -> None:
    board = two_slots("B", "stack.tryboot", rows=SICK)
    eventually(lambda: "sick has not become ready" in board.ask("board")["update"]["missing"], 20)
    assert board.launcher.wait(40) == 3, "it reboots"
    assert FileFlag(str(tmp_path / "data/boot.vfat"), {"stack.slot": "A"}).default() == "A"
    words = (tmp_path / "data/keep/update" / trial.WORDS).read_text()
    assert "I am sick" in words
    board = two_slots("A")
    told = eventually(lambda: board.ask("board")["update"])
    assert (told["state"], told["slot"], told["version"]) == ("fell back", "B", "2.0")
    assert "not healthy after 6 s: sick has not become ready" in told["reason"]
    assert "sick" in told["verdict"]["words"], "the end of PID 1's log"
    assert json.loads((tmp_path / "data/keep/boot.json").read_text())["last_end"]["cause"] == "reboot"
    assert boot_ends.parsed((tmp_path / "data/keep/update/slots.json").read_text())["B"]["state"] == "bad"


def test_the_images_row_ends_where_there_are_no_slots(boot: Callable[..., Board]) -> None:
    """As a copy of PID 1, which is what it is in an image."""
    image = runpy.run_path(str(ROOT / "buildroot/package/stack/settings_image.py"))
    row = next(row for row in image["SERVICES"] if row.name == "trial")
    assert row.critical
    board = boot("TRIAL,", settings=f"from tables.rows import Service\nTRIAL = {row._replace(after=())!r}").up()
    assert board.wait_state("trial", "stopped")["exit"] == "exit 0"
    assert "Traceback" not in board.log("trial")
    assert "update" not in board.ask("board")
