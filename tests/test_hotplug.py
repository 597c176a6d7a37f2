"""hotplug.py: sysfs of the test's own for what is pure, and a board in namespaces whose network devices are plugged for real.

Devices on real kernels are in qemu_hotplug.py.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EMULATED, Board, eventually
from hypothesis import given
from hypothesis import strategies as st

from onboard.to_pid1 import SVError
from pid1.instances import instance_row
from services import devices, hotplug, modprobe, orders
from tables import load as tables
from tables.rows import Rule, Service

IP = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
HUB = "/devices/pci0000:00/0000:00:02.0/usb1/1-1"
SERIAL = f"{HUB}/1-1.2/1-1.2:1.0/ttyUSB0/tty/ttyUSB0"


def has_libudev() -> bool:
    """Whether boards can load it: where they run in another processor's root, there is none."""
    try:
        return not EMULATED and bool(ctypes.CDLL("libudev.so.1"))
    except OSError:
        return False


# --- sysfs ----------------------------------------------------------------------------------------------------------
def add(sys: Path, path: str, subsystem: str, uevent: str = "", **attributes: str) -> None:
    folder = sys / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "uevent").write_text(uevent)
    if subsystem:
        (folder / "subsystem").symlink_to(f"/nowhere/{subsystem}")
    for name, text in attributes.items():
        (folder / name).write_text(text)


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A serial adapter behind a hub, as Linux shows it."""
    add(tmp_path, "/devices/pci0000:00/0000:00:02.0", "pci", "PCI_ID=1B36:000D\nMODALIAS=pci:v00001B36\n")
    add(tmp_path, "/devices/pci0000:00/0000:00:02.0/usb1", "usb", idVendor="1d6b", idProduct="0003", serial="0000:00:02.0")
    add(tmp_path, HUB, "usb", idVendor="0409", idProduct="55aa", devnum="2")
    add(tmp_path, f"{HUB}/1-1.2", "usb", "DEVNAME=bus/usb/001/003\n", idVendor="0403", idProduct="6001", devnum="3",
        manufacturer="QEMU/../.. \n x", product="QEMU  USB SERIAL\n", serial="1-0000:00:02.0-1.2")  # fmt: skip
    add(tmp_path, f"{HUB}/1-1.2/1-1.2:1.0", "usb", "MODALIAS=usb:v0403p6001\n", bInterfaceNumber="00\n")
    add(tmp_path, f"{HUB}/1-1.2/1-1.2:1.0/ttyUSB0", "usb-serial", port_number="0\n")
    add(tmp_path, SERIAL, "tty", "MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0\n")
    return tmp_path


def test_a_scan_finds_parents_first(sys: Path) -> None:
    found = list(devices.scan(str(sys)))
    assert len(found) == 7
    for path in found:
        later = found[found.index(path) :]
        assert not [parent for parent in later if path.startswith(f"{parent}/")], "a parent after its child"


def test_what_udev_would_say(sys: Path) -> None:
    found = devices.describe(devices.uevent(SERIAL, str(sys)), str(sys))
    assert found == {
        "MAJOR": "188", "MINOR": "0", "DEVNAME": "ttyUSB0", "DEVPATH": SERIAL, "SUBSYSTEM": "tty", "ID_BUS": "usb",
        "ID_VENDOR_ID": "0403", "ID_MODEL_ID": "6001", "ID_USB_DEVNUM": "3", "ID_USB_INTERFACE_NUM": "00",
        "ID_VENDOR": "QEMU_.._.._x", "ID_MODEL": "QEMU_USB_SERIAL", "ID_SERIAL_SHORT": "1-0000:00:02.0-1.2",
        "ID_SERIAL": "QEMU_.._.._x_QEMU_USB_SERIAL_1-0000:00:02.0-1.2", "ID_PATH": "pci-0000:00:02.0-usb-0:1.2:1.0",
    }  # fmt: skip
    assert devices.names(found, str(sys)) == [
        "serial/by-id/usb-QEMU_.._.._x_QEMU_USB_SERIAL_1-0000:00:02.0-1.2-if00-port0",
        "serial/by-path/pci-0000:00:02.0-usb-0:1.2:1.0-port0",
    ]
    assert devices.names({**found, "SUBSYSTEM": "block"}, str(sys)) == []
    gone = devices.describe({"DEVPATH": "/devices/gone/usb1", "SUBSYSTEM": "tty"}, str(sys))
    assert gone == {"DEVPATH": "/devices/gone/usb1", "SUBSYSTEM": "tty"}, "nothing is left in sysfs"


@given(st.text(max_size=200))
def test_what_a_device_says_of_itself_is_a_safe_name(text: str) -> None:
    found = devices.safe(text)
    assert set(found) <= set(string.ascii_letters + string.digits + "#+.:=@_-")
    assert len(found) <= 80
    assert found not in (".", "..")


def test_another_device_at_the_same_place_is_another_one(sys: Path) -> None:
    one = devices.describe(devices.uevent(SERIAL, str(sys)), str(sys))
    assert devices.same(one, {**one, "SEQNUM": "7", "ACTION": "bind", "DRIVER": "ftdi_sio"})
    (sys / HUB.strip("/") / "1-1.2/devnum").write_text("4")
    assert not devices.same(one, devices.describe(devices.uevent(SERIAL, str(sys)), str(sys)))


# --- rules ----------------------------------------------------------------------------------------------------------
def test_all_patterns_of_a_rule_have_to_fit() -> None:
    event = {"SUBSYSTEM": "tty", "DEVPATH": SERIAL, "DEVNAME": "ttyUSB0", "ID_VENDOR_ID": "0403"}
    for rule, expected in (
        (Rule("tty"), True),
        (Rule("t*", "add", (("DEVNAME", "ttyUSB*"), ("ID_VENDOR_ID", "04??")), "/devices/pci*"), True),
        (Rule("block"), False),
        (Rule("tty", "remove"), False),
        (Rule("tty", "*"), True),
        (Rule("tty", properties=(("DEVNAME", "ttyACM*"),)), False),
        (Rule("tty", properties=(("ID_MODEL_ID", "*"),)), False),
        (Rule("tty", path="/devices/platform/*"), False),
    ):
        assert devices.fits(rule, "add", event) is expected, rule


def test_names_are_made_from_properties() -> None:
    assert devices.fill("gps@{devname}", {"DEVNAME": "ttyUSB0"}) == "gps@ttyUSB0"
    assert devices.fill("device/{devname}", {"DEVNAME": "bus/usb/001/002"}) == "device/bus-usb-001-002"
    assert devices.fill("x{y", {}) == "x{y"
    with pytest.raises(KeyError):
        devices.fill("{id_path}", {"DEVNAME": "ttyUSB0"})


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("7", "is not a Rule(...) row"),
        ("Rule(7, start='x')", "every column but properties is text"),
        ("Rule('tty')", "it does nothing"),
        ("Rule('tty', 'plug', start='x')", "action 'plug' is not '*' or one of add, remove"),
        ("Rule('tty', '*', start='x')", "start and stop need one action"),
        ("Rule('tty', start='gps@')", "a template is not started"),
        ("Rule('tty', properties={'A': 'b'}, start='x')", "properties is a dict; write a tuple"),
        ("Rule('tty', properties=('A', 'b'), start='x')", "properties is one pair; a comma more makes"),
        ("Rule('tty', group='nosuchgroup')", "group 'nosuchgroup' is not in /etc/group"),
        ("Rule('tty', module='-r')", "module '-r' is not a module's name"),
        ("Rule('tty', publish='device/#')", "a topic has no + and no #"),
    ],
)
def test_a_bad_rule_is_named_and_left_out(tmp_path: Path, row: str, fault: str) -> None:
    profile = tmp_path / "p.py"
    profile.write_text(f"RULES = ({row}, Rule('net', module='x'))")
    board = tables.load({"stack.profile": str(profile)})
    assert len(board.rejected) == 1
    assert fault in board.rejected[0]
    assert list(board.RULES) == [Rule("net", module="x")]


# --- what follows from devices, without a kernel --------------------------------------------------------------------
class Ear:
    """The bus, and the log, of a hotplug that is driven by hand."""

    def __init__(self) -> None:
        self.log = self
        self.said: list[str] = []
        self.published: list[tuple[str, Any]] = []

    def warning(self, text: str, *words: object) -> None:
        self.said.append(text % words)

    info = warning

    def watch(self, *_: object) -> None: ...

    def publish(self, topic: str, data: Any) -> None:
        self.published.append((topic, data))


class Silence:
    """Uevents, of which there are none."""

    dropped = 0

    def fileno(self) -> int:
        return -1

    def read(self) -> list[dict[str, str]]:
        return []


@pytest.fixture
def plugged(sys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., hotplug.Hotplug]:
    """A hotplug whose sysfs is the test's, and whose modules and orders are only gathered."""
    monkeypatch.setattr(orders, "STARTED", str(tmp_path / "started.json"))

    def make(*rules: Rule, console: str = "/dev/console") -> hotplug.Hotplug:
        chosen = type("Chosen", (), {"RULES": rules, "group_ids": {"dialout": 20}, "CONSOLE": console})
        return hotplug.Hotplug(Ear(), chosen, Silence(), str(sys))  # type: ignore[arg-type]

    return make


