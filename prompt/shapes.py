"""How the prompt's data shows itself: a list of dicts as a table, a dict as one fact a line, lines as lines."""

from __future__ import annotations

import os
import sys
from typing import Any

COLUMNS = ("name", "state", "ready", "pid", "runtime", "restart", "exit", "memory", "cpu", "user", "cmd")
Stats = dict[str, Any]


class Table(list[Stats]):
    """A list of dicts that shows itself as a table."""

    columns: tuple[str, ...] = COLUMNS

    def __repr__(self) -> str:
        return table(self, self.columns) if self else "(none)"


class NetworkTable(Table):
    """Interfaces."""

    columns = ("name", "state", "since", "addresses", "gateway", "metric", "ssid", "signal", "rung")


class Lines(list[str]):
    """A list of lines that shows itself as lines."""

    def __repr__(self) -> str:
        return "\n".join(self)


class Facts(dict[str, Any]):
    """A dict that shows one fact a line."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())


def table(rows: list[Stats], columns: tuple[str, ...], width: int = 0) -> str:
    """Rows as aligned text; the last column is cut at the terminal's width."""
    width = width or (os.get_terminal_size().columns if sys.stdout.isatty() else 0) or 120  # a serial line says 0
    cells = [[name.upper() for name in columns]] + [[_cell(name, row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths))[:width].rstrip() for line in cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if name in ("memory", "memory_current"):
        return f"{value / 2**20:.1f}M"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
