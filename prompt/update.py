"""Another image for this board, into the slot that does not run."""

from __future__ import annotations

import os
import sys
import time

from onboard import suits
from onboard.to_pid1 import SOCKET, SVError
from prompt.asking import ask, tables
from prompt.shapes import Facts, Stats

WIDTH = 30


def update(source: str, now: bool = False) -> Stats:
    """Write a bundle of `make bundle` into the slot that does not run, and let the next reboot try it.

    `source` is a file, an https:// address (a download that was cut goes on where it was), or "-": on stdin. Room and power are
    looked at first; a bundle by another key, for another board, an older or a damaged one is refused. The `slot` that is
    written, its `version`, which one it comes `instead_of`, and what is `next`. What runs is never touched.

    An address is loaded in the hours of UPDATE_WINDOW, over a network that is not metered; with `now` at any time, over any.
    """
    from updates import install  # here: it brings ssl and subprocess
    from updates.engine import Refused
    from updates.slots import SlotError

    if os.geteuid() != 0:
        raise SVError("only root may update the board")
    values = tables().values
    waits = suits.waits_for(values["UPDATE_WINDOW"], values["INTERFACES"], values["NETWORK_STATE"])
    if waits and "://" in source and not now:
        raise SVError(f"not updated: it waits for {'; '.join(waits)}. update(..., now=True) does not wait")
    bar = Bar()
    try:
        found = install.update(source, values, os.environ.get("STACK_CONTROL", SOCKET), bar.show)
    except (Refused, SlotError, OSError, SVError) as error:
        raise SVError(f"not updated: {error}") from None
    finally:
        bar.end()
    return Facts(found)


def commit(reason: str = "") -> str:
    """Keep the slot that is on trial: from now on each start takes it. Without it any restart goes back to the other slot.

    `reason` is kept in the record of the slots, such as "ran a day".
    """
    from updates import ledger, slots  # here: they bring subprocess

    if os.geteuid() != 0:
        raise SVError("only root may commit an update")
    try:
        board = slots.slots(ask("board")["options"])
        return ledger.commit(f"{tables().values['KEEP']}/update", board, reason or "by hand")
    except (OSError, slots.SlotError) as error:
        raise SVError(f"not committed: {error}") from None


class Bar:
    """A line on the terminal that says how far it is; nothing where stderr is none."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.due = 0.0
        self.used = False

    def show(self, what: str, done: int, size: int) -> None:
        now = time.monotonic()
        if not self.shown or now < self.due:
            return
        self.due, self.used = now + 0.2, True
        filled = min(WIDTH, done * WIDTH // size) if size else 0
        share = f"{min(100, done * 100 // size):3} %" if size else "     "
        print(f"\r{what:9} [{'#' * filled:{WIDTH}}] {share} {done / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.used:
            print(file=sys.stderr)