def wanted(one: hotplug.Hotplug) -> list[str]:
    return list(one.loader._wanted)


def ordered(one: hotplug.Hotplug) -> dict[str, str]:
    return dict(one.orders._pending)


GPS = Rule("tty", properties=(("DEVNAME", "ttyUSB*"),), start="gps@{devname}", publish="device/{devname}")


def test_what_is_there_at_boot_is_loaded_parents_first_and_started(plugged: Callable[..., hotplug.Hotplug], sys: Path) -> None:
    one = plugged(GPS)
    one.rescan()
    assert wanted(one) == ["pci:v00001B36", "usb:v0403p6001"]
    assert ordered(one) == {"gps@ttyUSB0": "start"}
    (sys / f"{HUB}/1-1.2/1-1.2:1.0/driver".strip("/")).symlink_to("/nowhere/ftdi_sio")
    again = plugged(GPS)
    again.rescan()
    assert wanted(again) == ["pci:v00001B36"], "what has its driver asks for no module"


def test_a_device_that_goes_takes_its_service_with_it(plugged: Callable[..., hotplug.Hotplug]) -> None:
    one = plugged(GPS, Rule("tty", "remove", stop="other", module="late-{devname}"))
    one.rescan()
    one.loader._wanted.clear()
    one.on_event({"ACTION": "remove", "DEVPATH": SERIAL, "SUBSYSTEM": "tty"})
    assert ordered(one) == {"gps@ttyUSB0": "stop", "other": "stop"}
    assert wanted(one) == ["late-ttyUSB0"], "what was known of it is known at its end"
    assert [topic for topic, _ in one.bus.published] == ["device/ttyUSB0"]  # type: ignore[attr-defined]
    one.rescan()
    assert ordered(one)["gps@ttyUSB0"] == "restart", "it is there again: what was to be stopped is another device's"


