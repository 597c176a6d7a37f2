"""Conditions, modes and reasons on real boards: a board in a vehicle stops scanning when its voltage falls."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import MOSQUITTO, ROOT, Board, eventually
from test_docs import blocks

from onboard.to_pid1 import SVError
from prompt.explain import Reason, sentence
from prompt.picture import picture

Boot = Callable[..., Board]
# An app that reads an ADC; here a file stands for it.
BATTERY = """
import time
from onboard.facts import Teller
teller = Teller("battery")
while True:
    with open("/test/volts") as file:
        teller.tell("voltage", float(file.read()), time.monotonic())
    time.sleep(0.05)
"""
APP = "Service('battery', ('{PYTHON}', '/test/battery.py'), env=(('PYTHONPATH', '{LIB}'),), tells=('voltage',)),"
SLEEP = "('sleep', '1000')"


def explain(board: Board, name: str) -> dict[str, Any]:
    found: dict[str, Any] = board.ask("explain", name=name)
    return found


def ended(board: Board, name: str) -> bool:
    return bool(board.stats(name)["exit"] == "exit 0")


def transitions(board: Board, what: str) -> list[list[str]]:
    rows: list[list[Any]] = []
    while page := board.ask("timeline", first=rows[-1][0] + 1 if rows else 0):
        rows += page
    return [row[3:5] for row in rows if row[2] == what]


def example() -> str:
    """The vehicle of docs/services.md."""
    found = [block for block in blocks(ROOT / "docs/services.md", "python") if "MODES" in block]
    assert len(found) == 1
    return found[0]


def test_a_vehicle_stops_scanning_when_its_voltage_falls(boot: Boot) -> None:
    """The example of the page, with three of its own services in place of the board's."""
    text = example().replace("hold=10.0", "hold=0.3")
    rows = (
        f"Service('wifi_scan', {SLEEP}), Service('journal', ('sh', '-c', 'while sleep 0.1; do echo tick; done'), log='disk'),"
    )
    names = "from tables.rows import *\nLOG_KEEP = '/run/kept'\nSV_COOLDOWN = 0.1\nSERVICES = (LOGD, " + rows + APP + ")\n"
    volts = {"battery.py": BATTERY, "volts": "12.6"}
    board = boot("", settings=names + text, base="SERVICES", files=volts).up()
    assert board.ask("board")["rejected"] == []
    kept, file = board.root / "run/kept/journal.log", board.folder / "files/volts"
    board.wait_state("wifi_scan", "running")
    eventually(lambda: kept.read_text().count("tick") > 2)
    file.write_text("11.0")
    board.wait_state("wifi_scan", "unmet")
    found = explain(board, "wifi_scan")
    assert (found["condition"]["met"], found["condition"]["when"]) == (False, 'b.mode("power") == "good"')
    assert "mode power is failing" in sentence(found)
    assert board.ask("board")["modes"] == {"power": "failing"}
    assert board.ask("board")["unmet"] == ["wifi_scan"]
    in_memory = board.log("journal").count("tick")
    on_disk = eventually(lambda: kept.read_text().count("tick"))
    eventually(lambda: board.log("journal").count("tick") > in_memory + 5)
    assert kept.read_text().count("tick") <= on_disk + 2, "nothing more is written to the disk"
    file.write_text("12.0")
    known = eventually(lambda: [one for one in board.ask("facts") if one["name"] == "voltage" and one["value"] == 12.0])
    assert known[0]["by"] == "battery"
    assert board.stats("wifi_scan")["state"] == "unmet", "between the two limits it stays as it is"
    file.write_text("12.5")
    board.wait_state("wifi_scan", "running")
    eventually(lambda: kept.read_text().count("tick") > on_disk + 5)
    assert transitions(board, "mode power") == [["good", "failing"], ["failing", "good"]]
    assert transitions(board, "wifi_scan")[-4:] == [
        ["running", "stopping"], ["stopping", "unmet"], ["unmet", "waiting"], ["waiting", "running"],
    ]  # fmt: skip


