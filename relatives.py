"""Who belongs to a service beyond its main process: groups, and orphans that PID 1 has adopted, read from /proc."""

from __future__ import annotations

import os

from lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container


def send(call: Callable[[int, int], None], target: int, number: int) -> bool:
    """kill(2) or killpg(3); whether there was somebody to send to."""
    try:
        call(target, number)
    except OSError:  # ESRCH
        return False
    return True


def adopted(known: Container[int]) -> list[int]:
    """Our children that we did not start: orphans that the kernel gave to PID 1."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == me]
    return [pid for pid in children if pid not in known]


def parent_of(pid: int) -> int:
    return int(_stat(pid)[1])


def is_process(pid: int) -> bool:
    """Whether it is one: a thread's number has a folder in /proc too, a process group, and whatever else we look at."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return f"\nTgid:\t{pid}\n" in file.read()
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent and the rest of /proc/PID/stat (`man 5 proc`); a process that has gone is an orphan of nobody."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def environment_of(pid: int) -> bytes:
    if _stat(pid)[0] == "D":
        return b""  # it may hold the lock that reading its memory waits for
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read() + b"\0"
    except OSError:
        return b""
