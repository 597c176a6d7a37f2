"""A board that updates itself, on real kernels: update, trial, commit; and what falls back, by itself, and says why.

The card is that of `make image` with the lab's root (lab/update_card.py). lab/firmware.py plays the firmware: it starts the kernel,
the initramfs and the command line of the slot that autoboot.txt and the flag name. So a slot's own kernel panics here, and its
own root hangs. The engine is Debian's SWUpdate.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, ROOT, eventually

sys.path.insert(0, str(ROOT / "lab"))
from firmware import Powered
from image import run, ssh_key
from update_card import BOARD, CONFIG, OLD, boot_files, bundle, card, root

STEADY, DEADLINE = 5.0, 60.0
WATCHDOG = 10.0  # seconds
BASE = "image,update"
PROFILE = f"""
from tables.rows import Service
UPDATE_STEADY, UPDATE_DEADLINE = {STEADY}, {DEADLINE * PATIENCE}
WATCHDOG_TIMEOUT = {WATCHDOG}
MODULES = ("virtio_net", "vfat", "i6300esb", "ramoops")
DIRECTORIES = tuple(row for row in DIRECTORIES if row.path != "/var/lib/chrony")
SERVICES = tuple(row for row in SERVICES if row.name in ("modules", "logd", "storage", "keeper", "syslogd", "dropbear", "network", "trial"))
"""
CRASHES = 'SERVICES += (Service("gauge", ("sh", "-c", "echo no gauge here; exit 3")),)\n'
DARK = 'INTERFACES = tuple(row._replace(name="none0") for row in INTERFACES[:1])\n'
# PID 1 of a new version whose loop hangs when the board is up.
HANGING = """#!/usr/bin/python3 -ESB
import signal, sys
sys.path.insert(0, "/usr/lib/stack")
import stack
def waits_for_ever(*_):
    while True: pass
