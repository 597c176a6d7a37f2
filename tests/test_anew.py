"""PID 1 that executes itself anew for the end, in namespaces: what it maps and has been deleted lets go of its file system."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import NO_NAMESPACES, PYTHON, ROOT

from base.syscalls import Reboot
from pid1 import anew

# As PID 1 it maps a file of a file system of its own, and deletes it, as an upgrade deletes libc.so.6.
AS_PID_1 = """
import mmap, os, sys
sys.path.insert(0, {root!r})
import _log
from base.syscalls import MOUNT_FLAGS, Reboot, mount
from pid1 import anew, teardown
from pid1.life import Life
from pid1.watchdog import Watchdog
{patch}
_log.sink.level = _log.sink.console_level = _log.DEBUG
_log.sink.console = 1
mount("proc", "/proc", "proc")
mount("disk", {disk!r}, "tmpfs")
mount({fifo!r}, "/dev/kmsg", "", MOUNT_FLAGS["bind"])  # nobody reads it, so it cannot be opened: records go to the console
with open({disk!r} + "/lib", "wb+") as file:
    file.write(b"x" * 4096)
    file.flush()
    held = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
os.unlink({disk!r} + "/lib")
life = Life([])
life.tables.values["CONSOLE"] = "/dev/stdout"
dog = Watchdog(life)
teardown.tear_down(Reboot.RESTART, life.tables, anew=lambda: anew.execute(Reboot.RESTART, life.tables, dog))
"""
BUSY = "umount {}: Device or resource busy"


def end(folder: Path, patch: str = "") -> str:
    """What a PID 1 prints while it ends."""
    if NO_NAMESPACES:
        pytest.skip(NO_NAMESPACES)
    disk = folder / "disk"
    disk.mkdir()
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    program = folder / "init.py"
    program.write_text(AS_PID_1.format(root=str(ROOT), disk=str(disk), fifo=str(fifo), patch=patch))
    command = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--fork", PYTHON, "-ESB", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    output = done.stdout + done.stderr
    assert "reboot(reboot)" in output, output
    return output


def test_what_has_been_replaced_is_let_go(tmp_path: Path) -> None:
    output = end(tmp_path)
    assert f"PID 1 executes itself anew: {tmp_path}/disk/lib has been replaced" in output
    assert BUSY.format(tmp_path / "disk") not in output


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ("anew.CODE = 'raise SystemExit(3)'", "ends with 3"),
        ("sys.executable = '/nonexistent/python'", "/nonexistent/python ends with 127"),
        ("anew.TRIAL = 0.3; anew.CODE = 'import time; time.sleep(60)'", "does not come up in 0.3 s"),
        ("def none():\n    raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = none", "it cannot be tried before"),
    ],
    ids=["broken", "gone", "hangs", "no process"],
)  # fmt: skip
def test_a_python_that_cannot_start_is_not_executed(tmp_path: Path, patch: str, why: str) -> None:
    """It would be a kernel panic. The end goes on, and says why the file system stays busy."""
    output = end(tmp_path, patch)
    assert f"PID 1 holds {tmp_path}/disk/lib, which has been replaced, and cannot execute itself anew: " in output
    assert why in output
    assert BUSY.format(tmp_path / "disk") in output


def test_files_that_were_deleted_among_those_that_are_mapped(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "00400000-00401000 r-xp 00000000 b3:02 1 /usr/bin/python3.11 (deleted)\n"
        "00401000-00402000 r--p 00001000 b3:02 1 /usr/bin/python3.11 (deleted)\n"
        "7f000000-7f001000 r-xp 00000000 b3:02 2 /lib/with space.so (deleted)\n"
        "7f001000-7f002000 r-xp 00000000 b3:02 3 /lib/libm.so.6\n"
        "7f002000-7f003000 rwxs 00000000 00:01 4 /memfd:ffi (deleted)\n"
        "7f003000-7f004000 rw-p 00000000 00:00 0 [heap]\n"
        "7f004000-7f005000 rw-p 00000000 00:00 0\n"
    )
    assert anew.deleted_files(str(maps)) == ["/lib/with space.so", "/usr/bin/python3.11"]


def test_the_watchdog_is_opened_again_fed_and_stopped(tmp_path: Path) -> None:
    """A file in place of the device: what is fed can be read."""
    device = tmp_path / "watchdog"
    device.touch()
    dog = anew.Dog(str(device), 30.0, 60.0)
    dog.wait()
    dog.wait()
    assert device.read_bytes() == b"\0", "once in a third of its timeout"
    dog.due = time.monotonic()
    dog.wait()
    dog.disarm()
    assert device.read_bytes() == b"\0\0V"
    late = anew.Dog(str(device), 30.0, 0.0)
    late.wait()
    assert device.read_bytes() == b"\0\0V", "the end must be over by now"


def test_a_word_that_nobody_understands_ends_in_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(anew, "at_least", ends.append)
    anew.main("{")
    assert ends == [Reboot.RESTART]
