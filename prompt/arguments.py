"""What the prompt's functions are called with: wrong arguments get one sentence, before anything is asked of PID 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

from base.near import did_you_mean
from onboard.to_pid1 import SVError

# Of an annotation's parts: what a value may be, and that in words. Where one is missing here, any value will do.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"), "int": ((int,), "a whole number"), "float": ((int, float), "a number"),
    "bool": ((bool,), "True or False"), "None": ((type(None),), ""),
}  # fmt: skip
SHOWN = 60  # characters of a value in a message


def checked(function: FunctionType) -> Callable[..., Any]:
    """The same function, which raises SVError for arguments that do not fit its own annotations."""

    @wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        if fault := arguments_fault(function, values, named):
            raise SVError(f"{function.__name__}: {fault}; help({function.__name__}) says more")
        return function(*values, **named)

    return call


def arguments_fault(function: FunctionType, values: tuple[Any, ...], named: dict[str, Any]) -> str:
    """What is wrong with these arguments, as a sentence; "" where nothing is.

    Without `inspect`, which costs a login as much as all our own files.
    """
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    if len(values) > len(names):
        return f"it takes {len(names) or 'no'} argument{'s' * (len(names) != 1)}, and {len(values)} were given"
    given = dict(zip(names, values, strict=False))
    for name, value in named.items():
        if name not in names:
            there = f"; there are {', '.join(names)}" if names else ""
            return f"it has no argument {name!r}{there}{did_you_mean(name, names)}"
        if name in given:
            return f"{name} was given twice"
        given[name] = value
    needed = names[: len(names) - len(function.__defaults__ or ())]
    if missing := [name for name in needed if name not in given]:
        return f"it needs {' and '.join(missing)}"
    return next((fault for name, value in given.items() if (fault := value_fault(function, name, value))), "")


def value_fault(function: FunctionType, name: str, value: Any) -> str:
    """Why a value is none for this argument."""
    parts = str(function.__annotations__.get(name, "")).split(" | ")
    if any(part not in KINDS for part in parts):
        return ""
    kinds = {kind for part in parts for kind in KINDS[part][0]}
    if type(value) in kinds or (isinstance(value, tuple(kinds - {int})) and not isinstance(value, bool)):
        return f"{name} is no number" if value != value else ""
    words = " or ".join(word for part in parts if (word := KINDS[part][1]))
    text = repr(value)
    return f"{name} is {text if len(text) <= SHOWN else text[:SHOWN] + '...'}, and takes {words}"
