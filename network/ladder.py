"""What is done for a Wi-Fi interface that stays down: a ladder of measures, the mildest first. Pure, as links.py is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from network.actions import Reassociate, Reboot, ReloadModule, RestartSupplicant, State
from tables.rows import NetworkDelays

RUNGS = (Reassociate, RestartSupplicant, ReloadModule, Reboot)
Rung = Reassociate | RestartSupplicant | ReloadModule | Reboot


class Ladder:
    """What is done for a Wi-Fi interface that stays down, one rung after the other."""

    def __init__(self, name: str, delays: NetworkDelays, may_reboot: Callable[[float], bool]) -> None:
        self.name = name
        self._may_reboot = may_reboot
        self.rung = 0  # how many have been climbed
        self._steady = delays.LADDER_STEADY
        self._delays = (delays.LADDER_REASSOCIATE, delays.LADDER_SUPPLICANT, delays.LADDER_MODULE, delays.LADDER_REBOOT)
        self._trouble: float | None = None  # since when
        self._good: float | None = None  # since when

    def climb(self, state: State, now: float) -> Iterator[Rung]:
        """The next rung, where it is due. An interface that is absent has only the driver's module to try."""
        if state.addressed:
            self._good = now if self._good is None else self._good
            if now - self._good >= self._steady:
                self._trouble, self.rung = None, 0
            return
        self._good = None
        self._trouble = now if self._trouble is None else self._trouble
        while self.rung < len(RUNGS) and now - self._trouble >= self._delays[self.rung]:
            action = RUNGS[self.rung](self.name)
            self.rung += 1
            if isinstance(action, ReloadModule) or (state is not State.ABSENT and self._allowed(action, now)):
                yield action
                break
        if self.rung == len(RUNGS):
            self.rung, self._trouble = 0, now

    def due(self) -> float | None:
        """Monotonic time of the next climb(), if no event comes before."""
        if self._good is not None:
            return self._good + self._steady if self._trouble is not None else None
        return None if self._trouble is None else self._trouble + self._delays[self.rung]

    def _allowed(self, action: Rung, now: float) -> bool:
        return not isinstance(action, Reboot) or self._may_reboot(now)
