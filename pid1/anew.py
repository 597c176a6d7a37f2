"""PID 1 executes itself anew for the end of the board.

After an upgrade of Python or of libc the files that PID 1 was started from are deleted, but it still maps them, and the kernel
refuses to make their file system read-only. A new PID 1, from the files that are on the disk now, maps those: it closes the
disks and calls reboot(2). It is tried first, in a child, for a PID 1 that cannot start is a kernel panic.
"""

from __future__ import annotations

import os
import sys
import time

import _log
from base.stdlib import TYPE_CHECKING, json, signal
from base.syscalls import Reboot
from pid1.teardown import TRIAL, at_least, bounded, finish, nothing, wait_for
from pid1.watchdog import FEEDS, Device, Watchdog
from tables.tables import LIB

if TYPE_CHECKING:
    from typing import Any

    from tables.tables import Tables

# As a word of its own, so that no word of the kernel command line can ask for it.
CODE = "import sys; sys.path.insert(0, sys.argv[1]); from pid1 import anew; anew.main(sys.argv[2])"
TRY, TRIED = "try", 42  # the word, and the exit status of one that can be started
NO_FILES = ("/memfd:", "/dev/zero", "/SYSV", "/[aio]", "/anon_hugepage")  # that maps calls deleted too


def close_bundle() -> None:
    """No module is loaded any more from the file that base/bundle.py has open. Where it has been replaced since, it would keep
    its file system from becoming read-only."""
    fd = getattr(sys.meta_path[0], "fd", -1)
    if fd >= 0:
        os.close(fd)


def deleted_files(maps: str = "/proc/self/maps") -> list[str]:
    """Files that this process maps and nobody can open any more."""
    with open(maps, encoding="utf-8", errors="surrogateescape") as file:
        names = {line.rstrip("\n").split(None, 5)[5] for line in file if line.endswith(" (deleted)\n")}
    return sorted(name.removesuffix(" (deleted)") for name in names if not name.startswith(NO_FILES))


def execute(command: int, tables: Tables, watchdog: Watchdog) -> None:
    """Become a new PID 1, where files that we map have been deleted; come back where that cannot be, and say why."""
    close_bundle()
    try:
        files = deleted_files()
    except OSError as error:
        _log.warning(f"whether PID 1's own files have been replaced is unknown: {error}")
        return
    if not files:
        return
    words = [sys.executable or tables.PYTHON, "-ESBP", "-c", CODE, LIB]
    why = _trial(words, watchdog)
    if not why:
        bounded(time.monotonic() + tables.SYNC_TIMEOUT, "sync", os.sync, meanwhile=watchdog.wait)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, or ctrl-alt-del would raise KeyboardInterrupt there
        _log.info(f"PID 1 executes itself anew: {files[0]} has been replaced")
        try:
            os.execve(words[0], [*words, json.dumps(_state(command, tables, watchdog))], {})
        except OSError as error:
            why = str(error)
    _log.warning(f"PID 1 holds {files[0]}, which has been replaced, and cannot execute itself anew: {why}")


def _trial(words: list[str], watchdog: Watchdog) -> str:
    """Why this program cannot be the next PID 1; empty where it can."""
    try:
        pid = os.fork()
    except (OSError, MemoryError) as error:
        return f"it cannot be tried before, {error}"
    if pid == 0:
        try:
            os.execve(words[0], [*words, TRY], {})
        finally:
            os._exit(127)
    status = wait_for(pid, TRIAL, watchdog.wait)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        return f"{words[0]} does not come up in {TRIAL:g} s"
    code = os.waitstatus_to_exitcode(status)
    return "" if code == TRIED else f"{words[0]} ends with {code}"


def _state(command: int, tables: Tables, watchdog: Watchdog) -> dict[str, Any]:
    """What the next PID 1 has to know."""
    left = (watchdog.ending or 0.0) - time.monotonic()
    return {
        "command": command, "sync": tables.SYNC_TIMEOUT, "console": tables.CONSOLE,
        "levels": [_log.sink.level, _log.sink.console_level],
        "watchdog": [tables.WATCHDOG, watchdog.timeout, max(left, 0.0)] if watchdog.device else None,
    }  # fmt: skip


class Dog:
    """Feeds the hardware's watchdog until the board must be down. The one before us has left it running."""

    def __init__(self, path: str, timeout: float, left: float) -> None:
        self.timeout = timeout
        self.ending = time.monotonic() + left
        self.due = 0.0
        self.device: Device | None = None
        try:
            self.device = Device(path)
            self.timeout = self.device.set_timeout(timeout)
        except OSError as error:
            _log.warning(f"watchdog: {path}: {error.strerror}")

    def wait(self) -> None:
        """Feed it, if it is due and there is time left."""
        now = time.monotonic()
        if self.device and self.due <= now < self.ending:
            self.due = now + self.timeout / FEEDS
            self.device.feed()

    def disarm(self) -> None:
        """What is halted must stay so."""
        if self.device:
            self.device.disarm()
            self.device = None


def main(word: str) -> None:
    """The life of a PID 1 that has but the end to bring about."""
    if word == TRY:
        os._exit(TRIED)
    command = Reboot.RESTART
    try:
        state = json.loads(word)
        command = state["command"]
        _log.setup(console=state["console"])
        _log.sink.level, _log.sink.console_level = state["levels"]
        if state["watchdog"]:
            dog = Dog(*state["watchdog"])
            dog.wait()
            finish(command, state["sync"], dog.wait, dog.disarm)
        else:
            finish(command, state["sync"], nothing, nothing)
    except BaseException as error:  # leaving main() would panic the kernel
        _log.error(f"tear-down failed: {type(error).__name__}: {error}")
        at_least(command)
