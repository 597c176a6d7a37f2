"""A profile for a newer version than this one: what it says that nobody knows here is left out, and the rest of it counts.

After a fall-back the owner's file may have columns, tables and rows of the version that was left. Used in the process that
reads a profile (tables/evaluate.py), and nowhere else: it changes the classes of the rows.
"""

from __future__ import annotations

from base.near import did_you_mean, near
from base.stdlib import TYPE_CHECKING
from tables import plain, rows

if TYPE_CHECKING:
    from typing import Any

    Dictionary = dict[str, Any]
else:
    Dictionary = dict

MOST = 40  # notes of one profile
# Without one of these a program may do more than its row wants: a misspelt one is a mistake in any version.
RIGHTS = ("user", "groups", "capabilities", "no_new_privs", "rlimits", "umask", "publishes", "hears", "enabled", "when")


class Unknown:
    """In the place of a row whose kind this version does not have. It can be made, and is no row."""

    def __init__(self, *words: Any, **columns: Any) -> None:
        pass


class Names(Dictionary):
    """The names of a profile. A table that this version does not have is empty: `GADGETS += (Gadget("a"),)` can be read."""

    def __init__(self, names: dict[str, Any], builtins: dict[str, Any]) -> None:
        super().__init__(names)
        self.builtins = builtins

    def __missing__(self, name: str) -> Any:
        if name in self.builtins or not name.isupper() or name.startswith("_"):
            raise KeyError(name)
        return ()


def forgive(notes: list[str]) -> None:
    """From now on rows take columns that they do not have; each is left out, and noted."""
    for kind in plain.ROWS.values():
        kind.__new__ = _maker(kind, kind.__new__, notes)
        kind._replace = _replacer(kind, kind._replace, notes)
    vars(rows)["__getattr__"] = _row


def _row(name: str) -> Any:
    """What tables.rows has under a name that it does not have (PEP 562)."""
    if name[:1].isupper():
        return Unknown
    raise AttributeError(f"tables.rows has no {name}")


def _maker(kind: Any, make: Any, notes: list[str]) -> Any:
    def new(cls: Any, *words: Any, **columns: Any) -> Any:
        name = words[0] if words else columns.get("name")
        return make(cls, *words, **_known(kind.__name__, kind._fields, name, columns, notes))

    return new


def _replacer(kind: Any, replace: Any, notes: list[str]) -> Any:
    def replaced(self: Any, **columns: Any) -> Any:
        return replace(self, **_known(kind.__name__, kind._fields, self[0], columns, notes))

    return replaced


def forgiving(function: Any, notes: list[str]) -> Any:
    """settings.py's app(), as a row is made by it."""
    code = function.__code__
    fields = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    def called(*words: Any, **columns: Any) -> Any:
        return function(*words, **_known(code.co_name, fields, words[0] if words else "", columns, notes))

    return called


def _known(kind: str, fields: tuple[str, ...], name: Any, columns: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The columns that a kind of row has; what is noted of the others quotes no value. TypeError: a misspelt right."""
    for column in [column for column in columns if column not in fields]:
        if kind in ("Service", "app") and (meant := near(column[:40], RIGHTS)):
            raise TypeError(f"{kind}: {column[:40]} is not a column; did you mean {' or '.join(meant)}?")
        what = f"{kind} {name[:60]}" if type(name) is str and name.isprintable() else kind
        note = f"{what}: {column[:40]} is not a column{did_you_mean(column, fields)}; left out"
        if note not in notes and len(notes) < MOST:
            notes.append(note)
    return {column: value for column, value in columns.items() if column in fields}
