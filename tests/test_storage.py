"""What storage.py decides: real child processes under the tools' names, and a board whose data partition never comes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually

import diagnostic
from onboard import boot_ends
from services import root_disk, storage
from tables import load as tables
from tables.rows import Directory, Mount

MKE2FS = shutil.which("mke2fs", path=os.environ["PATH"] + ":/usr/sbin:/sbin")


class Chosen:
    """The settings that storage.py reads."""

    DATA_OPTIONS, DATA_REMAKE, DATA_GROW, DATA_WAIT, DATA_TIMEOUT = "noexec", True, False, 0.2, 5.0
    DATA_ANYWHERE = True
    MOUNTS = (Mount("tmp", "/tmp", "tmpfs"), Mount("/run", "/var/run", "", "bind"))
    DIRECTORIES = (Directory("/var/lib/dropbear", 0o700), Directory("/run/bus"))


class Tools:
    """Programs of these names that write down how they were called, print and end as the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log = folder / "bin", folder / "calls"
        self.folder.mkdir()
        self.mounts: list[OSError | None] = []
        self.furnished: list[str] = []
        self.mounted = 0
        self.mount_calls: list[tuple[str, str, str, int, str]] = []
        self.read_fault = ""
        monkeypatch.setenv("PATH", str(self.folder))
        monkeypatch.setattr(storage, "mount", self.mount)
        statvfs = os.statvfs  # this machine's own /var may be read-only
        monkeypatch.setattr(os, "statvfs", lambda _: statvfs(tempfile.gettempdir()))
        monkeypatch.setattr(
            storage, "umount", lambda *_: pytest.fail("a pure test would have unmounted a file system of this machine")
        )
        monkeypatch.setattr(storage, "is_block", lambda path: path == "/dev/card3")
        monkeypatch.setattr(storage, "read_fault", lambda _: self.read_fault)
        monkeypatch.setattr(storage, "open_folder", lambda _: os.open("/", os.O_RDONLY))
        monkeypatch.setattr(storage, "mount_row", lambda row: self.furnished.append(row.target))
        monkeypatch.setattr(storage, "make_directory", lambda row, _: self.furnished.append(row.path))

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self.mounted += 1
        self.mount_calls.append((source, target, fstype, flags, data))
        if self.mounts and (fault := self.mounts.pop(0)):
            raise fault

    def __call__(self, name: str, status: int = 0, text: str = "", more: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{more}\necho "{text}"\nexit {status}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path, monkeypatch)


BAD = OSError(22, "Invalid argument")


def bring_up(sources: tuple[str, ...] = ("LABEL=data", "/dev/card3"), **settings: Any) -> dict[str, Any]:
    chosen = Chosen()
    vars(chosen).update(settings)
    one = storage.Storage(chosen, list(sources))
    one.bring_up()
    return one.record()


# --- whose disk ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card whose second partition is the root, and a stick, as sysfs shows them."""
    sys, mounts = tmp_path / "sys", tmp_path / "mountinfo"
    for disk, major, first, parts in (("mmcblk0", 179, "mmcblk0p", 3), ("sda", 8, "sda", 1)):
        folder = sys / f"devices/x/block/{disk}"
        for number in range(parts + 1):
            here = folder / f"{first}{number}" if number else folder
            here.mkdir(parents=True)
            (here / "uevent").touch()
            if number:
                (here / "partition").write_text(f"{number}\n")
            (sys / "dev/block").mkdir(parents=True, exist_ok=True)
            (sys / f"dev/block/{major}:{number}").symlink_to(here)
        (sys / "class/block").mkdir(parents=True, exist_ok=True)
        (sys / f"class/block/{disk}").symlink_to(folder)
    mounts.write_text(
        "21 1 0:19 / /proc rw - proc proc rw\n22 0 179:2 / / ro,relatime - squashfs /dev/root ro\n23 22 8:1 / /mnt rw - vfat x rw\n"
    )
    monkeypatch.setattr(root_disk, "MOUNTS", str(mounts))
    monkeypatch.setattr(root_disk, "SYS", str(sys))
    return tmp_path


def test_the_disk_of_the_root(disks: Path) -> None:
    sys = str(disks / "sys")
    assert root_disk.of_root(root_disk.MOUNTS, sys) == "mmcblk0"
    assert root_disk.partitions("mmcblk0", sys) == {1: "/dev/mmcblk0p1", 2: "/dev/mmcblk0p2", 3: "/dev/mmcblk0p3"}
    assert root_disk.whole("8:1", sys) == "sda"
    assert root_disk.whole("8:0", sys) == "sda"
    assert root_disk.whole("7:7", sys) == ""
    verity = disks / "sys/devices/virtual/block/dm-0"
    (verity / "slaves").mkdir(parents=True)
    (verity / "uevent").touch()
    (verity / "slaves/mmcblk0p2").symlink_to(disks / "sys/dev/block/179:2")
    (disks / "sys/dev/block/253:0").symlink_to(verity)
    assert root_disk.whole("253:0", sys) == "mmcblk0", "dm-verity stands on the card"
    (disks / "mountinfo").write_text("22 0 0:20 / / rw - overlay overlay rw\n")
    assert (root_disk.of_root(root_disk.MOUNTS, sys), root_disk.partitions("", sys)) == ("", {})


