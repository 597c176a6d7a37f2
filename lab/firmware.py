"""Plays a Raspberry Pi's firmware for a card in QEMU: it reads the card, picks a slot, and starts what is in it.

Each start is a QEMU of its own, with the kernel, the initramfs and the command line of the slot's FAT, as config.txt there
names them. A reset ends QEMU, and the next start looks at the card again. Not played: the bootloader in the EEPROM, its own
watchdog, and the device tree. The flag is tryboot.flg, since no register outlives QEMU.

The machine's memory is a file: what a panic has written to ramoops is there after a reset, and gone after a power cut.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from image import KINDS, run
from machine import Machine, until

from updates.slots import AUTOBOOT, BOOT_OF, FLAG, partitions_of

MEMORY = 512  # MiB
RAMOOPS = {  # near the end of the memory; `memmap` keeps x86 away from it
    "x86_64": "memmap=1M$0x1e000000 ramoops.mem_address=0x1e000000 ramoops.mem_size=0x100000 ramoops.record_size=0x10000",
    "virt-arm64": "",
}
PATHS = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "MTOOLS_SKIP_CHECK": "1"}


class Start(NamedTuple):
    """What the firmware starts."""

    slot: str
    tried: bool
    kernel: Path
    initrd: Path | None
    words: str  # the command line, with what the firmware adds


class Card:
    """A card's image, as buildroot/board/post-image.sh makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = json.loads(subprocess.run(["sfdisk", "--json", path], capture_output=True, check=True, env=PATHS).stdout)
        rows = table["partitiontable"]["partitions"]
        self.places = {int(re.findall(r"\d+$", row["node"])[0]): (row["start"] * 512, row["size"] * 512) for row in rows}

    def read(self, number: int, name: str) -> bytes:
        """A file of a partition's FAT; FileNotFoundError where there is none."""
        words = ["mtype", "-i", f"{self.path}@@{self.places[number][0]}", f"::{name}"]
        done = subprocess.run(words, capture_output=True, check=False, env=PATHS)
        if done.returncode:
            raise FileNotFoundError(f"there is no {name} on partition {number}: {done.stderr.decode().strip()}")
        return done.stdout

    def clear_flag(self) -> None:
        """Write the flag's one sector where it is."""
        from updates.fat import SECTOR, Fat

        first, size = self.places[1]
        with self.path.open("rb") as card:
            card.seek(first)
            fat = self.path.with_suffix(".fat")
            fat.write_bytes(card.read(size))
        at, _ = Fat(str(fat)).find(FLAG)
        fat.unlink()
        assert at % SECTOR == 0
        with self.path.open("r+b") as card:
            card.seek(first + at)
            card.write(b"0\n")

    def slots(self) -> tuple[str, str]:
        """The slot of a plain start, and of one by the flag."""
        plain, tried = partitions_of(self.read(1, AUTOBOOT).decode("ascii"))
        return BOOT_OF[plain], BOOT_OF[tried]

    def start(self, kind: str, folder: Path) -> Start:
        """Pick a slot; its kernel and initramfs come into the folder. The flag is cleared before anything starts."""
        tried = self.read(1, FLAG)[:1] == b"1"
        if tried:
            self.clear_flag()
        slot = self.slots()[int(tried)]
        number = next(number for number, name in BOOT_OF.items() if name == slot)
        config = self.config(number)
        kernel, initrd = folder / "kernel", folder / "initrd" if "initramfs" in config else None
        data = self.read(number, config["kernel"])
        kernel.write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if initrd:
            initrd.write_bytes(self.read(number, config["initramfs"]))
        words = self.read(number, config.get("cmdline", "cmdline.txt")).decode().strip()
        words = words.replace("/dev/mmcblk0p", f"{KINDS[kind].disk}")
        return Start(slot, tried, kernel, initrd, f"{words} stack.slot={slot}{' stack.tryboot' if tried else ''}")

    def config(self, number: int) -> dict[str, str]:
        """config.txt of a slot: `name=value`, `initramfs FILE followkernel`, and the filters [all] and [boot_partition=N]."""
        found: dict[str, str] = {}
        holds = True
        for line in self.read(number, "config.txt").decode().splitlines():
            if match := re.fullmatch(r"\[(\w+)(?:=(\d+))?\]", line.strip()):
                holds = match[1] == "all" or (match[1] == "boot_partition" and match[2] == str(number))
            elif holds and line.startswith("initramfs "):
                found["initramfs"] = line.split()[1]
            elif holds and "=" in line and not line.startswith("#"):
                name, _, value = line.partition("=")
                found[name.strip()] = value.strip()
        return found

    def content(self, number: int, size: int) -> bytes:
        """The first bytes of a partition."""
        with self.path.open("rb") as card:
            card.seek(self.places[number][0])
            return card.read(size)


