"""Positions along a route, once a second, where no receiver is fitted: a GPX file, or a loop around a lake.

As long as a real receiver speaks (gps.py), it is silent, also where that one has no fix: an invented position would hide it.
"""

from __future__ import annotations

import math
import sys
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from bus import Bus, Message

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SPEED = 8.0  # m/s
PERIOD = 1.0  # s
HAND_BACK = 15.0  # s without a message of a receiver that did not sign off
EARTH = 6_371_000.0  # m, mean radius
LOOP = ((52.5163, 13.3777), (52.5145, 13.3501), (52.5096, 13.3762))  # degrees north, east
KINDS = ("trkpt", "rtept", "wpt")  # of a file's points those of the first kind that it has
MOST = 250_000  # points: more would not fit into our share of the memory
GIVE_UP = 125  # the exit status that asks PID 1 not to restart us
Point = tuple[float, float]


def read_gpx(path: str) -> list[Point]:
    """The points of a GPX 1.1 file's tracks; of its routes, where it has none; or its waypoints (topografix.com/GPX/1/1).

    ValueError, a sentence, for what is no such file. It is read piece by piece: a track of a day has 100,000 points.
    """
    import xml.etree.ElementTree as ET  # half a megabyte, for boards with a file alone

    found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
    try:
        for _, node in ET.iterparse(path):
            kind = node.tag.rpartition("}")[2]
            if kind in found:
                if len(found[kind]) == MOST:
                    raise ValueError(f"it has more than {MOST} points")
                found[kind].append((_degrees(node, "lat", 90), _degrees(node, "lon", 180)))
            if kind not in ("ele", "time"):
                node.clear()
    except ET.ParseError as error:
        raise ValueError(f"it is no GPX file, or cut short: {error}") from None
    points = next((found[kind] for kind in KINDS if found[kind]), [])
    if len(points) < 2:
        raise ValueError(f"a route needs at least two points, this file has {len(points)}")
    return points


def _degrees(node: Element, name: str, most: int) -> float:
    text = node.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= most:  # which is so for NaN too
        hint = ", with a point" if "," in text else ""
        raise ValueError(f"{name}={text[:20]!r} of a point is no number from -{most} to {most}{hint}")
    return value


def distance(a: Point, b: Point) -> float:
    """Metres between two points, over the sphere (haversine)."""
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, point)) for point in (a, b))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH * math.asin(min(1.0, math.sqrt(half)))


class Route:
    """A closed way through its points, and where one is on it after so many metres."""

    def __init__(self, points: Iterable[Point]) -> None:
        points = [*points]
        points.append(points[0])
        self.latitudes = array("d", (point[0] for point in points))
        self.longitudes = array("d", (point[1] for point in points))
        self.starts = array("d", [0.0])  # of the legs, in metres from the first point
        for a, b in pairwise(points):
            self.starts.append(self.starts[-1] + distance(a, b))

    def at(self, metres: float) -> Point:
        """The point there; the route starts over at its end."""
        metres %= self.starts[-1] or 1.0
        leg = min(bisect_right(self.starts, metres), len(self.starts) - 1) - 1
        part = (metres - self.starts[leg]) / ((self.starts[leg + 1] - self.starts[leg]) or 1.0)
        north, east = self.latitudes[leg], self.longitudes[leg]
        turn = (self.longitudes[leg + 1] - east + 540) % 360 - 180  # the short way, over 180 degrees too
        return north + (self.latitudes[leg + 1] - north) * part, (east + turn * part + 540) % 360 - 180


class Receivers:
    """The real receivers that speak, as gps.py tells it."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}  # topic: when it last said so

    def on_receiver(self, topic: str, message: Message) -> None:
        self._heard.pop(topic, None)
        if message["data"]["speaks"]:
            self._heard[topic] = message["mono"]

    def speak(self, now: float) -> bool:
        """Whether one does."""
        return self.until() > now

    def until(self) -> float:
        """As long as it does, if no more is heard of it."""
        return max(self._heard.values(), default=float("-inf")) + HAND_BACK


def main(arguments: list[str]) -> None:
    """`fakegps.py [ROUTE.gpx]`"""
    try:
        route = Route(read_gpx(arguments[0]) if arguments and arguments[0] else LOOP)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(f"<3>{arguments[0]}: {why}. Mend the file or GPS_ROUTE, then restart_process('fakegps')", file=sys.stderr)
        raise SystemExit(GIVE_UP) from None
    bus, receivers, due = Bus("fakegps"), Receivers(), time.monotonic()
    bus.subscribe("receiver/+", receivers.on_receiver)

    def next_turn() -> float:
        return max(due, receivers.until())

    for now in bus.when(next_turn):
        if now < due or receivers.speak(now):
            continue
        due += PERIOD * max(1, -(-(now - due) // PERIOD))
        latitude, longitude = route.at(now * SPEED)
        where = {"latitude": round(latitude, 6), "longitude": round(longitude, 6), "accuracy": 5.0}
        bus.publish("gps", {**where, "speed": SPEED, "source": "fake"}, retain=True)


if __name__ == "__main__":
    main(sys.argv[1:])
