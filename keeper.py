"""What the board must know again after a power cut is restored at its start, saved every hour and at its end."""

from __future__ import annotations

import os
import select
import sys

import clock
import seed
from lean import signal
from prompt import notify

PERIOD = 3600.0  # seconds


def main(arguments: list[str]) -> None:
    """`keeper FOLDER`."""
    folder = arguments[0]
    wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer)
    attempt("restore", folder)
    notify("READY=1")
    ending = False
    while not ending:
        ending = bool(select.select([wakeup], [], [], PERIOD)[0])
        attempt("save", folder)


def attempt(what: str, folder: str) -> None:
    """Each on its own: one that fails does not keep the others from it."""
    for one in (clock, seed):
        try:
            getattr(one, what)(folder)
        except Exception as error:
            print(f"<3>{one.__name__}: {what}: {error}", file=sys.stderr)
