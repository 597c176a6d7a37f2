"""The apps: pure parts with plain values, the bus over a real mosquitto. wpa_supplicant's socket is a mock: no radio here."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT, Broker, eventually
from hypothesis import given
from hypothesis import strategies as st

import diagnostic
import fakegps
import wifi_analyzer
import wifi_scan
from _log import counts, get_logger
from bus import LARGEST
from onboard import wpa_control


# --- fakegps --------------------------------------------------------------------------------------------------------
def test_positions_follow_the_route_and_start_over() -> None:
    corners = ((50.0, 8.0), (50.0, 8.01), (50.01, 8.01))
    route = fakegps.Route(corners)
    first_leg = fakegps.distance(corners[0], corners[1])
    assert math.isclose(first_leg, 715, rel_tol=0.01)
    assert route.at(0.0) == (50.0, 8.0)
    latitude, longitude = route.at(first_leg / 2)
    assert (latitude, round(longitude, 4)) == (50.0, 8.005)
    whole = sum(fakegps.distance(a, b) for a, b in itertools.pairwise((*corners, corners[0])))
    again = route.at(whole * 7 + first_leg / 2)
    assert math.isclose(again[1], 8.005, abs_tol=1e-5)
    assert route.at(first_leg + fakegps.distance(corners[1], corners[2]) / 2) == pytest.approx((50.005, 8.01))
    assert fakegps.Route([(1.0, 2.0)] * 3).at(500.0) == (1.0, 2.0), "all of them the same place"


def test_the_route_goes_the_short_way_over_180_degrees() -> None:
    route = fakegps.Route([(-17.0, 179.9), (-17.0, -179.9)])
    leg = fakegps.distance((-17.0, 179.9), (-17.0, -179.9))
    assert leg < 22_000
    assert route.at(leg / 4) == pytest.approx((-17.0, 179.95))
    assert route.at(leg * 3 / 4) == pytest.approx((-17.0, -179.95))
    assert route.at(leg * 7 / 4) == pytest.approx((-17.0, 179.95)), "and back"
    assert all(-180 <= route.at(leg * n / 50)[1] < 180 for n in range(200))


def test_many_points_cost_no_more_a_second_than_few() -> None:
    few, many = (fakegps.Route([(50 + n * 1e-5, 8.0) for n in range(count)]) for count in (20, 200_000))

    def cost(route: fakegps.Route) -> float:
        started = time.process_time()
        for n in range(1000):
            route.at(n * 997.0)
        return time.process_time() - started

    cost(few)
    assert min(cost(many) for _ in range(5)) < 3 * min(cost(few) for _ in range(5))


GPX = '<gpx xmlns="http://www.topografix.com/GPX/1/1">{}</gpx>'


def test_gpx(tmp_path: Path) -> None:
    path = tmp_path / "route.gpx"
    track = '<trk><trkseg><trkpt lat="1.5" lon="-2"/><trkpt lat="1.6" lon="-2.1"><ele>5</ele></trkpt></trkseg></trk>'
    places = '<wpt lat="80" lon="80"><name>pole</name></wpt><wpt lat="7" lon="7"/>'
    plan = '<rte><rtept lat="3" lon="3"/><rtept lat="4" lon="4"/></rte>'
    for text, points in (
        (places + plan + track, [(1.5, -2.0), (1.6, -2.1)]),
        (places + plan, [(3.0, 3.0), (4.0, 4.0)]),
        (places, [(80.0, 80.0), (7.0, 7.0)]),
    ):
        path.write_text(GPX.format(text))
        assert fakegps.read_gpx(str(path)) == points


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GPX.format(""), "at least two points, this file has 0"),
        (GPX.format('<wpt lat="52,5" lon="13"/>'), "lat='52,5' of a point is no number from -90 to 90, with a point"),
        (GPX.format('<wpt lat="nan" lon="13"/>'), "lat='nan' of a point is no number"),
        (GPX.format('<wpt lat="5" lon="inf"/>'), "lon='inf' of a point is no number"),
        (GPX.format('<wpt lat="91" lon="13"/>'), "lat='91' of a point is no number"),
        (GPX.format('<wpt lat="5"/>'), "lon='' of a point is no number"),
        (GPX.format('<wpt lat="5" lon="5"/>')[:-9], "it is no GPX file, or cut short: unclosed token"),
        ("<!DOCTYPE html><html><body>404<br></body></html>", "it is no GPX file, or cut short: mismatched tag"),
        ("", "it is no GPX file, or cut short: no element found"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_route_is_one_sentence_and_no_reason_to_try_again(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "route.gpx"
    if text is not None:
        path.write_text(text)
    done = subprocess.run(
        [PYTHON, str(ROOT / "fakegps.py"), str(path)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 125
    assert said in done.stderr
    assert done.stderr.startswith(f"<3>{path}: ")
    assert len(done.stderr.splitlines()) == 1


# --- wifi_scan ------------------------------------------------------------------------------------------------------
def printf_encode(ssid: bytes) -> str:
    """What wpa_supplicant does (src/utils/common.c), for the round trip."""
    plain = {b'"': '\\"', b"\\": "\\\\", b"\x1b": "\\e", b"\n": "\\n", b"\r": "\\r", b"\t": "\\t"}
    return "".join(plain.get(bytes([c]), chr(c) if 32 <= c <= 126 else f"\\x{c:02x}") for c in ssid)


@given(st.binary(max_size=32))
def test_any_ssid_survives_the_round_trip(ssid: bytes) -> None:
    assert wpa_control.unescape(printf_encode(ssid)) == ssid


# As wpa_supplicant 2.10 and 2.11 print them (ctrl_iface.c, wpa_supplicant_ie_txt), and what nl80211 says of the same.
FLAGS = {
    "[WPA2-PSK-CCMP][ESS]": "WPA2",
    "[WPA-PSK-TKIP][WPA2-PSK-CCMP+TKIP][WPS][ESS]": "WPA2",
    "[WPA2-EAP-CCMP-preauth][ESS]": "WPA2",
    "[WPA2-PSK+SAE-CCMP][ESS]": "WPA3",
    "[WPA2-SAE-EXT-KEY-GCMP-256][SAE-H2E][ESS]": "WPA3",
    "[WPA2-FT/SAE-CCMP][ESS]": "WPA3",
    "[RSN-SAE-CCMP][MESH]": "WPA3",
    "[WPA2-OWE-CCMP][ESS]": "OWE",
    "[WPA2-OWE-CCMP][OWE-TRANS][ESS]": "OWE",
    "[OWE-TRANS-OPEN][ESS]": "open",
    "[OSEN-OSEN-CCMP][ESS]": "OSEN",
    "[WPA-PSK-TKIP][ESS]": "WPA",
    "[WPA--]": "WPA",
    "[WEP][ESS]": "WEP",
    "[ESS]": "open",
    "[SAE-H2E][ESS]": "open",
    "[WPA2-SAE": "open",
    "": "open",
}


@pytest.mark.parametrize(("flags", "name"), FLAGS.items())
def test_the_security_of_an_access_point(flags: str, name: str) -> None:
    assert wpa_control.security(flags) == name


def elements(*suites: bytes) -> bytes:
    """An RSN element (IEEE 802.11, 9.4.2.24): CCMP, and these key managements."""
    ccmp = b"\x00\x0f\xac\x04"
    body = b"\x01\x00" + ccmp + b"\x01\x00" + ccmp + len(suites).to_bytes(2, "little") + b"".join(suites) + b"\x00\x00"
    return b"\x30" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (elements(b"\x00\x0f\xac\x02"), "WPA2"),
        (elements(b"\x00\x0f\xac\x02", b"\x00\x0f\xac\x08"), "WPA3"),
        (elements(b"\x00\x0f\xac\x18"), "WPA3"),  # SAE-EXT-KEY
        (elements(b"\x00\x0f\xac\x19"), "WPA3"),
        (elements(b"\x00\x0f\xac\x12"), "OWE"),
        (elements(b"\x00\x0f\xac\x02", b"\x00\x0f\xac\x12"), "WPA2"),
        (b"\xdd\x09\x50\x6f\x9a\x1c\x02\x00\x00\x5e\x00", "open"),  # OWE transition: points at another one
        (b"\xdd\x16\x50\x6f\x9a\x12\x50\x6f\x9a\x07\x01\x00\x00\x0f\xac\x04\x01\x00\x50\x6f\x9a\x01\x00\x00", "OSEN"),
        (b"\xdd\x16\x00\x50\xf2\x01\x01\x00\x00\x50\xf2\x02\x01\x00\x00\x50\xf2\x02\x01\x00\x00\x50\xf2\x02", "WPA"),
    ],
)
def test_nl80211_names_it_as_wpa_supplicant_does(raw: bytes, name: str) -> None:
    """What the kernel hands over, parsed by the real pyroute2."""
    from pyroute2.netlink.nl80211 import nl80211cmd

    from network import nl80211

    data = b"\x00\x03abc" + raw
    parsed = nl80211cmd.bss.elementsBinary(data=struct.pack("HH", 4 + len(data), 6) + data)
    parsed.decode()
    assert bytes(parsed.value["SSID"]) == b"abc"
    assert nl80211._security(parsed.value, private=name != "open") == name


def test_recorded_answers() -> None:
    scans: list[list[dict[str, Any]]] = []
    recording = wifi_scan.Recording(
        str(ROOT / "data" / "wifi_recording.txt"), lambda _source, points, whole: scans.append(points)
    )
    for turn in range(len(recording.answers) + 1):
        recording.turn(turn * wifi_scan.PERIOD)
    points = {point["bssid"]: point for scan in scans for point in scan}
    assert len(scans) == 9
    assert {point["security"] for point in points.values()} == {"open", "WEP", "WPA", "WPA2", "WPA3", "OWE"}
    assert {point["ssid"] for point in points.values()} >= {None, "Café am See", "⚓ marina", 'old "WEP" box'}
    assert len({len(scan) for scan in scans}) > 1, "access points come and go"
    assert scans[8] == scans[0]
    assert wpa_control.parse_bss("") == {}


AP = {"bssid": "02:00:00:00:00:01", "ssid": "a", "ssid_hex": "61", "frequency": 2412, "signal": -50, "security": "WPA2"}


def events(sightings: wifi_scan.Sightings, *points: dict[str, Any], whole: bool = True) -> list[str]:
    return [point["event"] for point in sightings.update([{**AP, **point} for point in points], whole=whole)]


def test_access_points_are_new_changed_seen_and_lost() -> None:
    sightings = wifi_scan.Sightings()
    assert events(sightings, {}) == ["new"]
    assert events(sightings, {"signal": -53}) == ["seen"]
    assert events(sightings, {"signal": -56}) == ["changed"], "small steps add up"
    assert events(sightings, {"signal": -53}) == ["seen"]
    assert events(sightings, {"signal": -53, "frequency": 2437}) == ["changed"]
    assert events(sightings, {"signal": -53, "frequency": 2437, "security": "WPA3"}) == ["changed"]
    assert events(sightings) == events(sightings) == [], "missed twice"
    assert events(sightings, {"frequency": 2437, "security": "WPA3", "signal": -53}) == ["seen"], "and there again"
    assert [events(sightings) for _ in range(4)] == [[], [], ["lost"], []]
    assert events(sightings, {}) == ["new"]
    assert [events(sightings, whole=False) for _ in range(5)] == [[]] * 5, "somebody else's scan of a few channels"


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(-90, -30)), max_size=4), max_size=30))
def test_every_sighting_begins_with_new_and_ends_with_lost(scans: list[list[tuple[int, int]]]) -> None:
    sightings = wifi_scan.Sightings()
    there: set[str] = set()
    for scan in [*scans, *[[]] * wifi_scan.LOST_AFTER]:
        for point in sightings.update([{**AP, "bssid": str(number), "signal": level} for number, level in scan]):
            assert (point["event"] == "new") == (point["bssid"] not in there)
            (there.discard if point["event"] == "lost" else there.add)(point["bssid"])
    assert not there


def test_a_hidden_network_that_is_known_twice_is_told_once() -> None:
    hidden, named = {**AP, "ssid": None}, {**AP, "ssid": "a"}
    assert wifi_scan.unique([hidden, named]) == wifi_scan.unique([named, hidden]) == [named]


class FakeBus:
    """A bus made of a list."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def publish(self, topic: str, data: Any, *, retain: bool = False) -> None:
        self.sent.append((topic, data))


