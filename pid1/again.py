"""PID 1 starts anew with pushed modules (`make push`): all is stopped in order, and it executes itself instead of reboot(2).

What is mounted stays, and the hardware's watchdog goes on: one that hangs is reset, and then the root's code boots. So is one
that does not come up: PID 1's end is a panic. onboard/pushed.py says why nothing else can be left of it.
"""

from __future__ import annotations

import os
import sys

import _log
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import Reboot
from onboard import boot_ends, pushed
from onboard.to_pid1 import SVError

if TYPE_CHECKING:
    from pid1.life import Life


def begin(life: Life, folder: str, now: float) -> str:
    """Stop all services, to start anew with this set; SVError where it is none."""
    if life.command is not None:
        raise SVError("the board is shutting down")
    if why := pushed.fault(folder):
        raise SVError(why)
    life.shut_down(Reboot.RESTART, "PID 1 starts anew with pushed code", now, "push", into=folder)
    return "PID 1 starts anew with it, after all services have been stopped"


def execute(folder: str, line: list[str]) -> None:
    """Every other process has ended: become the PID 1 of the set. It comes back where that cannot be; a reboot is next then.

    `line` is how the kernel has started the first PID 1 of this boot; a live upgrade has started others.
    """
    try:
        pushed.bind(folder)
        if os.path.exists(boot_ends.ENDING):
            os.unlink(boot_ends.ENDING)  # this boot goes on
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, or ctrl-alt-del would raise KeyboardInterrupt there
        _log.info("PID 1 starts anew with pushed code")
        os.execv(sys.executable, [sys.executable, *line[1:]])
    except OSError as error:
        _log.error(f"pushed code cannot be started: {error}; the root's code boots")
