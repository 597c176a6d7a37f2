"""The end of a board: everything that still runs, then the file systems, then reboot(2). Nothing in here can wait for ever.

A system call that may hang on a dead disk is risked by a child. Where there can be no child (no memory, no process number),
PID 1 makes the call itself, and the hardware's watchdog bounds it: sync, read-only and reboot never depend on a new process.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY, EIO, ENOMEM, ETIMEDOUT

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import MNT_DETACH, MOUNT_FLAGS, Reboot, loop_detach, mount, reboot, restart_with, swapoff, umount
from onboard import boot_ends
from onboard.mounts import mounted, unescape

if TYPE_CHECKING:
    from collections.abc import Callable

    from tables.tables import Tables

PATIENCE = 2.0  # seconds for one umount(2)
TRIAL = 10.0  # seconds for the trial of a new Python (pid1/anew.py)
HANGS = ETIMEDOUT  # what `bounded` answers where a call has not come back
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux/proc_ns.h
# File systems without a disk.
IN_MEMORY = ("proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "ramfs", "rootfs", "cgroup2", "pstore", "debugfs", "mqueue")
READ_ONLY = MOUNT_FLAGS["remount"] | MOUNT_FLAGS["ro"]


def budget(tables: Tables) -> float:
    """Seconds that the longest way from here to reboot(2) may take, the services' stop included."""
    umounts = PATIENCE * 3 * len(file_systems())  # each, a remount after it, and a lazy umount
    return float(tables.SHUTDOWN_TIMEOUT + 2 * tables.KILL_TIMEOUT + tables.SYNC_TIMEOUT + umounts + PATIENCE + TRIAL)


def nothing() -> None:
    """What to do meanwhile, and to the watchdog at the end, where there is none."""