class FakeSupplicant:
    """A mock of the control socket: the real one, with a real radio, is in qemu_wifi.py."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.asked: list[str] = []
        self.scan_answer = "OK\n"
        self.large = {7}  # by number: with all its elements it does not fit into an answer
        self.unreadable = {9}  # nor without
        self.bss = [f"id={n}\nbssid=02:00:00:00:{n:02x}\nfreq=2412\nlevel=-40\nage={age}\nflags=[ESS]\nssid=x{n}\n"
                    for n, age in ((1, 0), (2, 99), *((n, 1) for n in range(3, 101)))]  # fmt: skip
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = folder / "wlan0"
        self.path.unlink(missing_ok=True)
        self.server.bind(str(self.path))
        self.silent = False
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            command, self.client = self.server.recvfrom(1000)
            self.asked.append(command.decode())
            if self.silent:
                continue
            self.server.sendto(b"<3>CTRL-EVENT-BSS-ADDED 5 02:00:00:00:00:05", self.client)
            self.server.sendto(self.answer(command.decode()).encode(), self.client)

    def answer(self, command: str) -> str:
        if command.startswith("BSS RANGE="):  # 4,096 bytes of numbers; 30 an answer here
            first = int(command[10:].partition("-")[0])
            return "".join([f"id={number}\n" for number in range(max(first, 1), len(self.bss) + 1)][:30])
        if command.startswith("BSS ID-"):
            number, mask = int(command[7:].partition(" ")[0]), int(command.partition("MASK=")[2] or "0xfffdffff", 16)
            hidden = number in self.unreadable or (number in self.large and mask & 1 << 10)
            return "" if hidden else self.bss[number - 1]
        return self.scan_answer if command == "SCAN" else "OK\n"

    def event(self, text: str) -> None:
        self.server.sendto(f"<3>{text}".encode(), self.client)


class Loop(FakeBus):
    """A bus that serves descriptors when the test says so."""

    log = get_logger("test")

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Callable[[], object]] = {}

    def watch(self, fd: int, handler: Callable[[], object]) -> None:
        self.watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def serve(self) -> bool:
        for fd in select.select(list(self.watched), [], [], 0)[0]:
            self.watched[fd]()
        return True


def test_a_scan_through_wpa_supplicant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, told by an event, read page by page; busy, aborted, hung and dead are all survived."""
    monkeypatch.setattr(wifi_scan, "ANSWER_LIMIT", 0.2)
    told: list[tuple[list[dict[str, Any]], bool]] = []
    bus: Any = Loop()
    mock = FakeSupplicant(tmp_path / "ctrl")

    def heard(_source: str, points: list[dict[str, Any]], *, whole: bool) -> None:
        told.append((points, whole))

    radio = wifi_scan.Supplicant("wlan0", str(tmp_path / "ctrl"), bus, heard)
    now = time.monotonic()
    mock.scan_answer = "FAIL-BUSY\n"
    radio.turn(now)
    assert (mock.asked, radio.asked) == (["ATTACH", "SCAN"], None)
    mock.scan_answer = "OK\n"
    radio.turn(now + wifi_scan.RETRY)
    mock.event("CTRL-EVENT-SCAN-FAILED ret=-16")  # aborted: asked again soon
    eventually(lambda: bus.serve() and radio.asked is None)
    assert 0 < radio.next_turn() - time.monotonic() <= wifi_scan.RETRY
    radio.turn(now + 20)
    assert mock.asked == ["ATTACH", "SCAN", "SCAN", "SCAN"]
    assert radio.next_turn() == now + 20 + wifi_scan.SCAN_LIMIT, "and sleeps until then"
    radio.turn(now + 20 + wifi_scan.SCAN_LIMIT + 1)  # and once more when it never ends
    assert mock.asked[-1] == "SCAN"
    assert len(mock.asked) == 5
    radio.asked = time.monotonic()
    mock.event("CTRL-EVENT-SCAN-RESULTS ")
    eventually(lambda: bus.serve() and told)
    expected = [f"x{n}" for n in range(1, 101) if n not in (2, 9)]
    assert [point["ssid"] for point in told[0][0]] == expected, "x2 was not heard for 99 s; x9 hides none that come after it"
    assert radio.unread == 1
    assert told[0][1], "our own scan was a whole one"
    mock.silent = True
    with pytest.raises(OSError, match="timed out"):
        radio.turn(now + 1000)
    assert (radio.wire, bus.watched) == (None, {})
    mock.path.unlink()
    with pytest.raises(OSError, match="No such file"):
        radio.turn(now + 2000)
    mock = FakeSupplicant(tmp_path / "ctrl")  # its successor
    radio.turn(now + 3000)
    assert mock.asked == ["ATTACH", "SCAN"]
    radio.close()


