"""Columns of whole numbers and repeated values, as the map carries them: 200,000 access points fit into a few megabytes.

As JSON an access point takes some 255 bytes, most of them names of fields; in columns it takes some 40, and a browser reads
them into typed arrays without making an object for each.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Hashable, Sequence
from typing import Any

KINDS = ((1, "B"), (2, "H"), (4, "I"), (8, "d"))  # bytes of a number, and what array calls them; a browser has no "Q"


def numbers(values: Sequence[int]) -> dict[str, Any]:
    """Pack whole numbers: the least one, and each one's difference to it in as few bytes as all fit into, little endian."""
    least = min(values, default=0)
    span = max(values, default=0) - least
    size, kind = next((size, kind) for size, kind in KINDS if span < 256**size)
    packed = array(kind, (value - least for value in values))
    if sys.byteorder == "big":
        packed.byteswap()
    return {"least": least, "size": size, "data": base64.b64encode(packed.tobytes()).decode()}


def choices(values: Sequence[Hashable]) -> dict[str, Any]:
    """Pack values that repeat: each distinct value once, and its index for every row."""
    places: dict[Hashable, int] = {}
    which = [places.setdefault(value, len(places)) for value in values]
    return {"values": list(places), "which": numbers(which)}


def differences(part: Sequence[tuple[int, int]]) -> list[int]:
    """Pack the points of a line: each as its difference to the point before."""
    found: list[int] = []
    x = y = 0
    for next_x, next_y in part:
        found += (next_x - x, next_y - y)
        x, y = next_x, next_y
    return found
