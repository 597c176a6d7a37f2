"""The data partition on an x86_64 kernel: found, checked, repaired, made anew, grown; and a board without it comes up."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024
START = MIB  # where the partition begins
FEW = """
from rows import Service
MODULES = ("virtio_net",)
DATA = ("LABEL=data", "/dev/vdb1")
DATA_WAIT = 2.0
SERVICES = tuple(row for row in SERVICES if row.name in ("modules", "logd", "storage", "keeper", "syslogd", "dropbear"))
SERVICES += (Service("eth0", ("sh", "-c", "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"), ("modules",),
                     ready="exit", restart="never"),)
"""


def make_disk(path: Path, table: str = "dos", size: int = 192, partition: int = 48) -> Path:
    """A card's image as a builder writes it: a small partition, labelled data, on a disk that is larger."""
    with path.open("wb") as file:
        file.truncate((partition + 2) * MIB)
    layout = f"label: {table}\nlabel-id: {'0x57ac0001' if table == 'dos' else '57AC0001-0000-4000-8000-000000000000'}\n"
    run("sfdisk", "-q", path, text=f"{layout}start={START // 512}, size={partition * MIB // 512}, type=linux\n")
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-E", f"offset={START}", path, f"{partition}M")
    with path.open("r+b") as file:
        file.truncate(size * MIB)
    return path


def run(*argv: str | Path, text: str = "") -> str:
    done = subprocess.run(list(map(str, argv)), input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def record(board: Any) -> dict[str, Any]:
    return dict(board.python("import sv; result = sv.board()['storage']"))


def shell(board: Any, command: str) -> str:
    return str(board.python(f"result = subprocess.getoutput({command!r})"))


def off(board: Any) -> None:
    with contextlib.suppress(Exception):  # it may be faster than its answer
        board.python("import sv; sv.poweroff()")
    board.event("SHUTDOWN")
    board.process.wait(30)


@pytest.mark.parametrize("table", ["dos", "gpt"])
def test_found_checked_mounted_and_grown(machine: Callable[..., Any], tmp_path: Path, table: str) -> None:
    disk = make_disk(tmp_path / "data.img", table)
    board = machine("x86_64", FEW, data=disk).up()
    found = record(board)
    assert (found["source"], found["device"], found["mounted"]) == ("LABEL=data", "/dev/vdb1", True), found
    assert (found["what"], found["notes"]) == (["checked", "grown"], []), found
    mounts = [line.split() for line in shell(board, "cat /proc/mounts").splitlines()]
    row = [row for row in mounts if row[1] == "/var"][-1]
    assert row[0] == "/dev/vdb1"
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= set(row[3].split(",")), row
    assert board.python("import os; s = os.statvfs('/var'); result = s.f_blocks * s.f_frsize") > 160 * MIB
    assert shell(board, "stat -c %a /var/lib/dropbear") == "700"
    assert shell(board, "ls -A /var/run/stack").split(), "what is below the tmpfs is below the disk too"
    keys = shell(board, "cat /var/lib/dropbear/*_host_key | sha256sum")
    off(board)
    uuid = "57ac0001-01" if table == "dos" else run("sfdisk", "--part-uuid", disk, "1").strip()
    again = machine("x86_64", FEW.replace("LABEL=data", f"PARTUUID={uuid}"), data=disk).up()
    found = record(again)
    assert (found["source"], found["what"], found["notes"]) == (f"PARTUUID={uuid}", ["checked"], []), found
    assert shell(again, "cat /var/lib/dropbear/*_host_key | sha256sum") == keys
    assert "256 bits, credited" in "\n".join(again.python("import sv; result = sv.logs('keeper')"))
    assert "umount" not in again.console()
