"""A card as buildroot/board/post-image.sh makes it, in an x86_64 machine: its partitions, and what becomes of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from qemu_storage import record, shell, writable

sys.path.insert(0, str(ROOT / "lab"))

MIB = 1024 * 1024
BOARD = ROOT / "buildroot" / "board"
SERVICES = """
from tables.rows import Service
MODULES = ("virtio_net", "vfat")
DATA, DATA_ANYWHERE = ("LABEL=data", "PARTITION=7", "PARTITION=3"), False
SERVICES = tuple(row for row in SERVICES if row.name in ("modules", "logd", "storage", "keeper", "syslogd", "dropbear"))
SERVICES += (Service("eth0", ("sh", "-c", "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"), ("modules",),
                     ready="exit", restart="never"),)
"""


# The card as it was made before there were two slots: this program still runs on one.
BEFORE = """
image sdcard.img {
	hdimage { align = 1M }
	partition boot { partition-type = 0xC image = "owner.vfat" }
	partition root { partition-type = 0x83 image = "rootfs.squashfs" size = 64M }
	partition data { partition-type = 0x83 image = "data.ext4" }
}
"""


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The lab's root on it: Buildroot's own takes hours and the internet."""
    from image import kernel, squashed

    squashed("x86_64", tmp_path / "rootfs.squashfs", {"usr/lib/stack/settings_test.py": SERVICES})
    (tmp_path / "bzImage").write_bytes((kernel("x86_64") / "kernel").read_bytes())
    done = subprocess.run([BOARD / "post-image.sh", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path / "sdcard.img"


@pytest.mark.parametrize(("root", "data"), [("vda5", "vda7"), ("vda6", "vda7"), ("vda2", "vda3")], ids=["A", "B", "before"])
def test_first_boot(machine: Callable[..., Any], card: Path, root: str, data: str) -> None:
    if data == "vda3":
        images = card.parent
        (images / "before.cfg").write_text(BEFORE)
        (images / "none").mkdir()
        words = ("--rootpath", "none", "--tmppath", "tmp", "--inputpath", ".", "--outputpath", ".", "--config", "before.cfg")
        subprocess.run(["genimage", *words], cwd=images, check=True, capture_output=True)
    with card.open("r+b") as file:
        file.truncate(1024 * MIB)  # the card is larger than its image
    board = machine("x86_64", words=f"root=/dev/{root} rootfstype=squashfs", root=card).up()
    facts = board.python("import sv; result = sv.board()")
    assert (facts["faults"], facts["rejected"]) == ([], []), facts
    found = record(board)
    assert (found["source"], found["device"], found["what"]) == ("LABEL=data", f"/dev/{data}", ["checked", "grown"]), found
    assert writable(board) == "ext4"
    assert board.python("import os; s = os.statvfs('/var'); result = s.f_blocks * s.f_frsize") > 650 * MIB
    mount = "mkdir -p /run/card && mount -t vfat -o ro,nosuid,nodev,noexec $(findfs LABEL=BOOT) /run/card && cat /run/card/README.txt"
    assert shell(board, mount) == (BOARD / "README.txt").read_text().removesuffix("\n")
    rows = [line.split() for line in shell(board, "cat /proc/mounts").splitlines()]
    assert next(row[2] for row in rows if row[1] == "/") == "squashfs"


@pytest.mark.parametrize("fragment", ["linux.fragment", "raspberrypi/linux.fragment", "qemu/linux.fragment"])
def test_kernels_know_the_symbols(fragment: str) -> None:
    """Debian's kernel of this lab has been asked about each, whatever it answered; Broadcom's drivers are ARM's."""
    from image import KINDS, debian

    configurations = [
        path.read_text() for arch in {kind.arch for kind in KINDS.values()} for path in debian(arch).glob("boot/config-*")
    ]
    known = set(re.findall(r"CONFIG_\w+", "".join(configurations)))
    wanted = set(re.findall(r"^(?:# )?(CONFIG_\w+)", (BOARD / fragment).read_text(), re.M))
    assert wanted
    assert not wanted - known
