"""One HTML page that needs no server and no network: the boards and their ways, and each access point where it probably is.

map.html is the page without its data, which goes into it as JSON that a browser never takes for code: <, > and & are
escaped, and the page's own policy (CSP) names its one script by its hash and forbids every request.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from boards import boards, stopped
from columns import choices, differences, numbers
from export import write
from locate import Located, distance
from observations import Observation, observations, stamp
from store import Store

TEMPLATE = Path(__file__).with_name("map.html")
STEP = 3.0  # m: the least distance between two points of a way
MOST = 20000  # the most points of a way: above it every other point is dropped, and the distance is doubled
UNIT = 1_000_000  # a place is a whole number of millionths of a degree: 11 cm
FARTHEST = 65535  # m: the greatest radius that is shown
BREAK = 600.0  # seconds without a position after which a new way begins


class Way:
    """The positions of a board, thinned out."""

    def __init__(self) -> None:
        self.parts: list[list[tuple[int, int]]] = []  # each point is longitude, latitude, in millionths of a degree
        self.step = STEP
        self.count = 0
        self.last: tuple[float, float, float] | None = None  # longitude, latitude, when
        self.sources: set[str] = set()

    def add(self, item: Observation) -> None:
        self.sources.add(item.source)
        before, self.last = self.last, (item.longitude, item.latitude, item.at)
        if before is None or abs(item.at - before[2]) > BREAK:
            self.parts.append([])
        elif distance(self.parts[-1][-1][1] / UNIT, self.parts[-1][-1][0] / UNIT, item.latitude, item.longitude) < self.step:
            return
        self.parts[-1].append((round(item.longitude * UNIT), round(item.latitude * UNIT)))
        self.count += 1
        if self.count > MOST:
            self.parts = [part[::2] for part in self.parts]
            self.step, self.count = 2 * self.step, sum(map(len, self.parts))


class Point:
    """One access point, from all of its observations."""

    def __init__(self, item: Observation) -> None:
        self.located = Located(item.latitude, item.longitude)
        self.ssid: str | None = None
        self.first, self.last, self.latest = item.at, item.at, item
        self.best = item.signal
        self.count = 0
        self.boards: set[str] = set()

    def add(self, item: Observation) -> None:
        self.located.add(item.latitude, item.longitude, item.signal, item.accuracy)
        self.first, self.best, self.count = min(self.first, item.at), max(self.best, item.signal), self.count + 1
        if item.at >= self.last:
            self.last, self.latest = item.at, item
        self.ssid = item.ssid or self.ssid  # a hidden network whose name was heard once has a name
        self.boards.add(item.board)

    def facts(self) -> dict[str, Any]:
        """The fields that the page shows: times in whole seconds, positions in millionths of a degree."""
        latitude, longitude, radius = self.located.result()
        return {
            "bssid": self.latest.bssid, "ssid": self.ssid, "east": round(longitude * UNIT), "north": round(latitude * UNIT),
            "radius": min(round(radius), FARTHEST), "frequency": self.latest.frequency, "security": self.latest.security,
            "signal": round(self.best), "first": int(self.first), "last": int(self.last), "count": self.count,
            "boards": tuple(sorted(self.boards)),
        }  # fmt: skip


def collect(found: Iterable[Observation]) -> tuple[dict[str, Way], dict[str, Point]]:
    """Ways by board, points by BSSID."""
    ways: dict[str, Way] = {}
    points: dict[str, Point] = {}
    for item in found:
        if item.board not in ways:
            ways[item.board] = Way()
        if item.bssid not in points:
            points[item.bssid] = Point(item)
        ways[item.board].add(item)
        points[item.bssid].add(item)
    return ways, points


def packed(points: Iterable[Point]) -> dict[str, Any]:
    """All points, as columns. Points with more observations come later, and are drawn above the others."""
    facts = sorted((point.facts() for point in points), key=itemgetter("count"))
    columns: dict[str, Any] = {"length": len(facts)}
    for name in ("east", "north", "radius", "signal", "first", "count"):
        columns[name] = numbers([one[name] for one in facts])
    for name in ("ssid", "frequency", "security", "boards"):
        columns[name] = choices([one[name] for one in facts])
    columns["until"] = numbers([one["last"] - one["first"] for one in facts])  # seconds from the first to the last
    columns["bssid"] = base64.b64encode(bytes.fromhex("".join(one["bssid"].replace(":", "") for one in facts))).decode()
    return columns


def data(store: Store, now: float, *, fake: bool = False) -> dict[str, Any]:
    """All data of the page."""
    ways, points = collect(observations(store, fake=fake))
    rows = []
    for board in boards(store, now):
        way = ways.get(board["name"], Way())
        times = {name: board[name] and stamp(board[name]) for name in ("since", "seen")}
        here = way.last and [round(way.last[0], 6), round(way.last[1], 6)]
        parts = [differences(part) for part in way.parts]
        rows.append({**board, **times, "way": parts, "here": here, "sources": sorted(way.sources)})
    return {"made": stamp(now), "boards": rows, "points": packed(points.values()), "rollouts": stopped(store)}


def html(found: dict[str, Any]) -> str:
    """The page with its data."""
    page = TEMPLATE.read_text(encoding="utf-8")
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[0] for tag in ("style", "script"))
    policy = f"default-src 'none'; style-src {sha256(style)}; script-src {sha256(script)}; img-src data:; base-uri 'none'"
    text = json.dumps(found, separators=(",", ":")).replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
    return page.replace("DATA", text, 1).replace("POLICY", policy, 1)


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DATABASE", help="a path (SQLite), or postgresql://USER@HOST/NAME")
    parser.add_argument("-o", metavar="FILE", dest="output", default="map.html", help="map.html where nothing is said")
    parser.add_argument("--fake", action="store_true", help="invented positions too (fakegps.py)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    found = data(Store(options.database, make=False), time.time(), fake=options.fake)
    write([html(found)], options.output)
    print(f"{options.output}: {found['points']['length']} access points, {len(found['boards'])} boards")