def test_a_reload_brings_and_takes_conditions(boot: Boot) -> None:
    board = boot(f"Service('a', {SLEEP}), Service('b', {SLEEP}, when=lambda b: b.fact('doors') == 2),").up()
    pid = board.wait_state("a", "running")["pid"]
    board.wait_state("b", "unmet")
    board.ask("fact", name="doors", value=2)
    board.wait_state("b", "running")
    profile = board.root / "profile.py"
    text = profile.read_text()
    profile.write_text(text.replace(f"'a', {SLEEP}", f"'a', {SLEEP}, when=lambda b: b.fact('doors') < 3"))
    assert "a" in board.ask("reload")["adjusted"]
    assert board.stats("a")["pid"] == pid
    board.ask("fact", name="doors", value=4)
    board.wait_state("a", "unmet")
    board.wait_state("b", "unmet")
    profile.write_text(text)
    board.ask("reload")
    assert board.wait_state("a", "running")["pid"] != pid
    profile.write_text(text.replace("b.fact('doors') == 2", "b.fakt('doors')"))
    rejected = board.ask("reload")["rejected"]
    assert any("when fails: AttributeError: a board has no fakt; did you mean fact?" in fault for fault in rejected), rejected
    assert board.stats("b")["state"] == "unmet", "a row that has become bad leaves its service as it was"


def test_an_endless_condition_does_not_stop_pid_1(boot: Boot) -> None:
    """It is false on a board of which nothing is known, and endless as soon as somebody tells something."""
    endless = "def spins(b):\n    while b.fact('go'):\n        pass\n"
    board = boot(f"Service('a', {SLEEP}, when=spins), Service('b', {SLEEP}),", settings=endless).up()
    board.wait_state("a", "unmet")
    before = board.ask("board")["loop"]["longest_turn_ms"]
    board.ask("fact", name="go", value=True)
    found = eventually(lambda: explain(board, "a")["condition"]["error"] and explain(board, "a"))
    assert found["condition"]["error"] == "TimeoutError: takes more than 0.05 s"
    assert board.ask("board")["loop"]["longest_turn_ms"] < max(before, 2000.0)
    assert board.stats("b")["state"] == "running"
    eventually(lambda: "condition counts as false: TimeoutError" in board.log())
    for number in range(3):
        board.ask("fact", name="other", value=number)
    assert board.log().count("counts as false") == 1


def test_only_a_service_that_may_tells(boot: Boot) -> None:
    """Over the real socket, by the pid of the service: others of the same user are refused."""
    script = (
        "import os\nos.environ.setdefault('X', '')\nfrom onboard import to_pid1\n"
        "for name in ('voltage', 'online'):\n"
        "    try:\n        print(name, to_pid1.ask(to_pid1.SOCKET, {'op': 'fact', 'name': name, 'value': 12.5 if name == 'voltage' else True}))\n"
        "    except to_pid1.SVError as error:\n        print(name, 'refused:', error)\n"
        "import sys; sys.stdout.flush()\nimport time; time.sleep(1000)\n"
    )
    rows = "".join(
        f"Service('{name}', ('{{PYTHON}}', '/test/ask.py'), env=(('PYTHONPATH', '{{LIB}}'),), user='12345'{tells}),"
        for name, tells in (("may", ", tells=('voltage',)"), ("may_not", ""))
    )
    board = boot(rows, files={"ask.py": script}).up()
    if board.stats("may")["user"] == "root":
        pytest.skip("this user namespace has one user")
    eventually(lambda: "voltage {'asked': False}" in board.log("may"))
    eventually(lambda: "online refused: only root may tell the fact 'online'" in board.log("may"))
    eventually(lambda: "voltage refused: only root may tell the fact 'voltage'" in board.log("may_not"))
    assert [one["name"] for one in board.ask("facts")] == ["voltage"]


