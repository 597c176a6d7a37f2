"""NMEA 0183: sentences out of bytes, and fixes out of sentences. Nothing that a line says makes anything here raise."""

from __future__ import annotations

import calendar
from typing import Any, NamedTuple

LONGEST = 200  # bytes of a sentence; the standard says 82, some receivers say more
KNOT = 1852 / 3600  # m/s
RANGE_ERROR = 5.0  # m: an accuracy of so much for an HDOP of 1, an ordinary receiver's
PAUSE = 0.3  # s without a sentence: the burst of this instant is over
ALONE = 15.0  # s without RMC and GGA: a receiver that says GLL alone (or nothing)
CENTURY = 80  # 80 to 99 are years of the last century: GPS began in 1980


class Sentence(NamedTuple):
    """One NMEA sentence: its type without the talker (RMC, whoever says it) and its fields."""

    kind: str
    fields: list[str]


class Fix(NamedTuple):
    """What the sentences of one instant say together; None is what none of them has said."""

    time: str = ""  # UTC, hhmmss.ss
    date: str = ""  # ddmmyy
    valid: bool = True
    latitude: float | None = None
    longitude: float | None = None
    speed: float | None = None  # m/s
    course: float | None = None  # degrees
    quality: int | None = None  # of GGA: 0 none, 1 GPS, 2 differential, 4 and 5 RTK, 6 estimated
    satellites: int | None = None
    hdop: float | None = None
    altitude: float | None = None  # m above the sea
    kinds: frozenset[str] = frozenset()
    heard: float = 0.0  # when its first sentence came, by the monotonic clock

    @property
    def position(self) -> dict[str, Any] | None:
        """As on the topic `gps`; None without a fix."""
        if not self.valid or self.latitude is None or self.longitude is None:
            return None
        return {
            "latitude": round(self.latitude, 7), "longitude": round(self.longitude, 7),
            "accuracy": None if self.hdop is None else round(self.hdop * RANGE_ERROR, 1),
            "speed": None if self.speed is None else round(self.speed, 2), "source": "gps", "altitude": self.altitude,
            "course": self.course, "quality": self.quality, "satellites": self.satellites,
        }  # fmt: skip

    @property
    def utc(self) -> float | None:
        """Seconds of the epoch; None without a fix, or where it does not say the date."""
        digits = self.date + self.time[:6]
        if not self.valid or len(self.date) != 6 or len(digits) != 12 or not digits.isdigit():
            return None
        day, month, year, hour, minute, second = (int(digits[at : at + 2]) for at in range(0, 12, 2))
        year += 1900 if year >= CENTURY else 2000
        if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
            return None
        if hour > 23 or minute > 59 or second > 60:  # a leap second is the next minute's first
            return None
        fraction = number(f"0{self.time[6:]}") or 0.0
        return calendar.timegm((year, month, day, hour, minute, second)) + fraction


