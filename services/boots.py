"""The record of boots on the data partition: why the last one ended, how often each reason, and PID 1's stack where it hung."""

from __future__ import annotations

import os
import time

from base.files import read_file, write_atomically
from base.stdlib import TYPE_CHECKING, json
from onboard import boot_ends

if TYPE_CHECKING:
    from typing import Any

# reboot, halt, poweroff: asked for. critical: restarts did not help. watchdog: PID 1 hung. unknown: for example a power cut.
CAUSES = ("reboot", "halt", "poweroff", "critical", "watchdog", "panic", "unknown")
HOUR = 3600.0  # seconds; a boot that ran this long clears `escalated`, which an earlier critical end has set
PSTORE = "/sys/fs/pstore"
PANIC = "Kernel panic"  # how the kernel's line begins in the dump
WATCHDOGS = "/sys/class/watchdog"
WDIOF_CARDRESET = 0x20  # linux/watchdog.h: the watchdog caused the last reset
DUMPS, DUMP_SIZE = 8, 64 * 1024  # panics that are kept, and bytes of each
LONGEST = 1024 * 1024  # characters of a file on the data partition that are read
MOST = 2000  # characters of a panic or a stack in the record


def restore(folder: str) -> None:
    """Write this boot's record, with the cause of the last boot's end. Does nothing if this boot has a record already.

    Dumps and stacks are moved after the record is on the disk: a power cut in between reports them twice, never loses them.
    Raises OSError where the record cannot be written.
    """
    if os.path.exists(boot_ends.RECORD):
        if boot_ends.started_anew():
            save(folder)  # the PID 1 before this one has written how it ended, and the board goes on
        return
    old = boot_ends.parsed(kept(f"{folder}/boot.json"))
    dumps = {path: read_file(path)[-DUMP_SIZE:] for path in entries(PSTORE) if "/dmesg-" in path}
    end = last_end(folder, old, dumps) if old else None
    counts = dict.fromkeys(CAUSES, 0) | old.get("counts", {})
    escalated = bool(old.get("escalated"))
    if end:
        # A young boot that recorded no end may have escalated: a read-only disk would have kept it from recording that.
        escalated = escalated or (end["cause"] == "unknown" and not old.get("lived"))
        counts[end["cause"]] = counts.get(end["cause"], 0) + 1
    record = {
        "number": old.get("number", 0) + 1, "boot_id": read_file("/proc/sys/kernel/random/boot_id"),
        "started": round(time.time()), "began": time.monotonic(),
        "last_end": end, "counts": counts, "escalated": escalated, "lived": False, "ended": None, "pushed": pushed_code(),
    }  # fmt: skip
    written = False
    try:
        write(folder, record)
        written = True
        clear_away(folder, dumps, old.get("number", 0))
    finally:
        # Without a lasting record, every boot would count as the first one, and the board would reboot in a loop.
        boot_ends.tell(boot_ends.RECORD, record | {"may_escalate": bool(old) and written and not escalated})


def save(folder: str) -> None:
    """Update this boot's record: every hour that it runs, at the stop how it ends. Raises OSError where it cannot."""
    record = boot_ends.read(boot_ends.RECORD)
    if not record:
        raise OSError(f"there is no {boot_ends.RECORD}: the record could not be restored")
    record["ended"] = boot_ends.read(boot_ends.ENDING) or None
    record["pushed"] = pushed_code()
    if time.monotonic() - record["began"] >= HOUR:
        record["lived"], record["escalated"] = True, False
    if record["ended"] and record["ended"].get("cause") == "critical":
        record["escalated"] = True
    write(folder, record)


def pushed_code() -> dict[str, Any] | None:
    """Which pushed code runs: its id, and what its sender has said of it; None where the root's does."""
    found = boot_ends.read(boot_ends.PUSHED)
    return {name: found.get(name) for name in ("id", "what")} if found.get("running") else None


def kept(path: str) -> str:
    """The text of a file on the data partition; empty if it cannot be read. Follows no symbolic link, waits for no FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST)
    except OSError:
        return ""


def write(folder: str, record: dict[str, Any]) -> None:
    write_atomically(f"{folder}/boot.json", json.dumps(record) + "\n")


def last_end(folder: str, old: dict[str, Any], dumps: dict[str, str]) -> dict[str, Any]:
    """Why the last boot ended, from what it left: a kernel panic, the watchdog's status, PID 1's stack, its record."""
    text = "\n".join(dumps.values())
    panic = text[text.find(PANIC) :] if PANIC in text else ""  # an oops alone does not end a boot
    statuses = [read_file(f"{path}/bootstatus") for path in entries(WATCHDOGS)]
    bitten = any(int(text) & WDIOF_CARDRESET for text in statuses if text.isdigit())
    stack, ended = kept(f"{folder}/pid1.stack").strip(), old.get("ended")
    if panic:
        cause, reason = "panic", panic.partition("\n")[0]
    elif bitten or (stack and not ended):
        cause = "watchdog"
        reason = f"the shutdown hung; {ended['cause']}: {ended['reason']}" if ended else "PID 1 did not feed it"
    elif ended:
        cause, reason = ended["cause"], ended["reason"]
    else:
        cause, reason = "unknown", "a power cut, or a reset that left no trace"
    facts = {"cause": cause, "reason": reason, "boot_id": old.get("boot_id"), "stack": stack[:MOST], "panic": panic[:MOST]}
    return facts | ({"pushed": old["pushed"]} if old.get("pushed") else {})


def clear_away(folder: str, dumps: dict[str, str], number: int) -> None:
    """Move the kernel's dumps from pstore to the disk, which frees pstore for the next one
    (Documentation/admin-guide/ramoops.rst). PID 1's stack is renamed to pid1.last, for people to read."""
    for path, text in dumps.items():
        write_atomically(f"{folder}/pstore/{number:06d}-{os.path.basename(path)}", text)
        os.unlink(path)
    for path in entries(f"{folder}/pstore")[:-DUMPS]:
        os.unlink(path)
    if os.path.exists(f"{folder}/pid1.stack"):
        os.rename(f"{folder}/pid1.stack", f"{folder}/pid1.last")


# --- PID 1's stack --------------------------------------------------------------------------------------------------
def stuck(folder: str, text: str) -> None:
    """Save what PID 1 sent: its stack while its loop hangs. If it reports that the loop runs again, rename it to pid1.late."""
    dump, recovered, _ = text.partition(boot_ends.RECOVERED)
    path = f"{folder}/pid1.stack"
    if dump:
        write_atomically(path, dump + in_the_kernel())
    if recovered and os.path.exists(path):
        os.rename(path, f"{folder}/pid1.late")


def in_the_kernel() -> str:
    """PID 1's kernel stack, /proc/1/stack (`man 5 proc`); empty where it cannot be read."""
    stack = read_file("/proc/1/stack")
    return f"In the kernel:\n{stack}\n" if stack else ""


def entries(folder: str) -> list[str]:
    """Paths of a folder's entries, sorted; none where the folder does not exist."""
    return [f"{folder}/{name}" for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
