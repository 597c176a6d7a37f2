"""Positions from a receiver on a serial line (NMEA 0183), and the date for the clock: `gps.py DEVICE [BAUD]`.

A position is published only with a fix. That a receiver is there, and what it sees, is retained under `receiver/NAME`: as long
as it speaks, fakegps.py is silent. A device that has gone is opened again when it returns.
"""

from __future__ import annotations

import calendar
import os
import sys
import termios
import time
from typing import Any, NamedTuple

from bus import Bus
from onboard import clock

BAUDS = (9600, 4800, 38400, 115200)  # tried in turn where none is given
LONGEST = 200  # bytes of a sentence; the standard says 82, some receivers say more
TURN = 1.0  # s
SILENCE = 5.0  # s without a good sentence: there is no receiver, or its baud rate is another one
TELL = 5.0  # s between two retained states
RETRY_FIRST, RETRY_MAX = 0.5, 5.0  # s until a device is opened again; doubled
STEADY = 3  # fixes in a row whose times agree with our own clock's pace, before they are offered to the wall clock
OFFER = 60.0  # s between two offers
KNOT = 1852 / 3600  # m/s
RANGE_ERROR = 5.0  # m: an accuracy of so much for an HDOP of 1, an ordinary receiver's


class Sentence(NamedTuple):
    """One NMEA sentence: its type without the talker (RMC, whoever says it) and its fields."""

    kind: str
    fields: list[str]


class Fix(NamedTuple):
    """What RMC and GGA of the same instant say together; None is what neither of them has said."""

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
        if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(2000 + year, month)[1]):
            return None
        if hour > 23 or minute > 59 or second > 60:  # a leap second is the next minute's first
            return None
        fraction = number(f"0{self.time[6:]}") or 0.0
        return calendar.timegm((2000 + year, month, day, hour, minute, second)) + fraction


class Parser:
    """Sentences out of bytes that arrive in any pieces. Nothing that a line says makes it raise."""

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
    if kind == "RMC" and len(fields) >= 9:
        mode = fields[11] if len(fields) > 11 else "A"  # since 2.3: N is none, S a simulator's, M typed in by hand
        valid = fields[1] == "A" and mode not in ("N", "S", "M")
        where = (degrees(fields[2], fields[3], 90), degrees(fields[4], fields[5], 180))
        speed = number(fields[6])
        fix = fix._replace(date=fields[8], speed=None if speed is None else speed * KNOT, course=number(fields[7]))
    elif kind == "GGA" and len(fields) >= 9:
        quality = whole(fields[5])
        valid = quality in (1, 2, 3, 4, 5, 6)
        where = (degrees(fields[1], fields[2], 90), degrees(fields[3], fields[4], 180))
        fix = fix._replace(quality=quality, satellites=whole(fields[6]), hdop=number(fields[7]), altitude=number(fields[8]))
    else:
        return fix
    if None not in where:
        fix = fix._replace(latitude=where[0], longitude=where[1])
    return fix._replace(time=fields[0], valid=fix.valid and valid, kinds=fix.kinds | {kind})


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
    """Joins sentences of one instant: receivers differ in which comes first, and in whether there are both."""

    def __init__(self) -> None:
        self._fix = Fix()
        self._done = False  # this instant has been told

    def take(self, sentence: Sentence) -> Fix | None:
        """The fix that is complete with this sentence: with its second half, or with the first one of the next instant."""
        if sentence.kind not in ("RMC", "GGA") or not sentence.fields:
            return None
        if sentence.fields[0] != self._fix.time:
            before = None if self._done or not self._fix.kinds else self._fix
            self._fix, self._done = read_sentence(Fix(), sentence), False
            return before
        if self._done or sentence.kind in self._fix.kinds:  # another talker says it again
            return None
        self._fix = read_sentence(self._fix, sentence)
        self._done = len(self._fix.kinds) == 2
        return self._fix if self._done else None


