"""Positions along a route, once a second, where no receiver is fitted: a GPX file, or a loop around a lake.

As long as a real receiver speaks (gps.py), it is silent, also where that one has no fix: an invented position would hide it.
"""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

from bus import Bus, Message

SPEED = 8.0  # m/s
HAND_BACK = 15.0  # s without a word of a receiver that did not take its leave
EARTH = 6_371_000.0  # m, mean radius
LOOP = ((52.5163, 13.3777), (52.5145, 13.3501), (52.5096, 13.3762), (52.5163, 13.3777))  # degrees north, east
Point = tuple[float, float]


def read_gpx(path: str) -> tuple[Point, ...]:
    """The points of a GPX 1.1 file's tracks, routes or waypoints (topografix.com/GPX/1/1), as one closed route."""
    nodes = (node.attrib for node in ET.parse(path).iter())
    points = [(float(node["lat"]), float(node["lon"])) for node in nodes if "lat" in node]
    if len(points) < 2:
        raise SystemExit(f"{path}: a route needs at least two points, this file has {len(points)}")
    return (*points, points[0])


def distance(a: Point, b: Point) -> float:
    """Metres between two points, over the sphere (haversine)."""
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, point)) for point in (a, b))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH * math.asin(math.sqrt(half))


def position(route: tuple[Point, ...], metres: float) -> Point:
    """Where one is after so many metres; the route starts over at its end."""
    legs = [(a, b, distance(a, b)) for a, b in pairwise(route)]
    metres %= sum(leg for _, _, leg in legs) or 1.0
    for a, b, leg in legs:
        if metres <= leg and leg:
            return (a[0] + (b[0] - a[0]) * metres / leg, a[1] + (b[1] - a[1]) * metres / leg)
        metres -= leg
    return route[0]


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
        return any(now - heard < HAND_BACK for heard in self._heard.values())


def main(arguments: list[str]) -> None:
    """`fakegps.py [ROUTE.gpx]`"""
    route = read_gpx(arguments[0]) if arguments and arguments[0] else LOOP
    bus, receivers = Bus("fakegps"), Receivers()
    bus.subscribe("receiver/+", receivers.on_receiver)
    for now in bus.every(1.0):
        if receivers.speak(now):
            continue
        latitude, longitude = position(route, now * SPEED)
        where = {"latitude": round(latitude, 6), "longitude": round(longitude, 6), "accuracy": 5.0}
        bus.publish("gps", {**where, "speed": SPEED, "source": "fake"}, retain=True)


if __name__ == "__main__":
    main(sys.argv[1:])
