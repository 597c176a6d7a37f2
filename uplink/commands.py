"""Commands of the mothership: each is carried out once, and answered. wire.py has their format.

The id of a command is on the disk before the command is carried out. If it arrives again after the reboot that it asked for, or
after uplink died in between, uplink does not carry it out again: it answers with what it knows. The setting COMMANDS lists what
the mothership may ask for, and PID 1 enforces it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from onboard.to_pid1 import SVError
from uplink import wire
from uplink.outbox import Outbox

LONGEST = 7 * 86400.0  # seconds ahead that a command may expire at most: so long its id has to be remembered
SHOWN = ("name", "state", "exit", "restart")  # of a service, in a result
UNKNOWN = "uplink had begun it when uplink was restarted; how it ended is not known"


class Commands:
    """Carries out commands on the board. `ask(request)` asks PID 1; `tell(data)` makes a record of command and result."""

    def __init__(
        self, outbox: Outbox, boot_id: str, ask: Callable[[dict[str, Any]], Any], tell: Callable[[dict[str, Any]], object]
    ) -> None:
        self.outbox = outbox
        self.boot_id = boot_id
        self.ask = ask
        self.tell = tell
        self.refused = 0  # commands without an id, which cannot be answered

    def take(self, payload: bytes, clock: float | None) -> dict[str, Any] | None:
        """Carry out a command and return its result; None for one without an id. `clock` is the mothership's, if known."""
        try:
            command = wire.parse(payload)
        except wire.Malformed:
            command = {}
        name = command.get("id")
        if not wire.is_name(name):
            self.refused += 1
            return None
        assert isinstance(name, str)
        known = self.outbox.result(name)
        if known is not None:
            return {"id": name, **(json.loads(known) if known else failure(UNKNOWN))}
        if clock is None:
            why = "this board has not heard yet what time it is on the mothership: send it again"
            return {"id": name, **failure(why), "again": True}
        if fault := self._fault(command, clock):
            result, expires = failure(fault), clock
        else:
            expires = command["expires"]
            result = self._carry_out(command, durable=self.outbox.remember(name, "", expires, clock))
        self.outbox.remember(name, json.dumps(result), expires, clock)
        self.tell({**command, **result})
        return {"id": name, **result}

    def _fault(self, command: dict[str, Any], clock: float) -> str:
        """Why a command is refused, as a sentence; "" if it is not."""
        operation, expires = command.get("op"), command.get("expires")
        if not isinstance(operation, str) or operation not in wire.COMMANDS:
            return f"there is no command {str(operation)[:64]!r}; there are {', '.join(wire.COMMANDS)}"
        missing = [field for field in wire.COMMANDS[operation] if not isinstance(command.get(field), (str, int, float))]
        if missing:
            return f"{operation} needs {' and '.join(missing)}"
        if not wire.is_seconds(expires):
            return "it does not say when it expires"
        assert isinstance(expires, (int, float))
        if expires <= clock:
            return f"it expired {clock - expires:.0f} s ago"
        if expires > clock + LONGEST:
            return f"it expires more than {LONGEST / 86400:.0f} days from now: its id cannot be remembered for so long"
        if operation in wire.ENDS and command.get("boot") != self.boot_id:
            return f"{operation} must name the boot that it is to end, and this is boot {self.boot_id}"
        return ""

    def _carry_out(self, command: dict[str, Any], *, durable: bool) -> dict[str, Any]:
        if command["op"] in wire.ENDS and not durable:
            return failure("its id is not on the disk, which takes nothing now: after a reboot it would be carried out again")
        request = {field: command[field] for field in ("op", *wire.COMMANDS[command["op"]])}
        try:
            answer = self.ask(request)
        except SVError as error:
            return failure(str(error))
        if isinstance(answer, dict) and "state" in answer:
            answer = {field: answer.get(field) for field in SHOWN}
        return {"ok": True, "result": answer, "error": None}


def failure(why: str) -> dict[str, Any]:
    """The result of a command that was not carried out."""
    return {"ok": False, "result": None, "error": why}
