"""Kernel modules, loaded by modprobe(8): one at a time, under a limit, while hotplug.py goes on."""

from __future__ import annotations

import os
import subprocess
import time

from bus import Bus

LOADER_TIMEOUT = 60.0  # s for one modprobe: a driver may hang while it starts
BATCH = 200  # names for one modprobe
WANTED = 2000  # names in the queue at most
WORDS = 4096  # bytes of its error messages that are logged at once


class Loader:
    """The queue of modules. One modprobe runs at a time and loads what was queued, in order."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._wanted: dict[str, None] = {}
        self._words = -1  # the read end of the running modprobe's stderr
        self._children: list[subprocess.Popen[bytes]] = []  # the running one last; before it those that are stuck in the kernel
        self._deadline = 0.0
        self.dropped = 0  # names that did not fit the queue

    def want(self, module: str) -> None:
        """Queue a module's name or a device's modalias; dropped and counted where the queue is full."""
        if len(self._wanted) < WANTED:
            self._wanted[module] = None
        else:
            self.dropped += 1

    def turn(self, now: float) -> None:
        """Start the next modprobe; kill the running one after LOADER_TIMEOUT."""
        if self._words >= 0 and now >= self._deadline:
            self._bus.log.warning("modprobe: not ready after %g s, ended", LOADER_TIMEOUT)
            self._children[-1].kill()  # a modprobe stuck in the kernel cannot be killed: we do not wait for it
            self._ended()
        self._children = [child for child in self._children if child.poll() is None]
        if self._words < 0 and self._wanted:
            batch = list(self._wanted)[:BATCH]
            self._start(["modprobe", "-a", "-b", "-q", "--", *batch], now)
            for module in batch:
                del self._wanted[module]

    def due(self) -> float | None:
        """Monotonic time of the next turn(); None where only an event (an end, a new name) makes one necessary."""
        if self._words >= 0:
            return self._deadline
        return 0.0 if self._wanted else None

    def _start(self, argv: list[str], now: float) -> None:
        words, writer = os.pipe()
        try:
            self._children.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer))
        except OSError as error:
            self._bus.log.warning("modprobe: %s", error.strerror)
            os.close(words)
            return
        finally:
            os.close(writer)
        self._words, self._deadline = words, now + LOADER_TIMEOUT
        self._bus.watch(words, self._on_words)

    def _on_words(self) -> None:
        """Log modprobe's stderr. End of file means that it has ended. Its status is ignored: most devices need no module."""
        if words := os.read(self._words, WORDS):
            self._bus.log.warning("%s", words.decode(errors="replace").strip())
            return
        self._ended()
        self.turn(time.monotonic())

    def _ended(self) -> None:
        self._bus.unwatch(self._words)
        os.close(self._words)
        self._words = -1
