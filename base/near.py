"""The names that are near a misspelt one. PID 1 uses it, and `difflib` would cost it `re`."""

from __future__ import annotations


def distance(one: str, other: str) -> int:
    """How many letters have to be put in, taken out or changed to make one word of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for index, char in enumerate(one, 1):
        last, row[0] = row[0], index
        for column, letter in enumerate(other, 1):
            last, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, last + (char != letter))
    return row[-1]


def near(name: str, names: object) -> list[str]:
    """At most three names that this one may have been meant as, the nearest first."""
    most = max(1, min(3, len(name) // 3))
    known = [str(other) for other in names] if isinstance(names, (tuple, list, set, frozenset, dict)) else []
    found = sorted((distance(name.lower(), other.lower()), other) for other in known if abs(len(name) - len(other)) <= most)
    return [other for far, other in found if far <= most][:3]


def did_you_mean(name: str, names: object) -> str:
    """`; did you mean SHUTDOWN_TIMEOUT?`, or nothing where no name is near."""
    found = near(name[:64], names)
    return f"; did you mean {' or '.join(found)}?" if found else ""