def test_an_air_without_end_is_cut_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A neighbour sends beacons of 2,500 access points: those that were there before are kept, and every message fits."""
    told: list[list[dict[str, Any]]] = []
    bus: Any = Loop()
    bus.log = logging.getLogger("test_many")
    mock = FakeSupplicant(tmp_path / "ctrl")
    noise = "\\xf4" * 32  # 32 bytes of no UTF-8: the longest there is in JSON
    mock.bss = [f"id={n}\nbssid=02:00:00:00:{n >> 8:02x}:{n & 255:02x}\nfreq=2412\nlevel=-40\nage=0\nflags=[ESS]\nssid={noise}\n"
                for n in range(1, 2501)]  # fmt: skip
    mock.large = mock.unreadable = set()
    radio = wifi_scan.Supplicant("wlan0", str(tmp_path / "ctrl"), bus, lambda _source, points, **_: told.append(points))
    with caplog.at_level(logging.WARNING, "test_many"):
        for _ in range(2):
            radio.due = 0.0
            radio.turn(time.monotonic())
            mock.event("CTRL-EVENT-SCAN-RESULTS")
            eventually(lambda: bus.serve() and radio.asked is None and not radio.results)
    assert [len(points) for points in told] == [wifi_scan.MOST, wifi_scan.MOST]
    assert told[0][0]["bssid"] == "02:00:00:00:00:01"
    assert caplog.messages == ["scan: 2500 access points or more: we take 1000"]
    sightings = wifi_scan.Sightings()
    sent = list(wifi_scan.parts(sightings.update(told[0])))
    assert sum(map(len, sent)) == wifi_scan.MOST
    assert all(len(json.dumps({"source": "wpa_supplicant", "points": part})) + 1000 < LARGEST for part in sent)
    assert list(wifi_scan.parts([])) == [[]], "an empty air is told too"


def test_where_no_supplicant_runs_the_kernel_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a child with a time limit; a program of the test's own takes the place of the radio that this kernel has not."""
    told: list[tuple[str, list[dict[str, Any]]]] = []
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    bus: Any = Loop()
    radio = wifi_scan.Radio("wlan9", str(tmp_path), bus, lambda source, points, whole: told.append((source, points)))
    script.write_text("#!/bin/sh\nexec sleep 1000")
    script.chmod(0o755)
    radio.turn(100.0)
    assert radio.next_turn() == 101.0
    radio.turn(100.0 + wifi_scan.FALLBACK_AFTER + 1)
    child = radio.kernel.child
    assert child is not None
    radio.turn(200.0)
    assert child.poll() == -signal.SIGKILL, "it took too long"
    script.write_text("#!/bin/sh\necho no such interface >&2\nexit 1")
    pauses = []
    for turn in range(6):  # there is no radio at all
        radio.turn(1e6 * (turn + 1))
        eventually(lambda: bus.serve() and radio.kernel.child is None)
        pauses.append(round(radio.kernel.due - time.monotonic()))
    assert pauses == [10, 20, 40, 60, 60, 60]
    assert capfd.readouterr().err == "no such interface\n", "once, not with each try: it would wake PID 1 and logd"
    point = {k: v for k, v in AP.items() if k != "ssid"}
    many = [{**point, "bssid": f"02:00:00:00:{n // 256:02x}:{n % 256:02x}"} for n in range(1000)]  # more than a pipe holds
    (tmp_path / "points").write_text(json.dumps(many))
    script.write_text(f"#!/bin/sh\nexec cat {tmp_path}/points")
    radio.turn(1e7)
    eventually(lambda: bus.serve() and told)
    assert told == [("nl80211", [{**AP, "bssid": one["bssid"]} for one in many])]
    assert 0 < radio.kernel.due - time.monotonic() <= wifi_scan.PERIOD
    assert bus.watched == {}


