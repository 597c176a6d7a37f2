"""Commands of the mothership: each is carried out once, and answered. wire.py has their format.

The id of a command is on the disk before the command is carried out. If it arrives again after the reboot that it asked for, or
after uplink died in between, uplink does not carry it out again: it answers with what it knows. The setting COMMANDS lists what
the mothership may ask for, and PID 1 enforces it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from onboard.to_pid1 import SVError
from uplink import wire
from uplink.outbox import Outbox

LONGEST = 7 * 86400.0  # seconds ahead that a command may expire at most: so long its id has to be remembered
SHOWN = ("name", "state", "exit", "restart")  # of a service, in a result
UNKNOWN = "uplink had begun it when uplink was restarted; how it ended is not known"
SETTLED = {"start": ("running", "backoff", "stopped"), "restart": ("running", "backoff", "stopped"), "stop": ("stopped",)}
PATIENCE = 30.0  # seconds for a service to get there, as in the prompt
LOOK = 0.1  # seconds between two looks at it
LOOK_LATER = 60.0  # seconds between two looks whether an update that waits may begin
ASK_LATER = 600.0  # seconds until the mothership is asked again...
ASKS = 4  # ...so often in all


class Pending(NamedTuple):
    """A command that PID 1 has begun, and whose outcome is not known yet."""

    command: dict[str, Any]
    since: float  # monotonic
    before: int | None  # how often the service had been restarted

    def settled(self, row: dict[str, Any]) -> bool:
        """Whether the service is where the command wants it; after a restart in a later life than before."""
        operation = self.command["op"]
        later = operation != "restart" or self.before is None or row.get("restart") != self.before
        return row.get("state") in SETTLED[operation] and later


class Later(NamedTuple):
    """An update that waits for the board's hours, for a network, or for its power."""

    command: dict[str, Any]
    due: float  # monotonic time of the next look
    asked: int = 0  # how often the mothership was asked since it may begin