def test_a_stick_with_our_label_does_not_become_the_data(tools: Tools, disks: Path) -> None:
    """It is a partition called data too; on the card it has lost its label."""
    tools("e2fsck")
    tools("findfs", text="/dev/sda1")
    tools("blkid", more="case $4 in /dev/mmcblk0p1) echo LABEL=BOOT;; /dev/sda1) echo LABEL=data;; esac")
    found = bring_up(("LABEL=data",), DATA_ANYWHERE=False)
    assert (found["device"], found["mounted"]) == ("", False)
    assert found["notes"] == ["no data partition: none of LABEL=data in 0.2 s; labels count on the root's disk (mmcblk0)"]
    assert "findfs LABEL=data" not in tools.calls
    assert bring_up(("LABEL=data",), DATA_ANYWHERE=True)["device"] == "/dev/sda1", "who says so gets it"
    assert bring_up(("LABEL=BOOT",), DATA_ANYWHERE=False)["device"] == "/dev/mmcblk0p1"
    assert bring_up(("LABEL=data", "PARTITION=3"), DATA_ANYWHERE=False)["device"] == "/dev/mmcblk0p3", "by its number"
    assert bring_up(("PARTITION=7",), DATA_ANYWHERE=False)["device"] == ""


def test_identifiers_are_compared_as_blkid_prints_them(tools: Tools, disks: Path) -> None:
    tools("e2fsck")
    tools(
        "blkid",
        more='case $4 in *p3) printf "PART_ENTRY_UUID=57ac0001-03\\nPART_ENTRY_NAME=log\\nUUID=aa-bb\\nLABEL=data2\\n";; esac',
    )
    for source in ("PARTUUID=57AC0001-03", "PARTLABEL=log", "UUID=AA-BB"):
        assert bring_up((source,), DATA_ANYWHERE=False)["device"] == "/dev/mmcblk0p3", source
    for source in ("LABEL=data", "PARTLABEL=lo", "UUID=aa"):
        assert bring_up((source,), DATA_ANYWHERE=False)["device"] == "", source


def test_a_device_of_another_disk_is_taken_by_name_and_not_believed(
    tools: Tools, disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools("e2fsck")
    monkeypatch.setattr(root_disk, "of_device", lambda path: {"/dev/card3": "sda"}.get(path, "mmcblk0"))
    found = bring_up(("/dev/card3",), DATA_ANYWHERE=False)
    assert (found["mounted"], found["foreign"]) == (True, True)
    assert "its clock and its seed are not believed" in found["notes"][0]
    found = bring_up(("PARTITION=3",), DATA_ANYWHERE=False)
    assert (found["mounted"], found["foreign"]) == (True, False)
    assert bring_up(("/dev/card3",), DATA_ANYWHERE=True)["foreign"] is False


# --- finding -----------------------------------------------------------------------------------------------------------
def test_a_label_comes_before_a_device_and_a_device_only_when_no_label_does(tools: Tools) -> None:
    tools("e2fsck")
    tools("findfs", text="/dev/late1")
    assert bring_up(("/dev/card3", "LABEL=data"))["device"] == "/dev/late1"
    tools("findfs", 1)
    began = time.monotonic()
    found = bring_up()
    assert (found["source"], found["device"]) == ("/dev/card3", "/dev/card3")
    assert time.monotonic() - began >= Chosen.DATA_WAIT, "the label may have been late"
    assert bring_up(("/dev/card3",), DATA_WAIT=60.0)["device"] == "/dev/card3", (
        "where there is no label there is nothing to wait for"
    )


def test_a_device_may_appear_late(tools: Tools, tmp_path: Path) -> None:
    tools("e2fsck")
    tools("findfs", more=f"[ -e {tmp_path}/there ] || {{ : >{tmp_path}/there; exit 1; }}", text="/dev/usb1")
    found = bring_up(("PARTUUID=57AC0001-01",), DATA_WAIT=20.0)
    assert (found["device"], found["seconds"] < 15) == ("/dev/usb1", True)
    assert tools.calls[:2] == ["findfs PARTUUID=57ac0001-01"] * 2, "blkid(8) knows them in small letters"


def test_none_appears(tools: Tools) -> None:
    found = bring_up(("LABEL=data", "/dev/nothing"))
    assert (found["mounted"], found["what"]) == (False, ["tmpfs"])
    assert found["notes"] == ["no data partition: none of LABEL=data, /dev/nothing in 0.2 s"]
    assert tools.mounted == 0


# --- checking, repairing, making anew ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("preen", "all_of_it", "what"), [
    (0, None, ["checked"]), (1, None, ["repaired"]), (2, None, ["checked"]), (3, None, ["repaired"]),
    (4, 1, ["repaired"]), (8, 0, ["repaired"]), (12, 3, ["repaired"]), (4, 4, []), (8, 8, []), (127, 127, []),
])  # fmt: skip
def test_what_e2fsck_says(tools: Tools, preen: int, all_of_it: int | None, what: list[str]) -> None:
    """The mount decides: also what could not be checked is used, where the kernel takes it."""
    tools(
        "e2fsck", more=f'case "$*" in "-p /dev/card3") exit {preen} ;; "-f -y /dev/card3") exit {all_of_it} ;; esac', status=99
    )
    found = bring_up(("/dev/card3",))
    assert (found["mounted"], found["what"]) == (True, what), found
    assert tools.calls == ["e2fsck -p /dev/card3"] + ["e2fsck -f -y /dev/card3"] * (all_of_it is not None)
    assert bool(found["notes"]) == (preen != 0)
    assert tools.furnished == ["/var/run", "/var/lib/dropbear"], "what lies below the tmpfs, and nothing else"


