"""What the mothership hears of updates: where one is, in `info`, and how one ended, once, as a record of the kind `update`.

Root's processes write it into a file (onboard/boot_ends.py: UPDATE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onboard import boot_ends, suits
from onboard.device_tree import chosen

ON_TRIAL = "on trial"  # the state of a slot (updates/trial.py)


class Updates:
    """The update under way, or the last one. `recorded` is the id of the end that is in the outbox."""

    def __init__(self, recorded: Any, options: Callable[[], dict[str, str]]) -> None:
        self.recorded = recorded
        self.options = options  # `stack.` words of the kernel command line, as PID 1 has them
        self.told = ""  # the state that info had last

    def ended(self) -> Iterator[dict[str, Any]]:
        """How it ended, where that is not recorded yet."""
        verdict = boot_ends.read(boot_ends.UPDATE).get("verdict")
        if isinstance(verdict, dict) and verdict.get("id") != self.recorded:
            self.recorded = verdict.get("id")
            yield verdict

    def changed(self) -> bool:
        """Whether info has to be told again."""
        return self._state() != self.told

    def _state(self) -> str:
        return str(boot_ends.read(boot_ends.UPDATE).get("state", ""))[:64]

    def state(self) -> str | None:
        """For info: `waiting`, `under way`, `written`, `on trial`, `committed`...; None where there is no update.

        Until the service `trial` says more, a slot that the firmware tries is on trial: the release counts from its commit on.
        """
        self.told = self._state()
        tried = not self.told and (chosen("tryboot") == 1 or "stack.tryboot" in self.options())
        return ON_TRIAL if tried else self.told or None


def waits_for(settings: Any) -> list[str]:
    """What an update has to wait for on a board with these settings; [] where it may begin."""
    return suits.waits_for(
        getattr(settings, "UPDATE_WINDOW", ()), getattr(settings, "INTERFACES", ()), getattr(settings, "NETWORK_STATE", "")
    )
