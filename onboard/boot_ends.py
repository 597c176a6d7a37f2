"""Files between PID 1 and the keeper: how the last boot ended, how this one ends, where PID 1 hangs.

All of it is in /run, which is memory: PID 1 never waits for a disk. What survives is services/boots.py's.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING, json

if TYPE_CHECKING:
    from typing import Any

RECORD = "/run/stack/boot.json"  # the keeper's, for everybody: this boot's number, how the last one ended, how often each
ENDING = "/run/stack/ending.json"  # PID 1's, for the keeper: how this boot ends
PUSHED = "/run/stack/pushed.json"  # onboard/pushed.py's: pushed code that runs, or that this boot has dropped
ARGUMENT = (
    "/run/stack/reboot_argument"  # for PID 1: what its reboot(2) tells the firmware, such as "0 tryboot" (updates/slots.py)
)
UPDATE = "/run/stack/update.json"  # updates/trial.py's, for everybody: the update under way, or how the last one ended
STUCK = "/run/stack/stuck"  # a FIFO from PID 1 to the keeper: its stack, when it has been stuck for long
RECOVERED = "PID 1 goes on\n"  # the word in it that takes all this back


def read(path: str) -> dict[str, Any]:
    """One of these files; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parsed(file.read())
    except (OSError, ValueError):
        return {}


def parsed(text: str) -> dict[str, Any]:
    """A JSON object; empty where the text is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def started_anew() -> bool:
    """Whether a PID 1 has run before this one since the kernel started: pushed code runs (onboard/pushed.py)."""
    return bool(read(PUSHED).get("running"))


def tell(path: str, facts: dict[str, Any]) -> None:
    """Write one of these files: a reader finds all of it or nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
    os.rename(f"{path}.new", path)


def tell_argument(argument: str, path: str = "") -> None:
    """What the next reboot tells the firmware. It is in memory: a start that nobody has asked for does not have it."""
    os.makedirs(os.path.dirname(path or ARGUMENT), exist_ok=True)
    with open(f"{path or ARGUMENT}.new", "w", encoding="ascii") as file:
        file.write(argument)
    os.rename(f"{path or ARGUMENT}.new", path or ARGUMENT)


def open_stuck() -> int:
    """PID 1's end of the FIFO. It is opened for reading too, so that it keeps what is written until a keeper comes."""
    os.makedirs(os.path.dirname(STUCK), exist_ok=True)
    if os.path.lexists(STUCK):
        os.unlink(STUCK)
    os.mkfifo(STUCK, 0o600)
    return os.open(STUCK, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
