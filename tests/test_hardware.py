"""Temperature, power and throttling: from plain files, and on boards whose /sys is lab/fakesys.py's over FUSE."""

from __future__ import annotations

import ctypes.util
import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EMULATED, ROOT, Board, eventually

import diagnostic

Boot = Callable[..., Board]
THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"


# --- plain files ------------------------------------------------------------------------------------------------------
def tree(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return str(folder)


def test_the_hottest_zone_counts_and_those_that_fail_do_not(tmp_path: Path) -> None:
    zones = {"thermal_zone0": "48312", "thermal_zone1": "51000", "thermal_zone2": "nonsense", "thermal_zone3": ""}
    sys = tree(tmp_path, {f"class/thermal/{name}/temp": text for name, text in zones.items()})
    (tmp_path / "class/thermal/thermal_zone4/temp").mkdir(parents=True)
    assert diagnostic.temperature(sys) == 51.0
    assert diagnostic.temperature(str(tmp_path / "no")) is None


def test_power_supplies_in_volts(tmp_path: Path) -> None:
    files = {"usb/type": "USB", "usb/online": "1", "usb/voltage_now": "4980000", "battery/type": "Battery", "battery/capacity": "87",
             "battery/status": "Discharging", "battery/voltage_min": "3300000"}  # fmt: skip
    battery, usb = diagnostic.power(tree(tmp_path, {f"class/power_supply/{name}": text for name, text in files.items()}))
    assert battery == {"name": "battery", "type": "Battery", "status": "Discharging", "online": None, "capacity": 87,
                       "voltage": None, "voltage_min": 3.3}  # fmt: skip
    assert usb == {"name": "usb", "type": "USB", "status": None, "online": True, "capacity": None, "voltage": 4.98,
                   "voltage_min": None}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("0", set()),
        ("50005", {"under_voltage", "throttled", "under_voltage_occurred", "throttled_occurred"}),
        ("0x80008", {"soft_temperature_limit", "soft_temperature_limit_occurred"}),
        ("e0000", {"frequency_capped_occurred", "throttled_occurred", "soft_temperature_limit_occurred"}),
    ],
)
@pytest.mark.parametrize("folder", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_bits_of_the_firmware(tmp_path: Path, folder: str, text: str, true: set[str]) -> None:
    bits = diagnostic.throttled(tree(tmp_path, {f"devices/platform/{folder}/get_throttled": text}))
    assert bits is not None
    assert len(bits) == 8
    assert {name for name, value in bits.items() if value} == true


def test_a_machine_without_such_hardware_has_nothing_to_complain_of(tmp_path: Path) -> None:
    report = diagnostic.hardware(str(tmp_path))
    assert report == {"temperature": None, "power": [], "throttled": None}
    assert diagnostic.complaints(report) == []


def test_complaints() -> None:
    supply = {"name": "usb", "voltage": 4.5, "voltage_min": 4.63}
    report = {"temperature": 80.0, "throttled": {"under_voltage": True, "throttled_occurred": True}, "power": [supply]}
    assert diagnostic.complaints(report) == ["too hot: 80 degrees or more", "firmware: under voltage", "usb: less than 4.63 V"]


def test_a_driver_that_hangs_is_waited_for_once() -> None:
    gate = threading.Event()
    calls: list[None] = []

    def read() -> dict[str, Any]:
        calls.append(None)
        gate.wait(30)
        return {"temperature": 1.0}

    reader = diagnostic.Reader(read)
    assert reader.result(0.05) is None
    assert reader.result(0.05) is None
    assert len(calls) == 1, "no second reader joins the first"
    gate.set()
    assert reader.result(5) == {"temperature": 1.0}, "what came late is still true"
    assert reader.result(5) == {"temperature": 1.0}
    assert len(calls) == 2


# --- over FUSE --------------------------------------------------------------------------------------------------------
def fuse_device(folder: Path) -> str:
    """A /dev/fuse that the board's root may open: on a machine without udev it is root's alone, who can make another."""
    if not EMULATED and ctypes.util.find_library("fuse3") is None:
        pytest.skip("no libfuse3 here (Debian: apt-get install fuse3)")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    device = os.stat("/dev/fuse")
    if device.st_mode & 0o006 == 0o006 or (os.getuid() != 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        return "/dev/fuse"
    node = folder / "fuse"
    try:
        os.mknod(node, stat.S_IFCHR, device.st_rdev)
        node.chmod(0o666)
        os.close(os.open(node, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/fuse is closed to the board's root ({oct(device.st_mode & 0o777)}): {error.strerror}")
    return str(node)


@pytest.fixture
def hardware_board(boot: Boot, tmp_path: Path) -> Callable[..., Board]:
    """Boots a board whose /sys is the fake, with diagnostic and what it says as the log of "listen"."""

    def start(services: str = "") -> Board:
        device = fuse_device(tmp_path)
        rows = "Service('fakesys', ('{PYTHON}', '/test/fakesys.py', '/sys'), ready='notify', env=(('PYTHONPATH', '{PYTHONPATH}'),)),"
        rows += "app('diagnostic', after=('broker', 'fakesys'), publishes=('diag', 'boot'))._replace(tells=('*',)), Service('listen', ('{PYTHON}', '{LIB}/bus.py', 'diag'), after=('broker',), groups=('broker',)),"
        board = boot(rows + services, base="(LOGD, RIGHTS, BROKER)", devices=(device,), settings="from settings import app",
                     files={"fakesys.py": (ROOT / "lab/fakesys.py").read_text()}).up()  # fmt: skip
        board.wait_state("fakesys", "running")
        return board

    return start


def set_file(board: Board, name: str, text: str) -> None:
    """As root of the board: from outside its user namespace the kernel lets nobody in (`man 4 fuse`)."""
    row = board.ask("run", argv=["sh", "-c", f"echo '{text}' >/sys/{name}"])
    eventually(lambda: board.stats(row["name"])["exit"] == "exit 0")


def reports(board: Board) -> list[dict[str, Any]]:
    """What diagnostic has published so far."""
    lines = [line.partition("diag ")[2] for line in board.log("listen").splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def new_report(board: Board) -> dict[str, Any]:
    """Diagnostic reports at its start."""
    before = len(reports(board))
    board.ask("restart", name="diagnostic")
    eventually(lambda: len(reports(board)) > before, 20)
    return reports(board)[-1]


def test_diagnostic_reports_the_hardware(hardware_board: Callable[..., Board]) -> None:
    board = hardware_board()
    report = eventually(lambda: reports(board)[0], 20)
    assert report["temperature"] == 48.312
    assert [(one["name"], one["type"], one["voltage"]) for one in report["power"]] == [
        ("battery", "Battery", 3.912),
        ("usb", "USB", 5.021),
    ]
    assert set(report["throttled"].values()) == {False}
    assert report["warnings"] == []
    for name, text in (("class/thermal/thermal_zone0/temp", "85500"), (THROTTLED, "50005"),
                       ("class/power_supply/usb/voltage_now", "4480000")):  # fmt: skip
        set_file(board, name, text)
    report = new_report(board)
    assert report["temperature"] == 85.5
    assert [name for name, value in report["throttled"].items() if value] == [
        "under_voltage", "throttled", "under_voltage_occurred", "throttled_occurred"]  # fmt: skip
    expected = ["too hot: 80 degrees or more", "firmware: under voltage", "firmware: throttled", "usb: less than 4.63 V"]
    assert report["warnings"] == expected
    eventually(lambda: [text for text in expected if text not in board.log("diagnostic")] == [])


def test_hardware_that_fails_is_none(hardware_board: Callable[..., Board]) -> None:
    board = hardware_board()
    set_file(board, "class/thermal/thermal_zone0/temp", "!EIO")
    set_file(board, "class/power_supply/usb/voltage_now", "!ENODATA")
    report = new_report(board)
    assert report["temperature"] is None
    assert [one["voltage"] for one in report["power"]] == [3.912, None]
    assert report["warnings"] == []


def test_a_condition_hears_of_the_voltage_from_diagnostic(hardware_board: Callable[..., Board]) -> None:
    """The real reader and the real bus: a look every five seconds, because a condition asks."""
    rows = "Service('scan', ('sleep', '1000'), when=lambda b: b.fact('voltage/usb', 0) > 4.6 and b.temperature < 80),"
    board = hardware_board(rows)
    board.wait_state("scan", "running", seconds=20)
    known = {one["name"]: (one["value"], one["by"]) for one in board.ask("facts")}
    assert known["voltage/usb"] == (5.0, "diagnostic")
    assert (known["voltage"], known["temperature"]) == ((3.9, "diagnostic"), (48, "diagnostic"))
    assert known["under_voltage"] == (False, "diagnostic")
    set_file(board, "class/power_supply/usb/voltage_now", "4480000")
    board.wait_state("scan", "unmet", seconds=20)
    set_file(board, "class/power_supply/usb/voltage_now", "5010000")
    set_file(board, "class/thermal/thermal_zone0/temp", "85500")
    eventually(lambda: next(one for one in board.ask("facts") if one["name"] == "temperature")["value"] == 86, 20)
    assert board.stats("scan")["state"] != "running"


MAPPED = """
import mmap, os
fd = os.open("/sys/class/power_supply/usb/voltage_now", os.O_RDONLY)
memory = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.mkfifo("/tmp/go")
print("mapped", flush=True)
os.read(os.open("/tmp/go", os.O_RDONLY), 1)
print(memory[0])
"""


def test_a_hung_file_system_stops_neither_diagnostic_nor_the_teardown(hardware_board: Callable[..., Board]) -> None:
    """Readers in the kernel that nothing can end, one of them in a page fault: reports, stats and the end still come."""
    board = hardware_board(f"Service('mapped', ('{{PYTHON}}', '-c', {MAPPED!r}), after=('fakesys',), restart='never'),")
    eventually(lambda: "mapped" in board.log("mapped"))
    set_file(board, "class/thermal/thermal_zone0/temp", "!hang")
    board.ask("run", argv=["cat", "/sys/class/thermal/thermal_zone0/temp"])
    eventually(lambda: "hanging at /class/thermal" in board.log("fakesys"))
    board.ask("run", argv=["sh", "-c", "echo now >/tmp/go"])
    report = new_report(board)
    assert report["temperature"] is None
    assert report["warnings"] == ["the hardware's drivers do not answer"]
    board.kill("cat")
    for name in ("cat", "mapped"):
        pid = board.outside(board.stats(name)["pid"])
        eventually(lambda pid=pid: state(pid) == "D")  # type: ignore[misc]
    started = time.monotonic()
    assert board.stats("diagnostic")["state"] == "running"
    assert time.monotonic() - started < 1.0, "PID 1 waits for nobody"
    started = time.monotonic()
    assert board.end(signal.SIGUSR1) == 0
    assert time.monotonic() - started < 30.0


def state(pid: int) -> str:
    """The letter of ps(1): D cannot be interrupted."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