class Parser:
    """Sentences out of bytes that arrive in any pieces."""

    def __init__(self) -> None:
        self.good = self.bad = 0
        self._rest = b""

    def feed(self, data: bytes) -> list[Sentence]:
        """The sentences that are complete with this piece."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LONGEST:]
        found = []
        for line in lines:
            sentence = parse(line)
            if sentence:
                found.append(sentence)
            elif line.strip():
                self.bad += 1
        self.good += len(found)
        return found


def parse(line: bytes) -> Sentence | None:
    """One line `$ttsss,field,...*hh`: hh is the exclusive or of all between $ and * (NMEA 0183 4.11, 5.3; gpsd's NMEA.adoc).

    None for what is no such line. A proprietary sentence ($P...) keeps its whole name.
    """
    body, star, digits = line.strip()[-LONGEST:].rpartition(b"$")[2].rpartition(b"*")
    if not star or len(digits) != 2 or not body.isascii():
        return None
    checksum = 0
    for byte in body:
        checksum ^= byte
    if digits.upper() != b"%02X" % checksum:
        return None
    name, *fields = body.decode("ascii").split(",")
    return Sentence(name[2:] if len(name) == 5 and not name.startswith("P") else name, fields)


def read_sentence(fix: Fix, sentence: Sentence) -> Fix:
    """What a sentence adds to the fix of its instant."""
    kind, fields = sentence
    at = instant(sentence)
    if at is None:
        return fix
    if kind == "RMC":
        valid = fields[1] == "A" and _measured(fields, 11)
        where = (degrees(fields[2], fields[3], 90), degrees(fields[4], fields[5], 180))
        speed = number(fields[6])
        fix = fix._replace(date=fields[8], speed=None if speed is None else speed * KNOT, course=number(fields[7]))
    elif kind == "GGA":
        quality, satellites = whole(fields[5]), whole(fields[6])
        # Some receivers say quality 1 before they have heard a satellite; 6 is dead reckoning, which needs none.
        valid = quality == 6 or (quality in (1, 2, 3, 4, 5) and satellites != 0)
        where = (degrees(fields[1], fields[2], 90), degrees(fields[3], fields[4], 180))
        fix = fix._replace(quality=quality, satellites=satellites, hdop=number(fields[7]), altitude=number(fields[8]))
    else:
        valid = fields[5] == "A" and _measured(fields, 6)
        where = (degrees(fields[0], fields[1], 90), degrees(fields[2], fields[3], 180))
    if None not in where:
        fix = fix._replace(latitude=where[0], longitude=where[1])
    return fix._replace(time=at, valid=fix.valid and valid, kinds=fix.kinds | {kind})


def instant(sentence: Sentence) -> str | None:
    """The UTC time that RMC, GGA or GLL say; "" where they do not know it yet; None for another sentence, or a short one.

    Without zeros at its end: some receivers say 130711.00 in one of them and 130711 in another.
    """
    kind, fields = sentence
    if kind in ("RMC", "GGA") and len(fields) >= 9:
        text = fields[0]
    elif kind == "GLL" and len(fields) >= 6:
        text = fields[4]
    else:
        return None
    return text.rstrip("0").removesuffix(".") if "." in text else text


def _measured(fields: list[str], at: int) -> bool:
    """By the mode that is there since NMEA 2.3: N is none, S a simulator's, M typed in by hand."""
    return len(fields) <= at or fields[at] not in ("N", "S", "M")


def number(text: str) -> float | None:
    """A field with a plain decimal number; None for an empty one and for everything else."""
    if not text.isascii() or len(text) > 20 or not text.removeprefix("-").replace(".", "", 1).isdigit():
        return None
    return float(text)


def whole(text: str) -> int | None:
    """A field with a whole number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def degrees(text: str, side: str, most: int) -> float | None:
    """`ddmm.mmmm` with N, S, E or W as degrees north or east."""
    value = number(text)
    if value is None or value < 0 or side not in (("N", "S") if most == 90 else ("E", "W")):
        return None
    found = value // 100 + value % 100 / 60
    if found > most or value % 100 >= 60:
        return None
    return -found if side in ("S", "W") else found


class Epochs:
    """Joins the sentences of one instant: receivers differ in which comes first, and in which there are.

    A fix is returned when RMC and GGA have both come; at once, if no more came for the instant before; or after a pause.
    If more comes later for the same instant, the fix is returned once more.
    """

    def __init__(self) -> None:
        self._fix = Fix()
        self._told: frozenset[str] = frozenset()  # the kinds of this instant that were in a fix returned
        self._before: frozenset[str] = frozenset()  # those of the instant before
        self._said = 0.0  # when this instant's last sentence came
        self._better = float("-inf")  # when RMC or GGA last came: where they are, GLL says nothing new

    def take(self, sentence: Sentence, now: float) -> list[Fix]:
        """The fixes that are complete with this sentence."""
        at, kind = instant(sentence), sentence.kind
        if at is None or (kind == "GLL" and now - self._better < ALONE):
            return []
        if kind != "GLL":
            self._better = now
        found = []
        if at != self._fix.time or not self._fix.kinds:
            found = self._tell()
            self._before, self._told = self._fix.kinds, frozenset()
            self._fix = read_sentence(Fix(heard=now), sentence)
        elif kind in self._fix.kinds:  # another talker says it again
            return []
        else:
            self._fix = read_sentence(self._fix, sentence)
        self._said = now
        if self._fix.kinds >= {"RMC", "GGA"} or self._fix.kinds == self._before or self._told:
            found += self._tell()
        return found

    def hear(self, now: float) -> None:
        """Note that something came, whatever it was: the burst goes on."""
        self._said = now

    @property
    def due(self) -> float | None:
        """When the pause is over after which an incomplete fix is returned; None if there is none."""
        return None if self._told == self._fix.kinds else self._said + PAUSE

    def flush(self, now: float) -> list[Fix]:
        """The incomplete fix, if nothing has come for PAUSE seconds."""
        return self._tell() if self.due is not None and now >= self.due else []

    def _tell(self) -> list[Fix]:
        if self._told == self._fix.kinds:
            return []
        self._told = self._fix.kinds
        return [self._fix]