def test_the_console_is_given_to_nobody(plugged: Callable[..., hotplug.Hotplug], sys: Path) -> None:
    """An adapter with `console=ttyUSB0`: the kernel's messages are no position, and what gps.py writes there is no login."""
    add(sys, "/class/tty/console", "", active="tty0 ttyUSB0\n")
    one = plugged(GPS, Rule("tty", group="dialout"))
    one.rescan()
    assert ordered(one) == {}
    assert "ttyUSB0 is the console: no rule gives it to anybody" in one.bus.said  # type: ignore[attr-defined]
    (sys / "class/tty/console/active").write_text("tty0\n")
    one = plugged(GPS)
    one.rescan()
    assert ordered(one) == {"gps@ttyUSB0": "start"}
    mine = plugged(GPS, console="/dev/ttyUSB0")
    mine.rescan()
    assert ordered(mine) == {}, "the prompt's"


def test_which_terminals_are_consoles(tmp_path: Path) -> None:
    line = "quiet console=tty1 console=ttyAMA0,115200n8 stack.console=ttyS7 root=/dev/mmcblk0p2"
    assert devices.consoles(str(tmp_path), line, "/dev/ttyS0") == {"tty1", "ttyAMA0", "ttyS0"}
    assert devices.consoles(str(tmp_path), "", "/dev/console") == set()


