"""What /proc/PID/cmdline and /proc/PID/environ show of this process (`man 5 proc`): for a program that was not executed.

The kernel remembers where both are in memory. prctl(2) moves that to where the new words are: all at once by PR_SET_MM_MAP,
where the kernel has CONFIG_CHECKPOINT_RESTORE; one by one by root, who has CAP_SYS_RESOURCE, on others.
"""

from __future__ import annotations

import os

from base.native import ctypes
from base.syscalls import check, libc

PR_SET_MM, PR_SET_MM_MAP = 35, 14  # linux/prctl.h
ARG_START, ARG_END, ENV_START, ENV_END = 8, 9, 10, 11  # PR_SET_MM_ARG_START...
# The fields of /proc/self/stat, from 1, that struct prctl_mm_map begins with, but for `brk` between the fifth and the sixth.
START_CODE, END_CODE, START_DATA, END_DATA, START_BRK, START_STACK, OLD_START = 26, 27, 45, 46, 47, 28, 48
_kept: list[object] = []  # the memory that they are in


def set_title(argv: tuple[str, ...], environment: dict[str, str]) -> None:
    """Show these words and variables as ours; OSError where the kernel does not let us."""
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    memory = (ctypes.c_char * (len(words) + len(variables))).from_buffer_copy(words + variables)
    start = ctypes.addressof(memory)
    middle, end = start + len(words), start + len(words) + len(variables)
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    old = [int(fields[number - 3]) for number in (START_CODE, END_CODE, START_DATA, END_DATA, START_BRK, START_STACK)]
    libc.sbrk.restype = ctypes.c_void_p
    now = libc.sbrk(ctypes.c_ssize_t(0))
    places = [*old[:5], now, old[5], start, middle, middle, end, 0]  # the last one is the auxiliary vector: as it is
    struct = (ctypes.c_uint64 * 13)(*places, 0xFFFFFFFF << 32)  # its size, 0, and no descriptor of another executable
    try:
        _set(PR_SET_MM_MAP, ctypes.addressof(struct), 8 * len(struct))
    except OSError:
        # The kernel refuses a start behind its end: where the new place is above the old one, the ends go first.
        above = start > int(fields[OLD_START - 3])
        steps = [(ARG_START, start), (ARG_END, middle), (ENV_START, middle), (ENV_END, end)]
        for option, place in (steps[1], steps[0], steps[3], steps[2]) if above else steps:
            _set(option, place, 0)
    _kept.append(memory)


def _set(option: int, address: int, size: int) -> None:
    words = [ctypes.c_ulong(word) for word in (option, address, size, 0)]
    check(libc.prctl(ctypes.c_int(PR_SET_MM), *words))
