"""Every way out of a board, and every odd way in, on real kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

import stack

Start = Callable[..., Any]
KINDS = ("x86_64", "virt-arm64", "raspi3b")
END = {"reboot": "guest-reset", "poweroff": "guest-shutdown"}
LAST_WORDS = {"reboot": "reboot: Restarting system", "halt": "reboot: System halted", "poweroff": "reboot: Power down"}


def act(*words: str) -> str:
    """A profile of one service, which does something and then sleeps; where there is a driver for the restart, after that."""
    command = " ".join(words)
    return f"""
MODULES = tuple(name for name in MODULES if name in ("softdog", "bcm2835_wdt"))
SERVICES = (*SERVICES[1 - bool(MODULES):2], Service("act", ("sh", "-c", {command + "; exec sleep 1000"!r}), after=("modules",)[:bool(MODULES)]))
"""


def assert_ended(board: Any, how: str) -> None:
    """The kernel did what was asked: by QMP's event, by its own last words, and without a panic."""
    if how == "halt":  # no event: the machine stands still
        board.wait_console(LAST_WORDS[how])
        assert board.execute("query-status")["running"]
    else:
        event = board.event("SHUTDOWN", "GUEST_PANICKED")
        assert event["event"] == "SHUTDOWN", board.console()
        assert event["data"] == {"guest": True, "reason": END[how]}
        assert LAST_WORDS[how] in board.console()
    assert "Kernel panic" not in board.console()


def found(board: Any, pattern: str) -> str:
    """What of these comes on the console."""
    return str(eventually(lambda: re.findall(pattern, board.console()), 30)[-1])


def ctrl_alt_del(board: Any) -> None:
    board.execute("send-key", keys=[{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["reboot", "halt", "poweroff"])
def test_asked_for(machine: Start, kind: str, how: str) -> None:
    assert_ended(machine(kind, act("sv", how)), how)


@pytest.mark.parametrize("how", ["reboot", "halt", "poweroff"])
def test_busybox_asks(machine: Start, how: str) -> None:
    """Its applets send PID 1 TERM, USR1 and USR2."""
    assert_ended(machine("x86_64", act("busybox", how)), how)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_ctrl_alt_del(machine: Start, kind: str) -> None:
    board = machine(kind, act("echo acting >/dev/console"))
    board.wait_console("acting")
    ctrl_alt_del(board)
    assert_ended(board, "reboot")


def test_a_panic_would_be_seen(machine: Start) -> None:
    """What the tests above and below rule out: PID 1 that ends."""
    board = machine("x86_64", words="init=/sbin/ends", files={"sbin/ends": "#!/bin/sh\nexit 0\n"})
    assert board.event("SHUTDOWN", "GUEST_PANICKED")["event"] == "GUEST_PANICKED"


HUNG = """#!/usr/bin/python3 -ESB
# A file system that never answers, and a thread of its own server that waits for it: nothing can kill that.
import ctypes, os, struct, threading, time
fd = os.open("/dev/fuse", os.O_RDWR)
os.mkdir("/run/hung")
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hung", b"/run/hung", b"fuse", 0, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd):
    raise OSError(ctypes.get_errno(), "mount")
threading.Thread(target=os.stat, args=("/run/hung/file",)).start()
init = os.read(fd, 1 << 20)
unique = struct.unpack_from("<IIQ", init)[2]
os.write(fd, struct.pack("<IiQ", 80, 0, unique) + struct.pack("<IIIIHHIIHHI", 7, 31, 65536, 0, 16, 16, 65536, 1, 0, 0, 0) + bytes(28))
os.read(fd, 1 << 20)  # the LOOKUP: taken, never answered
with open("/dev/console", "w") as console:
    print("hung", file=console)
while True:
    time.sleep(1000)
"""


def test_a_child_that_cannot_be_killed_does_not_stop_a_reboot(machine: Start) -> None:
    profile = """
MODULES = (*MODULES, "fuse")
SHUTDOWN_TIMEOUT, KILL_TIMEOUT, SYNC_TIMEOUT = 3.0, 1.0, 3.0
SERVICES = (*SERVICES[:2], Service("hung", ("/sbin/hung",), after=("modules",), stop_timeout=1.0))
"""
    board = machine("x86_64", profile, files={"sbin/hung": HUNG})
    board.wait_console("hung")
    ctrl_alt_del(board)
    assert_ended(board, "reboot")
    assert re.search(r"stack: .*(unkillable|still there|did not|cannot be killed)", board.console()), board.console()


# --- boots that go wrong ---------------------------------------------------------------------------------------------
STEPS = re.findall(r"self\.(\w+),", re.search(r"def boot\(self\).*?\):", open(stack.__file__).read(), re.S)[0])  # type: ignore[index]
FAULTY = """#!/usr/bin/python3 -ESB
import os, sys
sys.path.insert(0, "/usr/lib/stack")
import stack
def faulty(self): raise RuntimeError("injected")
faulty.__name__ = STEP = "{step}"
setattr(stack.Init, STEP, faulty)
sys.exit(stack.main(sys.argv[1:]))
"""


def test_the_steps_are_found() -> None:
    assert len(STEPS) >= 17
    assert {"set_defaults", "mount_all", "start_services"} <= set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_an_exception_in_a_step_of_boot_is_no_panic(machine: Start, step: str) -> None:
    """The board goes on as far as it can: to its service, to the rescue prompt, or at least to ctrl-alt-del."""
    board = machine("x86_64", act("sv", "poweroff"), "init=/sbin/faulty", {"sbin/faulty": FAULTY.replace("{step}", step)})
    board.wait_console("injected")

    if "rescue" in found(board, "rescue: press Enter|reboot: Power down"):
        board.type("\n")
        if ">>>" in found(board, ">>> |reboot: Power down"):  # the service may be faster than we are
            board.type("poweroff()\n")
            if "cannot" in found(board, "cannot reach PID 1|has begun|reboot: Power down"):
                ctrl_alt_del(board)  # no control socket: the keyboard is left
    event = board.event("SHUTDOWN", "GUEST_PANICKED")
    assert event["event"] == "SHUTDOWN", board.console()
    assert event["data"]["guest"]
    assert "Kernel panic" not in board.console()


# --- odd ways in -------------------------------------------------------------------------------------------------------
def test_a_root_without_a_console(machine: Start) -> None:
    """Nothing is said, and it works."""
    board = machine("x86_64", act("sv", "poweroff"), "console=ttyS9 lab.closed")
    assert board.event("SHUTDOWN", "GUEST_PANICKED")["data"] == {"guest": True, "reason": "guest-shutdown"}


def test_everything_is_mounted_already(machine: Start) -> None:
    board = machine("x86_64", act("sv board --json >/dev/console; sv poweroff"), "lab.mounted")
    assert_ended(board, "poweroff")
    assert '"faults": []' in board.console()


def test_through_a_symbolic_link(machine: Start) -> None:
    board = machine("x86_64", act("sv", "poweroff"), "init=/sbin/link", {"sbin/link": "-> stack.py"})
    assert_ended(board, "poweroff")


def test_the_whole_root_is_an_initramfs(tmp_path: Path, machine: Start) -> None:
    """rdinit=: no root device at all. It is writable, and cannot be unmounted."""
    files = {"usr/lib/stack/settings_test.py": act("sv", "poweroff")}
    from image import archive  # the fixture knows where it is

    cpio = archive("x86_64", tmp_path / "root.cpio", files)
    board = machine("x86_64", words="rdinit=/sbin/stack.py", extra=("-initrd", str(cpio), "-m", "1024"))
    assert_ended(board, "poweroff")
