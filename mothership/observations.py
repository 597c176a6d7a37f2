"""Reads observations of access points for exports and map: checked, with their wall time, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from store import Store, clean, number

from base.printable import printable

BSSID = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
FAKE = "fake"  # the source of an invented position
LAST = 253402300799.0  # the last second of the year 9999: no calendar goes further


class Observation(NamedTuple):
    """One access point, heard once."""

    board: str
    at: float  # wall time, seconds
    latitude: float
    longitude: float
    accuracy: float | None  # m, of the position
    bssid: str
    ssid: str | None  # None: hidden
    frequency: int  # MHz, 0 unknown
    signal: float  # dBm
    security: str
    source: str  # of the position: a receiver, or "fake"


def observations(store: Store, board: str = "", since: float | None = None, *, fake: bool = False) -> Iterator[Observation]:
    """Observations with a position, board by board in the order of its records. What was "lost" is left out, and so is what
    fakegps.py has invented, unless it is asked for.
    """
    query, values = "SELECT board, at, received, body FROM placed WHERE kind = 'wifi'", list[Any]()
    if board:
        query, values = query + " AND board = ?", [board]
    if since is not None:
        query, values = query + " AND at >= ?", [*values, since]
    for name, at, received, body in store.database.rows(query + " ORDER BY board, seq", values):
        found = observation(name, at if 0 <= at <= LAST else received, body)
        if found and (fake or found.source != FAKE):
            yield found


def observation(board: str, at: float, body: str) -> Observation | None:
    """The observation in a record's body; None if a field that a map needs is missing."""
    try:
        data = json.loads(body)["data"]
        bssid, ssid = str(data["bssid"]).lower(), data["ssid"]
        latitude, longitude, signal = (number(data[name]) for name in ("latitude", "longitude", "signal"))
        accuracy, frequency = number(data.get("accuracy")), number(data.get("frequency"))
        lost, security, source = data.get("event") == "lost", str(data.get("security")), str(data.get("position_source"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if lost or latitude is None or longitude is None or signal is None or not BSSID.fullmatch(bssid):
        return None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180 and -200 <= signal <= 100):
        return None
    hertz = int(frequency) if frequency and 0 < frequency < 1e6 else 0
    error = accuracy if accuracy is not None and 0 <= accuracy < 1e7 else None
    name = clean(str(ssid)) if ssid else None
    return Observation(board, at, latitude, longitude, error, bssid, name, hertz, signal, clean(security), clean(source))


def stamp(at: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(min(max(at, 0.0), LAST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def visible(text: str) -> str:
    """A text without characters that a terminal obeys, that break a line, or that change its direction."""
    return printable(text, "\ufffd")
