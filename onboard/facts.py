"""How a service tells PID 1 what it has found out about the board: whether it is online, its voltage, which devices are there.

Conditions of the table ask for it (`when` of a row, tables/when.py). A fact is told when it has changed; while PID 1 does not
answer it waits, and only the last value counts. It lapses some time after its teller has ended (pid1/tellers.py). Who is not
root needs a row that names the fact in `tells`.
"""

from __future__ import annotations

import os
import sys

from base.stdlib import TYPE_CHECKING
from onboard import to_pid1
from onboard.to_pid1 import SVError, Unreachable

if TYPE_CHECKING:
    from typing import Any

RETRY = 5.0  # s until PID 1 is asked again
REPEAT = 5.0  # s between two times that PID 1 is told the same again, because an app has said it again
PATIENCE = 2.0  # s for its answer
MOST = 256  # facts of one service


class Teller:
    """What one service tells."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.asked = False  # whether a condition asks for any of what was told
        self._told: dict[str, Any] = {}
        self._waiting: dict[str, Any] = {}
        self._heard: dict[str, dict[str, Any] | None] = {}  # all of these by the name of the fact
        self._told_at: dict[str, float] = {}
        self._due: dict[str, float] = {}  # what an app says again and again is told now and then
        self._asked: dict[str, bool] = {}
        self._refused: dict[str, float] = {}  # until when a fact that PID 1 has refused is not told again
        self._retry = 0.0
        self._complaints: set[str] = set()

    def tell(self, name: str, value: Any, now: float, heard: dict[str, Any] | None = None) -> None:
        """A fact: True or False, a number, text of one line, or None where it is not known any more. `now` is monotonic.

        `heard`: another app said it on the bus, "from" whom and when ("at"); PID 1 believes it as long as that one lives.
        """
        same = self._told.get(name) == value
        if same and heard is None:
            self._waiting.pop(name, None)
        elif now >= self._refused.get(name, 0.0) and (name in self._waiting or len(self._waiting) < MOST):
            self._waiting[name] = value
            self._heard[name] = heard
            self._due[name] = self._told_at.get(name, 0.0) + REPEAT if same else 0.0
        self.turn(now)

    def turn(self, now: float) -> None:
        """Tell PID 1 what waits; what it refuses is complained about once and forgotten."""
        for name, value in list(self._waiting.items()) if now >= self._retry else ():
            if now < self._due.get(name, 0.0):
                continue
            request = {"op": "fact", "name": name, "value": value, "by": self.by}
            if heard := self._heard.get(name):
                request["heard"] = heard
            try:
                answer = to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), request, PATIENCE)
                self._asked[name] = bool(isinstance(answer, dict) and answer.get("asked"))
                self._told[name], self._told_at[name] = value, now
            except Unreachable:
                self._retry = now + RETRY
                return
            except SVError as error:
                self._refused[name] = now + RETRY
                self._complain(str(error))
            del self._waiting[name]
        self.asked = any(self._asked.values())

    def due(self) -> float | None:
        """Monotonic time of the next turn(); None where nothing waits."""
        return min((max(self._retry, self._due.get(name, 0.0)) for name in self._waiting), default=None)

    def _complain(self, text: str) -> None:
        if text not in self._complaints and len(self._complaints) < MOST:
            self._complaints.add(text)
            print(f"<4>{text}", file=sys.stderr, flush=True)
