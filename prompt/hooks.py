"""How an interactive Python shows our values and errors (sys.displayhook, sys.excepthook)."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from types import FunctionType, TracebackType

from onboard.to_pid1 import SVError
from prompt.shapes import show


def install() -> None:
    """Install both hooks in this interpreter."""
    sys.displayhook, sys.excepthook = display, complain


def display(value: object) -> None:
    """sys.displayhook: show shapes as a terminal needs them, and for a function's bare name how to call it."""
    if value is None:
        return
    builtins._ = value  # type: ignore[attr-defined]
    if isinstance(value, FunctionType) and value.__module__.startswith("prompt."):
        print(usage(value))
    else:  # a text as Python shows it
        print(repr(value) if isinstance(value, str) else show(value) or "(no lines)")


def usage(function: Callable[..., object]) -> str:
    """How to call a function, and what it does."""
    import inspect  # here: it costs a login as much as all our own files

    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    name, first = function.__name__, (inspect.getdoc(function) or "").partition("\n")[0]
    return f"type {name}({', '.join(one.upper() for one in needed)}) to call it: {first} help({name}) says more."


def complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: show an SVError as one sentence, and other exceptions as Python does."""
    if issubclass(kind, SVError):
        print(f"SVError: {error}", file=sys.stderr)
    elif issubclass(kind, NameError) and (sentence := in_quotes(getattr(error, "name", None))):
        print(f"SVError: {sentence}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("KeyboardInterrupt", file=sys.stderr)
    else:
        trace = None if issubclass(kind, SyntaxError) else trace  # it names its file and line itself
        sys.__excepthook__(kind, error.with_traceback(trace), trace)


def in_quotes(name: str | None) -> str:
    """For a name that Python does not know: that it is a service's, where it is; empty where it is not."""
    from prompt.asking import service_names

    return f"{name} is a service: type its name in quotes, {name!r}" if name and name in service_names() else ""
