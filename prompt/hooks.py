"""How an interactive Python shows our values and errors: sys.displayhook and sys.excepthook."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable
from types import TracebackType

from onboard.to_pid1 import SVError
from prompt.shapes import show


def install() -> None:
    """For this interpreter, from now on."""
    sys.displayhook, sys.excepthook = display, complain


def display(value: object) -> None:
    """sys.displayhook: shapes for a terminal; a function that was only named says how it is called."""
    if value is None:
        return
    builtins._ = value  # type: ignore[attr-defined]
    if inspect.isfunction(value) and value.__module__.startswith("prompt."):
        print(usage(value))
    else:  # a text as Python shows it
        print(repr(value) if isinstance(value, str) else show(value) or "(no lines)")


def usage(function: Callable[..., object]) -> str:
    """What to type to call a function, and what it does."""
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    name, first = function.__name__, (inspect.getdoc(function) or "").partition("\n")[0]
    return f"type {name}({', '.join(one.upper() for one in needed)}) to call it: {first} help({name}) says more."


def complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: an SVError is a sentence, others are Python's."""
    if issubclass(kind, SVError):
        print(f"SVError: {error}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("KeyboardInterrupt", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error.with_traceback(None if issubclass(kind, SyntaxError) else trace), trace)
