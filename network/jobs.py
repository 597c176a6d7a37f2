"""Programs that run one after the other, each under a time limit, while the network goes on: modprobe(8) for the ladder."""

from __future__ import annotations

import subprocess
from typing import Any

JOB_TIMEOUT = 60.0  # s for a modprobe


class Job:
    """Programs that run one after the other, each under a time limit, while we go on."""

    def __init__(self, commands: list[list[str]], now: float) -> None:
        self._commands = commands
        self._start(now)

    def _start(self, now: float) -> None:
        self._argv = self._commands.pop(0)
        self._deadline = now + JOB_TIMEOUT
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)

    def poll(self, now: float, warn: Any) -> bool:
        """Whether no program runs or waits."""
        status = self._process.poll()
        if status is None and now < self._deadline:
            return False
        if status is None:
            self._process.kill()  # it may hang in the kernel, where nothing can end it: we do not wait for it
        if status != 0:
            warn("%s: %s", " ".join(self._argv), "took too long" if status is None else f"exit status {status}")
        if not self._commands:
            return True
        self._start(now)
        return False
