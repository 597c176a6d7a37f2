"""The prompt's way to PID 1."""

from __future__ import annotations

import os
from typing import Any

from onboard import to_pid1


def ask(op: str, **arguments: Any) -> Any:
    """PID 1's answer to one request; SVError where it refuses or is not there."""
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), {"op": op, **arguments})