def test_explain_in_the_prompt_and_in_the_shell(boot: Boot) -> None:
    """A real board's last deaths come with what was printed before each; `sv explain` and its JSON say the same."""
    run = "/stack/bin/sv {} >/run/{} 2>/run/{}.error"
    rows = (
        "Service('dies', ('sh', '-c', 'echo first words; echo last words >&2; exit 3')),"
        "Service('job', ('sleep', '1000'), ready='notify', ready_timeout=600.0), Service('then', ('true',), ('job',)),"
    )
    board = boot(rows, settings="BACKOFF_FIRST = 0.5").up()
    eventually(lambda: len(explain(board, "dies")["exits"]) >= 2)
    commands = {
        "json": "explain dies --json", "text": "explain dies", "chain": "explain then", "none": "explain diez",
        "line": "timeline dies --lines 3", "facts": "facts", "svg": "bootchart --svg", "nix": "timeline --json",
        "tell": "tell voltage 10.5 --seconds 300", "bad": "tell voltage low", "told": "facts",
    }  # fmt: skip
    for name, command in commands.items():
        row = board.ask("run", argv=["sh", "-c", run.format(command, name, name) + "; true"])
        eventually(functools.partial(ended, board, row["name"]), 20)
    said = {name: (board.root / f"run/{name}").read_text() for name in commands}
    found = json.loads(said["json"])
    assert found["exits"][0]["exit"] == "exit 3"
    assert found["exits"][0]["lines"] == ["first words", "last words"]
    assert found["why"].startswith("dies ")
    assert "exit 3 after" in said["text"]
    assert "    last words" in said["text"]
    assert said["chain"].startswith("then waits for job since ")
    assert "then waits for job, which is starting since" in said["chain"]
    assert "there is no service 'diez'" in (board.root / "run/none.error").read_text()
    assert len(said["line"].splitlines()) == 4
    assert said["facts"] == "(none)\n"
    assert said["told"].split()[5:7] == ["voltage", "10.5"], said["told"]
    assert "by hand" in said["told"]
    assert "s more" in said["told"]
    assert "the fact 'voltage' is str, not int or float" in (board.root / "run/bad.error").read_text()
    assert json.loads(said["nix"])[-1]["number"] > 5
    names = {one.text for one in ElementTree.fromstring(said["svg"]).iter("{http://www.w3.org/2000/svg}text")}
    assert {"imports", "start_services", "logd", "dies", "job"} <= names


def test_hotplug_and_the_network_tell(boot: Boot) -> None:
    """The real services, on a board of namespaces: its loopback and whatever devices the machine shows."""
    rows = (
        "RIGHTS, BROKER, *(row for row in base.SERVICES if row.name in ('hotplug',)),"
        "Service('net', ('sleep', '1000'), when=lambda b: b.device('lo')),"
        "Service('serial', ('sleep', '1000'), when=lambda b: b.device('ttyNOT0')),"
    )
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    board = boot(rows, settings="import settings as base").up()
    board.wait_state("net", "running", seconds=20)
    found = explain(board, "serial")
    assert found["condition"]["uses"][0]["by"] == "hotplug"
    assert found["condition"]["uses"][0]["value"].endswith(" names")