# --- wifi_analyzer --------------------------------------------------------------------------------------------------
def test_observations_have_the_position_of_their_time() -> None:
    bus = FakeBus()
    analyzer = wifi_analyzer.Analyzer(bus)  # type: ignore[arg-type]
    point = {**AP, "event": "new"}
    scan = {"mono": 100.0, "data": {"source": "recording", "points": [point]}}
    analyzer.on_scan("scan", scan)
    analyzer.on_gps("gps", {"mono": 99.5, "data": {"latitude": 1.0, "longitude": 2.0, "accuracy": 5.0, "source": "fake"}})
    analyzer.on_scan("scan", scan)
    analyzer.on_scan("scan", {**scan, "mono": 120.0})
    assert [topic for topic, _ in bus.sent] == ["wifi/02:00:00:00:00:01"] * 3
    assert [(data["latitude"], data["age"]) for _, data in bus.sent] == [(None, None), (1.0, 0.5), (None, None)]
    assert bus.sent[1][1] == {
        "latitude": 1.0, "longitude": 2.0, "accuracy": 5.0, "age": 0.5, "position_source": "fake", "bssid": "02:00:00:00:00:01", "ssid": "a",
        "frequency": 2412, "signal": -50, "security": "WPA2", "source": "recording", "event": "new",
    }  # fmt: skip