def test_without_any_tool_it_is_mounted_all_the_same(tools: Tools) -> None:
    found = bring_up(("/dev/card3",))
    assert found["mounted"]
    assert "e2fsck: No such file or directory" in found["notes"][0]


def test_a_check_without_end_is_ended(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "QUICK", 0.2)
    monkeypatch.setattr(storage, "GRACE", 0.2)
    tools("e2fsck", more="trap '' TERM\nwhile :; do :; done")
    found = bring_up(("/dev/card3",), DATA_TIMEOUT=0.2)
    assert (found["mounted"], found["what"]) == (True, [])
    assert "status -9" in found["notes"][0]


@pytest.mark.parametrize(("blkid", "holds", "made"), [
    (2, "", True), (0, "TYPE=ext4\nUUID=aa-bb", True), (0, "TYPE=vfat", False), (0, "PTTYPE=dos", False),
    (8, "", False), (127, "", False), (-1, "", False),
])  # fmt: skip
def test_made_anew_only_where_nothing_else_is(tools: Tools, blkid: int, holds: str, made: bool) -> None:
    tools("findfs", 1)
    tools("e2fsck", 8)
    tools("mke2fs")
    if blkid >= 0:
        tools("blkid", blkid, holds)
    tools.mounts = [BAD, None]
    found = bring_up()
    assert (found["mounted"], found["what"]) == (made, ["re-made"] if made else ["tmpfs"]), found
    made_by = [call for call in tools.calls if call.startswith("mke2fs")]
    uuid = "-U aa-bb " if "UUID" in holds else ""
    assert made_by == ([f"mke2fs -q -F -t ext4 -L data {uuid}/dev/card3"] if made else [])
    assert "mount /dev/card3 on /var: Invalid argument" in found["notes"]


@pytest.mark.parametrize(("remake", "mke2fs", "mounts"), [(False, 0, [BAD]), (True, 1, [BAD]), (True, 0, [BAD, BAD])])
def test_else_the_tmpfs_stays(tools: Tools, remake: bool, mke2fs: int, mounts: list[OSError | None]) -> None:
    tools("e2fsck", 8)
    tools("blkid", 2)
    tools("mke2fs", mke2fs)
    tools.mounts = mounts
    found = bring_up(("/dev/card3",), DATA_REMAKE=remake)
    assert (found["mounted"], found["what"][-1], tools.furnished) == (False, "tmpfs", []), found
    assert remake or "mke2fs" not in " ".join(tools.calls)


def test_a_device_that_cannot_be_read_is_left_alone(tools: Tools) -> None:
    tools("e2fsck", 8)
    tools("blkid", 2)
    tools("mke2fs")
    tools.mounts, tools.read_fault = [BAD], "Input/output error"
    found = bring_up(("/dev/card3",))
    assert (found["mounted"], found["what"]) == (False, ["tmpfs"])
    assert found["notes"][-1] == "/dev/card3 cannot be read (Input/output error), and is left as it is"
    assert "mke2fs" not in " ".join(tools.calls)


