"""Exceptions as text and as data: `traceback` and what it imports would cost PID 1 a megabyte.

Loaded with the console and with the first exception that PID 1 keeps.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

FRAMES = 15  # of a traceback: the innermost ones
CHAIN = 4  # exceptions that were the cause of another one
LOCALS, VALUE, ITEMS = 25, 160, 6  # of a frame; characters of a value; items of a list
FILE = 1024 * 1024  # bytes of a source file that is looked into
HIDDEN = ("passphrase", "password", "passwd", "secret", "psk", "token", "environ", "private_key")
LEFT_OUT = "(left out)"


def steps(trace: TracebackType | None, without: str | None = None) -> list[tuple[FrameType, int]]:
    """Frames and lines of a traceback, the innermost last; frames of the file `without`, and of its helper, are left out."""
    found = []
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if without is None or file not in (without, without.replace("inside", "interrupt")):
            found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found[-FRAMES:]


def text(error: BaseException, without: str | None = None, sources: dict[str, str] | None = None) -> str:
    """An exception as Python shows it, at most CHAIN of those that led to it. `sources` has what was typed, by file name."""
    parts: list[str] = []
    one: BaseException | None = error
    while one is not None and len(parts) < CHAIN:
        lines = []
        found = [] if isinstance(one, SyntaxError) and one.filename else steps(one.__traceback__, without)
        if found:
            lines.append("Traceback (most recent call last):")
        for frame, number in found:
            file = frame.f_code.co_filename
            lines.append(f'  File "{file}", line {number}, in {frame.f_code.co_name}')
            if source := line_of(file, number, sources or {}):
                lines.append(f"    {source}")
        lines += _syntax(one) if isinstance(one, SyntaxError) else []
        lines.append(f"{type(one).__name__}: {words(one)}".rstrip(": "))
        parts.insert(0, "\n".join(lines))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n\nwhich led to:\n\n".join(parts) + "\n"


def words(error: BaseException) -> str:
    """What an exception says of itself, without raising another one."""
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)[:1000]
    except Exception:
        return "(an exception whose text cannot be made)"


def _syntax(error: SyntaxError) -> list[str]:
    source = (error.text or "").rstrip("\n")
    mark = " " * max(0, (error.offset or 1) - 1) + "^"
    return [
        f'  File "{error.filename}", line {error.lineno}',
        *([f"    {source[:200]}", f"    {mark}"] if source and len(mark) < 200 else []),
    ]


def line_of(file: str, number: int, sources: dict[str, str]) -> str:
    """One line of a source, without its indentation; empty where it cannot be read."""
    if file in sources:
        lines = sources[file].split("\n")
    else:
        try:
            with open(file, encoding="utf-8", errors="replace") as source:
                lines = source.read(FILE).split("\n")
        except (OSError, ValueError):
            return ""
    return lines[number - 1].strip()[:200] if 0 < number <= len(lines) else ""


# --- as data ------------------------------------------------------------------------------------------------------------
def frames(trace: TracebackType | None, secrets: tuple[str, ...]) -> list[dict[str, Any]]:
    """Frames with the values of their local names, bounded; what is secret by its name or its value is left out."""
    found = []
    for frame, number in steps(trace):
        names = list(frame.f_locals.items())[:LOCALS]
        found.append({
            "file": frame.f_code.co_filename, "line": number, "function": frame.f_code.co_name,
            "locals": {name: LEFT_OUT if is_hidden(name) else without(brief(value), secrets) for name, value in names},
        })  # fmt: skip
    return found


def is_hidden(name: object) -> bool:
    """Whether a name says that its value is a secret."""
    return isinstance(name, str) and any(word in name.lower() for word in HIDDEN)


def without(text: str, secrets: tuple[str, ...]) -> str:
    """The text without these words."""
    for secret in secrets:
        text = text.replace(secret, LEFT_OUT)
    return text


def brief(value: Any, depth: int = 2) -> str:
    """A value in a few words. It calls no code but that of Python's own types: another type is named, not shown."""
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value[:VALUE]) + ("..." if len(value) > VALUE else "")
    if kind is int and value.bit_length() > 200:
        return f"<int of {value.bit_length()} bits>"
    if value is None or kind in (int, float, bool):
        return repr(value)
    if kind in (list, tuple, set, frozenset):
        items = [brief(one, depth - 1) for one in list(value)[:ITEMS]] if depth else ["..."] if value else []
        more = f", ... {len(value)} in all" if len(value) > ITEMS else ""
        return f"{'' if kind is list else kind.__name__}[{', '.join(items)}{more}]"[: 2 * VALUE]
    if kind is dict:
        pairs = list(value.items())[:ITEMS] if depth else []
        items = [f"{brief(key, 0)}: {LEFT_OUT if is_hidden(key) else brief(one, depth - 1)}" for key, one in pairs]
        more = f", ... {len(value)} in all" if len(value) > len(items) else ""
        return ("{" + ", ".join(items) + more + "}")[: 2 * VALUE]
    name = value[0] if isinstance(value, tuple) and value else _name_of(value)
    return f"<{kind.__name__} {name[:64]!r}>" if type(name) is str else f"<{kind.__name__}>"


def _name_of(value: Any) -> Any:
    """`__name__` of a function or a class, the name of a service's row."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    row = own.get("row")
    if isinstance(row, tuple) and row:
        return row[0]
    return getattr(value, "__name__", None) if type(value) in (type(_name_of), type) else own.get("name")