# --- diagnostic and logging -----------------------------------------------------------------------------------------
def test_a_report_is_complete_without_a_board() -> None:
    report = diagnostic.Diagnostic().measure()
    assert report["memory_total"] > report["memory_available"] > 1_000_000
    assert len(report["load"]) == 3
    assert report["disk_total"] >= report["disk_free"] > 0
    assert abs(report["clock_drift"]) < 1
    assert report["services"] is None or report["services"]["rows"]


def test_apps_log_with_levels_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(counts)
    logger = get_logger("test_app")
    logger.handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
    logger.info("fine")
    logger.warning("two\nlines")
    logger.error("bad %s", "thing")
    assert capsys.readouterr().err == "<6>fine\n<4>two\n<4>lines\n<3>bad thing\n"
    assert {level: counts[level] - before[level] for level in counts} == {"error": 1, "warning": 1, "info": 1, "debug": 0}


# --- bus ------------------------------------------------------------------------------------------------------------
APP = """
import sys, time; sys.path.insert(0, {root!r})
from bus import Bus
bus = Bus({name!r})
{body}
"""


def run_app(broker: Broker, name: str, body: str, out: Path) -> subprocess.Popen[str]:
    code = APP.format(root=str(ROOT), name=name, body=body)
    with out.open("w") as file:
        return subprocess.Popen([PYTHON, "-u", "-c", code], stdout=file, stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, "BUS": broker.path})  # fmt: skip


