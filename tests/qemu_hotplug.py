"""Devices on real kernels, plugged and unplugged through QEMU: modules, names, a GPS receiver, a USB stick."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, machines
from test_gps import gga, rmc

PROFILE = """
MODULES = ()  # nothing but what the devices ask for: not even the network card's
_FEW = ("radios", "access_point", "udhcpd", "wpa_supplicant", "wifi_scan", "chronyd")
SERVICES = (
    *(row for row in SERVICES if row.name not in _FEW),
    Service("ear", ("{PYTHON}", "{LIB}/bus.py", "gps", "receiver/+", "device/#"), after=("broker",)),
)
"""
AHEAD = 3600.0  # s: how much later it is by the receiver's clock


class Receiver:
    """What QEMU's serial device is connected to: it says where it is and what time it is, once a second."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stack-gps."))
        self.path = self.folder / "line"
        self.status = "A"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    @property
    def chardev(self) -> str:
        return f"socket,id=line,path={self.path},server=on,wait=off"

    def _talk(self) -> None:
        while not self._ended.wait(0.1):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
                line.connect(str(self.path))
                line.settimeout(1.0)
                while not self._ended.wait(1.0):
                    now = time.time() + AHEAD
                    date = time.strftime("%d%m%y", time.gmtime(now))
                    sentences = rmc(now % 86400, self.status, date=date) + gga(now % 86400, int(self.status == "A"))
                    with contextlib.suppress(TimeoutError):  # nobody listens: nothing is plugged
                        line.sendall(sentences)
                    with contextlib.suppress(BlockingIOError):  # what a terminal echoes until it is raw; unread, it stops QEMU
                        while line.recv(4096, socket.MSG_DONTWAIT):
                            pass

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Any]:
    """A board with the receiver plugged in from the start."""
    extra = ("-device", "qemu-xhci,id=xhci", "-chardev", receiver.chardev,
             "-device", "usb-serial,id=gps,bus=xhci.0,chardev=line,always-plugged=on")  # fmt: skip
    for start in machines(tmp_path_factory.mktemp("hotplug")):
        yield start("x86_64", PROFILE, extra=extra).up(180)


def plug(board: Any, driver: str = "usb-serial", **more: Any) -> None:
    more = more or {"id": "gps", "chardev": "line", "always-plugged": True}
    board.execute("device_add", driver=driver, bus="xhci.0", **more)


def unplug(board: Any, name: str = "gps") -> None:
    board.execute("device_del", id=name)
    board.event("DEVICE_DELETED")


def stats(board: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in board.python("import sv; result = sv.stats_process()")}


def state(board: Any, name: str) -> str:
    return str(stats(board).get(name, {"state": "unknown"})["state"])


def wait_state(board: Any, name: str, *states: str, seconds: float = 60.0) -> None:
    """Until a service is in one of these states; "unknown" is one that there is not."""
    code = "import sv; found = {row['name']: row['state'] for row in sv.stats_process()}"
    board.wait(f"{code}; result = found.get({name!r}, 'unknown') in {states}", seconds)


def gone(board: Any) -> None:
    """Until nobody reads the receiver that was unplugged."""
    wait_state(board, "gps@ttyUSB0", "stopped", "unknown")


# In the guest: all that the bus has said on a topic.
HEARD = """
def heard(topic):
    lines = open("/run/log/ear.log").read().splitlines()
    return [json.loads(line.split(f" {topic} ", 1)[1]) for line in lines if f" {topic} " in line]
"""


def heard(board: Any, topic: str) -> list[dict[str, Any]]:
    """What the bus has said on a topic."""
    return list(board.python(f"{HEARD}result = heard({topic!r})"))


def wait_heard(board: Any, expression: str, seconds: float = 60.0) -> Any:
    """The first true value of an expression in which `heard(TOPIC)` is what the bus has said."""
    return board.wait(f"{HEARD}result = {expression}", seconds)


def wait_source(board: Any, name: str) -> None:
    """Until the positions of the last moments, and so all that come now, are of this source."""
    wait_heard(board, f"[told['source'] for told in heard('gps')[-2:]] == {[name, name]}")


def wait_links(board: Any) -> dict[str, str]:
    """The names of serial devices by what they are and where they are, when there are some."""
    return dict(board.wait(LINKS))


def wait_module(board: Any, *names: str) -> None:
    board.wait(f"result = {set(names)} <= {{line.split()[0] for line in open('/proc/modules')}}")


LINKS = "import glob; result = {path: os.path.realpath(path) for path in glob.glob('/dev/serial/*/*')}"


def links(board: Any) -> dict[str, str]:
    return dict(board.python(LINKS))


