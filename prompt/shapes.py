"""How the prompt prints its data: a list of dicts as a table, a dict with one fact a line, lines as lines.

Text for a terminal fits its width and may have colours; what goes into a pipe or a file is whole and plain.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Any

from base.printable import printable

Stats = dict[str, Any]
GREEN, YELLOW, RED = "running online local", "starting waiting unmet stopping addressing associating", "backoff"
COLOURS = {word: code for words, code in ((GREEN, "32"), (YELLOW, "33"), (RED, "31")) for word in words.split()}
LEAST = 12  # characters: a narrower last column is of no use


class Shape:
    """A value that prints itself as text."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        """The text, in lines of at most `width` characters; 0: no limit."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.text(terminal_width())


class Table(Shape, list[Stats]):
    """A list of dicts that prints itself as a table. On a narrow terminal it leaves out columns of `spare`, in this order."""

    columns: tuple[str, ...] = (
        "name", "state", "ready", "pid", "runtime", "restart", "exit", "memory", "cpu", "user", "cmd"
    )  # fmt: skip
    spare: tuple[str, ...] = ("user", "ready", "cpu", "restart", "pid", "exit", "cmd", "runtime", "memory")

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        return table(self, self.columns, width, self.spare, colour=colour) if self else "(none)"


class One(Table):
    """A table of one row, whose fields can be asked for by name as well: `row["state"]`, `row[0]["state"]`."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(0)[key] if isinstance(key, str) else super().__getitem__(key)


class NetworkTable(Table):
    """A table of interfaces."""

    columns = ("name", "state", "since", "addresses", "gateway", "metric", "ssid", "signal", "rung")
    spare = ("rung", "metric", "gateway", "signal", "ssid", "since")


class Lines(Shape, list[str]):
    """A list of lines that prints itself as lines."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        return "\n".join(coloured_line(line) if colour else line for line in self)


class Facts(Shape, dict[str, Any]):
    """A dict that prints itself with one fact a line."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        longest = max(map(len, self), default=0)
        return "\n".join(f"{name:<{longest}}  {value}" for name, value in self.items())


def show(value: object) -> str:
    """The text of a value for stdout: as its shape prints itself, or a text unchanged."""
    if isinstance(value, Shape):
        return value.text(terminal_width(), colour=colour_wanted())
    return value if isinstance(value, str) else repr(value)


def terminal_width() -> int:
    """Columns of the terminal on stdout; 0 if it is no terminal. A serial line does not tell: 80."""
    return (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if _on_a_terminal() else 0


def colour_wanted() -> bool:
    """True if stdout is a terminal with colours and NO_COLOR is not set (no-color.org)."""
    return _on_a_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone, such as `head` after its lines: poll(2) says so without a write."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _on_a_terminal() -> bool:
    try:
        return os.isatty(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # stdout is closed, or somebody has replaced it
        return False


def table(
    rows: list[Stats], columns: tuple[str, ...], width: int = 0, spare: tuple[str, ...] = (), *, colour: bool = False
) -> str:
    """Rows as aligned text. If they do not fit, leave out spare columns, then cut the last one."""
    cells = {name: [name.upper(), *(cell(name, row[name]) for row in rows)] for name in columns}
    widths = {name: max(map(len, texts)) for name, texts in cells.items()}
    for name in spare if width else ():
        last = list(cells)[-1]
        if sum(widths[one] + 2 for one in cells if one != last) + min(widths[last], LEAST) <= width:
            break
        cells.pop(name, None)
    lines = []
    for number in range(len(rows) + 1):
        line = "  ".join(texts[number].ljust(widths[name]) for name, texts in cells.items())
        line = (line[:width] if width else line).rstrip()
        lines.append(_coloured_row(line, cells, number) if colour else line)
    return "\n".join(lines)


def _coloured_row(line: str, cells: dict[str, list[str]], number: int) -> str:
    """Add colours: the head is bold, a state has its own colour."""
    if number == 0:
        return f"\033[1m{line}\033[m"
    state = cells["state"][number] if "state" in cells else ""
    code = COLOURS.get(state.rstrip("?"))
    return line.replace(f" {state}", f" \033[{code}m{state}\033[m", 1) if code else line


def coloured_line(line: str) -> str:
    """A line of a log, red for an error and yellow for a warning."""
    code = "31" if ": error: " in line else "33" if ": warning: " in line else ""
    return f"\033[{code}m{line}\033[m" if code else line


def cell(name: str, value: Any) -> str:
    """One value in a table's column."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(value)) or "-"
    if name.startswith("memory"):
        return f"{value / 2**20:.1f}M"
    if name in ("runtime", "since", "cpu", "cpu_usage"):
        return duration(value)
    if name == "percent":
        return f"{value:.1f}%"
    if name == "cmd":
        return short_command(value)
    return f"{value:.1f}" if isinstance(value, float) else printable(str(value))


def duration(seconds: float) -> str:
    """A duration for people: 4.2s, 3m12s, 5h03m, 12d4h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole // 60 % 60:02}m" if whole < 86400 else f"{whole // 86400}d{whole // 3600 % 24}h"


def short_command(command: str) -> str:
    """A command line without the prefix that all our programs share: `network/service.py wlan0`."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    head, ours, rest = command.partition(f" -P {folder}/")
    return rest if ours and "python" in head and " " not in head else command