class Commands:
    """Carries out commands on the board. `ask(request)` asks PID 1; `tell(data)` makes a record of command and result.

    `waits()` says what an update has to wait for (onboard/suits.py).
    """

    def __init__(
        self,
        outbox: Outbox,
        boot_id: str,
        ask: Callable[[dict[str, Any]], Any],
        tell: Callable[[dict[str, Any]], object],
        waits: Callable[[], list[str]] = list,
    ) -> None:
        self.outbox = outbox
        self.boot_id = boot_id
        self.ask = ask
        self.tell = tell
        self.waits = waits
        self.later: Later | None = None  # the update that waits
        self.refused = 0  # commands without an id, which cannot be answered
        self.pending: dict[str, Pending] = {}  # by id

    def take(self, payload: bytes, clock: float | None, now: float) -> dict[str, Any] | None:
        """Carry out a command and return its result; None for one without an id. `clock` is the mothership's, if known.

        One that takes time is answered with `again` until look() has its outcome.
        """
        try:
            command = wire.parse(payload)
        except wire.Malformed:
            command = {}
        name = command.get("id")
        if not wire.is_name(name):
            self.refused += 1
            return None
        assert isinstance(name, str)
        if name in self.pending:
            return under_way(name, self.pending[name].command)
        known = self.outbox.result(name)
        if known or (known is not None and command.get("op") != "update"):  # PID 1 begins the same update once, asked twice too
            return {"id": name, **(json.loads(known) if known else failure(UNKNOWN))}
        if clock is None:
            why = "this board has not heard yet what time it is on the mothership: send it again"
            return {"id": name, **failure(why), "again": True}
        if fault := self._fault(command, clock):
            result, expires = failure(fault), clock
        elif command["op"] == "update" and (waits := self._waits(command)):
            self.later = Later(command, now + LOOK_LATER)
            return {"id": name, **failure(f"it waits for {'; '.join(waits)}"), "again": True, "waits_for": waits}
        else:
            expires = clock + LONGEST if command["op"] == "update" else command["expires"]
            before = self._restarts(command)
            result = self._carry_out(command, durable=self.outbox.remember(name, "", expires, clock))
            ours = isinstance(result["result"], dict) and result["result"].pop("pid", None) == os.getpid()
            if result["ok"] and command["op"] in SETTLED and not ours:  # who could not tell how it ends
                self.pending[name] = Pending(command, now, before)
                return self._outcome(name, now, clock) or under_way(name, command)
        return self._answer(name, command, result, expires, clock)

    def _answer(
        self, name: str, command: dict[str, Any], result: dict[str, Any], expires: float, clock: float
    ) -> dict[str, Any]:
        """Store a result, make a record of it, and return it."""
        self.outbox.remember(name, json.dumps(result), expires, clock)
        self.tell({**command, **result})
        return {"id": name, **result}

    def look(self, now: float, clock: float) -> list[dict[str, Any]]:
        """The results of commands whose outcome is known now; and the question of an update that has waited."""
        found = (self._outcome(name, now, clock) for name in list(self.pending))
        return [result for result in (*found, self._suits(now)) if result is not None]

    def due(self, now: float) -> float | None:
        """When to look again; None where nothing is under way."""
        times = [now + LOOK] if self.pending else []
        times += [self.later.due] if self.later else []
        return min(times, default=None)

    def _waits(self, command: dict[str, Any]) -> list[str]:
        """What an update waits for, which PID 1 shows; [] where it may begin, or where PID 1 refuses it anyhow."""
        self.later = None
        try:
            answer = self.ask({**self._request(command), "waits_for": self.waits()})
        except SVError:
            return []
        found = answer.get("waits_for") if isinstance(answer, dict) else None
        return found if isinstance(found, list) else []

    def _suits(self, now: float) -> dict[str, Any] | None:
        """Ask the mothership whether an update that has waited may begin: a roll-out may have been stopped meanwhile.

        Nothing begins without the word that answers. Without one for long the board forgets it, and is told again some day.
        """
        one = self.later
        if one is None or now < one.due:
            return None
        if self._waits(one.command):
            self.later = one._replace(due=now + LOOK_LATER, asked=0)
            return None
        self.later = one._replace(due=now + ASK_LATER, asked=one.asked + 1) if one.asked + 1 < ASKS else None
        return {"id": one.command["id"], **failure("it may begin now, and asks"), "again": True, "asks": True}

    def _outcome(self, name: str, now: float, clock: float) -> dict[str, Any] | None:
        """The result of a command that was begun; None where it is not over."""
        one = self.pending[name]
        service, took = one.command["name"], round(now - one.since, 1)
        try:
            row = shown(self.ask({"op": "stats", "name": service})[0])
        except (SVError, LookupError) as error:
            result = failure(f"{service}: {error}")
        else:
            if not one.settled(row) and took < PATIENCE:
                return None
            if not one.settled(row):
                result = failure(f"{service} is still {row['state']} after {took:g} s")
            elif row["state"] == "backoff":
                result = failure(f"{service} failed, and is tried again: {row['exit']}")
            else:
                result = {"ok": True, "result": {**row, "after": took}, "error": None}
        del self.pending[name]
        return self._answer(name, one.command, result, one.command["expires"], clock)

    def _restarts(self, command: dict[str, Any]) -> int | None:
        """How often the service of a restart has been restarted so far; None where there is none yet."""
        if command["op"] != "restart":
            return None
        try:
            count = self.ask({"op": "stats", "name": command["name"]})[0].get("restart")
        except (SVError, LookupError):
            return None
        return count if isinstance(count, int) else None

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

    def _request(self, command: dict[str, Any]) -> dict[str, Any]:
        return {field: command[field] for field in ("op", *wire.COMMANDS[command["op"]])}

    def _carry_out(self, command: dict[str, Any], *, durable: bool) -> dict[str, Any]:
        if command["op"] in wire.ENDS and not durable:
            return failure("its id is not on the disk, which takes nothing now: after a reboot it would be carried out again")
        if command["op"] == "update" and not durable:
            return failure("its id is not on the disk, which takes nothing now: it would be carried out again")
        try:
            answer = self.ask(self._request(command))
        except SVError as error:
            return failure(str(error))
        if isinstance(answer, dict) and "state" in answer:
            answer = shown(answer) | ({"pid": answer.get("pid")} if command["op"] in SETTLED else {})
        return {"ok": True, "result": answer, "error": None}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """What the mothership sees of a service."""
    return {field: row.get(field) for field in SHOWN}


def under_way(name: str, command: dict[str, Any]) -> dict[str, Any]:
    """The answer until the outcome is known: a mothership asks again."""
    return {"id": name, **failure(f"{command['op']} {command['name']} is under way"), "again": True}


def failure(why: str) -> dict[str, Any]:
    """The result of a command that was not carried out."""
    return {"ok": False, "result": None, "error": why}
