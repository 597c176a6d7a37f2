"""What has happened to the board, in a file in memory: PID 1 appends to it, the uplink reads it and sends it on.

A line is an envelope as the bus has it, from "stack", in JSON. Kinds: up (the boot is over), crash (a service ended unasked),
fault, exception (in PID 1), console (a line typed into it), stop (it goes down). `seq` counts from 1 in each boot; a gap says
that the file was full before anybody read it.
"""

from __future__ import annotations

import os
import time

from base.stdlib import TYPE_CHECKING, json
from onboard import clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FILE = "/run/stack/events"
MOST = 128 * 1024  # bytes; then the file becomes FILE.1, and the one before it goes
VERSION = 1  # of the envelope


class Events:
    """PID 1's end: one line each, with one write."""

    def __init__(self) -> None:
        self.path = FILE
        self.number = 0
        self.boot_id = ""
        self.early: list[str] | None = None  # lines that wait until /run is what it will be

    def tell(self, kind: str, data: dict[str, Any], now: float) -> None:
        """Append one; OSError where /run takes nothing."""
        self.number += 1
        if not self.boot_id:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                self.boot_id = file.read().strip()
        how = clock.state()
        line = json.dumps({
            "v": VERSION, "boot": self.boot_id, "from": "stack", "seq": self.number, "kind": kind,
            "time": None if how == "unset" else round(time.time(), 3), "mono": round(now, 3), "clock": how, "data": data,
        })  # fmt: skip
        if self.early is not None:
            self.early.append(line)
        else:
            self.write(line)

    def hold(self) -> None:
        """Keep events in memory until `release`: nothing is mounted yet."""
        self.early = []

    def release(self) -> None:
        """Write what was kept."""
        early, self.early = self.early or [], None
        for line in early:
            self.write(line)

    def write(self, line: str) -> None:
        """One line. It begins with an end of line too, for one before it that /run had no room for."""
        if not os.path.isdir(folder := os.path.dirname(self.path)):
            os.makedirs(folder)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, b"\n" + line.encode() + b"\n")
            full = os.fstat(fd).st_size >= MOST
        finally:
            os.close(fd)
        if full:
            os.rename(self.path, f"{self.path}.1")


def since(number: int) -> Iterator[dict[str, Any]]:
    """The reader's end: what came after this number, in order."""
    new = _lines(FILE)  # first: if it becomes the old one meanwhile, we read it twice, and miss nothing
    for line in filter(None, _lines(f"{FILE}.1") + new):
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut off for want of room: the numbers tell that it is missing
        if event["seq"] > number:
            number = event["seq"]
            yield event


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split("\n")[:-1]  # what has no end yet is still being written
    except OSError:
        return []