@pytest.mark.timeout(400)
def test_on_a_raspberry_pi(machine: Callable[..., Any], receiver: Receiver) -> None:
    """Behind the hub that QEMU puts between: the receiver is plugged into a running board.

    It is the first test: the other board is not there yet, and leaves this one the processor.
    """
    few = (
        "('console', 'klogd', 'wifi_analyzer', 'wifi_scan', 'diagnostic', 'radios', 'access_point', 'udhcpd', 'wpa_supplicant')"
    )
    profile = f"SERVICES = tuple(row for row in SERVICES if row.name not in {few})"
    pi = machine("raspi3b", profile, extra=("-chardev", receiver.chardev))
    pi.up(240)
    pi.execute("device_add", driver="usb-serial", id="gps", chardev="line", **{"always-plugged": True})
    wait_state(pi, "gps@ttyUSB0", "running", seconds=120)
    assert any("by-path/platform-3f980000.usb-usb-0:1." in path for path in wait_links(pi))
    unplug(pi)
    gone(pi)


def test_what_is_there_at_boot(board: Any) -> None:
    """Coldplug: every module was asked for by a device, the host controller's before what hangs on it."""
    wait_module(board, "virtio_net", "xhci_pci", "ftdi_sio")
    wait_state(board, "gps@ttyUSB0", "running")
    found = wait_links(board)
    assert set(found.values()) == {"/dev/ttyUSB0"}
    assert any(path.startswith("/dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_") for path in found)
    assert any(path.startswith("/dev/serial/by-path/pci-0000:") and path.endswith(":1.0-port0") for path in found)
    assert board.python("s = os.stat('/dev/ttyUSB0'); result = [oct(s.st_mode & 0o777), s.st_gid]") == ["0o660", 20]
    wait_source(board, "gps")
    row = stats(board)["gps@ttyUSB0"]
    assert (row["user"], row["restart"]) == ("gps", 0)
    facts = board.python("import sv; result = sv.board()")
    assert (facts["faults"], facts["rejected"]) == ([], [])


def test_its_date_sets_a_clock_that_nothing_keeps(board: Any) -> None:
    eventually(lambda: abs(board.python("result = time.time()") - time.time() - AHEAD) < 60, 60)


def test_no_fix_is_not_papered_over(board: Any, receiver: Receiver) -> None:
    receiver.status = "V"
    wait_heard(board, "not heard('receiver/ttyUSB0')[-1]['fix']")
    count = len(heard(board, "gps"))
    said = heard(board, "receiver/ttyUSB0")[-1]["good"]
    wait_heard(board, f"heard('receiver/ttyUSB0')[-1]['good'] >= {said} + 6")
    assert len(heard(board, "gps")) == count, "neither a real position nor an invented one"
    receiver.status = "A"
    assert wait_heard(board, f"[told['source'] for told in heard('gps')[{count}:]]")[0] == "gps"


def test_unplugged_and_plugged_again(board: Any) -> None:
    for _ in range(2):
        unplug(board)
        gone(board)
        wait_source(board, "fake")
        assert links(board) == {}
        plug(board)
        wait_state(board, "gps@ttyUSB0", "running")
        wait_source(board, "gps")
        assert set(wait_links(board).values()) == {"/dev/ttyUSB0"}


def test_unplugged_while_nobody_looks(board: Any) -> None:
    """hotplug.py is away: its successor stops what has no device any more."""
    board.python("import sv; sv.stop_process('hotplug')")
    unplug(board)
    assert state(board, "gps@ttyUSB0") == "running"
    board.python("import sv; sv.start_process('hotplug')")
    gone(board)
    assert links(board) == {}
    wait_source(board, "fake")


def test_a_usb_stick_is_published(board: Any) -> None:
    board.execute("blockdev-add", driver="null-co", **{"node-name": "stick", "size": 2**24, "read-zeroes": True})
    plug(board, "usb-storage", id="stick", drive="stick")
    told = wait_heard(board, "heard('device/sda')")[0]
    assert (told["action"], told["properties"]["ID_BUS"], told["properties"]["DEVTYPE"]) == ("add", "usb", "disk")
    assert "-usb-0:" in told["properties"]["ID_PATH"]
    wait_module(board, "usb_storage", "sd_mod")
    unplug(board, "stick")
    wait_heard(board, "heard('device/sda')[-1]['action'] == 'remove'")


def test_a_thousand_uevents_and_a_device_among_them(board: Any) -> None:
    pid = stats(board)["hotplug"]["pid"]
    code = "for _ in range({count}):\n    with open('/sys/class/net/lo/uevent', 'w') as file: file.write('add')"
    board.python(code.format(count=500))
    plug(board)
    board.python(code.format(count=500))
    wait_state(board, "gps@ttyUSB0", "running")
    wait_source(board, "gps")
    assert stats(board)["hotplug"]["pid"] == pid
    words = board.python("result = open('/run/log/hotplug.log').read()")
    assert "Traceback" not in words