signal.signal(signal.SIGALRM, waits_for_ever)
signal.alarm(30)
sys.exit(stack.main(sys.argv[1:]))
"""
RAISING = """#!/usr/bin/python3 -ESB
raise RuntimeError("this init is not finished")
"""
FILES = {
    "usr/lib/stack/settings_update.py": PROFILE,
    "usr/lib/stack/settings_crashes.py": CRASHES,
    "usr/lib/stack/settings_dark.py": DARK,
    "usr/lib/stack/settings_slow.py": "UPDATE_STEADY = 40.0\n",
    "etc/stack-release": f"{BOARD} {OLD}\n",
    "sbin/hanging": HANGING,
    "sbin/raising": RAISING,
}
ESB = ("-device", "i6300esb")


class Board:
    """A board with its card, the key of its updates, and bundles of the same root with other things in the slot's FAT."""

    def __init__(self, kind: str, folder: Path, profile: str = BASE, files: dict[str, str] | None = None) -> None:
        self.kind, self.folder = kind, folder
        self.keys = folder / "keys"
        run("make", "-s", "-C", ROOT, "update-key", f"KEYS={self.keys}")
        certificate = {"etc/stack-update.pem": (self.keys / "update.pem").read_text()}
        self.root = root(kind, folder / "root.squashfs", {**FILES, **certificate, **(files or {})})
        self.power = Powered(kind, card(folder / "images", kind, profile, self.root), folder, ESB)
        self.count = 0
        try:
            self.machine = self.power.start().up(180)
        except BaseException:
            self.power.close()
            raise

    def bundle(self, **boot: str) -> Path:
        self.count += 1
        return bundle(self.folder, f"1.{self.count}", self.root, boot_files(self.kind, **{"profile": BASE, **boot}), self.keys)

    def update(self, path: Path) -> str:
        """`make update`, as docs/updates.md has it."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
        words = ["make", "-s", "-C", str(ROOT), "update", "BOARD=root@127.0.0.1", f"BUNDLE={path}",
                 f"SSH_COMMAND=ssh -p {self.machine.port} -i {shlex.quote(str(ssh_key()))} {options}"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=300 * PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        path.unlink()
        return done.stdout

    def reboot(self) -> None:
        """reboot(), and what the firmware starts then."""
        self.machine.python("import sv; sv.reboot()")
        self.machine = self.power.again()

    def comes_back(self, seconds: float = 120.0) -> None:
        """The slot on trial ends by itself, and the old one starts."""
        self.machine = self.power.again(seconds)
        self.machine.up(180)

    def told(self) -> dict[str, Any]:
        found = self.machine.python("import sv; result = sv.board().get('update')")
        return dict(found or {})

    def wait(self, state: str, seconds: float = 120.0) -> dict[str, Any]:
        """board()["update"] once it has this state."""

        def check() -> dict[str, Any]:
            found = self.told()
            assert found.get("state") == state, found
            return found

        return eventually(check, seconds)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    one = Board("x86_64", tmp_path_factory.mktemp("update"))
    yield one
    one.power.close()


@pytest.mark.timeout(600)
def test_an_update_is_tried_and_committed(board: Board, record_property: Any) -> None:
    assert (board.power.last.slot, board.power.last.tried) == ("A", False)
    eventually(lambda: "'local'" in str(board.machine.python("import sv; result = sv.network()")), 60)
    began = time.monotonic()
    said = board.update(board.bundle())
    took = time.monotonic() - began
    assert "reboot() tries slot B; until then A runs" in said, said
    assert board.told()["state"] == "written"
    assert board.power.card.slots() == ("A", "B")
    began = time.monotonic()
    board.reboot()
    assert (board.power.last.slot, board.power.last.tried) == ("B", True)
    board.machine.up(180)
    found = board.wait("committed")
    record_property(
        "figure",
        f"update in QEMU ({board.kind}): written in {took:.0f} s, committed {time.monotonic() - began:.0f} s after reboot()",
    )
    assert found["verdict"]["reason"] == f"healthy for {STEADY:g} s"
    assert board.power.card.slots() == ("B", "A")


def falls_back(board: Board, why: str, before: float = 180.0, **boot: str) -> dict[str, Any]:
    """Write an update with such a boot FAT, reboot into it, wait for the old slot; what that says, in which `why` stands."""
    old = board.power.last.slot
    board.update(board.bundle(**boot))
    board.reboot()
    assert board.power.last == (board.power.last._replace(slot={"A": "B", "B": "A"}[old], tried=True)), board.power.last
    board.comes_back(before)
    assert (board.power.last.slot, board.power.last.tried) == (old, False)
    assert board.power.card.slots()[0] == old
    found = board.wait("fell back", 60)
    assert why in found["reason"], found
    assert (found["version"], found["from"]) == (f"1.{board.count}", old)
    known = board.machine.python("import json; result = json.load(open('/var/lib/stack/update/slots.json'))")
    assert (known[found["slot"]]["state"], known["trial"]) == ("bad", None), known
    return found


UNSEEN = "it came back before any of its services left a word: its kernel or its root does not start"


@pytest.mark.timeout(600)
def test_a_kernel_that_panics(board: Board) -> None:
    """It gets no initramfs, and finds no root: its own panic, before any program of ours, and before Debian's ramoops is loaded."""
    falls_back(board, UNSEEN, config=CONFIG.replace("initramfs initrd followkernel\n", ""))
    assert "Unable to mount root fs" in board.power.consoles[-1]


@pytest.mark.timeout(600)
def test_an_init_that_raises(board: Board) -> None:
    falls_back(board, UNSEEN, init="/sbin/raising")
    assert "this init is not finished" in board.power.consoles[-1]
    assert "Attempted to kill init" in board.power.consoles[-1]


@pytest.mark.timeout(600)
def test_a_root_that_hangs(board: Board) -> None:
    """PID 1 of the new version hangs on trial: the hardware watchdog ends it, and its stack is there."""
    found = falls_back(board, "its boot ended on trial: watchdog", init="/sbin/hanging", profile=f"{BASE},slow")
    assert "waits_for_ever" in found["verdict"]["stack"], found
    assert found["verdict"]["words"], "the last words of the new slot"


@pytest.mark.timeout(900)
def test_a_service_that_crash_loops(board: Board) -> None:
    found = falls_back(board, "gauge does not stay up: exit 3", DEADLINE * PATIENCE + 120, profile=f"{BASE},crashes")
    assert f"not healthy after {DEADLINE * PATIENCE:g} s" in found["reason"]
    assert "no gauge here" in board.machine.python("result = open('/var/lib/stack/update/last_words.txt').read()")


@pytest.mark.timeout(900)
def test_no_network(board: Board) -> None:
    falls_back(
        board, "no interface has an address, and one had before the update", DEADLINE * PATIENCE + 120, profile=f"{BASE},dark"
    )
