"""A timeline of the boot, as the prompt shows it: what PID 1 tells of its steps and services, and what came before it.

Times are seconds of the monotonic clock, which begins with the kernel. What came before PID 1's first line is in the
kernel's log, where that can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from prompt.asking import ask
from prompt.shapes import Shape, Stats

WIDTH, LEAST = 60, 10  # of a bar that is as long as the boot, where the terminal is wide enough, and where it is not
FIGURES = 30  # characters between a row's name and its bar
LATEST = 300.0  # seconds after PID 1's start: what comes later is no part of the boot
RUN = "as init process"  # the kernel's words before it starts init; an initramfs may write the same to /dev/kmsg


class Chart(Shape, list[Stats]):
    """Rows that show themselves as bars: `=` is work, `>` ends a service's start, and one that is not ready has no end."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        if not self:
            return "(none)"
        origin = self[0]["start"]
        limit = origin + LATEST
        ends = [row["start"] if row["end"] is None else row["end"] for row in self if row["start"] < limit]
        name = max(len(row["name"]) for row in self)
        self.bar = max(LEAST, min(WIDTH, width - name - FIGURES)) if width else WIDTH
        scale = self.bar / max(0.001, min(max(ends), limit) - origin)
        lines = (self._line(row, name, origin, scale) for row in self)
        return "\n".join(line[:width] if width else line for line in lines)

    def _line(self, row: dict[str, Any], width: int, origin: float, scale: float) -> str:
        start, end = row["start"], row["end"]
        left = min(self.bar - 1, int((start - origin) * scale))
        right = self.bar if end is None else min(self.bar, int((end - origin) * scale))
        head = "." * self.bar if end is None else "=" * self.bar
        bar = head[: max(1, right - left) - 1] + (">" if row["kind"] == "service" and end is not None else head[0])
        seconds = "   -   " if end is None else f"{end - start:7.3f}"
        return f"{row['name']:<{width}}  {row['kind']:<7}  {start:8.3f}  {seconds}  {' ' * left}{bar}"


def chart(rows: list[list[Any]], before: list[list[Any]]) -> Chart:
    """Rows of the chart, with what came before PID 1's first line in front."""
    return Chart(
        {"name": name, "kind": kind, "start": round(start, 3), "end": None if end is None else round(end, 3)}
        for name, kind, start, end in [*before, *rows]
    )


def before_pid_1(records: Iterable[str], begun: float, first_line: float) -> list[list[Any]]:
    """Rows for kernel, initramfs and interpreter, from the kernel's log (`man 4 kmsg`, as /dev/kmsg gives it).

    `begun` is when PID 1 was made: in namespaces long after the kernel's start, and then its log is not about us.
    """
    runs = [int(record.split(",")[2]) / 1e6 for record in records if RUN in record.partition(";")[2].partition("\n")[0]]
    runs = [run for run in runs if begun <= run <= first_line]
    if not runs:
        whole = begun < 1.0  # the kernel makes its init thread at once: what it did and what Python did cannot be told apart
        return [["kernel, interpreter" if whole else "interpreter", "before", 0.0 if whole else begun, first_line]]
    rows: list[list[Any]] = [["kernel", "before", 0.0, runs[0]]]
    if len(runs) > 1:
        rows.append(["initramfs", "before", runs[0], runs[-1]])
    return [*rows, ["interpreter", "before", runs[-1], first_line]]


def kernel_log() -> list[str]:
    """The records of /dev/kmsg; none, where we may not read it."""
    records: list[str] = []
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return records
    try:
        while True:
            try:
                records.append(os.read(fd, 8192).decode(errors="replace"))
            except BrokenPipeError:  # one was overwritten while we read: the next one
                continue
    except OSError:  # EAGAIN: that was all
        return records
    finally:
        os.close(fd)


def begun() -> float:
    """When PID 1 was made, in seconds since the kernel's start (`man 5 proc`, starttime)."""
    with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def bootchart(svg: bool = False) -> list[Stats] | str:
    """The boot as bars: what came before PID 1, its imports and steps, and each service from its start until it is ready.

    With `svg` it is a picture, as text: `sv bootchart --svg >boot.svg` for a browser.

    A row is name, kind (before, python, step, service), start and end in seconds since the kernel's start; end is None for
    a service that has not been ready yet. What the kernel and the interpreter took is told apart where /dev/kmsg can be read.
    """
    rows: list[list[Any]] = []
    while page := ask("bootchart", first=len(rows)):
        rows += page
    found = chart(rows, before_pid_1(kernel_log(), begun(), rows[0][2]))
    if not svg:
        return found
    from prompt.picture import picture  # here: few ask for it

    return picture(found, LATEST)
