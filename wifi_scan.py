"""Access points around the board: what appears, changes and vanishes, scan after scan.

wpa_supplicant owns the radio: we ask on its control socket (w1.fi, "Control interface") and listen for its events. Where
none runs, the kernel is asked by nl80211; where there is no radio, a recording of wpa_supplicant's answers takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bus import Bus
from onboard.wpa_control import BSS_FIELDS, BSS_ID, connect, name_of, parse_bss

if TYPE_CHECKING:
    import subprocess

PERIOD = 5.0  # s: from the end of a scan to the next one
RETRY = 1.0  # s: the radio was busy
SCAN_LIMIT = 60.0  # s: all channels of all bands take 4 to 30; a scan that was aborted may end without an event
ANSWER_LIMIT = 2.0  # s: wpa_supplicant answers at once, or it hangs
RECONNECT_FIRST, RECONNECT_MAX = 1.0, 60.0  # s between two tries of what is not there; doubled
FALLBACK_AFTER = 15.0  # s without wpa_supplicant: then nl80211
SIGNAL_CHANGE = 6  # dB: smaller changes are noise
LOST_AFTER = 3  # whole scans without it
LONGEST = 1024 * 1024  # bytes that a scan by nl80211 prints
MOST = 1000  # access points of one scan: more than any air has, and a bound for our memory
COUNTED = 10 * MOST  # ...those beyond are counted, up to here
PART = 300  # access points of one message: each may take 600 bytes of the 262,000 that the bus takes at once
LONGEST_ANSWER = 64 * 1024  # bytes that we read of one: wpa_supplicant's have 4,096
Point = dict[str, Any]


# --- what was heard ---------------------------------------------------------------------------------------------------
class Sightings:
    """Which access points are there, and what is new about them."""

    def __init__(self) -> None:
        self.known: dict[str, Point] = {}  # by BSSID, as last told
        self.missed: dict[str, int] = {}  # whole scans in a row without it

    def update(self, points: list[Point], *, whole: bool = True) -> list[Point]:
        """The points, each with its `event`: new, changed, seen; and after them the lost ones.

        A scan that was not `whole` (somebody else's, of a few channels) says nothing about those that it did not hear.
        """
        heard = {point["bssid"]: point for point in points}
        told = [{**point, "event": self._event(point)} for point in heard.values()]
        for bssid in self.known.keys() - heard.keys() if whole else ():
            self.missed[bssid] = self.missed.get(bssid, 0) + 1
            if self.missed[bssid] >= LOST_AFTER:
                told.append({**self.known.pop(bssid), "event": "lost"})
        self.missed = {bssid: count for bssid, count in self.missed.items() if bssid in self.known and bssid not in heard}
        return told

    def _event(self, point: Point) -> str:
        """New, changed or seen. Small steps of the signal add up: it is compared with what was told last."""
        before = self.known.get(point["bssid"])
        if before is None or abs(point["signal"] - before["signal"]) >= SIGNAL_CHANGE or _who(point) != _who(before):
            self.known[point["bssid"]] = point
            return "new" if before is None else "changed"
        return "seen"


def _who(point: Point) -> tuple[Any, ...]:
    return point["ssid_hex"], point["frequency"], point["security"]


def unique(points: list[Point]) -> list[Point]:
    """One for each BSSID: wpa_supplicant knows a hidden network twice, once it has learned its name."""
    best: dict[str, Point] = {}
    for point in points:
        if point["bssid"] not in best or best[point["bssid"]]["ssid"] is None:
            best[point["bssid"]] = point
    return list(best.values())


def parts(points: list[Point]) -> Iterator[list[Point]]:
    """As many as fit into a message of the bus; one message where there are none."""
    for first in range(0, max(1, len(points)), PART):
        yield points[first : first + PART]


def say_too_many(bus: Bus, count: int, *, said: bool) -> bool:
    """Warn once for as long as there are more access points than we take; whether it has been said."""
    if count > MOST and not said:
        bus.log.warning("scan: %d access points or more: we take %d", count, MOST)
    return count > MOST


# --- where it comes from ----------------------------------------------------------------------------------------------
class Supplicant:
    """A running wpa_supplicant: asked to scan, and told by its events when the results are there."""

    source = "wpa_supplicant"

    def __init__(self, interface: str, folder: str, bus: Bus, tell: Callable[..., None]) -> None:
        self.interface, self.folder, self.bus, self.tell = interface, folder, bus, tell
        self.wire: socket.socket | None = None
        self.own = os.path.join(tempfile.gettempdir(), f"wifi_scan.{os.getpid()}")
        self.asked: float | None = None  # when our scan began
        self.due = 0.0  # the next scan, or the next try to connect
        self.pause = RECONNECT_FIRST
        self.results = False  # an event said that they are there
        self.unread = 0  # access points of the last scan that it knew and did not tell
        self.too_many = False  # it has been said

    def turn(self, now: float) -> None:
        """Scan, if it is time. OSError where nobody answers: it is tried again later."""
        try:
            if self.wire is None and now >= self.due:
                self._open()
            if self.wire is None:
                return
            if self.results:
                self._read(now)
            if self.asked is not None and now - self.asked > SCAN_LIMIT:
                self.bus.log.warning("scan: no end after %g s, asking again", SCAN_LIMIT)
                self.asked, self.due = None, now
            if self.asked is None and now >= self.due:
                self._scan(now)
        except OSError:
            self.close()
            self.due, self.pause = now + self.pause, min(2 * self.pause, RECONNECT_MAX)
            raise

    def next_turn(self) -> float:
        """When there is something to do that no event tells."""
        if self.wire is None or self.asked is None:
            return 0.0 if self.results else self.due
        return 0.0 if self.results else self.asked + SCAN_LIMIT

    def _open(self) -> None:
        self.wire = connect(self.folder, self.interface, self.own)
        os.chmod(self.own, 0o666)  # the proxy is another user; the kernel lets nobody but our peer send to us
        self.wire.settimeout(ANSWER_LIMIT)
        self._request("ATTACH")
        self.bus.watch(self.wire.fileno(), self._on_event)
        self.pause = RECONNECT_FIRST
        self.bus.log.info("scan: wpa_supplicant answers at %s/%s", self.folder, self.interface)

    def _scan(self, now: float) -> None:
        answer = self._request("SCAN").strip()
        if answer == "OK":
            self.asked = now
        else:  # FAIL-BUSY: one is on its way; FAIL: the interface is down or away
            self.due = now + (RETRY if answer == "FAIL-BUSY" else PERIOD)

    def _on_event(self) -> None:
        """What comes between our questions. The results are read in the next turn, which is soon."""
        if self.wire is None:
            return
        try:
            self._note(self.wire.recv(LONGEST_ANSWER).decode("ascii", "replace"))
        except OSError:
            self.close()
            return
        if self.results:
            with contextlib.suppress(OSError):  # turn() will meet it too, and say so
                self._read(time.monotonic())

    def _note(self, event: str) -> None:
        if "CTRL-EVENT-SCAN-RESULTS" in event:
            self.results = True
        elif "CTRL-EVENT-SCAN-FAILED" in event:
            self.asked, self.due = None, time.monotonic() + RETRY  # busy or aborted
        elif "CTRL-EVENT-TERMINATING" in event:
            self.close()

    def _read(self, now: float) -> None:
        """All that is known, one by one: SCAN_RESULTS is cut at 4,096 bytes. What this scan did not hear is left out."""
        self.results = False
        took = now - self.asked if self.asked is not None else PERIOD
        points = [point for point in self._points() if point.pop("age") <= took + 1]
        self.tell(self.source, unique(points), whole=self.asked is not None)
        self.asked, self.due = None, now + PERIOD

    def _points(self) -> Iterator[Point]:
        """Each by its number: what has gone meanwhile, or does not fit into an answer, hides none that come after it."""
        unread = 0
        for number in self._numbers():
            point = parse_bss(self._request(f"BSS ID-{number} MASK={BSS_FIELDS:#x}"))
            unread += not point
            if point:
                del point["id"]
                yield point
        if unread != self.unread and unread:
            self.bus.log.warning("scan: wpa_supplicant knows %d access points that it does not tell", unread)
        self.unread = unread

    def _numbers(self) -> list[int]:
        """Those that wpa_supplicant has given them, some hundreds an answer. The lowest are those that it has known longest."""
        found: list[int] = []
        while len(found) < COUNTED:
            answer = self._request(f"BSS RANGE={found[-1] + 1 if found else 0}- MASK={BSS_ID:#x}")
            more = [int(line[3:]) for line in answer.split() if line.startswith("id=") and line[3:].isdigit()]
            if not more or (found and more[0] <= found[-1]):
                break
            found += more
        self.too_many = say_too_many(self.bus, len(found), said=self.too_many)
        return found[:MOST]

    def _request(self, command: str) -> str:
        wire = self.wire
        if wire is None:
            raise OSError(f"not connected to wpa_supplicant: {command} was not asked")
        wire.send(command.encode())
        while (answer := wire.recv(LONGEST_ANSWER).decode("ascii", "replace")).startswith("<"):
            self._note(answer)  # an event that came between; one of them closes the wire
        return answer

    def close(self) -> None:
        """Drop the scan that was under way."""
        if self.wire is not None:
            self.bus.unwatch(self.wire.fileno())
            self.wire.close()
            self.wire = None
            with contextlib.suppress(OSError):
                os.unlink(self.own)
        self.asked, self.results = None, False


class Nl80211:
    """The kernel itself, in a child that can be killed: pyroute2's scan waits for ever where one was aborted."""

    source = "nl80211"

    def __init__(self, interface: str, bus: Bus, tell: Callable[..., None]) -> None:
        self.interface, self.bus, self.tell = interface, bus, tell
        self.child: subprocess.Popen[bytes] | None = None
        self.printed = b""
        self.deadline = self.due = 0.0
        self.pause = PERIOD
        self.too_many = False  # it has been said

    def turn(self, now: float) -> None:
        """Start a scan, or end one that takes too long."""
        if self.child is None and now >= self.due:
            import subprocess  # for boards without wpa_supplicant alone

            folder = os.path.dirname(os.path.abspath(__file__))
            command = [sys.executable, "-P", f"{folder}/network/nl80211.py", self.interface]
            said = subprocess.DEVNULL if self.pause > PERIOD else None  # why it fails is in the log: each line wakes others
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
            self.bus.watch(self._output(), self._on_output)
            self.deadline, self.printed = now + SCAN_LIMIT, b""
        elif self.child is not None and now >= self.deadline:
            self.bus.log.warning("scan by nl80211: no end after %g s, given up", SCAN_LIMIT)
            self.end(now)

    def next_turn(self) -> float:
        """When there is something to do that the child's output does not tell."""
        return self.due if self.child is None else self.deadline

    def _output(self) -> int:
        return self.child.stdout.fileno() if self.child is not None and self.child.stdout is not None else -1

    def _on_output(self) -> None:
        """More of what it prints; at its end, the access points."""
        self.printed += (data := os.read(self._output(), 65536))
        if data and len(self.printed) <= LONGEST:
            return
        if data:
            self.bus.log.warning("scan by nl80211: more than %d bytes, not read", LONGEST)
        now, child = time.monotonic(), self.child
        good = not data and child is not None and child.wait(ANSWER_LIMIT) == 0
        self.pause = PERIOD if good else min(2 * self.pause, RECONNECT_MAX)  # there may be no radio at all
        points = json.loads(self.printed) if good else []
        self.too_many = say_too_many(self.bus, len(points), said=self.too_many)
        self.end(now)
        if good:
            self.tell(self.source, [{**p, **name_of(bytes.fromhex(p["ssid_hex"]))} for p in points[:MOST]], whole=True)

    def end(self, now: float) -> None:
        """Forget the scan that runs."""
        if self.child is not None:
            self.bus.unwatch(self._output())
            self.child.kill()
            self.child.wait()
            if self.child.stdout:
                self.child.stdout.close()
        self.child, self.due = None, now + self.pause


class Radio:
    """wpa_supplicant; and nl80211 for as long as there is none."""

    def __init__(self, interface: str, folder: str, bus: Bus, tell: Callable[..., None]) -> None:
        self.supplicant = Supplicant(interface, folder, bus, tell)
        self.kernel = Nl80211(interface, bus, tell)
        self.bus = bus
        self.silent: float | None = None  # since when, once it has been said

    def turn(self, now: float) -> None:
        """Whatever is due, of either."""
        try:
            self.supplicant.turn(now)
        except OSError as error:
            if self.silent is None:
                where = f"{self.supplicant.folder}/{self.supplicant.interface}"
                self.bus.log.warning("wpa_supplicant at %s does not answer: %s", where, error)
                self.silent = now
        if self.supplicant.wire is not None:
            self.silent = None
            self.kernel.end(now)
        elif self.silent is not None and now >= self.silent + FALLBACK_AFTER:
            self.kernel.turn(now)

    def next_turn(self) -> float:
        """When there is something to do."""
        kernel = float("inf") if self.silent is None else max(self.silent + FALLBACK_AFTER, self.kernel.next_turn())
        return min(self.supplicant.next_turn(), kernel)


class Recording:
    """Recorded answers to `BSS RANGE=ALL`, a scan each, over and over."""

    source = "recording"

    def __init__(self, path: str, tell: Callable[..., None]) -> None:
        with open(path, encoding="ascii") as file:
            self.answers = [part for part in file.read().split("####\n") if part.strip()]
        self.tell, self.number, self.due = tell, 0, 0.0

    def next_turn(self) -> float:
        """When the next scan is due."""
        return self.due

    def turn(self, now: float) -> None:
        """Tell the next scan, if it is time."""
        if now >= self.due:
            self.due = now + PERIOD
            points = [parse_bss(part) for part in self.answers[self.number % len(self.answers)].split("====\n")]
            self.number += 1
            self.tell(self.source, [{key: p[key] for key in p if key not in ("id", "age")} for p in points if p], whole=True)


def main(arguments: list[str]) -> None:
    """`wifi_scan.py INTERFACE CONTROL_FOLDER [RECORDING]`"""
    interface, folder, recording = (*arguments, "", "", "")[:3]
    bus, sightings = Bus("wifi_scan"), Sightings()

    def tell(source: str, points: list[Point], *, whole: bool) -> None:
        for part in parts(sightings.update(points, whole=whole)):
            bus.publish("scan", {"source": source, "points": part})

    radio: Radio | Recording = Recording(recording, tell) if recording else Radio(interface, folder, bus, tell)
    for now in bus.when(radio.next_turn):
        radio.turn(now)


if __name__ == "__main__":
    main(sys.argv[1:])
