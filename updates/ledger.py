"""What this program knows of the slots, beside what the firmware does: versions, verdicts, the trial under way."""

from __future__ import annotations

from base.files import read_file, write_atomically
from base.stdlib import TYPE_CHECKING, json
from updates.slots import SlotError

if TYPE_CHECKING:
    from typing import Any

    from updates.slots import Slots

LEDGER = "slots.json"  # in KEEP/update
OURS = ("A", "B", "trial", "last", "word")  # another version may have more in it, which stays


def ledger(folder: str) -> dict[str, Any]:
    """What is known of the slots; {} where nothing is.

    For each slot `version`, `state` (writing, written, good, bad) and its `reason`; `trial`, the one under way: its slot and
    version, the slot and the boot from which it was begun, and what its health is compared with; `last`: how one ended;
    `word`: what the mothership has asked for, until that has ended (updates/word.py).
    """
    try:
        found = json.loads(read_file(f"{folder}/{LEDGER}"))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if name not in OURS or isinstance(value, (dict, type(None)))}


def note(folder: str, **facts: Any) -> None:
    """Write some of the ledger again; it is on the disk when this returns."""
    write_atomically(f"{folder}/{LEDGER}", json.dumps(ledger(folder) | facts) + "\n", 0o600)


def commit(folder: str, slots: Slots, reason: str) -> str:
    """Each start takes the slot on trial from now on. SlotError where none is on trial; OSError where nothing can be written.

    A power cut between the sector and the ledger leaves a slot that is committed, and a ledger that names a trial
    still: the firmware decides.
    """
    current = slots.current()
    if slots.default() == current:
        raise SlotError(f"slot {current} is not on trial: each start takes it already")
    slots.mark_good(reason)
    known = ledger(folder).get(current) or {}
    note(folder, **{current: {**known, "state": "good", "reason": reason[:200]}}, trial=None)
    return f"slot {current} is committed: {reason[:200]}"
