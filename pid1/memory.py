"""What PID 1's memory is used for: `memory()`. Loaded by the first question, or by the option `stack.tracemalloc`.

Python counts each block with the line that asked for it once tracing has begun (`Doc/library/tracemalloc.rst`); this uses the C
module under `tracemalloc`, whose own imports cost a megabyte.
"""

from __future__ import annotations

import _tracemalloc
import gc
import os
import sys

from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import SVError

if TYPE_CHECKING:
    from typing import Any

SHOWN = 20  # lines that have grown or shrunk most


class Memory:
    """The figures, and what they were at the last question."""

    def __init__(self) -> None:
        self.before: dict[tuple[str, int], tuple[int, int]] = {}  # bytes and blocks, by file and line

    def facts(self, what: str = "") -> dict[str, Any]:
        """Figures of PID 1's memory; with tracing, how it has grown since the last call, by line.

        "start" begins tracing, "stop" ends it. bytes; `grown` has file, line, bytes, blocks and their change.
        """
        match what:
            case "start":
                self.start()
            case "stop":
                _tracemalloc.stop()
                self.before.clear()
            case "":
                pass
            case _:
                raise SVError(f'memory("start"), memory("stop") or memory(), not {what[:32]!r}')
        tracing = bool(_tracemalloc.is_tracing())
        traced, peak = _tracemalloc.get_traced_memory()
        return {
            **rollup(), "modules": len(sys.modules), "objects": len(gc.get_objects()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "tracing": tracing, "traced": traced, "peak": peak, "itself": _tracemalloc.get_tracemalloc_memory(),
            "grown": self.grown() if tracing else [],
            "hint": "" if tracing else 'memory("start") begins to trace; stack.tracemalloc for the kernel does at boot',
        }  # fmt: skip

    def start(self) -> None:
        """Trace what is allocated from now on: a line for each block, which takes memory itself."""
        self.before.clear()
        _tracemalloc.start(1)

    def grown(self) -> list[dict[str, Any]]:
        """The lines whose blocks have changed most since the last call; of the first call, the largest."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for trace in _tracemalloc._get_traces():
            place = trace[2][0]
            size, blocks = found.get(place, (0, 0))
            found[place] = (size + trace[1], blocks + 1)
        rows: list[dict[str, Any]] = []
        for place in found.keys() | self.before.keys():
            (size, blocks), (old, less) = found.get(place, (0, 0)), self.before.get(place, (0, 0))
            if size != old:
                rows.append(
                    {
                        "file": place[0],
                        "line": place[1],
                        "bytes": size,
                        "change": size - old,
                        "blocks": blocks,
                        "more": blocks - less,
                    }
                )
        self.before.clear()
        self.before.update(found)
        rows.sort(key=lambda row: -abs(row["change"]))
        return rows[:SHOWN]


def rollup() -> dict[str, int]:
    """Bytes by the kernel's count (`man 5 proc`, smaps_rollup): rss, pss, private."""
    found = {"rss": 0, "pss": 0, "private": 0}
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            key = {"Rss": "rss", "Pss": "pss", "Private_Clean": "private", "Private_Dirty": "private"}.get(name)
            if key:
                found[key] += int(value.split()[0]) * 1024
    return found
