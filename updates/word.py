"""The mothership's word `update`, as root's service: wait until it suits the board, write the slot, and reboot into it.

PID 1 starts it (pid1/update_word.py). What it is to do is in the ledger: after a power cut the service `trial` has PID 1 start
it again, and a download goes on where it was. An update that fails is told at once, as a record for the mothership.
"""

from __future__ import annotations

import os
import sys
import time

from base.files import open_folder, read_file
from base.stdlib import TYPE_CHECKING
from onboard import boot_ends, suits, to_pid1
from onboard.board_table import board_table
from updates import fetch, install, ledger
from updates.engine import Refused
from updates.slots import SlotError

if TYPE_CHECKING:
    from typing import Any

    from tables.tables import Tables

LOOK = 30.0  # seconds between two looks whether it suits
OFTEN = 10.0  # seconds between two looks at the network while it downloads
AGAIN = 60.0  # seconds until a server that was not reached is tried again...
PATIENCE = 5 * 3600.0  # ...until so many seconds after the begin: the mothership waits for six hours
BEGINS = 5  # of one word, each ended by a power cut: then something else is wrong


class NotNow(Exception):
    """It does not suit any more."""


class Word:
    """One update that the mothership has asked for."""

    def __init__(self, tables: Tables, url: str, version: str) -> None:
        self.tables, self.url, self.version = tables, url, version
        self.folder = f"{tables.values['KEEP']}/update"
        self.look_due = 0.0
        self.deadline = time.monotonic() + PATIENCE

    def carry_out(self) -> str:
        """Why it has not worked; empty where the slot is written, and reboot() tries it."""
        begun = self._note()
        if begun > BEGINS:
            return f"it was begun {BEGINS} times, and each time the board was started again before it had ended"
        while True:
            while waits := self.waits():
                tell("waiting", self.version, waits_for=waits)
                rest(LOOK)
            tell("under way", self.version)
            try:
                found = install.update(self.url, self.tables.values, control(), self._say, self.version)
            except NotNow:
                continue
            except fetch.Cut as error:
                if time.monotonic() >= self.deadline:
                    return str(error)
                print(f"<4>{error}; it is tried again in {AGAIN:g} s", file=sys.stderr, flush=True)
                rest(AGAIN)
            except (Refused, SlotError, OSError, to_pid1.SVError) as error:
                return str(error)
            else:
                print(f"<5>slot {found['slot']} has {found['version']}", file=sys.stderr, flush=True)
                return ""

    def waits(self) -> list[str]:
        """What has to come before it may begin, or go on."""
        values = self.tables.values
        return suits.waits_for(values["UPDATE_WINDOW"], values["INTERFACES"], values["NETWORK_STATE"])

    def _note(self) -> int:
        """How often this word has been begun, with now; it is on the disk when this returns."""
        os.close(open_folder(self.folder, 0o700))
        before = ledger.ledger(self.folder).get("word") or {}
        same = (before.get("url"), before.get("version")) == (self.url, self.version)
        begun = 1 + (int(before.get("begun", 0)) if same else 0)
        ledger.note(self.folder, word={"url": self.url, "version": self.version, "begun": begun})
        return begun

    def _say(self, what: str, done: int, size: int) -> None:
        """The download goes on; NotNow where the traffic has come to a metered network."""
        now = time.monotonic()
        if what != "loading" or now < self.look_due:
            return
        self.look_due = now + OFTEN
        if name := suits.metered(self.tables.values["INTERFACES"], self.tables.values["NETWORK_STATE"]):
            print(
                f"<5>{done} of {size} bytes have come; the traffic goes over {name} now: it waits", file=sys.stderr, flush=True
            )
            raise NotNow

    def failed(self, why: str) -> None:
        """Tell it at once, and forget the word."""
        boot = read_file("/proc/sys/kernel/random/boot_id")
        verdict = {
            "id": f"{boot} not written {time.monotonic():.3f}", "result": "not written", "version": self.version,
            "reason": why[:1000],
        }  # fmt: skip
        tell("not written", self.version, reason=why[:1000], verdict=verdict)
        ledger.note(self.folder, word=None, last=verdict)


def tell(state: str, version: str, **more: Any) -> None:
    """What board()["update"] shows."""
    boot_ends.tell(boot_ends.UPDATE, {"state": state, "version": version, **more})


def rest(seconds: float) -> None:
    time.sleep(seconds)


def control() -> str:
    return os.environ.get("STACK_CONTROL", to_pid1.SOCKET)


def main(arguments: list[str]) -> None:
    """`update URL VERSION`, as a service with `module="updates.word"`."""
    url, version = arguments
    word = Word(board_table(), url, version)
    try:
        why = word.carry_out()
    except OSError as error:  # such as a data partition that takes nothing
        why = str(error)
    if why:
        print(f"<3>not updated: {why}", file=sys.stderr, flush=True)
        word.failed(why)
        sys.exit(1)
    to_pid1.ask(control(), {"op": "reboot"})
