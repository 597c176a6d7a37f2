"""The prompt's way to PID 1, and to the settings that it was booted with."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from base.near import did_you_mean
from onboard import to_pid1
from onboard.board_table import board_table
from onboard.to_pid1 import SVError, Unreachable

if TYPE_CHECKING:
    from tables.tables import Tables


def ask(op: str, **arguments: Any) -> Any:
    """PID 1's answer to one request; SVError where it refuses or is not there."""
    try:
        return _send(op, arguments)
    except Unreachable:
        raise
    except SVError as error:
        name = arguments.get("name")
        if isinstance(name, str) and "there is no service" in str(error) and (close := did_you_mean(name, service_names())):
            raise SVError(f"{error}{close}") from None
        raise


def _send(op: str, arguments: dict[str, Any]) -> Any:
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), {"op": op, **arguments})


def service_names() -> list[str]:
    """Names of all services, in the order of the table; [] where PID 1 does not answer."""
    names: list[str] = []
    try:
        while page := _send("stats", {"first": len(names)}):
            names += [row["name"] for row in page]
    except SVError:
        pass
    return names


@cache
def tables() -> Tables:
    """Settings and profiles that PID 1 was booted with, once for a session."""
    return board_table()
