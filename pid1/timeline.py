"""The last transitions of the board, in memory: services' states, modes, facts, and what the board as a whole did."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import A_REPLY

if TYPE_CHECKING:
    from typing import Any

KEPT = 500
LONGEST = 200  # characters of why


class Timeline:
    """A ring of rows: number, when (s since the kernel's start), what, the state before, the state after, why."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, str, str, str, str]] = []
        self.count = 0  # of all that there have been

    def note(self, now: float, what: str, before: str, after: str, why: str = "") -> None:
        """Something is in another state now."""
        self.count += 1
        self.rows.append((self.count, now, what, before, after, why[:LONGEST]))
        del self.rows[:-KEPT]

    def page(self, first: Any, most: int) -> list[list[Any]]:
        """At most so many rows, from number `first` on: numbers stay when the oldest rows go."""
        number = first if isinstance(first, int) else 0
        rows = [row for row in self.rows if row[0] >= number]
        return [[row[0], round(row[1], 6), *row[2:]] for row in rows[:most]]


def page(rows: list[Any], request: dict[str, Any]) -> list[Any]:
    """So many of these rows as fit into a reply, from number `first` of the request on."""
    first = request.get("first", 0)
    return rows[first : first + A_REPLY] if isinstance(first, int) and first >= 0 else []
