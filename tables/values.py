"""What one cell of a table may be: text, numbers, addresses, sizes, signals.

`ipaddress` would double PID 1's start: inet_pton(3) knows what an address is.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING, signal, socket

if TYPE_CHECKING:
    from typing import Any

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def is_text(*values: object) -> bool:
    """Whether they are texts that a system call takes."""
    return all(isinstance(value, str) and "\0" not in value for value in values)


def is_address(text: Any) -> bool:
    """Whether it is an IPv4 or IPv6 address (`man 3 inet_pton`)."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, TypeError, ValueError):
        return False
    return True


def is_number(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number in these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def memory_bytes(size: int | str) -> int:
    """The bytes of 67108864, "64M" or "25%" (of the board's memory); ValueError for anything else."""
    text = str(size)
    number, unit = (text[:-1], text[-1:]) if text[-1:] in (*UNITS, "%") else (text, "")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{size!r} is not a number of bytes, nor text such as '64M' or '25%'")
    if unit == "%":
        return int(number) * os.sysconf("SC_PHYS_PAGES") // 100 * os.sysconf("SC_PAGE_SIZE")
    return int(number) * UNITS.get(unit, 1)


def signal_number(name: str | int) -> int:
    """The number of "TERM", "SIGTERM", "15" or 15; ValueError for anything else."""
    text = str(name).upper()
    number = int(text) if text.isdigit() else getattr(signal, "SIG" + text.removeprefix("SIG"), None)
    if not isinstance(number, int) or number not in signal.valid_signals():
        raise ValueError(f"{name!r} is not a signal: a name as in `man 7 signal` (TERM, HUP, USR1) or its number")
    return int(number)
