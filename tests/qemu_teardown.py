"""The end of a board on a real kernel: what was replaced, swapped to and looped is let go, and no file system stays writable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import eventually

Start = Callable[..., Any]
WRITABLE = """
from tables.rows import Mount, Service
MOUNTS = tuple(Mount("", "/", "", "remount,rw") if row.target == "/" else row for row in MOUNTS)
MODULES = ("loop",)
SYSCTLS = ()  # the console shows what PID 1 says
SERVICES = (*(row for row in SERVICES if row.name in ("modules", "logd")), Service("act", ("sh", "-c", {act!r}), after=("modules",)))
"""
REPLACED = "p=$(readlink -f {}); cp $p $p.new && mv $p.new $p; "
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
SWAP = 'python3 -c \'open("/swap", "wb").write(bytes(1 << 22))\'; chmod 600 /swap; mkswap /swap; swapon /swap && echo swapped >/dev/console; '
LOOP = (
    'python3 -c \'open("/disk", "wb").truncate(1 << 22)\'; mkfs.ext4 -q /disk; losetup /dev/loop0 /disk; mkdir -p /mnt/a; '
    "mount /dev/loop0 /mnt/a && mkdir /mnt/a/b && mount -t tmpfs none /mnt/a/b && echo looped >/dev/console; "
)


@pytest.mark.parametrize(
    ("act", "signs"),
    [
        (REPLACED.format("/usr/bin/python3"), ["executes itself anew: /usr/bin/python3.11"]),
        (REPLACED.format(LIBC), ["executes itself anew: /usr/lib/x86_64-linux-gnu/libc.so.6"]),
        (SWAP, ["swapped"]),
        (LOOP, ["looped"]),
    ],
    ids=["python", "libc", "swap", "loop"],
)
def test_no_file_system_stays_writable(machine: Start, act: str, signs: list[str]) -> None:
    board = machine("x86_64", WRITABLE.format(act=act + "sv poweroff; exec sleep 1000"), words="loglevel=7")
    assert board.event("SHUTDOWN", "GUEST_PANICKED")["data"] == {"guest": True, "reason": "guest-shutdown"}, board.console()
    eventually(lambda: "reboot: Power down" in board.console())
    console = board.console()
    for sign in signs:
        assert sign in console, console
    assert not [line for line in console.splitlines() if "stays writable" in line or "swapoff" in line], console
