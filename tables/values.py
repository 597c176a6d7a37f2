"""What one cell of a table may be: text, numbers, addresses, sizes, signals; and how it is named without quoting a secret.

`ipaddress` would double PID 1's start: inet_pton(3) knows what an address is.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING, signal, socket
from tables.plain import ROWS, Foreign

if TYPE_CHECKING:
    from typing import Any

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LONGEST_PATH = 4095  # bytes: PATH_MAX without its NUL
LONGEST_WORD = 128 * 1024 - 1  # bytes: MAX_ARG_STRLEN of execve(2) without its NUL
OURS = "/run/stack"  # PID 1's own sockets, pipes and records
MOST = 1e6  # seconds: some twelve days


def is_text(*values: object) -> bool:
    """Whether they are texts that a system call takes."""
    for value in values:  # noqa: SIM110  # a generator would take twice as long, six times for each row
        if type(value) is not str or "\0" in value or not is_utf8(value):
            return False
    return True


def is_utf8(text: str) -> bool:
    """Whether it can be written down: half of a surrogate pair cannot."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def is_address(text: Any) -> bool:
    """Whether it is an IPv4 or IPv6 address (`man 3 inet_pton`)."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, TypeError, ValueError):
        return False
    return True


def is_number(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number in these bounds."""
    return type(value) is int and least <= value <= most


def is_id(text: str, most: int = 2**32 - 2) -> bool:
    """Whether it is a user's or a group's number; the last one, -1, means "leave it as it is" to chown(2)."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most


def is_pair(value: object) -> bool:
    """Whether it is a pair of texts."""
    return type(value) is tuple and len(value) == 2 and is_text(*value)


def path_fault(value: Any, *, writes: bool = False) -> str:
    """Why it is not an absolute path; `writes`: nor one where something of the board's may be written."""
    if not is_text(value) or not value.startswith("/"):
        return "is not an absolute path such as /run/x"
    if len(value.encode()) > LONGEST_PATH:
        return f"is a path of more than {LONGEST_PATH} bytes"
    return "is in /run/stack, where PID 1's own files are; take another folder of /run" if writes and is_ours(value) else ""


def is_ours(path: str) -> bool:
    """Whether a path leads to PID 1's own files; /var/run is a bind of /run."""
    path = _plain_path(path)
    return path == OURS or path.startswith(OURS + "/")


def holds_ours(path: str) -> bool:
    """Whether it is a folder above PID 1's own: whoever may write there may put another one in its place."""
    return OURS.startswith(_plain_path(path).rstrip("/") + "/")


def _plain_path(path: str) -> str:
    while "//" in path:
        path = path.replace("//", "/")
    return os.path.normpath(path).removeprefix("/var") or "/var"


def kind_of(value: object) -> str:
    """What kind of value it is, without quoting it."""
    if isinstance(value, Foreign):
        return value.kind
    if value is None or type(value) is bool:
        return str(value)
    if type(value).__name__ == "Condition":
        return "a function"
    if type(value).__name__ in ROWS:
        return f"one {type(value).__name__}(...) row"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", tuple: "a tuple", bytes: "bytes"}
    return names.get(type(value), "an object")


def shown(value: Any) -> str:
    """A value for people, short; of a setting that holds no secret."""
    if type(value) in (str, int, float, bytes):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if type(value) is tuple and value and all(type(item) in (str, int, float) for item in value):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return kind_of(value)


def shown_name(name: str) -> str:
    """A variable's name up to the "=" that somebody has put in it: the value may follow."""
    return shown(name[: name.find("=") + 1] if "=" in name else name)


def tuple_fault(value: Any, example: str, *, quote: bool = True) -> str:
    """Why it is not a tuple, and what to write: the forgotten comma above all."""
    if type(value) is tuple:
        return ""
    if type(value) is str:
        remedy = f"({value!r},)" if quote and len(value) <= 40 else example
        return f"is text; a comma makes a tuple of it: {remedy}"
    if isinstance(value, Foreign) and value.kind == "a dict":
        return f"is a dict; write a tuple: {example}"
    if type(value).__name__ in ROWS and type(value).__name__ != "Condition":
        return f"is one {type(value).__name__}(...) row; a comma makes a table of it: ({type(value).__name__}(...),)"
    return f"is {kind_of(value)}; write a tuple: {example}"


def one_pair(value: Any, kinds: tuple[type, ...], example: str) -> str:
    """Why it is one pair in place of a tuple of pairs: a comma is missing."""
    one = type(value) is tuple and len(value) == 2 and type(value[0]) is str and type(value[1]) in kinds
    return f"is one pair; a comma more makes a tuple of pairs of it: {example}" if one else ""


def pairs_fault(value: Any, example: str) -> str:
    """Why it is not a tuple of pairs of texts; nothing of it is quoted."""
    if fault := tuple_fault(value, example, quote=False):
        return fault
    if fault := one_pair(value, (str,), example):
        return fault
    wrong = [index for index, pair in enumerate(value) if not is_pair(pair)]
    return f"[{wrong[0]}] is {kind_of(value[wrong[0]])}, not a pair of texts; write pairs: {example}" if wrong else ""


def truth_fault(value: Any) -> str:
    """Why it is neither True nor False: "no" would count as true."""
    return "" if type(value) is bool else f"is {kind_of(value)}; write True or False"


def memory_bytes(size: int | str) -> int:
    """The bytes of 67108864, "64M" or "25%" (of the board's memory); ValueError for anything else."""
    text = str(size) if type(size) in (int, str) else "?"
    number, unit = (text[:-1], text[-1:]) if text[-1:] in (*UNITS, "%") else (text, "")
    if not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise ValueError(f"{shown(size)} is not a number of bytes, nor text such as '64M' or '25%'")
    if unit == "%":
        return int(number) * os.sysconf("SC_PHYS_PAGES") // 100 * os.sysconf("SC_PAGE_SIZE")
    return int(number) * UNITS.get(unit, 1)


def signal_number(name: str | int) -> int:
    """The number of "TERM", "SIGTERM", "15" or 15; ValueError for anything else."""
    text = str(name).upper() if type(name) in (str, int) else "?"
    digits = text.isascii() and text.isdigit() and len(text) < 4
    word = text.removeprefix("SIG")
    number = int(text) if digits else getattr(signal, f"SIG{word}", None) if word.isalnum() else None
    if not isinstance(number, int) or number not in signal.valid_signals():
        raise ValueError(f"{shown(name)} is not a signal: a name as in `man 7 signal` (TERM, HUP, USR1) or its number")
    return int(number)
