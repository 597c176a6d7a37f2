"""Who speaks for a board: the streams of one outbox, and until when another one of the same name is refused.

A stream is what numbering.py says: a name that an outbox has drawn, and numbers. A board's name belongs to the outbox that was
accepted last. Another one is refused while that one has been heard within LEASE seconds: these are two boards of one name,
a copied card perhaps. After a silence it is accepted: a board that has lost its outbox, or its successor.
Whoever is refused keeps its records; whoever is accepted has numbers of its own, so that nobody's are taken for others'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEASE = 300.0  # seconds: a board that was disconnected by its twin is back sooner, and says so
MOST = 64  # streams that are remembered of one board


@dataclass
class Line:
    """What the mothership has of one stream."""

    seq: int = 0  # all up to this number
    held: bool = False  # it is of the outbox that the name belongs to
    heard: float = 0.0  # wall time

    def row(self) -> tuple[int, int, float]:
        """As the database has it."""
        return self.seq, int(self.held), self.heard


def admit(lines: dict[str, Line], outbox: str, own: Iterable[str] | None, now: float) -> str:
    """Let a stream in, or say why not. `own` are all streams of who asks; None for a batch, which does not say."""
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
    """Streams that need not be remembered any more: a board that draws names without end must not fill the database."""
    others = sorted((name for name, line in lines.items() if not line.held), key=lambda name: lines[name].heard)
    held = sorted((name for name, line in lines.items() if line.held), key=lambda name: lines[name].heard)
    return [*others, *held][: max(0, len(lines) - MOST)]
