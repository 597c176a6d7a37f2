"""Positions from a receiver on a serial line (NMEA 0183), and the date for the clock: `gps.py DEVICE [BAUD]`.

A position is published only with a fix. That a receiver is there, and what it sees, is retained under `receiver/NAME`: as long
as it speaks, fakegps.py is silent. A device that was unplugged is opened again when it is back.
"""

from __future__ import annotations

import os
import sys
import termios
import time

from bus import Bus
from onboard import clock
from onboard.nmea import ALONE, Epochs, Fix, Parser, Sentence, instant, read_sentence

BAUDS = (9600, 4800, 38400, 115200)  # tried in turn where none is given
SILENCE = ALONE  # s without a sentence of a receiver: there is none any more. Some speak every 10 s
NONSENSE = 5.0  # s of bytes that make no sentence: the baud rate is another one
TELL = 5.0  # s between two retained states of a receiver that speaks
RETRY_FIRST, RETRY_MAX = 0.5, 5.0  # s until a device is opened again; doubled
STEADY = 3  # fixes in a row whose times agree with our own clock's pace, before they are offered to the wall clock
OFFER = 60.0  # s between two offers
ERA = 1024 * 7 * 86400  # s: receivers count weeks with ten bits, and forget the others (IS-GPS-200, 20.3.3.3.1.1)


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


def in_this_era(utc: float, built: float) -> tuple[float | None, str]:
    """A receiver's date, put into the 1024 weeks after these files were made; None for one after those.

    And a sentence for the log, where it says anything odd.
    """
    if utc >= built + ERA:
        return (
            None,
            f"its date {clock.date(utc)} is not taken: it is 1024 weeks or more after {clock.date(built)}, when this was built",
        )
    eras = max(0, -int((utc - built) // ERA))
    if eras == 0:
        return utc, ""
    found = utc + eras * ERA
    return found, f"its date {clock.date(utc)} is before this was built: {eras * 1024} weeks are added, {clock.date(found)}"


class Receiver:
    """One serial line, whether something is plugged in or not."""

    def __init__(self, bus: Bus, device: str, baud: int) -> None:
        self.bus, self.device = bus, device
        self.name = os.path.basename(device)
        self.bauds = [baud] if baud else list(BAUDS)
        self.fd = -1
        self.parser, self.epochs, self.agreement = Parser(), Epochs(), Agreement()
        self.heard = 0.0  # the last sentence of a receiver
        self.nonsense: float | None = None  # since when bytes have come that make no sentence
        self.speaks = False
        self.fix: Fix | None = None
        self.why = ""  # it cannot be opened, once it has been said
        self.odd = ""  # about its date, once it has been said
        self._retry, self._next_try, self._next_told = RETRY_FIRST, 0.0, 0.0

    def turn(self, now: float) -> None:
        """Whatever is due."""
        if self.fd < 0 and now >= self._next_try:
            self.open(now)
        self.told(self.epochs.flush(now), now)
        if self.speaks and now >= self.heard + SILENCE:
            self.speaks, self.fix = False, None
            self.tell(now)
        if self.nonsense is not None and now >= self.nonsense + NONSENSE:
            self.other_baud()
        if now >= self._next_told:
            self.tell(now)

    def due(self) -> float:
        """When there is something to do that no byte on the line tells."""
        dues = [self._next_told, self._next_try if self.fd < 0 else None, self.epochs.due]
        dues += [self.heard + SILENCE if self.speaks else None, None if self.nonsense is None else self.nonsense + NONSENSE]
        return min(due for due in dues if due is not None)

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
        self.why, self._retry, self.nonsense = "", RETRY_FIRST, None
        self.parser, self.epochs, self.agreement = Parser(), Epochs(), Agreement()
        self.bus.log.info("%s: open", self.device)
        self.bus.watch(self.fd, self.on_bytes)

    def close(self, now: float, why: str) -> None:
        """Close the device: it has gone."""
        self.bus.log.info("%s: has gone (%s)", self.device, why)
        self.bus.unwatch(self.fd)
        os.close(self.fd)
        self.fd, self._next_try = -1, now + RETRY_FIRST
        self.speaks, self.fix, self.nonsense, self.epochs = False, None, None, Epochs()
        self.tell(now)

    def other_baud(self) -> None:
        """What comes makes no sense: perhaps it does at another baud rate. Where nothing comes, no other one would help."""
        self.bauds.append(self.bauds.pop(0))
        self.nonsense = None
        try:
            set_line(self.fd, self.bauds[0])
        except (OSError, termios.error):
            pass  # it has gone: reading will say so

    def on_bytes(self) -> None:
        """Read the bytes that wait."""
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
            return
        sentences = self.parser.feed(data)
        self.nonsense = None if sentences else self.nonsense or now
        self.epochs.hear(now)
        for sentence in sentences:
            self.on_sentence(sentence, now)

    def on_sentence(self, sentence: Sentence, now: float) -> None:
        """One good sentence. Only those that a receiver says make it one: an anemometer has NMEA too."""
        if instant(sentence) is None:
            return
        self.heard = now
        if not self.speaks:
            self.speaks = True
            self.bus.log.info("%s: a receiver speaks, %d baud", self.device, self.bauds[0])
            self.tell(now)
        utc = read_sentence(Fix(), sentence).utc  # now: its other half may come a second later
        if utc is not None:
            self.offer(utc, now)
        self.told(self.epochs.take(sentence, now), now)

    def offer(self, utc: float, now: float) -> None:
        """Its date, for the clock of a board that has no better one."""
        found, odd = in_this_era(utc, clock.build_date())
        if odd and not self.odd:
            self.bus.log.warning("%s: %s", self.device, odd)
        self.odd = odd
        if found is not None and self.agreement.offer(found, self.name, now):
            self.bus.log.info("%s: the clock was set", self.device)

    def told(self, fixes: list[Fix], now: float) -> None:
        """Publish them; `age` is how long ago the first word of it came."""
        for fix in fixes:
            had, self.fix = bool(self.fix and self.fix.position), fix
            if bool(fix.position) != had:
                self.tell(now)
            if fix.position:
                self.bus.publish("gps", {**fix.position, "age": round(now - fix.heard, 3)}, retain=True)

    def tell(self, now: float) -> None:
        """What there is, retained; again and again as long as it speaks, for fakegps.py does not trust an old word."""
        self._next_told = now + TELL if self.speaks else float("inf")
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
        for now in bus.when(receiver.due):
            receiver.turn(now)
    finally:
        receiver.speaks, receiver.fix = False, None
        receiver.tell(time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1:])
