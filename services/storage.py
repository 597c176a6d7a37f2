"""The data partition: finds, checks and repairs it, mounts it over PID 1's tmpfs, and grows it to fill its card.

A service that runs once. Whatever goes wrong, it ends with status 0 and the tmpfs stays: a board without its data still
boots, and /run/stack/storage.json says what happened. The work is that of util-linux and e2fsprogs, each call of which
has a time limit; so it always ends.

Steps are in an order in which a power cut between any two of them does no harm: the table of partitions says that there
is more room before the file system uses it, and the file system grows while it is mounted, through its journal.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time

from base.files import open_folder, read_file
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import mount, mount_options, umount
from onboard import boot_ends
from onboard.board_table import board_table
from onboard.mounts import make_directory, mount_row, mounted
from services import root_disk

if TYPE_CHECKING:
    from typing import Any

TARGET = "/var"
RECORD = "/run/stack/storage.json"
QUICK = 30.0  # seconds for a tool that looks at a few blocks
GRACE = 5.0  # seconds between TERM and KILL for one that takes too long
PAUSE = 0.2  # seconds between two looks for a device that may still appear
WORTH = 8 * 1024 * 1024  # bytes behind the partition, or behind its file system, for which growing is worth it
PROBED = {"PARTUUID": "PART_ENTRY_UUID", "PARTLABEL": "PART_ENTRY_NAME"}  # as `blkid -p` calls them
EXTENDED = ("5", "f", "85")  # types of an MBR's partition that holds others, as sfdisk(8) writes them
SECTOR = 512  # /sys/class/block counts in these, whatever the device has


class Storage:
    """One attempt to mount the data partition, and its record."""

    def __init__(self, chosen: Any, sources: list[str], target: str = TARGET) -> None:
        self.chosen = chosen  # the board's settings
        self.sources = sources
        self.target = target
        self.began = time.monotonic()
        self.device = self.source = ""
        self.foreign = False  # not on the root's disk
        self.mounted = False
        self.what: list[str] = []  # "checked", "repaired", "re-made", "grown", "tmpfs"
        self.notes: list[str] = []  # sentences, for people

    # --- the way ----------------------------------------------------------------------------------------------------
    def bring_up(self) -> None:
        """All steps, in order. `mounted` says whether the partition is in use afterwards."""
        self.device, self.source = find(self.sources, self.chosen.DATA_WAIT, anywhere=self.chosen.DATA_ANYWHERE)
        if not self.device:
            where = "" if self.chosen.DATA_ANYWHERE else f"; labels count on the root's disk ({root_disk.of_root() or 'none'})"
            self.note(f"no data partition: none of {', '.join(self.sources)} in {self.chosen.DATA_WAIT:g} s{where}")
            return
        self.foreign = not self.chosen.DATA_ANYWHERE and root_disk.of_device(self.device) != root_disk.of_root()
        if self.foreign:
            self.note(f"{self.device} is not on the root's disk: its clock and its seed are not believed (DATA_ANYWHERE)")
        if self.is_mounted():
            self.mounted = True
            self.note(f"{self.device} is mounted already")
            return
        self.check()
        fault = self.mount()
        if fault and self.chosen.DATA_REMAKE:
            self.note(fault)
            fault = self.remake() or self.mount()
        if fault:
            self.note(fault)
            return
        self.mounted = True
        self.furnish()
        if self.chosen.DATA_GROW:
            self.grow()

    def check(self) -> None:
        """Let e2fsck(8) repair what it may without asking, and then everything else. The mount shows whether that helped."""
        status, text = run("e2fsck", "-p", self.device, seconds=self.left())
        if status in (0, 1, 2, 3):
            self.what.append("repaired" if status & 1 else "checked")
        else:
            self.note(f"e2fsck -p: status {status}, {last_words(text)}")
            status, text = run("e2fsck", "-f", "-y", self.device, seconds=self.left())
            if status in (0, 1, 2, 3):
                self.what.append("repaired")
        if status:
            self.note(f"e2fsck: status {status}, {last_words(text)}")

    def mount(self) -> str:
        """Mount it; why not, as a sentence. One that comes up read-only is damaged, or its card is locked."""
        flags, data = mount_options(f"nosuid,nodev,{self.chosen.DATA_OPTIONS}")
        try:
            mount(self.device, self.target, "ext4", flags, data)
        except OSError as error:
            return f"mount {self.device} on {self.target}: {error.strerror}"
        if os.statvfs(self.target).f_flag & os.ST_RDONLY:
            umount(self.target)
            return f"mount {self.device} on {self.target}: it can only be read"
        return ""

    def remake(self) -> str:
        """A new, empty file system under the old name; why not, as a sentence.

        Not where another kind of file system is, and not on a device that returns errors: that may be a loose contact.
        """
        if fault := read_fault(self.device):
            return f"{self.device} cannot be read ({fault}), and is left as it is"
        status, text = run("blkid", "-p", "-o", "export", self.device)
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line) if status == 0 else {}
        holds = found.get("TYPE") or found.get("PTTYPE") or ""
        if status not in (0, 2) or not (holds == "" or holds.startswith("ext")):  # 2: nothing that it knows (`man 8 blkid`)
            return f"{self.device} holds {holds or 'something'} that is not ours to overwrite: {last_words(text)}"
        named = dict(source.split("=", 1) for source in self.sources if "=" in source)
        label, uuid = named.get("LABEL") or found.get("LABEL"), named.get("UUID") or found.get("UUID")
        names = [*(["-L", label] if label else []), *(["-U", uuid] if uuid else [])]
        status, text = run("mke2fs", "-q", "-F", "-t", "ext4", *names, self.device, seconds=self.left())
        if status:
            return f"mke2fs: status {status}, {last_words(text)}"
        self.what.append("re-made")
        self.note(f"{self.device} could not be repaired: what was on it is lost, it is empty now")
        return ""

    def furnish(self) -> None:
        """What PID 1 has mounted and made below the tmpfs is hidden now: again, on the disk."""
        below = f"{self.target}/"
        for row in self.chosen.MOUNTS:
            if row.target.startswith(below):
                self.attempt(row.target, self.below, row.target, mount_row, row)
        for row in self.chosen.DIRECTORIES:
            if row.path.startswith(below):
                self.attempt(row.path, self.below, row.path, make_directory, row, self.chosen)

    def below(self, path: str, step: Any, *arguments: object) -> None:
        """A step in a folder of the disk that is no symbolic link: whoever wrote the disk may have put one there."""
        os.close(open_folder(path))
        step(*arguments)

    # --- more room ----------------------------------------------------------------------------------------------------
    def grow(self) -> None:
        """The partition to the end of its disk, if none stands behind it; then the file system to the end of its partition."""
        folder = os.path.realpath(f"/sys/class/block/{os.path.basename(os.path.realpath(self.device))}")
        if number := read_file(f"{folder}/partition"):
            self.grow_partition(folder, number)
        if sectors(folder, "size") * SECTOR - file_system_size(self.device) > WORTH:
            status, text = run("resize2fs", self.device, seconds=self.left())
            if status:
                self.note(f"resize2fs: status {status}, {last_words(text)}")
            else:
                self.what.append("grown")

    def grow_partition(self, folder: str, number: str) -> None:
        """Write the table of partitions and tell the kernel, both while the partition is in use."""
        parent = os.path.dirname(folder)
        end = sectors(folder, "start") + sectors(folder, "size")
        others = [f"{parent}/{name}" for name in os.listdir(parent) if os.path.exists(f"{parent}/{name}/partition")]
        if (sectors(parent, "size") - end) * SECTOR <= WORTH or any(sectors(one, "start") >= end for one in others):
            return
        disk = f"/dev/{os.path.basename(parent)}"
        _, kind = run("blkid", "-p", "-o", "value", "-s", "PTTYPE", disk)
        if kind.strip() == "gpt":  # its second copy stands where the disk ended when the image was written
            run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--relocate", "gpt-bak-std", disk)
        elif int(number) > 4 and not self.grow_extended(parent, disk):
            return
        status, text = run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "-N", number, disk, text=", +\n")
        if status == 0:
            status, text = run("partx", "--update", "--nr", number, disk)
        if status:
            self.note(f"{self.device} does not grow: {last_words(text)}")

    def grow_extended(self, parent: str, disk: str) -> bool:
        """The extended partition of an MBR to the end of its disk: a logical one ends where it does."""
        status, text = run("sfdisk", "-J", disk)
        rows = boot_ends.parsed(text).get("partitiontable", {}).get("partitions", []) if status == 0 else []
        holder = [row["node"] for row in rows if row.get("type") in EXTENDED]
        number = holder[0].removeprefix(disk).removeprefix("p") if len(holder) == 1 else ""
        if not number.isdigit() or any(
            row["start"] >= max(one["start"] for one in rows) for row in rows if row["node"] in holder
        ):
            return False
        status, text = run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "-N", number, disk, text=", +\n")
        if status:
            self.note(f"{disk}: its extended partition does not grow: {last_words(text)}")
        return status == 0

    # --- small --------------------------------------------------------------------------------------------------------
    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"<4>{text}", file=sys.stderr)

    def attempt(self, what: str, step: Any, *arguments: object) -> None:
        try:
            step(*arguments)
        except OSError as error:
            self.note(f"{what}: {error.strerror}")

    def left(self) -> float:
        """Seconds that are left for the long steps."""
        return max(QUICK, float(self.began + self.chosen.DATA_TIMEOUT) - time.monotonic())

    def is_mounted(self) -> bool:
        return (self.device, self.target) in mounted()

    def record(self) -> dict[str, Any]:
        """What happened, for board() and diagnostic.py."""
        return {
            "target": self.target, "mounted": self.mounted, "device": self.device, "source": self.source,
            "foreign": self.foreign, "what": self.what if self.mounted else [*self.what, "tmpfs"], "notes": self.notes,
            "seconds": round(time.monotonic() - self.began, 3),
        }  # fmt: skip


def find(sources: list[str], seconds: float, *, anywhere: bool) -> tuple[str, str]:
    """The device and the source that named it. Labels come first: a path may name another card than meant.

    Labels and numbers count on the disk of the root alone, unless they may be `anywhere`.
    """
    deadline = time.monotonic() + seconds
    tags = [source for source in sources if "=" in source]
    while True:
        late = time.monotonic() >= deadline
        for source in sources:
            if source in tags:
                if device := named(source, anywhere=anywhere):
                    return device, source
            elif (late or not tags) and is_block(source):
                return source, source
        if late:
            return "", ""
        time.sleep(PAUSE)


def named(source: str, *, anywhere: bool) -> str:
    """The device of `LABEL=data`, `PARTITION=3` or the like; empty where there is none."""
    name, _, value = source.partition("=")
    value = value.lower() if name.endswith("UUID") else value  # sfdisk(8) prints capitals, blkid(8) knows small letters
    ours = root_disk.partitions(root_disk.of_root())
    if name == "PARTITION":
        return ours.get(int(value), "")
    if anywhere:
        status, text = run("findfs", f"{name}={value}")
        return text.strip() if status == 0 else ""
    for device in ours.values():
        status, text = run("blkid", "-p", "-o", "export", device)
        if status == 0 and f"{PROBED.get(name, name)}={value}" in text.splitlines():
            return device
    return ""


def run(*argv: str, seconds: float = QUICK, text: str = "") -> tuple[int, str]:
    """Run a tool: exit status and all that it printed. One that takes too long is ended, and its status is negative."""
    files = [os.memfd_create(argv[0]) for _ in range(2)]
    try:
        os.pwrite(files[0], text.encode(), 0)
        actions = [(os.POSIX_SPAWN_DUP2, files[source], target) for source, target in ((0, 0), (1, 1), (1, 2))]
        # No cache of what blkid(8) has seen in an earlier boot; English, in which we quote them.
        environment = {**os.environ, "BLKID_FILE": "/dev/null", "LC_ALL": "C"}
        pid = os.posix_spawnp(argv[0], argv, environment, file_actions=actions, setsigdef=[signal.SIGPIPE])
        status = wait(pid, seconds)
        return status, os.pread(files[1], 65536, 0).decode(errors="replace")
    except OSError as error:
        return 127, f"{argv[0]}: {error.strerror}"
    finally:
        for fd in files:
            os.close(fd)


def wait(pid: int, seconds: float) -> int:
    """Wait for a child at most so many seconds, then kill it. Returns its exit status, or minus a signal's number.

    A child that a dead disk holds in the kernel cannot be killed: it is left behind.
    """
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], seconds)[0]:
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.kill(pid, number)
                if select.select([handle], [], [], GRACE)[0]:
                    break
            else:
                return -signal.SIGKILL
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)


def is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def read_fault(device: str) -> str:
    """The error of reading the first WORTH bytes of a device; empty where they can be read."""
    try:
        with open(device, "rb", buffering=0) as file:
            file.read(WORTH)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def sectors(folder: str, name: str) -> int:
    """A number of /sys/class/block/NAME; 0 where there is none."""
    return int(read_file(f"{folder}/{name}") or 0)


def file_system_size(device: str) -> int:
    """Bytes, as the super block has them (Documentation/filesystems/ext4/super.rst)."""
    with open(device, "rb") as file:
        file.seek(1024)
        block = file.read(1024)
    low, scale, high = (int.from_bytes(block[at : at + 4], "little") for at in (0x4, 0x18, 0x150))
    wide = block[0x60] & 0x80  # s_feature_incompat: INCOMPAT_64BIT
    return (low + ((high << 32) if wide else 0)) * (1024 << scale)


def last_words(text: str) -> str:
    """The end of what a tool printed, on one line."""
    return " ".join(text.split())[-300:] or "which says nothing"


def main(arguments: list[str]) -> None:
    """`storage SOURCE...`: LABEL=, UUID=, PARTUUID= or PARTITION= of the partition, or its device; tried in this order."""
    storage = Storage(board_table(), arguments)
    try:
        storage.bring_up()
    except Exception as error:  # the board goes on without its data, whatever it is
        storage.note(f"{type(error).__name__}: {error}")
    record = storage.record()
    storage.attempt(RECORD, boot_ends.tell, RECORD, record)
    where = f"{record['source']} is {record['device']}; " if record["device"] else ""
    print(f"<5>{where}{storage.target}: {', '.join(record['what'])} in {record['seconds']:g} s", file=sys.stderr)
