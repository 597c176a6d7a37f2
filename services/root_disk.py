"""Which disk the root file system is on. Its partitions are trusted; those of any other disk are not."""

from __future__ import annotations

import os

from base.files import read_file

MOUNTS = "/proc/self/mountinfo"
SYS = "/sys"


def of_root(mounts: str = "", sys: str = "") -> str:
    """The root disk's name ("mmcblk0"), from `man 5 proc_pid_mountinfo`; empty where it is in memory or on the network."""
    numbers = [
        words[2] for line in read_file(mounts or MOUNTS).splitlines() if len(words := line.split()) > 4 and words[4] == "/"
    ]
    return whole(numbers[-1], sys) if numbers else ""


def of_device(path: str, sys: str = "") -> str:
    """The name of the disk that a block device is on; empty where there is no such device."""
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return ""
    return whole(f"{os.major(number)}:{os.minor(number)}", sys)


def whole(number: str, sys: str = "") -> str:
    """The disk of a device number ("179:2"). For a stacked device (dm-verity), the disk below it. Empty where unknown."""
    folder = os.path.realpath(f"{sys or SYS}/dev/block/{number}")
    for _ in range(8):
        below = sorted(os.listdir(f"{folder}/slaves")) if os.path.isdir(f"{folder}/slaves") else []
        if not below:
            break
        folder = os.path.realpath(f"{folder}/slaves/{below[0]}")
    if not os.path.exists(f"{folder}/uevent"):
        return ""
    return os.path.basename(os.path.dirname(folder) if os.path.exists(f"{folder}/partition") else folder)


def partitions(disk: str, sys: str = "") -> dict[int, str]:
    """Number and device ("/dev/mmcblk0p3") of each partition of a disk."""
    folder = os.path.realpath(f"{sys or SYS}/class/block/{disk}")
    names = sorted(os.listdir(folder)) if disk and os.path.isdir(folder) else []
    numbers = {name: read_file(f"{folder}/{name}/partition") for name in names}
    return {int(number): f"/dev/{name}" for name, number in sorted(numbers.items()) if number.isdigit()}
