"""Which outbox may use a board's name, and how long another one is refused.

uplink/numbering.py says what a stream is. A board's name belongs to the outbox that was accepted last. Another outbox of the
same name is refused as long as that one was heard in the last LEASE seconds: they are two boards of one name, such as a copied
card. Later it is accepted: it is a board that has lost its outbox, or a board that replaces another.
A refused board keeps its records. An accepted one has streams of its own, so that its numbers are never mixed with others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEASE = 300.0  # seconds: a board that another one of its name has disconnected is back sooner
MOST = 64  # streams that are remembered of one board


@dataclass
class Line:
    """What the mothership knows of one stream."""

    seq: int = 0  # records up to this number are stored
    held: bool = False  # its outbox has the board's name
    heard: float = 0.0  # wall time

    def row(self) -> tuple[int, int, float]:
        """The columns of its row in the database."""
        return self.seq, int(self.held), self.heard


def admit(lines: dict[str, Line], outbox: str, own: Iterable[str] | None, now: float) -> str:
    """Accept a stream, or return why not. `own` are all streams of the outbox; None for a batch, which does not list them."""
    holders = {name for name, line in lines.items() if line.held}
    claimed = {outbox} if own is None else set(own)
    heard = max((lines[name].heard for name in holders), default=0.0)
    if not holders & claimed and holders and 0 <= now - heard < LEASE:
        other = "/".join(sorted(holders)) or "of an older version"
        this = "/".join(sorted(claimed)) or "of an older version"
        return (
            f"another outbox ({other}) speaks for this board, and this one is {this}; give "
            f"one of the two boards another name (UPLINK_BOARD), or wait {LEASE:.0f} s after the other one has gone"
        )
    if own is not None or not holders & claimed:
        for name, line in lines.items():
            line.held = name in claimed
    line = lines.setdefault(outbox, Line())
    line.held, line.heard = True, now
    return ""


def surplus(lines: dict[str, Line]) -> list[str]:
    """Streams to delete, the oldest first, above MOST: a board with ever new names must not fill the database."""
    others = sorted((name for name, line in lines.items() if not line.held), key=lambda name: lines[name].heard)
    held = sorted((name for name, line in lines.items() if line.held), key=lambda name: lines[name].heard)
    return [*others, *held][: max(0, len(lines) - MOST)]
