"""What is wrong with a row of MODES, as a sentence for people; empty where nothing is. And which names facts may have."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.rows import Condition, Mode
from tables.values import is_text, kind_of, one_pair, shown, tuple_fault

if TYPE_CHECKING:
    from typing import Any

LONGEST = 64  # characters of a fact's name, a mode's, a state's
MOST_STATES = 16


def is_fact(name: Any) -> bool:
    """Whether a fact of the board may have this name."""
    if not is_text(name) or not name.isascii() or not 0 < len(name) <= LONGEST:
        return False
    return name.translate({ord(char): None for char in "_-./@"}).isalnum() or name.strip("/") in ("mode", "fact")


def _is_word(text: Any) -> bool:
    return is_fact(text) and "/" not in text


def mode_fault(tables: Any, row: Any) -> str:
    """Faults of one row of MODES."""
    if type(row) is not Mode:
        return "is not a Mode(...) row"
    if not _is_word(row.name):
        return f"name {shown(row.name)} is not letters, digits and _-.@"
    if fault := tuple_fault(row.states, '("good", "failing")'):
        return f"states {fault}"
    if not 2 <= len(set(map(str, row.states))) == len(row.states) <= MOST_STATES or not all(map(_is_word, row.states)):
        return f"states are from 2 to {MOST_STATES} different words"
    if type(row.hold) not in (int, float) or not 0 <= row.hold <= 86400:
        return f"hold {shown(row.hold)} is not a number of seconds from 0 to 86400"
    if fault := tuple_fault(row.memory, '("failing",)'):
        return f"memory {fault}"
    for state in row.memory:
        if state not in row.states:
            return f"memory has {shown(state)} in it, which is none of its states"
    return _enter_fault(tables, row)


def _enter_fault(tables: Any, row: Mode) -> str:
    example = '(("failing", lambda b: b.voltage < 11.5),)'
    if fault := tuple_fault(row.enter, example, quote=False) or one_pair(row.enter, (Condition,), example):
        return f"enter {fault}"
    for pair in row.enter:
        if type(pair) is not tuple or len(pair) != 2:
            return f'enter has {kind_of(pair)} in it, not a pair such as ("failing", lambda b: b.voltage < 11.5)'
        state, condition = pair
        if state not in row.states:
            return f"enter has {shown(state)} in it, which is none of its states"
        from tables.when import condition_fault

        if fault := condition_fault(condition, first_states(tables)):
            return f"enter {state}: the condition {fault}"
    return ""


def first_states(tables: Any) -> dict[str, str]:
    """The state that each mode begins in, by its name; rows that cannot be are left out."""
    rows = [row for row in tables.values["MODES"] if type(row) is Mode and type(row.states) is tuple and row.states]
    return {row.name: row.states[0] for row in rows if is_text(row.name, row.states[0])}


def twice(tables: Any) -> list[str]:
    """Leave out modes whose name another one has, and say so."""
    found: dict[str, Mode] = {}
    faults = []
    for row in tables.values["MODES"]:
        if row.name in found:
            faults.append(
                f"MODES {row.name}: there is a mode of this name already; the first one counts; "
                "MODES = replaced(MODES, Mode(...)) puts a row in the place of the one of its name"
            )
        found.setdefault(row.name, row)
    tables.values["MODES"] = tuple(found.values())
    return faults