def tear_down(
    command: int, tables: Tables, meanwhile: Callable[[], object] = nothing, disarm: Callable[[], object] = nothing,
    anew: Callable[[], object] = nothing,
) -> None:  # fmt: skip
    """End everything that still runs, close the file systems, call reboot(2). Nothing in here can wait for ever.

    `meanwhile` is called again and again while it waits: it feeds the hardware watchdog. `disarm` stops that watchdog where the
    machine is to stay halted. `anew` may execute a new PID 1 for the rest of it.
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
    anew()
    finish(command, tables.SYNC_TIMEOUT, meanwhile, disarm)


def finish(command: int, seconds: float, meanwhile: Callable[[], object], disarm: Callable[[], object]) -> None:
    """No process is left: close the disks and call reboot(2)."""
    argument = read_file(boot_ends.ARGUMENT)[:64] if command == Reboot.RESTART else ""
    close_disks(seconds, meanwhile)
    _log.info(f"reboot({Reboot.NAMES[command]}{f', {argument}' if argument else ''})")
    if command != Reboot.RESTART:
        disarm()
    if argument:
        attempt(restart_with, argument)  # comes back where the kernel refuses
    reboot(command)


def at_least(command: int) -> None:
    """What is left to do where the way to the end has failed, by a mistake of ours or without memory: no process, no table."""
    if owns_kernel():
        attempt(os.sync)
        attempt(mount, "", "/", "", READ_ONLY)
    reboot(command)


# --- waiting ----------------------------------------------------------------------------------------------------------
def wait_for_children(seconds: float, *, meanwhile: Callable[[], object] = nothing) -> bool:
    """Reap until none is left, at most so long."""
    return wait_for(-1, seconds, meanwhile) is not None


def wait_for(pid: int, seconds: float, meanwhile: Callable[[], object] = nothing) -> int | None:
    """Reap until this child has gone, or all of them (-1); its wait status, or None where it is still there at the end."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while True:
        try:
            while (one := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if one[0] == pid:
                    return one[1]
        except ChildProcessError:
            return 0
        if time.monotonic() >= deadline:
            return None
        meanwhile()
        time.sleep(pause)  # the loop has ended: nobody waits for us any more
        pause = min(2 * pause, 0.005)


def attempt(step: Callable[..., object], *arguments: object) -> int:
    """Call it in this process: its errno, 0 where it went well."""
    try:
        step(*arguments)
    except OSError as error:
        return error.errno or EIO
    except MemoryError:
        return ENOMEM
    return 0


def bounded(
    deadline: float, what: str, step: Callable[..., object], *arguments: object, meanwhile: Callable[[], object] = nothing
) -> int:
    """A system call that may hang on a dead disk: a child takes the risk, and we go on at the deadline. Its errno, or HANGS."""
    try:
        pid = os.fork()
    except (OSError, MemoryError) as error:
        _log.warning(f"{what}: by PID 1 itself, for there is no new process: {getattr(error, 'strerror', '') or 'no memory'}")
        return said(what, attempt(step, *arguments))
    if pid == 0:
        number = EIO
        try:
            number = attempt(step, *arguments)
        finally:
            os._exit(number)
    long = what == "sync" or step is swapoff
    patience = max(0.5, deadline - time.monotonic()) if long else PATIENCE
    status = wait_for(pid, patience, meanwhile)
    if status is None:
        _log.error(f"{what} hangs; going on without")
        return HANGS
    if os.WIFSIGNALED(status):  # by the kernel, which is out of memory: PID 1 is the one that it spares
        return said(what, attempt(step, *arguments))
    return said(what, os.WEXITSTATUS(status))


def said(what: str, number: int) -> int:
    """An errno, after it has been logged where it is one."""
    if number:
        _log.debug(f"{what}: {os.strerror(number)}")
    return number


# --- the disks --------------------------------------------------------------------------------------------------------
def close_disks(seconds: float, meanwhile: Callable[[], object] = nothing) -> None:
    """Sync, swap off, unmount in reverse, root read-only. In a namespace the disks are somebody else's: only our mounts go."""
    deadline = time.monotonic() + seconds

    def do(what: str, step: Callable[..., object], *arguments: object) -> int:
        return bounded(deadline, what, step, *arguments, meanwhile=meanwhile)

    ours = owns_kernel()
    if ours or not os.path.exists("/proc/self"):
        do("sync", os.sync)
    for path in swaps() if ours else ():
        if number := do(f"swapoff {path}", swapoff, path):
            _log.warning(f"swapoff {path}: {os.strerror(number)}; its file system stays busy")
    if ours and nothing_to_write():
        return
    unmount_all(do, ours)
    if ours:
        write_protect(do)
        do("sync", os.sync)


def nothing_to_write(path: str = "/proc/self/mountinfo") -> bool:
    """Whether each file system is in memory or read-only as a whole, as a microVM's are: reboot(2) loses nothing of them.

    (`man 5 proc_pid_mountinfo`: after the "-" come the type, the source and the options of the super block.)
    """
    lines = [line.partition(" - ")[2].split() for line in read_file(path).splitlines()]
    return bool(lines) and all(len(words) > 2 and (words[0] in IN_MEMORY or "ro" in words[2].split(",")) for words in lines)


def unmount_all(do: Callable[..., int], ours: bool) -> None:
    """Unmount, the newest first; what was busy again, as long as something else has gone: a mount on it, a loop device.

    A target is there twice where one mount covers another. The kernel says yes to each detach of a loop device that is in use.
    """
    targets, detached = [target for target in file_systems() if target != "/"], set[str]()
    while targets:
        results = [(target, do(f"umount {target}", umount, target)) for target in targets]
        freed = sum(number == 0 for _, number in results)
        for name in [name for name in loops() if name not in detached] if ours else ():
            freed += do(f"detach /dev/{name}", loop_detach, f"/dev/{name}") == 0
            detached.add(name)
        targets = [target for target, number in results if number == EBUSY] if freed else []


def write_protect(do: Callable[..., int]) -> None:
    """Make read-only what is still mounted, the root last. What stays writable is said, and unmounted as soon as it is free."""
    for target in file_systems():
        if number := do(f"remount {target} read-only", mount, "", target, "", READ_ONLY):
            _log.warning(
                f"{target} stays writable, and may need a repair at the next boot: remount read-only: {os.strerror(number)}"
            )
            if target != "/":
                do(f"detach {target}", umount, target, MNT_DETACH)


def swaps() -> list[str]:
    """What the kernel swaps to (`man 5 proc`, /proc/swaps), the newest first."""
    return [unescape(line.split()[0]) for line in read_file("/proc/swaps").splitlines()[1:]][::-1]


def loops() -> list[str]:
    """Loop devices that hold a file open (`man 4 loop`), the newest first."""
    try:
        names = [name for name in os.listdir("/sys/block") if name.startswith("loop")]
    except OSError:
        return []
    return [name for name in sorted(names)[::-1] if os.path.exists(f"/sys/block/{name}/loop/backing_file")]


def owns_kernel() -> bool:
    """Whether this is the first PID namespace, and super blocks are ours to write-protect."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        return os.path.exists("/proc/self")  # a kernel without CONFIG_PID_NS; without /proc we do not know


def file_systems() -> list[str]:
    """Mount points that hold files of ours, the newest first."""
    return [target for target in mount_points() if target.split("/")[1] not in ("proc", "sys", "dev")]


def mount_points() -> list[str]:
    """Mount points, the newest first; the root alone where they are unknown."""
    try:
        return [target for _, target in mounted()][::-1]
    except OSError as error:
        _log.error(f"what is mounted is unknown: {error}")
        return ["/"]