class Started(Machine):
    """A machine whose `words` are all of QEMU's command line."""

    def argv(self, disk: Path, words: tuple[str, ...], data: Path | None) -> list[str]:
        return list(words)


class Powered:
    """A board with a card. `start()` is power; `again()` is what follows a reset; `cut()` ends the power."""

    def __init__(self, kind: str, card: Path, folder: Path, extra: tuple[str, ...] = ()) -> None:
        self.kind, self.card, self.folder, self.extra = kind, Card(card), folder, extra
        self.memory = folder / "memory"
        self.machine: Machine | None = None
        self.last: Start
        self.consoles: list[str] = []  # of the starts that are over

    def start(self, drive: Callable[[], str] | None = None) -> Machine:
        """Start from the card as it is. `drive()`: QEMU's words for the card, asked for once the firmware has read it."""
        assert self.machine is None
        self.last = start = self.card.start(self.kind, self.folder)
        self.memory.touch()
        os.truncate(self.memory, MEMORY << 20)
        words = drive() if drive else f"if=none,id=card,format=raw,file={self.card.path}"
        argv = [
            *KINDS[self.kind].qemu, "-accel", "tcg", "-display", "none", "-m", str(MEMORY), "-kernel", str(start.kernel),
            "-object", f"memory-backend-file,id=ram,size={MEMORY}M,mem-path={self.memory},share=on",
            "-machine", "memory-backend=ram",
            "-drive", words, "-device", "virtio-blk-pci,drive=card", "-append", f"{start.words} {RAMOOPS[self.kind]}",
            *(("-initrd", str(start.initrd)) if start.initrd else ()),
        ]  # fmt: skip
        self.machine = Started(self.kind, self.card.path, tuple(argv), ("-action", "panic=none", *self.extra))
        return self.machine

    def over(self) -> None:
        """The machine that ran is gone; what its console has said is kept."""
        assert self.machine
        self.machine.process.wait()
        self.consoles.append(self.machine.console())
        self.machine.close()
        self.machine = None

    def ended(self, seconds: float) -> None:
        """Wait until the board resets, or switches itself off."""
        machine = self.machine
        assert machine
        try:
            until(lambda: machine.process.poll() is not None, seconds, "the board's reset")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the console says:\n{machine.console()[-4000:]}") from None
        self.over()

    def again(self, seconds: float = 90.0) -> Machine:
        """Wait for a reset, and start what the firmware starts then."""
        self.ended(seconds)
        return self.start()

    def cut(self) -> None:
        """Cut the power."""
        if self.machine:
            self.machine.process.kill()
            self.over()
        self.memory.unlink(missing_ok=True)

    def close(self) -> None:
        self.cut()


def fat(target: Path, label: str, size: int, files: dict[str, bytes]) -> Path:
    """A FAT of so many MiB with these files in its root folder."""
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(size << 20)
    run("mkfs.vfat", "-n", label, target, env=PATHS)
    put(target, files)
    return target


def put(target: Path, files: dict[str, bytes]) -> None:
    """Write files into a FAT's root folder, also over older ones."""
    for name, content in files.items():
        done = subprocess.run(
            ["mcopy", "-o", "-i", target, "-", f"::{name}"], input=content, capture_output=True, check=False, env=PATHS
        )
        if done.returncode:
            raise RuntimeError(f"mcopy {name}: {done.stderr.decode()}")