def test_more_devices_than_any_board_has_are_left_out(
    plugged: Callable[..., hotplug.Hotplug], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotplug, "DEVICES", 9)
    one = plugged(GPS)
    one.rescan()
    for number in range(100):
        one.on_event({"ACTION": "add", "DEVPATH": f"/devices/x{number}", "SUBSYSTEM": "x"})
    assert (len(one.known), one.dropped) == (9, 98)
    one.loader._wanted.clear()
    one.orders._pending.clear()
    for _ in range(3):
        one.turn(100.0)
    assert one.bus.said.count("devices: there are more than 9, or some that say what is no text: left out") == 1  # type: ignore[attr-defined]


def test_names_of_modules_that_are_too_many_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    argvs: list[list[str]] = []
    monkeypatch.setattr(modprobe.Loader, "_start", lambda _self, argv, _now: argvs.append(argv))
    loader = modprobe.Loader(Ear())  # type: ignore[arg-type]
    for number in range(2500):
        loader.want(f"usb:{number}")
    assert loader.dropped == 500
    assert loader.due() == 0.0
    for _ in range(11):
        loader.turn(1.0)
    assert [len(argv) for argv in argvs] == [5 + 200] * 10
    assert argvs[0][:6] == ["modprobe", "-a", "-b", "-q", "--", "usb:0"]
    assert argvs[9][-1] == "usb:1999"
    assert loader.due() is None


def test_it_sleeps_until_something_is_due(plugged: Callable[..., hotplug.Hotplug], monkeypatch: pytest.MonkeyPatch) -> None:
    one = plugged()
    with monkeypatch.context() as there:
        there.setattr("onboard.to_pid1.ask", lambda *_: {"asked": False})
        one.turn(100.0)
    assert one.due() == 3700.0, "nothing at all"
    one.lost = True
    assert one.due() == 101.0, "another scan"
    one.lost = False
    one.orders.give("start", "x")
    assert one.due() == 100.05, "at once"
    monkeypatch.setattr("onboard.to_pid1.SOCKET", "/nowhere/control")
    one.turn(200.0)
    assert one.due() == 205.0, "PID 1 is away: five seconds"


