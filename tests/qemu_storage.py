"""The data partition on an x86_64 kernel: found, checked, repaired, made anew, grown; and a board without it comes up."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

MIB = 1024 * 1024
START = MIB  # where the partition begins
FEW = """
from tables.rows import Service
MODULES = ("virtio_net",)
DATA = ("LABEL=data", "/dev/vdb1")
DATA_WAIT = 2.0
SERVICES = tuple(row for row in SERVICES if row.name in ("modules", "logd", "storage", "keeper", "syslogd", "dropbear"))
SERVICES += (Service("eth0", ("sh", "-c", "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"), ("modules",),
                     ready="exit", restart="never"),)
"""
DIAGNOSE = """
import sys; sys.path.insert(0, "/usr/lib/stack")
import diagnostic
result = diagnostic.data_complaints(diagnostic.data_partition())
"""


def make_disk(
    path: Path, table: str = "dos", size: int = 192, partition: int = 48, files: dict[str, str] | None = None
) -> Path:
    """A card's image as a builder writes it: a small partition, labelled data, on a disk that is larger."""
    with path.open("wb") as file:
        file.truncate((partition + 2) * MIB)
    layout = f"label: {table}\nlabel-id: {'0x57ac0001' if table == 'dos' else '57AC0001-0000-4000-8000-000000000000'}\n"
    run("sfdisk", "-q", path, text=f"{layout}start={START // 512}, size={partition * MIB // 512}, type=linux\n")
    content = path.with_suffix(".files")
    for name, text in (files or {}).items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_text(text)
    source: list[str | Path] = ["-d", content] if files else []
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-E", f"offset={START}", *source, path, f"{partition}M")
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


def debugfs(disk: Path, *commands: str) -> None:
    run("debugfs", "-w", "-f", "-", f"{disk}?offset={START}", text="\n".join(commands))


def test_repaired(machine: Callable[..., Any], tmp_path: Path) -> None:
    """The root directory is gone: nothing that e2fsck may repair unasked. What was in it is found all the same."""
    disk = make_disk(tmp_path / "data.img", files={"lib/kept": "what must stay"})
    debugfs(disk, "clri <2>", "ssv state 2")
    board = machine("x86_64", FEW, data=disk).up()
    found = record(board)
    assert (found["mounted"], found["what"]) == (True, ["repaired", "grown"]), found
    assert "UNEXPECTED INCONSISTENCY" in found["notes"][0], found
    assert shell(board, "cat /var/lost+found/*/kept") == "what must stay"


def test_repaired_unasked(machine: Callable[..., Any], tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "data.img", files={"kept": "what must stay"})
    debugfs(disk, "ssv free_blocks_count 7", "ssv state 2")
    board = machine("x86_64", FEW, data=disk).up()
    found = record(board)
    assert (found["mounted"], found["what"][0]) == (True, "repaired"), found
    assert shell(board, "cat /var/kept") == "what must stay"


def test_beyond_repair(machine: Callable[..., Any], tmp_path: Path) -> None:
    """All super blocks are gone, and the label with them. Left alone where the table says so, else made anew."""
    disk = make_disk(tmp_path / "data.img")
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(b"\xa5" * 48 * MIB)
    board = machine("x86_64", FEW + "DATA_REMAKE = False\n", data=disk).up()
    found = record(board)
    assert (found["mounted"], found["source"], found["what"]) == (False, "/dev/vdb1", ["tmpfs"]), found
    assert "mount /dev/vdb1 on /var: Invalid argument" in found["notes"], found
    assert writable(board) == "tmpfs"
    off(board)
    again = machine("x86_64", FEW, data=disk).up()
    found = record(again)
    assert (found["mounted"], found["what"]) == (True, ["re-made", "grown"]), found
    assert "what was on it is lost" in found["notes"][-1]
    assert writable(again) == "ext4"
    off(again)
    third = machine("x86_64", FEW, data=disk).up()
    found = record(third)
    assert (found["source"], found["what"]) == ("LABEL=data", ["checked"]), found


def test_somebody_elses_data_is_not_overwritten(machine: Callable[..., Any], tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "data.img")
    swap = tmp_path / "swap"
    with swap.open("wb") as file:
        file.truncate(48 * MIB)
    run("mkswap", "-q", swap)
    content = swap.read_bytes()
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(content)
    board = machine("x86_64", FEW, data=disk).up()
    found = record(board)
    assert (found["mounted"], found["what"]) == (False, ["tmpfs"]), found
    assert "holds swap that is not ours to overwrite" in found["notes"][-1], found
    assert writable(board) == "tmpfs"
    off(board)
    with disk.open("rb") as file:
        file.seek(START)
        assert file.read(len(content)) == content


