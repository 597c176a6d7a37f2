"""The mothership's word `update`: it starts updates/word.py as a service named `update`, and shows what an update waits for.

PID 1 loads this when the first word comes. It neither downloads nor writes: the service does, with root's rights, a bounded
memory and a low share of the CPU.
"""

from __future__ import annotations

import os

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from onboard import boot_ends
from onboard.to_pid1 import SVError
from tables.rows import Service

if TYPE_CHECKING:
    from typing import Any

    from pid1.life import Life

NAME = "update"
RELEASE = "/etc/stack-release"  # "BOARD VERSION", by the image's build
LONGEST = 1024  # characters of an address
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~:/?=&%+,@")
DIGITS = frozenset("0123456789.")
MEMORY = "256M"  # the bundle is streamed; the engine's buffers are small
MOST, LONG = 5, 300  # of what an update waits for, and characters of each


def asked(life: Life, request: dict[str, Any], now: float) -> Any:
    """Begin an update; with `waits_for`, show what it waits for instead: [] is nothing any more.

    SVError where it is refused: no image of ours, this version runs already, or another update is under way.
    """
    url, version, waits = request["url"], request["version"], request.get("waits_for")
    if not url.startswith("https://") or len(url) > LONGEST or not set(url) <= PLAIN:
        raise SVError(f"{url[:100]!r} is no https:// address of at most {LONGEST} plain characters")
    if not 0 < len(version) <= 64 or not set(version) <= DIGITS:
        raise SVError(f"{version[:64]!r} is no version such as 1.4")
    words = read_file(RELEASE).split()
    if len(words) != 2:
        raise SVError(f"{RELEASE} does not say which version this is: only an image of `make image` takes updates")
    if words[1] == version:
        return f"this board runs {version} already"
    if life.sv.stopping is not None:
        raise SVError("the board is shutting down")
    under_way = life.sv.processes.get(NAME)
    if under_way is not None and under_way.pid:
        if under_way.row.argv[1:] == (url, version):
            return f"the update to {version} is under way"
        raise SVError("another update is under way")
    if isinstance(waits, list):
        return show(version, [str(text)[:LONG] for text in waits[:MOST]])
    life.sv.add(
        Service(NAME, (NAME, url, version), restart="never", memory_max=MEMORY, cpu_weight=10, module="updates.word"), now
    )
    life.sv.settle(now)
    return f"the update to {version} has begun"


def show(version: str, waits: list[str]) -> dict[str, Any]:
    """Show in board()["update"] what an update waits for, in the place of what is not under way itself."""
    shown = boot_ends.read(boot_ends.UPDATE)
    if shown.get("state") in ("on trial", "written"):
        raise SVError(f"an update is {shown['state']}: it is committed, or left, before the next one")
    if waits:
        boot_ends.tell(boot_ends.UPDATE, {"state": "waiting", "version": version, "waits_for": waits})
    elif shown.get("state") == "waiting":
        os.unlink(boot_ends.UPDATE)
    return {"waits_for": waits}
