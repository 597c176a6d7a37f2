"""Figures of a fleet: percentiles, histograms, and the table at the end."""

from __future__ import annotations

from collections import Counter


def percentile(values: list[float], share: float) -> float:
    """The value that so many per cent of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else float("nan")


def most_in_a_second(times: list[float]) -> int:
    """The most events within any one second."""
    ordered = sorted(times)
    first = most = 0
    for index, when in enumerate(ordered):
        while when - ordered[first] > 1.0:
            first += 1
        most = max(most, index - first + 1)
    return most


def histogram(seconds: list[float]) -> str:
    """The number of events in each second."""
    counts = Counter(int(value) for value in seconds)
    return "by second: " + " ".join(str(counts[second]) for second in range(max(counts) + 1))


def table(rows: list[dict[str, str]]) -> str:
    """A table with a row for each figure and a column for each run."""
    names = list(rows[0])
    width = max(map(len, names))
    return "\n".join(name.ljust(width) + "".join(row.get(name, "-").rjust(12) for row in rows) for name in names)