def test_no_disk(machine: Callable[..., Any]) -> None:
    board = machine("x86_64", FEW).up()
    found = record(board)
    assert (found["mounted"], found["device"], found["what"]) == (False, "", ["tmpfs"]), found
    assert found["notes"] == ["no data partition: none of LABEL=data, /dev/vdb1 in 2 s"]
    assert writable(board) == "tmpfs"
    said = board.python(DIAGNOSE)
    assert said == ["the data partition is missing, /var is in memory: no data partition: none of LABEL=data, /dev/vdb1 in 2 s"]


def test_a_disk_that_returns_errors(machine: Callable[..., Any], tmp_path: Path) -> None:
    """Each read of the super block fails, as on a card with a dead cell."""
    disk, config = make_disk(tmp_path / "data.img"), tmp_path / "blkdebug.conf"
    config.write_text(f'[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "{START // 512 + 2}"\n')
    drive = f"if=none,id=data,file=blkdebug:{config}:{disk},format=raw"
    board = machine("x86_64", FEW, extra=("-drive", drive, "-device", "virtio-blk-pci,drive=data")).up()
    found = record(board)
    assert (found["mounted"], found["what"]) == (False, ["tmpfs"]), found
    assert found["notes"][-1] == "/dev/vdb1 cannot be read (Input/output error), and is left as it is"
    assert writable(board) == "tmpfs"


def test_a_check_that_takes_too_long(machine: Callable[..., Any], tmp_path: Path) -> None:
    """Nobody waits longer than the row says; when the disk is there after all it comes over the tmpfs, and ssh goes on."""
    slow = '#!/bin/sh\nuntil [ -e /run/go ]; do sleep 0.2; done\nexec /sbin/e2fsck "$@"\n'
    patience = FEW + 'SERVICES = tuple(r._replace(ready_timeout=1.0) if r.name == "storage" else r for r in SERVICES)\n'
    disk = make_disk(tmp_path / "data.img")
    board = machine("x86_64", patience, files={"usr/local/sbin/e2fsck": slow}, data=disk).up()
    assert writable(board) == "tmpfs"
    shell(board, "touch /run/go")
    eventually(lambda: writable(board) == "ext4", 30)
    assert shell(board, "stat -c %a /var/lib/dropbear") == "700"
    board.ssh("-S", "none", "echo 1")  # a connection of its own
    eventually(lambda: record(board)["what"] == ["checked", "grown"], 30)  # told when all is done


def test_errors_while_it_runs(machine: Callable[..., Any], tmp_path: Path) -> None:
    """ext4 stops writing: diagnostic.py says so, and the next boot repairs it."""
    disk = make_disk(tmp_path / "data.img")
    board = machine("x86_64", FEW, data=disk).up()
    assert board.python(DIAGNOSE) == []
    shell(board, "echo 1 >/sys/fs/ext4/vdb1/trigger_fs_error")
    assert "Read-only file system" in shell(board, "touch /var/lib/x")
    assert board.python(DIAGNOSE) == ["the data partition can only be read: the kernel has found errors on it"]
    off(board)
    again = machine("x86_64", FEW, data=disk).up()
    found = record(again)
    assert (found["mounted"], found["what"]) == (True, ["repaired"]), found
    assert again.python(DIAGNOSE) == []


def test_the_root_is_a_squashfs(machine: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing of ours writes to the root."""
    from image import squashed

    root = squashed("x86_64", tmp_path / "root.img", {"usr/lib/stack/settings_test.py": FEW})
    board = machine("x86_64", words="rootfstype=squashfs", data=make_disk(tmp_path / "data.img"), root=root).up()
    rows = [line.split() for line in shell(board, "cat /proc/mounts").splitlines()]
    assert next(row[2] for row in rows if row[1] == "/") == "squashfs"
    facts = board.python("import sv; result = sv.board()")
    assert (facts["faults"], facts["rejected"], facts["storage"]["what"]) == ([], [], ["checked", "grown"]), facts
    assert writable(board) == "ext4"


def writable(board: Any) -> str:
    """The kind of file system that /var is on, having written to it."""
    return shell(board, "touch /var/lib/dropbear/x && stat -f -c %T /var").replace("ext2/ext3", "ext4")


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
