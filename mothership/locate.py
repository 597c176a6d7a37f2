"""Where an access point is, from where it was heard and how loud: a weighted centroid.

An observation weighs 10^(dBm/20), the amplitude: in free space that falls as one over the distance. (In a simulation of
walks past access points, path loss exponent 3 and 6 dB of shadowing, the error was smallest with this exponent: see
tests/test_map.py.) Heard from a street alone, the estimate lies on the street: nothing says on which side the house is.
"""

from __future__ import annotations

import math

EARTH = 6371008.8  # m: mean radius (IUGG)
DEGREE = math.pi * EARTH / 180  # m: one degree of latitude
CELL = 10.0  # m: positions nearer to each other than this count as one place
ALONE = 50.0  # m: how far off an access point may well be that was heard from one place only


class Located:
    """A running estimate, in metres from the first position: that rounds well, and the antimeridian is no edge."""

    def __init__(self, latitude: float, longitude: float) -> None:
        self.origin = (latitude, longitude)
        self.across = DEGREE * math.cos(math.radians(latitude))  # m: one degree of longitude here
        self.weight = self.east = self.north = self.squares = self.accuracies = 0.0
        self.places: set[tuple[int, int]] = set()

    def add(self, latitude: float, longitude: float, signal: float, accuracy: float | None) -> None:
        """Degrees, dBm, and metres of the position's error (None: unknown, counted as none)."""
        weight = 10 ** (signal / 20)
        east = ((longitude - self.origin[1] + 180) % 360 - 180) * self.across
        north = (latitude - self.origin[0]) * DEGREE
        self.weight += weight
        self.east += weight * east
        self.north += weight * north
        self.squares += weight * (east * east + north * north)
        self.accuracies += weight * (accuracy or 0.0)
        self.places.add((round(east / CELL), round(north / CELL)))

    def result(self) -> tuple[float, float, float]:
        """Latitude, longitude, and a radius in metres that the truth is probably within.

        The radius is made of the weighted spread of the positions, their own error, and what few places leave open. In the
        simulation it held the truth in more than nine of ten cases; it is no confidence interval.
        """
        east, north = self.east / self.weight, self.north / self.weight
        spread = max(0.0, self.squares / self.weight - east * east - north * north)
        open_ = ALONE / math.sqrt(len(self.places))
        radius = math.sqrt(spread + (self.accuracies / self.weight) ** 2 + open_**2)
        longitude = self.origin[1] + (east / self.across if self.across > 1e-6 else 0.0)
        return self.origin[0] + north / DEGREE, (longitude + 180) % 360 - 180, radius


def distance(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Metres between positions that are near each other: on a plane."""
    east = ((other_longitude - longitude + 180) % 360 - 180) * math.cos(math.radians(latitude))
    return math.hypot(east, other_latitude - latitude) * DEGREE
