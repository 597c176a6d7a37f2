"""The end of a board: everything that still runs, then the file systems, then reboot(2). Nothing in here can wait for ever."""

from __future__ import annotations

import os
import time

import _log
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import MOUNT_FLAGS, Reboot, mount, reboot, umount

if TYPE_CHECKING:
    from collections.abc import Callable

    from tables.tables import Tables

PATIENCE = 2.0  # seconds for one umount(2)
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux/proc_ns.h


def budget(tables: Tables) -> float:
    """Seconds that the longest way from here to reboot(2) may take, the services' stop included."""
    umounts = PATIENCE * 2 * len(file_systems())  # each, and a remount after it
    return float(tables.SHUTDOWN_TIMEOUT + 2 * tables.KILL_TIMEOUT + tables.SYNC_TIMEOUT + umounts + PATIENCE)


def nothing() -> None:
    """What to do meanwhile, and to the watchdog at the end, where there is none."""


def tear_down(
    command: int, tables: Tables, meanwhile: Callable[[], object] = nothing, disarm: Callable[[], object] = nothing
) -> None:
    """End everything that still runs, close the file systems, call reboot(2). Nothing in here can wait for ever.

    `meanwhile` is called again and again while it waits: it feeds the hardware watchdog. `disarm` stops that watchdog where the
    machine is to stay halted.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if wait_for_children(0.0):
            break
        for one in (number, signal.SIGCONT):
            try:
                os.kill(-1, one)
            except ProcessLookupError:
                break
        if not wait_for_children(tables.KILL_TIMEOUT, meanwhile=meanwhile) and number == signal.SIGKILL:
            _log.error("some processes cannot be killed; going on without them")
    close_disks(tables, meanwhile)
    _log.info(f"reboot({Reboot.NAMES[command]})")
    if command != Reboot.RESTART:
        disarm()
    reboot(command)


def wait_for_children(seconds: float, only: int = -1, *, meanwhile: Callable[[], object] = nothing) -> bool:
    """Reap until none is left (or the one has gone), at most so long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == only:
                    return True
        except ChildProcessError:
            return True
        if time.monotonic() >= deadline:
            return False
        meanwhile()
        time.sleep(0.002)  # the loop is over: no one is left to be kept waiting


def close_disks(tables: Tables, meanwhile: Callable[[], object] = nothing) -> None:
    """Sync, unmount in reverse, root read-only. In a namespace the disks are somebody else's: only our mounts go."""
    deadline = time.monotonic() + tables.SYNC_TIMEOUT
    ours = owns_kernel()
    if ours or not os.path.exists("/proc/self"):
        bounded(deadline, "sync", os.sync, meanwhile=meanwhile)
    for target in file_systems():
        if target != "/":
            bounded(deadline, f"umount {target}", umount, target, meanwhile=meanwhile)
    if ours:
        known = {"/", *(row.target for row in tables.MOUNTS)}
        for target in filter(known.__contains__, file_systems()):
            flags = MOUNT_FLAGS["remount"] | MOUNT_FLAGS["ro"]
            bounded(deadline, f"remount {target} read-only", mount, "", target, "", flags, meanwhile=meanwhile)
        bounded(deadline, "sync", os.sync, meanwhile=meanwhile)


def bounded(
    deadline: float, what: str, step: Callable[..., object], *arguments: object, meanwhile: Callable[[], object] = nothing
) -> None:
    """A system call that may hang on a dead disk: a child takes the risk, and we go on at the deadline."""
    pid = os.fork()
    if pid == 0:
        try:
            step(*arguments)
        except OSError as error:
            _log.debug(f"{what}: {error.strerror}")
        finally:
            os._exit(0)
    patience = max(0.5, deadline - time.monotonic()) if what == "sync" else PATIENCE
    if not wait_for_children(patience, only=pid, meanwhile=meanwhile):
        _log.error(f"{what} hangs; going on without")


def owns_kernel() -> bool:
    """Whether this is the first PID namespace, and super blocks are ours to write-protect."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        return os.path.exists("/proc/self")  # a kernel without CONFIG_PID_NS; without /proc we do not know


def file_systems() -> list[str]:
    """Mount points that hold files of ours, the newest first."""
    return [target for target in mounted() if target.split("/")[1] not in ("proc", "sys", "dev")]


def mounted() -> list[str]:
    """Mount points, the newest first (`man 5 fstab`: white space in them is escaped in octal)."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            targets = [line.split()[1] for line in file]
    except OSError as error:
        _log.error(f"what is mounted is unknown: {error}")
        return ["/"]
    plain = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))
    for escaped, char in plain:
        targets = [target.replace(escaped, char) for target in targets]
    return targets[::-1]