# --- templates ------------------------------------------------------------------------------------------------------
def test_an_instance_is_its_template_with_a_name(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text(
        "SERVICES = (Service('t@', ('{PYTHON}', 'x{instance}', '{instance}'), env=(('I', '{instance}'),), ready='/run/{instance}',"
        " tty='/dev/{instance}'), Service('s', ('true',)), Service('bad', ('true',), after=('t@',)))"
    )
    board = tables.load({"stack.profile": str(profile)})
    assert board.rejected == ["SERVICES bad: after names 't@', which is no service; it does not wait for that"]
    assert board.order == ["s", "bad"], "nobody starts a template"
    row = instance_row(board, "t@ttyS0")
    assert row == Service(
        "t@ttyS0", (board.PYTHON, "xttyS0", "ttyS0"), env=(("I", "ttyS0"),), ready="/run/ttyS0", tty="/dev/ttyS0"
    )
    for name in ("t@", "t@..", "t@-r", "t@a/b", "t@a b", "t@a\n", "t@{LIB}", "t@ä", "t@" + "a" * 65, "t@a@b", "u@a", "s@a"):
        with pytest.raises(SVError, match=r"is not the name of an instance|there is no template"):
            instance_row(board, name)


TEMPLATE = "Service('t@', ('sh', '-c', 'echo this is {instance}; sleep 1000')),"


def test_instances_live_and_end_with_their_template(boot: Callable[..., Board]) -> None:
    board = boot(TEMPLATE + "Service('s', ('sleep', '1000')),").up()
    assert "t@" not in board.all_stats()
    assert board.ask("start", name="t@one")["state"] == "running"
    pid = board.ask("restart", name="t@two")["pid"]
    assert board.ask("start", name="t@two")["pid"] == pid, "it runs already"
    eventually(lambda: "this is two" in board.log("t@two"))
    with pytest.raises(SVError, match="there is no template 'x@'; there are t@"):
        board.ask("start", name="x@one")
    with pytest.raises(SVError, match="is not the name of an instance"):
        board.ask("start", name="t@../../etc")
    with pytest.raises(SVError, match="there is no service"):
        board.ask("stop", name="t@three")

    board.ask("stop", name="t@one")
    board.wait_state("t@one", "stopped")
    assert board.ask("start", name="t@one")["state"] == "running"

    def reload(rows: str) -> dict[str, list[str]]:
        inside = board.root / "profile.py"
        inside.write_text(f"SERVICES = (LOGD,) + ({rows})\n")
        answer: dict[str, list[str]] = board.ask("reload")
        return answer

    assert reload(TEMPLATE + "Service('s', ('sleep', '1000')),")["restarted"] == []
    answer = reload(TEMPLATE.replace("this is", "here is") + "Service('s', ('sleep', '1000')),")
    assert sorted(answer["restarted"]) == ["t@one", "t@two"]
    eventually(lambda: "here is one" in board.log("t@one"))
    assert reload("Service('t@', 7), Service('s', ('sleep', '1000')),")["stopped"] == [], "a bad row changes nothing"
    assert board.stats("t@one")["state"] == "running"
    assert sorted(reload("Service('s', ('sleep', '1000')),")["stopped"]) == ["t@one", "t@two"]
    eventually(lambda: not {"t@one", "t@two"} & board.all_stats().keys())
    eventually(lambda: not any("sleep 1000" in words and "sh" in words for words in board.processes().values()))


def test_of_ended_instances_the_last_few_are_remembered(boot: Callable[..., Board]) -> None:
    board = boot("Service('t@', ('true',), restart='never'), Service('s', ('sleep', '1000')),").up()
    for number in range(30):
        board.ask("start", name=f"t@{number}")
    eventually(lambda: len([name for name in board.all_stats() if "@" in name]) == 20)
    assert board.all_stats()["s"]["state"] == "running"


# --- a board --------------------------------------------------------------------------------------------------------
needs_libudev = pytest.mark.skipif(not has_libudev(), reason="no libudev here, which pyudev needs")
needs_ip = pytest.mark.skipif(IP is None or not has_libudev(), reason="no ip (iproute2) or no libudev here")
HOTPLUG = "Service('hotplug', ('{PYTHON}', '-P', '{LIB}/services/hotplug.py'), env=(('PYTHONPATH', '{PYTHONPATH}'),)),"
KEEPER = "Service('keep@', ('sleep', '1000')),"
RULES = """RULES = (
    Rule("net", properties=(("INTERFACE", "dev*"),), start="keep@{interface}"),
    Rule("net", "remove", properties=(("INTERFACE", "dev*"),), publish="device/{interface}"),
)
"""


def run(board: Board, script: str) -> None:
    """A shell script on the board, to its end."""
    name = board.ask("run", argv=["sh", "-ec", script])["name"]
    assert board.wait_state(name, "stopped", seconds=60)["exit"] == "exit 0", board.log(name)


def kept(board: Board) -> set[str]:
    """Instances that run."""
    return {name.removeprefix("keep@") for name, row in board.all_stats().items() if "@" in name and row["state"] == "running"}


def started(board: Board) -> bool:
    """Whether hotplug.py has done its first scan, and listens."""
    return (board.root / "run/hotplug/started.json").exists()


@needs_ip
def test_services_run_while_their_devices_are_there(boot: Callable[..., Board]) -> None:
    board = boot(HOTPLUG + KEEPER, settings=RULES).up()
    eventually(lambda: started(board), 20)
    run(board, "ip link add dev0 type veth peer name other0")
    eventually(lambda: kept(board) == {"dev0"})
    run(board, "ip link add dev1 type veth peer name dev2")
    eventually(lambda: kept(board) == {"dev0", "dev1", "dev2"})
    run(board, "ip link set dev2 name dev9")
    eventually(lambda: kept(board) == {"dev0", "dev1", "dev9"}, 10)
    run(board, "ip link del dev0; ip link del dev1")
    eventually(lambda: kept(board) == set())
    run(board, "for i in 1 2 3 4 5; do ip link add dev0 type veth peer name x; ip link del dev0; done;"
               "ip link add dev0 type veth peer name x")  # fmt: skip
    eventually(lambda: kept(board) == {"dev0"}, 20)
    assert board.stats("hotplug")["restart"] == 0
    assert "Traceback" not in board.log("hotplug")


@needs_ip
def test_what_happened_while_it_was_away_is_put_in_order(boot: Callable[..., Board]) -> None:
    """Killed: what was plugged meanwhile is started, what was unplugged is stopped, what somebody else started is not touched."""
    board = boot(HOTPLUG + KEEPER, settings=RULES).up()
    eventually(lambda: started(board), 20)
    run(board, "ip link add dev0 type veth peer name dev1")
    eventually(lambda: kept(board) == {"dev0", "dev1"})
    board.ask("start", name="keep@byhand")
    board.ask("stop", name="hotplug")
    board.wait_state("hotplug", "stopped")
    run(board, "ip link del dev0; ip link add dev1 type veth peer name dev2")
    board.ask("start", name="hotplug")
    eventually(lambda: kept(board) == {"dev1", "dev2", "byhand"}, 20)


@needs_ip
def test_orders_wait_for_pid_1(boot: Callable[..., Board]) -> None:
    """Its socket is moved out of the way while a device comes."""
    quick = (
        "import sys; sys.path.insert(0, sys.argv[1]); from services import hotplug, orders; orders.RETRY = 0.2; hotplug.main()"
    )
    board = boot(f"Service('hotplug', ('{{PYTHON}}', '-c', {quick!r}, '{{LIB}}')), {KEEPER}", settings=RULES).up()
    eventually(lambda: started(board), 20)
    name = board.ask("run", argv=["sh", "-ec", "cd /run/stack; mv control away; ip link add dev0 type veth peer name dev1; sleep 0.5;"
                                  "ip link del dev0; ip link add dev0 type veth peer name x; sleep 0.5; mv away control"])["name"]  # fmt: skip
    eventually(lambda: board.stats(name)["state"] == "stopped", 20)
    eventually(lambda: kept(board) == {"dev0"}, 20)
    assert board.log("hotplug").count("cannot reach PID 1") == 1, "said once"


@needs_ip
@pytest.mark.timeout(180)
def test_a_storm_loses_nothing(boot: Callable[..., Board]) -> None:
    """Thousands of uevents at a buffer that holds a handful: what was lost is found by the scan, and nobody dies."""
    board = boot(HOTPLUG + KEEPER, settings=RULES + "NETLINK_BUFFER = 4096\nLOG_RATE = 100000").up()
    eventually(lambda: started(board), 20)
    run(board, "i=0; while [ $i -lt 300 ]; do ip link add s$i type veth peer name t$i; ip link del s$i; i=$((i+1)); done;"
               "i=0; while [ $i -lt 10 ]; do ip link add dev$i type veth peer name y$i; i=$((i+1)); done; ip link del dev3")  # fmt: skip
    expected = {f"dev{number}" for number in range(10)} - {"dev3"}
    eventually(lambda: kept(board) == expected, 60)
    count = board.log("hotplug").count("uevents were lost")
    board.kill("hotplug", 19)  # STOP: the buffer overflows for certain
    run(board, "i=0; while [ $i -lt 250 ]; do ip link add u$i type veth peer name v$i; ip link del u$i; i=$((i+1)); done;"
               "ip link del dev0; ip link del dev1; ip link add dev1 type veth peer name z1; ip link add dev3 type veth peer name z3")  # fmt: skip
    board.kill("hotplug", 18)
    eventually(lambda: kept(board) == expected - {"dev0"} | {"dev3"}, 30)
    eventually(lambda: board.log("hotplug").count("uevents were lost") > count)
    assert board.stats("hotplug")["restart"] == 0
    assert "Traceback" not in board.log("hotplug")


MODPROBE = """#!/bin/sh
echo "$@" >>/run/modprobe.log
case "$*" in *hang*) sleep 1000;; esac
"""


@needs_libudev
def test_one_modprobe_for_all_and_one_that_hangs_is_ended(boot: Callable[..., Board]) -> None:
    """The board has the host's devices in its sysfs, and a modprobe of the test's own that only writes down what it is given."""
    rules = """RULES = (Rule("net", properties=(("INTERFACE", "lo"),), module="of-{interface}"),
                        Rule("net", properties=(("INTERFACE", "hang"),), module="hang"),
                        Rule("net", properties=(("INTERFACE", "late*"),), module="{interface}"))"""
    quick = "import sys; sys.path.insert(0, sys.argv[1]); from services import hotplug, modprobe; modprobe.LOADER_TIMEOUT = 2.0; hotplug.main()"
    row = f"Service('hotplug', ('{{PYTHON}}', '-c', {quick!r}, '{{LIB}}'), env=(('PATH', '/run/bin:/usr/bin:/bin'),)),"
    first = "Service('files', ('sh', '-c', 'mkdir /run/bin; cp /test/modprobe /run/bin; chmod 755 /run/bin/modprobe'), ready='exit', restart='never'),"
    board = boot(first + row.replace("env=", "after=('files',), env="), settings=rules, files={"modprobe": MODPROBE}).up()
    log = board.root / "run/modprobe.log"
    eventually(log.exists, 20)
    words = log.read_text().splitlines()[0].split()
    assert words[:4] == ["-a", "-b", "-q", "--"]
    assert "of-lo" in words, "a rule's module, in the same batch"
    assert len(words) == len(set(words))
    if IP is None:
        return
    eventually(lambda: started(board))
    run(board, "ip link add hang type veth peer name x")
    eventually(lambda: "hang" in log.read_text())
    run(board, "ip link add late1 type veth peer name late2")
    eventually(lambda: sorted(log.read_text().splitlines()[-1].split()[4:]) == ["late1", "late2"], 15)
    assert "modprobe: not ready after 2 s, ended" in board.log("hotplug")
    assert len(log.read_text().splitlines()) == 3


@needs_ip
def test_a_rule_publishes(boot: Callable[..., Board]) -> None:
    listen = "Service('ear', ('{PYTHON}', '{LIB}/bus.py', 'device/#'), after=('broker',), groups=('broker',)),"
    rules = 'RULES = (Rule("net", "*", (("INTERFACE", "dev*"),), publish="device/{interface}"),)'
    board = boot("RIGHTS, BROKER," + listen + HOTPLUG, settings="from profiles.laptop import BROKER, RIGHTS\n" + rules).up()
    eventually(lambda: started(board), 20)
    eventually(lambda: board.stats("ear")["state"] == "running")

    def heard() -> list[dict[str, Any]]:
        lines = [line for line in board.log("ear").splitlines() if "device/dev0 " in line]
        return [json.loads(line.split("device/dev0 ", 1)[1]) for line in lines]

    def plugged() -> bool:
        run(board, "ip link add dev0 type veth peer name x; ip link del dev0")
        return len(heard()) >= 2

    eventually(plugged, 20)
    told = heard()[-2:]
    assert [one["action"] for one in told] == ["add", "remove"]
    assert told[0]["path"] == "/devices/virtual/net/dev0"
    assert told[0]["properties"]["INTERFACE"] == "dev0"
