"""Pushed code that is kept: a boot starts with the root's code, and changes to the kept set once the data partition is there.

A mark on the disk says "trying" until that boot has come up. A boot that finds the mark drops the set: it has hung the board,
or reset it. A new image drops it as well.
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.files import read_file
from base.stdlib import TYPE_CHECKING, signal
from onboard import boot_ends, pushed, to_pid1
from onboard.to_pid1 import SVError
from tables.tables import LIB

if TYPE_CHECKING:
    from typing import Any

STORAGE = "/run/stack/storage.json"
STEADY = 30.0  # seconds after the start of everything: then the boot counts as one that came up
LOOK = 1.0  # seconds between two looks whether everything has been started


def begin(keep: str) -> None:
    """The boot has the root's code: change to the kept set, or say why not."""
    facts = pushed.kept(keep)
    if not facts:
        return
    if why := refusal(facts):
        give_up(keep, facts, why)
        return
    try:
        pushed.write_kept(keep, {**facts, "trying": True})
        with open(f"{keep}/pushed/{pushed.ARCHIVE}", "rb") as file:
            archive = file.read(pushed.LARGEST_ARCHIVE + 1)
        folder = pushed.unpack(archive, str(facts.get("what")))
        about = boot_ends.read(f"{folder}/{pushed.ABOUT}")
        if about["id"] != facts.get("id"):
            raise SVError("the archive on the data partition is damaged")
        boot_ends.tell(f"{folder}/{pushed.ABOUT}", {**about, "kept": True})
        pushed.check(folder, about["changed"], ask("board")["options"])
        ask("push", folder=folder)
    except (OSError, SVError) as error:
        give_up(keep, facts, str(error))


def refusal(facts: dict[str, Any]) -> str:
    """Why the kept set is not tried; empty where it is."""
    if boot_ends.read(STORAGE).get("foreign"):
        return "the data partition is on another disk than the root"
    if facts.get("trying"):
        return "the boot before this one changed to it, and did not come up"
    if facts.get("base") != read_file(f"{LIB}/build_date"):
        return "the root has been installed anew since"
    return ""


def give_up(keep: str, facts: dict[str, Any], why: str) -> None:
    """Keep it no more, and say so here, in the log and in board()."""
    say(f"pushed code is dropped ({facts.get('id')} {facts.get('what')}): {why}")
    boot_ends.tell(boot_ends.PUSHED, {"running": False, "dropped": facts.get("id"), "what": facts.get("what"), "why": why})
    try:
        pushed.forget(keep)
    except OSError as error:
        say(f"it cannot be forgotten: {error}")


def go_on(keep: str, running: dict[str, Any]) -> None:
    """Pushed code runs. Where it is the kept set, wait until the boot has come up, and take the mark away."""
    kept = pushed.kept(keep)
    same = bool(kept) and kept.get("id") == running.get("id")
    say(f"the board runs pushed code ({running.get('id')} {running.get('what')}), {'kept' if same else 'until the next boot'}")
    pushed.remove_others(str(running.get("folder")))
    if not same or not kept.get("trying"):
        return
    if came_up() or boot_ends.read(boot_ends.ENDING).get("cause") != "critical":
        pushed.write_kept(keep, {**kept, "trying": False})


def came_up() -> bool:
    """Wait until all services have been started and some time has passed; False where the board ends before."""
    wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer)
    since = 0.0
    while True:
        now = time.monotonic()
        if not since and ask("board")["complete"]:
            since = now
        if since and now - since >= STEADY:
            return True
        if select.select([wakeup], [], [], LOOK)[0]:
            return False


def ask(op: str, **arguments: Any) -> Any:
    return to_pid1.ask(to_pid1.SOCKET, {"op": op, **arguments})


def say(text: str) -> None:
    print(f"<4>{text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """`kept_push KEEP`, as a service with `module="services.kept_push"`."""
    (keep,) = arguments
    running = boot_ends.read(boot_ends.PUSHED)
    if running.get("running"):
        go_on(keep, running)
    else:
        begin(keep)
