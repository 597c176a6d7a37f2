"""Code that was pushed to this board: take it, keep it, give it up. onboard/pushed.py says what a set is."""

from __future__ import annotations

import os
import sys
from typing import Any

from onboard import boot_ends
from onboard.to_pid1 import SVError
from prompt.asking import ask, tables
from prompt.shapes import Facts, Stats
from tables.tables import LIB

STORAGE = "/run/stack/storage.json"
# What PID 1, its copies and the zygote have loaded: a change in it takes a PID 1 that starts anew.
PID1 = ("base/", "tables/", "onboard/", "pid1/", "services/", "stack.py", "sv.py", "_log.py", "bus.py")
TABLES = ("settings.py", "profiles/")  # what a reload reads again
AT_NEXT_USE = ("prompt/", "laptop/", "names/")  # a prompt that is open stays as it is


def push(archive: str, what: str = "") -> Stats:
    """Run the modules of an archive of `make push` ("-": on stdin) until the next boot. keep() keeps them longer.

    The set is checked before anything is changed. Where only settings and apps differ they are reloaded and restarted; else
    all services are stopped and PID 1 starts anew. `id` and `what` of the set, how many files `changed`, what was `restarted`
    ("PID 1" for everything), and the rows that are `rejected`.
    """
    from onboard import pushed  # here: it brings ctypes

    folder = pushed.unpack(_read(archive, pushed.LARGEST_ARCHIVE + 1), what)
    try:
        about = boot_ends.read(f"{folder}/{pushed.ABOUT}")
        changed: list[str] = about["changed"]
        answer = {"id": about["id"], "what": about["what"], "changed": len(changed)}
        if not changed:
            raise SVError("nothing was changed: the board runs all of this already")
        rejected = pushed.check(folder, changed, ask("board")["options"])
        if any(name.startswith(PID1) for name in changed):
            ask("push", folder=folder)
            return Facts({**answer, "restarted": "PID 1", "rejected": rejected})
        pushed.bind(folder)
    except OSError as error:
        pushed.remove(folder)
        raise SVError(f"nothing was changed: {error}") from None
    except SVError:
        pushed.remove(folder)
        raise
    pushed.remove_others(folder)
    return Facts({**answer, "restarted": _take(changed), "rejected": rejected})


def keep() -> str:
    """Keep the pushed code that runs: from now on each boot starts with the root's and then changes to it.

    It is given up by drop(), by another image, and where a boot with it does not come up.
    """
    from onboard import pushed  # here: it brings ctypes

    running = boot_ends.read(boot_ends.PUSHED)
    if not running.get("running"):
        raise SVError("the board runs the root's code: there is nothing to keep; make push BOARD=root@... brings some")
    storage = boot_ends.read(STORAGE)
    if storage and not storage.get("mounted"):
        raise SVError("there is no data partition: what is kept would be gone at the next boot")
    try:
        with open(f"{running['folder']}/{pushed.ARCHIVE}", "rb") as file:
            archive = file.read(pushed.LARGEST_ARCHIVE + 1)
        facts = {name: running[name] for name in ("id", "what", "base")}
        pushed.write_kept(_folder(), {**facts, "trying": False}, archive)
        boot_ends.tell(boot_ends.PUSHED, {**running, "kept": True})
    except OSError as error:
        raise SVError(f"it cannot be kept: {error}") from None
    return f"kept: {running['id']} {running['what']}"


def drop() -> str:
    """Keep no pushed code: the next boot has the root's. What runs goes on until then."""
    from onboard import pushed  # here: it brings ctypes

    running = boot_ends.read(boot_ends.PUSHED)
    try:
        had = pushed.forget(_folder())
        if running:
            boot_ends.tell(boot_ends.PUSHED, {**running, "kept": False})
    except OSError as error:
        raise SVError(f"it cannot be dropped: {error}") from None
    if not had and not running.get("running"):
        raise SVError("no pushed code is kept, and none runs")
    return "dropped: the next boot has the root's code"


def _folder() -> str:
    return str(tables().values["KEEP"])


def _read(archive: str, limit: int) -> bytes:
    if archive == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with open(archive, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise SVError(f"{archive}: {error.strerror}") from None


def _take(changed: list[str]) -> list[str]:
    """Reload the tables where they differ, and restart the services that run what differs; their names."""
    rows: list[dict[str, Any]] = []
    while page := ask("stats", first=len(rows)):
        rows += page
    done: list[str] = []
    if any(name.startswith(TABLES) for name in changed):
        changes = ask("reload")
        done = sorted({name for what in ("started", "restarted") for name in changes.get(what, ())})
    for row in rows:
        if row["name"] not in done and row["wanted"] and any(_runs(row["cmd"], name) for name in changed):
            try:
                ask("restart", name=row["name"])
                done.append(row["name"])
            except SVError as error:  # the new table has it no more
                print(f"{row['name']}: {error}", file=sys.stderr)
    return done


def _runs(argv: list[str], changed: str) -> bool:
    """Whether this command line runs what has changed: the file itself, or a file of its folder."""
    if changed.startswith(AT_NEXT_USE):
        return False
    for word in argv:
        path = os.path.relpath(word, LIB) if word.startswith(f"{LIB}/") else ""
        same_folder = "/" in path and os.path.dirname(path) == os.path.dirname(changed)
        if path and (path == changed or same_folder):
            return True
    return False
