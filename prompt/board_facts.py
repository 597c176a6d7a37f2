"""The board as a whole: what it is, how it ended last, and its own end."""

from __future__ import annotations

from onboard import boot_ends
from onboard.to_pid1 import SVError
from prompt.asking import ask
from prompt.shapes import Facts, Stats


def board() -> Stats:
    """The board and PID 1: boot id, uptime (s), profile, rejected rows, faults, watchdog, the load of PID 1's loop.

    `last_boot` is how the boot before this one ended, {} where that is not known; post_mortem() has more.
    """
    end = boot_ends.read(boot_ends.RECORD).get("last_end") or {}
    return Facts(ask("board") | {"last_boot": {name: end[name] for name in ("cause", "reason", "pushed") if name in end}})


def post_mortem() -> Stats:
    """Why the boot before this one ended, and how often boots of this board ended so.

    number (of this boot), cause (reboot, halt, poweroff; critical: a board beyond repair by restarts; watchdog: PID 1 hung;
    panic; unknown: a power cut, or a reset that left no trace), reason, counts, stack (PID 1's, where it hung), panic (the
    kernel's last words), pushed (where that boot ran pushed code: which).
    """
    record = boot_ends.read(boot_ends.RECORD)
    if not record:
        raise SVError("there is no record of boots; see logs('keeper')")
    end = record["last_end"] or dict.fromkeys(("cause", "reason", "stack", "panic"))
    return Facts({"number": record["number"], "counts": record["counts"], **end})


def snooze(minutes: float = 15.0) -> Stats:
    """No reboot for bad health for so many minutes: time to look at a board that would. 0 ends it. The watchdog's facts."""
    return Facts(ask("snooze", minutes=minutes))


def reload() -> Stats:
    """Re-read settings and profile: which services were started, stopped, restarted or got other limits, and rejected rows."""
    return Facts(ask("reload"))


def reboot() -> str:
    """Stop everything and restart the machine."""
    return str(ask("reboot"))


def halt() -> str:
    """Stop everything and halt."""
    return str(ask("halt"))


def poweroff() -> str:
    """Stop everything and switch off."""
    return str(ask("poweroff"))
