"""Tables as plain data: what a profile has made, without a single object of the profile's own.

Text, numbers, None, tuples of these, and the rows of tables/rows.py come through. Whatever else a cell holds is represented
by `Foreign`, which knows only what kind of thing it was: nothing that somebody's class does happens in PID 1, and nothing of
it, which may be a passphrase, is quoted. The same data travels as JSON: from the process that evaluates a profile to PID 1,
and from PID 1 to the board's services.
"""

from __future__ import annotations

import marshal

from base.stdlib import TYPE_CHECKING, NamedTuple
from tables.rows import Condition, Device, Directory, Interface, Mode, Mount, Rule, Service, WifiNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FunctionType
    from typing import Any
else:
    FunctionType, CodeType = type(lambda: None), type((lambda: None).__code__)

ROWS: dict[str, Any] = {
    row.__name__: row for row in (Mount, Directory, Device, Service, Interface, WifiNetwork, Rule, Mode, Condition)
}
KINDS = frozenset(ROWS.values())
SIMPLE = frozenset((str, bool, float, type(None)))  # as they are
EMPTY = ()  # Python has only one
DEEPEST = 8  # tuples in tuples
LARGEST = 1 << 64  # of a number
LONGEST_FILE, LONGEST_TEXT = 1 << 20, 200  # bytes of a file that has a condition in it, and characters of its text


class Foreign(NamedTuple):
    """In place of a value that no table can hold."""

    kind: str  # "a dict", "a function"


def plain(value: Any, depth: int = 0) -> Any:
    """The same value, of Python's own types and rows alone; lists become tuples. It never raises."""
    kind = type(value)
    if kind in SIMPLE:
        return value
    try:
        if kind is int:
            return value if -LARGEST < value < LARGEST else Foreign("a number of more than 64 bits")
        if depth > DEEPEST:
            return Foreign("a table in a table in a table")
        if kind in KINDS:
            cells = [one if type(one) in SIMPLE or one is EMPTY else plain(one, depth + 1) for one in tuple.__iter__(value)]
            return tuple.__new__(kind, cells)
        if kind is tuple and SIMPLE.issuperset(map(type, value)):
            return value
        if kind is tuple or kind is list:
            return tuple([one if type(one) in SIMPLE else plain(one, depth + 1) for one in value])
        if kind is bytes or kind is Foreign:
            return value
        return _of_a_subclass(value, kind, depth)
    except Exception:  # a class of somebody's own, with methods of its own
        return Foreign("an object")


def _of_a_subclass(value: Any, kind: type, depth: int) -> Any:
    """What stands behind an enum's member or a text of somebody's own class."""
    if str in kind.__mro__:
        return str.__str__(value)
    for base in (int, float, bytes):
        if base in kind.__mro__:
            arguments: Any = base.__getnewargs__(value)
            return plain(arguments[0])
    if tuple in kind.__mro__:
        return tuple([plain(item, depth + 1) for item in tuple.__iter__(value)])
    if kind is FunctionType:
        return captured(value, depth)
    if list in kind.__mro__:
        return tuple([plain(item, depth + 1) for item in list.__iter__(value)])
    name = str.__str__(kind.__name__)[:40]
    return Foreign(f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}")


def captured(function: FunctionType, depth: int = 0) -> Condition:
    """A function as data: its code, and what it uses of its file, where that is plain or a function itself."""
    code = function.__code__
    used = {name: cell.cell_contents for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)}
    used |= {name: function.__globals__[name] for name in names_of(code) if name in function.__globals__ and name not in used}
    names = {name: plain(value, depth + 2) for name, value in sorted(used.items()) if value is not function}
    same_place = code.replace(co_filename="when", co_firstlineno=1)  # a line that moves changes nothing
    return Condition(
        source_of(code),
        marshal.dumps(same_place).hex(),
        tuple((name, value) for name, value in names.items() if type(value) is not Foreign),
        plain(function.__defaults__ or (), depth + 1),
    )


def names_of(code: CodeType) -> Iterator[str]:
    """Names that a function, and those in it, take from somewhere: globals, and attributes too, which nobody can tell apart."""
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from names_of(constant)


def source_of(code: CodeType) -> str:
    """What a lambda returns, as its file has it; of another function its name."""
    if code.co_name != "<lambda>":
        return f"{code.co_name}(b)"
    spots: list[Any] = [spot for spot in code.co_positions() if None not in spot and (spot[0], spot[2]) != (spot[1], spot[3])]
    try:
        line, column = min((one[0], one[2]) for one in spots)
        last, end = max((one[1], one[3]) for one in spots)
        with open(code.co_filename, "rb") as file:
            lines = file.read(LONGEST_FILE).split(b"\n")[line - 1 : last]
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][column:]
        text = " ".join(b" ".join(lines).decode().split())
    except (OSError, ValueError, IndexError, TypeError):
        return f"a function of line {code.co_firstlineno}"
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def pack(value: Any) -> Any:
    """A plain value as JSON holds it: a row is {"Mount": {column: cell}} with the columns that are not the default."""
    kind = type(value)
    if kind is tuple:
        return [one if type(one) is str else pack(one) for one in value]
    if kind in KINDS:
        cells = zip(value._fields, value, kind._defaults, strict=True)
        others = {name: pack(cell) for name, cell, usual in cells if cell is not usual and not _same(cell, usual)}
        return {kind.__name__: others}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is float and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    return {"Foreign": value.kind} if kind is Foreign else value


def _same(cell: Any, usual: Any) -> bool:
    return type(cell) is type(usual) and bool(cell == usual)


def unpack(value: Any) -> Any:
    """The value that `pack` has packed."""
    if isinstance(value, list):
        return tuple([unpack(item) for item in value])
    if isinstance(value, dict):
        ((kind, cells),) = value.items()
        if kind == "bytes":
            return bytes.fromhex(cells)
        if kind == "float":
            return float(cells)
        if kind == "Foreign":
            return Foreign(cells)
        return ROWS[kind](**{name: unpack(cell) for name, cell in cells.items()})
    return value