def test_apps_drive_a_mode_over_the_bus(boot: Boot) -> None:
    """A real broker, the real diagnostic.py, and an app that may publish mode/motion."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    drives = "import time\nfrom bus import Bus\nbus = Bus('drives')\nfor _ in bus.every(0.2):\n    bus.publish('mode/motion', open('/test/motion').read().strip())\n"
    rows = (
        "RIGHTS, BROKER, app('diagnostic', publishes=('diag', 'boot'))._replace(tells=('*',)),"
        "app('drives', publishes=('mode/motion',))._replace(argv=('{PYTHON}', '/test/drives.py')),"
        "Service('camera', ('sleep', '1000'), when=lambda b: b.mode('motion') == 'moving'),"
    )
    settings = "from settings import app\nMODES = (Mode('motion', ('idle', 'moving')),)"
    board = boot(rows, settings=settings, files={"drives.py": drives, "motion": "idle"}).up()
    board.wait_state("camera", "unmet")
    (board.folder / "files/motion").write_text("moving")
    board.wait_state("camera", "running", seconds=30)
    (board.folder / "files/motion").write_text("flying")
    eventually(lambda: "has no state 'flying'; it has idle, moving" in board.log("diagnostic"), 20)
    (board.folder / "files/motion").write_text("idle")
    board.wait_state("camera", "unmet", seconds=20)
    assert transitions(board, "mode motion") == [["idle", "moving"], ["moving", "idle"]]


def test_what_an_app_says_on_the_bus_holds_as_long_as_the_app_lives(boot: Boot) -> None:
    """A real broker, which keeps what a dead app has said, and gives it to a diagnostic.py that was restarted meanwhile."""
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    says = "from bus import Bus\nbus = Bus('doors')\nbus.publish('fact/doors', 2, retain=True)\nbus.run()\n"
    rows = (
        "RIGHTS, BROKER, app('diagnostic', publishes=('diag', 'boot'))._replace(tells=('*',)),"
        "app('doors', publishes=('fact/doors',))._replace(argv=('{PYTHON}', '/test/doors.py')),"
        "Service('light', ('sleep', '1000'), when=lambda b: b.fact('doors') == 2),"
    )
    settings = "from settings import app\nFACT_GRACE = 3.0\nSV_COOLDOWN = 0.1"
    board = boot(rows, settings=settings, files={"doors.py": says}).up()

    def doors() -> tuple[Any, str, str]:
        (one,) = explain(board, "light")["condition"]["uses"]
        return one["value"], one["by"], one["note"]

    board.wait_state("light", "running", seconds=30)
    assert doors() == (2, "doors", "")
    board.ask("stop", name="doors")
    board.wait_state("light", "unmet", seconds=20)
    assert doors() == (None, "doors", "doors has ended, which told it")
    before = board.stats("diagnostic")["pid"]
    board.kill("diagnostic")
    eventually(lambda: board.stats("diagnostic")["pid"] not in (None, before), 20)
    eventually(lambda: [one for one in board.ask("facts") if one["name"] == "clock" and one["note"] == ""], 20)
    time.sleep(1)  # it has subscribed before it looks at the clock: this is for the broker's answer
    assert doors()[0] is None
    board.ask("start", name="doors")
    board.wait_state("light", "running", seconds=20)
    board.ask("stop", name="diagnostic")
    board.wait_state("light", "unmet", seconds=20)
    assert doors() == (None, "doors", "diagnostic has ended, which told it")
    board.ask("start", name="diagnostic")
    board.wait_state("light", "running", seconds=20)


# --- pictures ---------------------------------------------------------------------------------------------------------------
def test_a_picture_of_a_boot() -> None:
    rows = [
        {"name": "<imports> & \x01", "kind": "python", "start": 1.0, "end": 2.0},
        {"name": "a", "kind": "service", "start": 2.0, "end": 4.0},
        {"name": "never", "kind": "service", "start": 3.0, "end": None},
        {"name": "late", "kind": "service", "start": 999.0, "end": 999.5},
    ]
    tree = ElementTree.fromstring(picture(rows, 300.0))
    space = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in tree.iter(f"{space}text")]
    assert [text for text in texts if text and not text.endswith(" s")] == ["<imports> & ", "a", "never"]
    bars = [one for one in tree.iter(f"{space}rect")][1:]
    assert [float(bar.get("width", "0")) for bar in bars] == [300.0, 600.0, 300.0]
    assert bars[2].get("fill") == "none"
    assert ElementTree.fromstring(picture([], 300.0)).tag == f"{space}svg"


def test_a_reason_shows_what_was_printed_before_each_death() -> None:
    lines = ["no such device", "giving up"]
    row = {"why": "gps does not run.", "condition": None, "waits_for": [], "needed_by": ["wifi_analyzer"],
           "exits": [{"exit": "exit 1", "ago": 3.0, "ran": 0.5, "asked": False, "lines": lines}]}  # fmt: skip
    assert Reason(row).text().splitlines() == [
        "gps does not run.", "  3.0s ago: exit 1 after 0.5s", "    no such device", "    giving up", "  needed by wifi_analyzer",
    ]  # fmt: skip
    assert max(map(len, Reason(row).text(12).splitlines())) == 12


def test_a_name_that_is_near_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt import functions

    def ask(_path: str, request: dict[str, Any], *_: object) -> Any:
        if request["op"] == "stats":
            return [{"name": "wifi_scan"}] if not request.get("first") else []
        raise SVError(f"there is no service {request['name']!r}; there are wifi_scan")

    monkeypatch.setattr("onboard.to_pid1.ask", ask)
    with pytest.raises(SVError, match="did you mean wifi_scan"):
        functions.explain("wifi_scam")