def test_whatever_happens_the_service_ends_well_and_leaves_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(_: object) -> None:
        raise ZeroDivisionError("nobody has thought of it")

    records: list[dict[str, Any]] = []
    monkeypatch.setattr(storage.Storage, "bring_up", fails)
    monkeypatch.setattr(boot_ends, "tell", lambda path, record: records.append(record))
    storage.main(["LABEL=data"])
    assert records[0]["notes"] == ["ZeroDivisionError: nobody has thought of it"]
    assert records[0]["what"] == ["tmpfs"]


def test_the_size_of_a_file_system(tmp_path: Path) -> None:
    if MKE2FS is None:
        pytest.skip("no mke2fs here")
    path = str(tmp_path / "disk")
    for words in (("-b", "1024"), ("-b", "4096"), ("-O", "^64bit")):
        subprocess.run([MKE2FS, "-q", "-F", "-t", "ext4", *words, path, "24M"], check=True)
        assert storage.file_system_size(path) == 24 * 1024 * 1024


# --- the table, and who tells -------------------------------------------------------------------------------------------
def test_sources_are_checked(tmp_path: Path) -> None:
    profile = tmp_path / "profile.py"
    profile.write_text("DATA = ('LABEL=data', 'data', 'PARTUUID=1-2', '/mnt', '/dev/sda1', 7)\nDATA_REMAKE = 'yes'\n")
    chosen = tables.load({"stack.profile": str(profile)})
    assert chosen.DATA == ("LABEL=data", "PARTUUID=1-2", "/dev/sda1")
    assert chosen.DATA_REMAKE is True
    faults = "\n".join(chosen.rejected)
    assert "DATA[1] 'data': is neither LABEL=" in faults
    assert "DATA_REMAKE = 'yes' is text; write True or False" in faults
    profile.write_text("DATA = ()\n")
    chosen = tables.load({"stack.profile": str(profile)})
    assert (chosen.rejected, "storage" in chosen.services) == ([], False), "a board without one has no such service"


def test_diagnostic_complains(tmp_path: Path) -> None:
    record, sys = tmp_path / "storage.json", tmp_path / "sys"
    assert diagnostic.data_complaints(diagnostic.data_partition(str(record))) == []
    facts = {"target": "/var", "device": "/dev/vdb1", "mounted": True, "what": ["re-made"], "notes": ["it was gone"]}
    errors = sys / "fs/ext4/vdb1/errors_count"
    errors.parent.mkdir(parents=True)
    errors.write_text("2\n")
    record.write_text(json.dumps(facts))
    assert diagnostic.data_complaints(diagnostic.data_partition(str(record), str(sys))) == [
        "the data partition was made anew: what was on it is lost",
        "the data partition can only be read: the kernel has found errors on it",
    ]
    record.write_text(json.dumps({**facts, "mounted": False}))
    assert diagnostic.data_complaints(diagnostic.data_partition(str(record), str(sys))) == [
        "the data partition is missing, /var is in memory: it was gone"
    ]


# --- a board ------------------------------------------------------------------------------------------------------------
def test_a_board_without_its_disk_comes_up(boot: Callable[..., Board]) -> None:
    board = boot(
        "STORAGE, Service('ssh', ('sleep', '1000'), after=('storage',))",
        settings="from settings import STORAGE\nDATA = ('LABEL=nowhere', '/dev/nothing')\nDATA_WAIT = 0.3",
    ).up()
    assert board.wait_state("storage", "stopped")["exit"] == "exit 0"
    board.wait_state("ssh", "running")
    facts = board.ask("board")
    assert facts["faults"] == []
    assert (facts["storage"]["mounted"], facts["storage"]["what"]) == (False, ["tmpfs"])
    assert "no data partition: none of LABEL=nowhere, /dev/nothing in 0.3 s" in board.log("storage")
    (board.root / "var/run/stack/control").lstat()


def test_nobody_waits_for_it_for_ever(boot: Callable[..., Board]) -> None:
    board = boot(
        "STORAGE._replace(ready_timeout=0.5), Service('ssh', ('sleep', '1000'), after=('storage',))",
        settings="from settings import STORAGE\nDATA = ('/dev/nothing',)\nDATA_WAIT = 600.0",
    ).up()
    board.wait_state("ssh", "running", seconds=8)
    assert board.stats("storage")["alive"], "it goes on looking"
    assert eventually(lambda: board.end() == 0)


def test_what_the_kernel_is_asked_to_mount(tools: Tools) -> None:
    """By hand: MS_NOSUID 2, MS_NODEV 4, MS_NOEXEC 8, MS_NOATIME 1024; what is no flag goes to ext4."""
    tools("e2fsck")
    bring_up(("/dev/card3",), DATA_OPTIONS="noexec,noatime,errors=remount-ro")
    assert tools.mount_calls == [("/dev/card3", "/var", "ext4", 1038, "errors=remount-ro")]
