"""Keeps what must survive the board's end: restored at the start, saved every hour and at the stop, on the data partition.

It is a fork of PID 1 (`module="keeper"` in its row): it needs root, and a fork shares PID 1's memory. Each module in KEPT has
restore(folder) and save(folder).
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.files import open_folder
from base.stdlib import signal
from onboard import boot_ends, clock
from onboard.to_pid1 import notify
from services import boots, seed

KEPT = (clock, seed, boots)  # the clock first: the others record the date
STORAGE = "/run/stack/storage.json"  # what storage.py has found
PERIOD = 3600.0  # seconds between two saves
QUIET = 0.2  # seconds; if no more of PID 1's stack arrives for this long, it is complete


def each(action: str, folder: str, **more: bool) -> None:
    """Call `restore` or `save` of each module. A failure is logged and does not stop the others."""
    for module in KEPT:
        try:
            getattr(module, action)(folder, **(more if module is not boots else {}))
        except Exception as error:
            print(f"<4>{module.__name__}: {action}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def foreign() -> bool:
    """Whether the data partition is on another disk than the root: somebody may have plugged it in."""
    return bool(boot_ends.read(STORAGE).get("foreign"))


class Keeper:
    """The loop: it waits for the next save, for PID 1's stack, or for SIGTERM."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.ending = False
        self.poll = select.poll()
        self.wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writer)
        self.poll.register(self.wakeup, select.POLLIN)
        self.stuck = -1
        if os.path.exists(boot_ends.STUCK):  # a board with a watchdog
            self.stuck = os.open(boot_ends.STUCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.poll.register(self.stuck, select.POLLIN)

    def run(self) -> None:
        """Restore, then save every hour until SIGTERM, and once more at the end."""
        os.close(open_folder(self.folder, 0o700))
        each("restore", self.folder, **({"believed": False} if foreign() else {}))
        notify("READY=1")
        due = time.monotonic() + PERIOD
        while not self.ending:
            for fd, _ in self.poll.poll(max(0, int((due - time.monotonic()) * 1000))):
                if fd == self.wakeup:
                    self.ending = True
                else:
                    self.take_stack()
            if time.monotonic() >= due:
                due = time.monotonic() + PERIOD
                each("save", self.folder)
        each("save", self.folder)

    def take_stack(self) -> None:
        """PID 1's loop hangs: save its Python stack to the disk before the watchdog resets the board."""
        text = b""
        while (block := self.read_stack()) and len(text) < 65536:
            text += block
            time.sleep(QUIET)
        try:
            boots.stuck(self.folder, text.decode(errors="replace"))
        except OSError as error:
            print(f"<3>PID 1's stack cannot be saved: {error}", file=sys.stderr, flush=True)
        for line in text.decode(errors="replace").splitlines():
            print(f"<4>{line}", file=sys.stderr, flush=True)

    def read_stack(self) -> bytes:
        try:
            return os.read(self.stuck, 65536)
        except BlockingIOError:
            return b""


def main(arguments: list[str]) -> None:
    """`keeper FOLDER`, as a service with `module="keeper"`."""
    Keeper(arguments[0]).run()