def more_than(path: Path, lines: int) -> Callable[[], bool]:
    return lambda: len(path.read_text().splitlines()) > lines


@pytest.mark.timeout(60)
def test_the_bus_survives_its_broker(broker: Broker, tmp_path: Path) -> None:
    """Killed and back, three times: no subscription is lost, what waited arrives, and the log has two lines a time."""
    heard, told = tmp_path / "heard", tmp_path / "told"
    listener = run_app(broker, "listener", "bus.subscribe('n', lambda t, m: print('n', m['data'])); bus.run()", heard)
    talker = run_app(broker, "talker", "n = 0\nfor _ in bus.every(0.02):\n n += 1; bus.publish('n', n)", told)
    try:
        for _ in range(3):
            time.sleep(0.5)  # both have to do without: before the first life, and between lives
            broker.start()
            count = len(heard.read_text().splitlines())
            eventually(more_than(heard, count + 20), 15)
            broker.kill()
        broker.start()
        eventually(lambda: heard.read_text().count("bus: back") >= 3, 15)
    finally:
        talker.terminate()
        listener.terminate()
        assert (talker.wait(5), listener.wait(5)) == (0, 0)
    log = [line for line in (heard.read_text() + told.read_text()).splitlines() if "bus:" in line]
    assert 8 <= len(log) <= 18, log
    numbers = [int(line.split()[1]) for line in heard.read_text().splitlines() if line.startswith("n ")]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(set(numbers))


