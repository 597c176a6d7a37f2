"""The record of boots on the data partition: why the last one ended, how often each reason, and PID 1's stack where it hung."""

from __future__ import annotations

import os
import time

from base.files import read_file, write_atomically
from base.stdlib import TYPE_CHECKING, json
from onboard import boot_ends

if TYPE_CHECKING:
    from typing import Any

# Asked for; a board beyond repair by restarts; PID 1 hung, the kernel died; a power cut, or a reset that left no trace.
CAUSES = ("reboot", "halt", "poweroff", "critical", "watchdog", "panic", "unknown")
HOUR = 3600.0  # a boot that has lived for so long forgets that an earlier one was ended as critical, or may have been
PSTORE = "/sys/fs/pstore"
PANIC = "Kernel panic"  # its line begins so, in the dump
WATCHDOGS = "/sys/class/watchdog"
WDIOF_CARDRESET = 0x20  # linux/watchdog.h: it has reset the board
DUMPS, DUMP_SIZE = 8, 64 * 1024  # panics that are kept, and bytes of each
LONGEST = 1024 * 1024  # characters of a file on the data partition that are read
MOST = 2000  # characters of a panic or a stack in the record


def restore(folder: str) -> None:
    """Begin this boot's record with the end of the last one. A keeper that was restarted finds it done.

    What the last boot left behind is cleared away once the record is on the disk: at worst it is told twice.
    """
    if os.path.exists(boot_ends.RECORD):
        return
    old = parsed(kept(f"{folder}/boot.json"))
    dumps = {path: read_file(path)[-DUMP_SIZE:] for path in entries(PSTORE) if "/dmesg-" in path}
    end = last_end(folder, old, dumps) if old else None
    counts = dict.fromkeys(CAUSES, 0) | old.get("counts", {})
    escalated = bool(old.get("escalated"))
    if end:
        # Without a word from a boot that was young: on a disk that went read-only it could not say that it escalated.
        escalated = escalated or (end["cause"] == "unknown" and not old.get("lived"))
        counts[end["cause"]] = counts.get(end["cause"], 0) + 1
    record = {
        "number": old.get("number", 0) + 1, "boot_id": read_file("/proc/sys/kernel/random/boot_id"),
        "started": round(time.time()), "began": time.monotonic(),
        "last_end": end, "counts": counts, "escalated": escalated, "lived": False, "ended": None,
    }  # fmt: skip
    written = False
    try:
        write(folder, record)
        written = True
        clear_away(folder, dumps, old.get("number", 0))
    finally:
        # On a disk that forgets, or cannot be written, each boot would take itself for the first to reboot.
        boot_ends.tell(boot_ends.RECORD, record | {"may_escalate": bool(old) and written and not escalated})


def save(folder: str) -> None:
    """Hourly: this boot lives. At the end: how it ends."""
    record = boot_ends.read(boot_ends.RECORD)
    if not record:
        raise OSError(f"there is no {boot_ends.RECORD}: the record could not be restored")
    record["ended"] = boot_ends.read(boot_ends.ENDING) or None
    if time.monotonic() - record["began"] >= HOUR:
        record["lived"], record["escalated"] = True, False
    if record["ended"] and record["ended"].get("cause") == "critical":
        record["escalated"] = True
    write(folder, record)


def kept(path: str) -> str:
    """A file of the data partition; empty where there is none. No symbolic link is followed, no FIFO waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST)
    except OSError:
        return ""


def parsed(text: str) -> dict[str, Any]:
    """The record in a text; empty where it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write(folder: str, record: dict[str, Any]) -> None:
    write_atomically(f"{folder}/boot.json", json.dumps(record) + "\n")


def last_end(folder: str, old: dict[str, Any], dumps: dict[str, str]) -> dict[str, Any]:
    """Why the last boot ended, from what it left behind: the kernel's last words, the dog's, PID 1's, its own, none."""
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
    return {"cause": cause, "reason": reason, "boot_id": old.get("boot_id"), "stack": stack[:MOST], "panic": panic[:MOST]}


def clear_away(folder: str, dumps: dict[str, str], number: int) -> None:
    """Move the kernel's dumps from pstore to the disk, which makes room for the next one
    (Documentation/admin-guide/ramoops.rst); PID 1's stack stays for people, under another name."""
    for path, text in dumps.items():
        write_atomically(f"{folder}/pstore/{number:06d}-{os.path.basename(path)}", text)
        os.unlink(path)
    for path in entries(f"{folder}/pstore")[:-DUMPS]:
        os.unlink(path)
    if os.path.exists(f"{folder}/pid1.stack"):
        os.rename(f"{folder}/pid1.stack", f"{folder}/pid1.last")


# --- PID 1's stack --------------------------------------------------------------------------------------------------
def stuck(folder: str, text: str) -> None:
    """What came from PID 1: its stack, because it has not fed the dog for long, or that it goes on."""
    dump, recovered, _ = text.partition(boot_ends.RECOVERED)
    path = f"{folder}/pid1.stack"
    if dump:
        write_atomically(path, dump + in_the_kernel())
    if recovered and os.path.exists(path):
        os.rename(path, f"{folder}/pid1.late")


def in_the_kernel() -> str:
    """Where in the kernel PID 1 waits, if it does (`man 5 proc`)."""
    stack = read_file("/proc/1/stack")
    return f"In the kernel:\n{stack}\n" if stack else ""


def entries(folder: str) -> list[str]:
    """What is in a folder, in order; nothing where there is none."""
    return [f"{folder}/{name}" for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
