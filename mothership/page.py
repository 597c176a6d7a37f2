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
from pathlib import Path
from typing import Any

from boards import boards
from export import write
from locate import Located, distance
from observations import Observation, observations, stamp
from store import Store

TEMPLATE = Path(__file__).with_name("map.html")
STEP = 3.0  # m: a way's points are not nearer to each other...
MOST = 20000  # ...and not more than so many: above it every other one goes, and the step is doubled
BREAK = 600.0  # s without a position, and a way is drawn as two


class Way:
    """Where a board was, thinned."""

    def __init__(self) -> None:
        self.parts: list[list[tuple[float, float]]] = []  # each point is longitude, latitude
        self.step = STEP
        self.count = 0
        self.last: tuple[float, float, float] | None = None  # longitude, latitude, when
        self.sources: set[str] = set()

    def add(self, item: Observation) -> None:
        self.sources.add(item.source)
        before, self.last = self.last, (item.longitude, item.latitude, item.at)
        if before is None or abs(item.at - before[2]) > BREAK:
            self.parts.append([])
        elif distance(self.parts[-1][-1][1], self.parts[-1][-1][0], item.latitude, item.longitude) < self.step:
            return
        self.parts[-1].append((round(item.longitude, 6), round(item.latitude, 6)))
        self.count += 1
        if self.count > MOST:
            self.parts = [part[::2] for part in self.parts]
            self.step, self.count = 2 * self.step, sum(map(len, self.parts))


class Point:
    """One access point: what all of its observations say."""

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

    def as_json(self) -> dict[str, Any]:
        latitude, longitude, radius = self.located.result()
        return {
            "bssid": self.latest.bssid, "ssid": self.ssid, "at": [round(longitude, 6), round(latitude, 6)],
            "radius": round(radius), "frequency": self.latest.frequency, "security": self.latest.security, "signal": self.best,
            "first": stamp(self.first), "last": stamp(self.last), "count": self.count, "boards": sorted(self.boards),
        }  # fmt: skip


def collect(found: Iterable[Observation]) -> tuple[dict[str, Way], dict[str, Point]]:
    """Ways by board, points by BSSID."""
    ways: dict[str, Way] = {}
    points: dict[str, Point] = {}
    for item in found:
        ways.setdefault(item.board, Way()).add(item)
        points.setdefault(item.bssid, Point(item)).add(item)
    return ways, points


def data(store: Store, now: float, *, fake: bool = False) -> dict[str, Any]:
    """Everything that the page shows."""
    ways, points = collect(observations(store, fake=fake))
    rows = []
    for board in boards(store, now):
        way = ways.get(board["name"], Way())
        times = {name: board[name] and stamp(board[name]) for name in ("since", "seen")}
        here = way.last and [round(way.last[0], 6), round(way.last[1], 6)]
        rows.append({**board, **times, "way": way.parts, "here": here, "sources": sorted(way.sources)})
    return {"made": stamp(now), "boards": rows, "points": [point.as_json() for point in points.values()]}


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
    print(f"{options.output}: {len(found['points'])} access points, {len(found['boards'])} boards")