def test_retained_state_is_told_to_the_next_broker(broker: Broker, tmp_path: Path) -> None:
    broker.start()
    teller = run_app(broker, "teller", "bus.publish('state', 'up', retain=True)\nbus.run()", tmp_path / "told")
    time.sleep(0.5)
    broker.kill()
    broker.start()
    out = tmp_path / "heard"
    asker = run_app(broker, "asker", "bus.subscribe('state', lambda t, m: print(m)); bus.run()", out)
    try:
        eventually(lambda: "'up'" in out.read_text(), 10)
        message = eval(out.read_text())
    finally:
        teller.kill()
        asker.kill()
        teller.wait()
        asker.wait()
    assert set(message) == {"v", "boot", "from", "seq", "kind", "time", "mono", "clock", "data"}
    assert (message["v"], message["from"], message["kind"], message["data"]) == (1, "teller", "state", "up")
    assert message["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_the_pace_does_not_drift_and_missed_turns_are_left_out(tmp_path: Path) -> None:
    import bus

    one = bus.Bus("pace", str(tmp_path / "nobody"))
    started = time.monotonic()
    turns = []
    for now in one.every(0.1):
        turns.append(now - started)
        if len(turns) == 3:
            time.sleep(0.25)
        if len(turns) == 6:
            break
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    steps = [round(turn * 10) for turn in turns]
    assert steps[:3] == [0, 1, 2]
    assert steps[3] >= 5, "those that were missed are left out"
    assert [steps[5] - steps[4], steps[4] - steps[3]] == [1, 1], "and the next ones are on time"


def test_a_broker_that_accepts_and_stays_silent_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bus

    monkeypatch.setattr(bus, "ANSWER_TIMEOUT", 0.3)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    server.settimeout(0.0)
    clients = []
    one = bus.Bus("patient", str(tmp_path / "s"))
    for _ in one.every(0.05):
        with contextlib.suppress(BlockingIOError):
            clients.append(server.accept())
        if len(clients) == 3:
            break
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_handler_that_fails_does_not_end_its_app(broker: Broker, tmp_path: Path) -> None:
    broker.start()
    out = tmp_path / "out"
    body = "def bad(t, m):\n raise ValueError('on purpose')\nbus.subscribe('a', bad)\n" \
        "for _ in bus.every(0.2):\n bus.publish('a', 1); print('alive')"  # fmt: skip
    app = run_app(broker, "app", body, out)
    try:
        eventually(lambda: "on purpose" in out.read_text() and out.read_text().count("alive") > 8)
    finally:
        app.kill()
        app.wait()


@pytest.mark.parametrize("alive", [True, False], ids=["with a broker", "without one"])
def test_other_descriptors_are_served_in_the_same_wait(broker: Broker, tmp_path: Path, alive: bool) -> None:
    """Without polling: what is written is heard at once, and a handler may end its own watch, or fail."""
    if alive:
        broker.start()
    out = tmp_path / "out"
    reader, writer = os.pipe()
    body = f"""
def heard():
    told = os.read({reader}, 100)
    print(told.decode(), time.monotonic())
    if told == b'bad': raise ValueError('on purpose')
    if told == b'': bus.unwatch({reader})
import os
bus.watch({reader}, heard)
for _ in bus.every(30.0): print('turn')
"""
    code = APP.format(root=str(ROOT), name="watcher", body=body)
    environment = {**os.environ, "BUS": broker.path}
    with out.open("w") as file:
        app = subprocess.Popen([PYTHON, "-u", "-c", code], stdout=file, stderr=file, pass_fds=(reader,), env=environment)
    os.close(reader)
    try:
        eventually(lambda: "turn" in out.read_text())
        time.sleep(0.3)
        for told in ("first", "bad", "last"):
            before = time.monotonic()
            os.write(writer, told.encode())
            eventually(lambda: f"{told} " in out.read_text())  # noqa: B023
            line = next(line for line in out.read_text().splitlines() if line.startswith(f"{told} "))
            assert float(line.split()[1]) - before < 0.5
        os.close(writer)
        eventually(lambda: any(x.startswith(" ") for x in out.read_text().splitlines()))
        cpu = Path(f"/proc/{app.pid}/stat").read_text().split()[13]
        time.sleep(0.5)
        assert int(Path(f"/proc/{app.pid}/stat").read_text().split()[13]) - int(cpu) < 20, "a closed pipe does not spin"
        assert "on purpose" in out.read_text()
    finally:
        app.terminate()
        assert app.wait(5) == 0


def test_an_app_ends_where_the_exception_was_swallowed(tmp_path: Path) -> None:
    """TERM may come while a destructor runs: what is raised there is lost."""
    code = """if True:
        import os, signal, bus
        one, turns = bus.Bus("x", "/nowhere"), 0
        class Late:
            def __del__(self): os.kill(os.getpid(), signal.SIGTERM); sum(range(1000))
        for _ in one.every(0.05):
            turns += 1
            late = Late() if turns == 1 else None
            assert turns < 9
        print("ended")
    """
    done = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert "SystemExit" in done.stderr, "it was swallowed indeed"


@pytest.mark.timeout(60)
def test_an_app_with_nothing_to_do_sleeps(broker: Broker, tmp_path: Path) -> None:
    """Each way to wait, with a broker and without one: no wake-up in three seconds, and a warning is told at once all the same."""
    broker.start()
    out = tmp_path / "out"
    bodies = {
        "listens": "bus.subscribe('warn', lambda t, m: bus.log.warning('heard'))\nprint('up')\nbus.run()",
        "sleeps": "print('up')\nfor _ in bus.when(lambda: None): pass",
        "paces": "print('up')\nfor _ in bus.every(300.0): pass",
    }
    apps = [run_app(broker, name, body, tmp_path / name) for name, body in bodies.items()]
    ear = run_app(broker, "ear", "bus.subscribe('log/listens', lambda t, m: print(m['data']['warning']))\nbus.run()", out)
    try:
        for name in bodies:
            eventually(lambda name=name: "up" in (tmp_path / name).read_text())  # type: ignore[misc]
        eventually(lambda: out.read_text().split()[-1:] == ["0"])

        def quiet() -> bool:
            before = [sleeps(app.pid) for app in apps]
            time.sleep(3.0)  # what is measured
            return [sleeps(app.pid) for app in apps] == before

        eventually(quiet, 15)
        talker = run_app(broker, "talker", "bus.publish('warn', 1)\nbus.run()", tmp_path / "talker")
        apps.append(talker)
        eventually(lambda: out.read_text().split()[-1:] == ["1"], 5)
    finally:
        for app in [*apps, ear]:
            app.terminate()
            app.wait(5)


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])


SWALLOWS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from bus import Bus

bus = Bus("app", sys.argv[2])
reader, writer = os.pipe()

def handler():
    os.read(reader, 1)
    print("handled", flush=True)
    try:
        time.sleep(100)
    except BaseException:  # as a library's callback has it
        pass

bus.watch(reader, handler)
os.write(writer, b"x")
for now in bus.when(lambda: None, 60.0):
    pass
print("ended", flush=True)
"""


def test_an_app_ends_at_sigterm_though_its_callback_swallows_the_exception(tmp_path: Path) -> None:
    """It waited for the next minute."""
    words = [PYTHON, "-c", SWALLOWS, str(ROOT), str(tmp_path / "no-broker")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as app:
        try:
            assert app.stdout
            assert app.stdout.readline() == "handled\n"
            app.terminate()
            assert app.wait(10) == 0
        finally:
            app.kill()