class Agreement:
    """Whether a receiver's time is to be believed: it goes at the pace of our own clock, several times in a row."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._count = 0
        self._next = 0.0

    def offer(self, utc: float, source: str, now: float) -> bool:
        """Offer it to the wall clock, if it is time to; whether the clock was stepped."""
        offset = utc - now
        agrees = self._offset is not None and abs(offset - self._offset) < 1.0
        self._count = self._count + 1 if agrees else 1
        self._offset = offset
        if self._count < STEADY or now < self._next:
            return False
        self._next = now + OFFER
        return clock.offer(utc, source)


class Receiver:
    """One serial line, whether something is plugged in or not."""

    def __init__(self, bus: Bus, device: str, baud: int) -> None:
        self.bus, self.device = bus, device
        self.name = os.path.basename(device)
        self.bauds = [baud] if baud else list(BAUDS)
        self.fd = -1
        self.parser, self.epochs, self.agreement = Parser(), Epochs(), Agreement()
        self.heard = 0.0  # the last good sentence, or the opening
        self.speaks = False
        self.fix: Fix | None = None
        self.why = ""  # it cannot be opened, once it has been said
        self._retry, self._next_try, self._next_told = RETRY_FIRST, 0.0, 0.0

    def turn(self, now: float) -> None:
        """Whatever is due."""
        if self.fd < 0 and now >= self._next_try:
            self.open(now)
        elif self.fd >= 0 and now - self.heard > SILENCE:
            self.silent(now)
        if now >= self._next_told:
            self.tell(now)

    def open(self, now: float) -> None:
        """Open the device; where that fails, again later."""
        try:
            self.fd = open_serial(self.device, self.bauds[0])
        except (OSError, termios.error) as error:
            why = str(error.args[-1] if isinstance(error, termios.error) else error.strerror)
            if why != self.why:
                self.bus.log.warning("%s: %s; tried again", self.device, why)
            self.why = why
            self._next_try, self._retry = now + self._retry, min(2 * self._retry, RETRY_MAX)
            return
        self.why, self._retry, self.heard = "", RETRY_FIRST, now
        self.parser, self.epochs, self.agreement = Parser(), Epochs(), Agreement()
        self.bus.log.info("%s: open", self.device)
        self.bus.watch(self.fd, self.on_bytes)

    def close(self, now: float, why: str) -> None:
        """It has gone."""
        self.bus.log.info("%s: has gone (%s)", self.device, why)
        self.bus.unwatch(self.fd)
        os.close(self.fd)
        self.fd, self._next_try = -1, now + RETRY_FIRST
        self.speaks, self.fix = False, None
        self.tell(now)

    def silent(self, now: float) -> None:
        """Nothing that makes sense, for too long: perhaps at another baud rate."""
        self.bauds.append(self.bauds.pop(0))
        try:
            set_line(self.fd, self.bauds[0])
        except (OSError, termios.error):
            pass  # it has gone: reading will say so
        self.speaks, self.fix, self.heard = False, None, now
        self.tell(now)

    def on_bytes(self) -> None:
        """The line has something."""
        now = time.monotonic()
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        except OSError as error:
            data, why = b"", str(error.strerror)
        else:
            why = "end of file"
        if not data:
            self.close(now, why)
        for sentence in self.parser.feed(data):
            self.on_sentence(sentence, now)

    def on_sentence(self, sentence: Sentence, now: float) -> None:
        """One good sentence. Only those that a receiver says make it one: an anemometer has NMEA too."""
        if sentence.kind not in ("RMC", "GGA"):
            return
        self.heard = now
        if not self.speaks:
            self.speaks = True
            self.bus.log.info("%s: a receiver speaks, %d baud", self.device, self.bauds[0])
            self.tell(now)
        utc = read_sentence(Fix(), sentence).utc  # now: its other half may come a second later
        if utc is not None and self.agreement.offer(utc, self.name, now):
            self.bus.log.info("%s: the clock was set", self.device)
        fix = self.epochs.take(sentence)
        if fix is None:
            return
        had, self.fix = bool(self.fix and self.fix.position), fix
        if bool(fix.position) != had:
            self.tell(now)
        if fix.position:
            self.bus.publish("gps", fix.position, retain=True)

    def tell(self, now: float) -> None:
        """What there is, retained."""
        self._next_told = now + TELL
        fix = self.fix
        self.bus.publish(f"receiver/{self.name}", {
            "device": self.device, "speaks": self.speaks, "fix": bool(fix and fix.position),
            "quality": fix.quality if fix else None, "satellites": fix.satellites if fix else None,
            "baud": self.bauds[0] if self.fd >= 0 else None, "good": self.parser.good, "bad": self.parser.bad,
        }, retain=True)  # fmt: skip


def open_serial(path: str, baud: int) -> int:
    """A serial line for reading, never blocking."""
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        set_line(fd, baud)
    except (OSError, termios.error):
        os.close(fd)
        raise
    return fd


def set_line(fd: int, baud: int) -> None:
    """Raw, eight bits, no modem lines (`man 3 termios`)."""
    speed, characters = getattr(termios, f"B{baud}"), list(termios.tcgetattr(fd)[6])
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0  # with 0 a silent line would look like one that has gone
    flags = termios.CS8 | termios.CREAD | termios.CLOCAL
    termios.tcsetattr(fd, termios.TCSANOW, [termios.IGNBRK, 0, flags, 0, speed, speed, characters])


def main(arguments: list[str]) -> None:
    """`gps.py DEVICE [BAUD]`; 0 is the same as none."""
    device, baud = arguments[0], int(arguments[1]) if len(arguments) > 1 else 0
    if baud and not hasattr(termios, f"B{baud}"):
        raise SystemExit(f"{baud} is not a baud rate of a serial line, such as 9600")
    bus = Bus("gps")
    receiver = Receiver(bus, device, baud)
    try:
        for now in bus.every(TURN):
            receiver.turn(now)
    finally:
        receiver.speaks, receiver.fix = False, None
        receiver.tell(time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1:])
