"""New namespaces for a board, and the ids of its users outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from base.syscalls import check, libc

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
FOREIGN_ROOT, USERS = 1_900_000_000, 65536  # root of root's board, and how many users it has: ids that nobody else has


def unshare(flags: int) -> None:
    """man 2 unshare."""
    check(libc.unshare(flags))


def map_ids(pid: int, uid: int, gid: int) -> None:
    """Say who the users of a new user namespace are.

    Root gives it a range of ids that own nothing on the host. Others are its root themselves; with /etc/subuid and
    newuidmap(1) it has other users too.
    """
    if uid == 0:
        for name in ("uid_map", "gid_map"):
            _write_map(pid, name, f"0 {FOREIGN_ROOT} {USERS}")
        return
    user = subprocess.run(["id", "-un", str(uid)], capture_output=True, text=True, check=False).stdout.strip()
    for tool, own, path in (("newuidmap", uid, "/etc/subuid"), ("newgidmap", gid, "/etc/subgid")):
        ranges = [line.split(":")[1:] for line in _lines(path) if line.split(":")[0] in (user, str(uid))]
        if not ranges or not shutil.which(tool):
            break
        first, count = ranges[0]
        subprocess.run([tool, str(pid), "0", str(own), "1", "1", first, count], check=True)
    else:
        return
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        _write_map(pid, name, text)


def _write_map(pid: int, name: str, text: str) -> None:
    with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
        file.write(text)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def enter_namespaces(map_users: Callable[[int, int, int], None] = map_ids) -> None:
    """New namespaces for this process and its next child; a helper outside writes the user namespace's maps."""
    uid, gid, me = os.getuid(), os.getgid(), os.getpid()
    go, ready = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready)
        os.read(go, 1)
        try:
            map_users(me, uid, gid)
            os._exit(0)
        finally:
            os._exit(1)
    unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    os.close(ready)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError(1, "cannot map this user into a user namespace (`man 7 user_namespaces`)")


def become_root() -> None:
    """Become root of our user namespace. Until here we were the user who started us, and could open that user's files."""
    try:
        os.setgroups([])
    except OSError:
        pass  # an ordinary user's namespace may not
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
