"""Exports that foreign programs read, where access points are, and the page in a real browser."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import random
import shutil
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastkml
import geojson
import pytest
from conftest import PYTHON, ROOT
from hypothesis import given
from hypothesis import strategies as st
from servers import Postgres, why_no_postgres

sys.path.insert(0, str(ROOT / "mothership"))

import export
import page
from locate import DEGREE, Located, distance
from observations import Observation, observations
from store import News, Store

from uplink import wire

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, and only root can install it")
START = 1_790_000_000.0
HOSTILE = [
    "plain", "Café 日本 🥨", '"quoted", with, commas', "=cmd|'/C calc'!A0", "@SUM(1)", "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>", "<img src=http://leak.example/a onerror=\"document.title='owned'\">",
    "two\nlines\r\nand\ttabs", "\x00\x1b[31m\x7f\x85", "\u2028\u2029\ufffe\uffff", "]]>&amp;<!--", "${1+1}`'\\", "  spaces  ", "DATA POLICY",
    "\ud800", None, "", "x" * 32,
]  # fmt: skip


def heard(index: int, ssid: str | None, north: float, east: float, **more: Any) -> tuple[int, str, Any]:
    data = {"latitude": north, "longitude": east, "accuracy": 4.0, "age": 0.5, "position_source": "gps", "event": "seen",
            "bssid": f"02:00:00:00:{index // 256:02x}:{index % 256:02x}", "ssid": ssid, "frequency": 2437, "signal": -60.0, "security": "WPA2"}  # fmt: skip
    body = {"boot": "B", "mono": 1.0 + index, "time": START + index, "clock": "synchronised", "data": {**data, **more}}
    return index + 1, "wifi", body


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if why_no_postgres():
        pytest.skip(why_no_postgres())
    running = Postgres()
    yield running
    running.end()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One that has a board, each hostile name, and what must not appear."""
    path = str(tmp_path / "m.db") if request.param == "sqlite" else request.getfixturevalue("server").database()
    records = [heard(index, ssid, 48.0 + index / 1000, 11.0 - index / 1000) for index, ssid in enumerate(HOSTILE)]
    nowhere: list[dict[str, Any]] = [
        {"event": "lost"}, {"latitude": None}, {"latitude": 90.1}, {"longitude": "11"}, {"longitude": 10**400}, {"signal": None},
        {"bssid": "x"}, {"bssid": None}, {"signal": float("nan")},
    ]  # fmt: skip
    records += [heard(1000 + index, "nowhere", 48.0, 11.0, **odd) for index, odd in enumerate(nowhere)]
    records += [
        (2000, "wifi", None),
        (2001, "wifi", [1]),
        (2002, "wifi", {"data": 7}),
        (2003, "evt", heard(0, "not wifi", 1.0, 1.0)[2]),
    ]
    payload = wire.pack(0, [(number, kind, json.dumps(body).encode()) for number, kind, body in records])
    info = {"number": 3, "model": "<b>model</b>", "kernel": "6.12", "why": {"cause": "watchdog", "reason": "</script>"}}
    Store(path).take(
        [("b1", wire.unpack(payload))],
        [
            News("b1", "state", {"state": "ready", "boot": "B"}),
            News("b1", "info", info),
            News("b2", "state", {"state": "lost"}),
        ],
    )
    return path


def exported(database: str, *words: str) -> str:
    command = [PYTHON, str(ROOT / "mothership"), "export", database, *words]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def test_invented_positions_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "m.db")
    records = [heard(0, "real", 48.0, 11.0), heard(1, "invented", 49.0, 12.0, position_source="fake")]
    Store(path).take([("b1", wire.unpack(wire.pack(0, [(n, kind, json.dumps(body).encode()) for n, kind, body in records])))])
    for format_ in ("wigle", "geojson", "kml"):
        assert ("real" in exported(path, "--format", format_), "invented" in exported(path, "--format", format_)) == (
            True,
            False,
        )
    for format_ in ("geojson", "kml"):
        assert "invented" in exported(path, "--format", format_, "--fake")
    for words, there in (((), False), (("--fake",), True)):
        command = [PYTHON, str(ROOT / "mothership"), "map", path, "-o", str(tmp_path / "map.html"), *words]
        subprocess.run(command, check=True, capture_output=True)
        assert ("invented" in (tmp_path / "map.html").read_text()) is there


@pytest.mark.parametrize(("security", "auth"), [
    ("open", "[ESS]"), ("WEP", "[WEP][ESS]"), ("WPA", "[WPA-PSK][ESS]"), ("WPA2", "[WPA2][ESS]"), ("WPA3", "[WPA3][ESS]"), ("OWE", "[RSN-OWE-CCMP][ESS]"),
    ("OWE transition", "[RSN-OWE_TRANSITION-CCMP][ESS]"), ("something", "[something][ESS]"),
])  # fmt: skip
def test_auth_modes_are_what_wigles_app_knows(security: str, auth: str) -> None:
    """Its app looks for [WPA-, [WPA2, [WPA3, SAE, [RSN and [WEP."""
    one = Observation("b1", START, 48.0, 11.0, None, "02:00:00:00:00:01", "x", 2437, -60.0, security, "gps")
    row = list(export.wigle([one]))[1]
    assert row.split(",")[2] == auth
    known = ("[WPA-", "[WPA2", "[WPA3", "SAE", "[RSN", "[WEP")
    assert security in ("open", "something") or any(word in auth for word in known)


def placemarks(text: str) -> list[Any]:
    read: Any = fastkml.KML.from_string
    return list(read(text.encode()).features[0].features)


# --- exports ------------------------------------------------------------------------------------------------------------
def test_wigle_is_csv_with_a_row_for_each_observation(database: str) -> None:
    text = exported(database, "--format", "wigle")
    assert len(text.split("\n")) == len(HOSTILE) + 3, "no name breaks a line"
    lines = io.StringIO(text, newline="")
    assert lines.readline().startswith("WigleWifi-1.6,appRelease=")
    found = list(csv.DictReader(lines, strict=True))
    assert (
        list(found[0])
        == (
            "MAC SSID AuthMode FirstSeen Channel Frequency RSSI CurrentLatitude CurrentLongitude AltitudeMeters AccuracyMeters RCOIs MfgrId Type"
        ).split()
    )
    assert found[0] == {
        "MAC": "02:00:00:00:00:00", "SSID": "plain", "AuthMode": "[WPA2][ESS]", "FirstSeen": "2026-09-21 14:13:20", "Channel": "6",
        "Frequency": "2437", "RSSI": "-60", "CurrentLatitude": "48.0000000", "CurrentLongitude": "11.0000000", "AltitudeMeters": "0",
        "AccuracyMeters": "4.0", "RCOIs": "", "MfgrId": "", "Type": "WIFI",
    }  # fmt: skip
    assert [row["SSID"] for row in found] == [
        *HOSTILE[:8], "two\ufffdlines\ufffd\ufffdand\ufffdtabs", "\ufffd\ufffd[31m\ufffd\ufffd", "\ufffd" * 4, *HOSTILE[11:15], "\ufffd", "", "", "x" * 32,
    ]  # fmt: skip
    assert all(None not in row and None not in row.values() for row in found)


def test_geojson_is_valid_and_has_the_names_as_they_were(database: str) -> None:
    found = geojson.loads(exported(database, "--format", "geojson"))
    assert found.is_valid, found.errors()
    assert found["type"] == "FeatureCollection"
    assert [feature["properties"]["ssid"] for feature in found["features"]] == [
        "\ufffd\x1b[31m\x7f\x85" if name == "\x00\x1b[31m\x7f\x85" else "\ufffd" if name == "\ud800" else name or None
        for name in HOSTILE
    ]
    last = found["features"][-1]
    assert last["geometry"]["coordinates"] == [pytest.approx(11.0 - 0.018), pytest.approx(48.018)], "longitude first"
    assert last["properties"]["at"] == "2026-09-21T14:13:38Z"
    assert last["properties"]["bssid"] == "02:00:00:00:00:12"


def test_kml_is_read_by_a_library_that_is_not_ours(database: str) -> None:
    found = placemarks(exported(database, "--format", "kml"))
    assert len(found) == len(HOSTILE)
    assert [mark.name for mark in found[:8]] == HOSTILE[:8]
    assert [mark.name for mark in found[16:18]] == ["(hidden)", "(hidden)"]
    assert found[3].geometry.coords[0][:2] == pytest.approx((11.0 - 0.003, 48.003))
    assert found[0].times.timestamp.dt == datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
    told = {data.name: data.value for data in found[7].extended_data.elements}
    assert told["ssid"] == HOSTILE[7]
    assert told["bssid"] == "02:00:00:00:00:07"


@pytest.mark.parametrize("format_", export.FORMATS)
def test_an_export_without_observations_is_whole_too(format_: str, tmp_path: Path) -> None:
    Store(str(tmp_path / "m.db"))
    text = exported(str(tmp_path / "m.db"), "--format", format_)
    if format_ == "geojson":
        assert geojson.loads(text) == {"type": "FeatureCollection", "features": []}
    elif format_ == "kml":
        assert placemarks(text) == []
    else:
        assert len(text.splitlines()) == 2


def test_an_export_is_of_one_board_from_a_time_on_and_into_a_file(database: str, tmp_path: Path) -> None:
    assert len(exported(database, "--format", "wigle", "--board", "b2").splitlines()) == 2
    for since in ("2026-09-21T14:13:30", "2026-09-21T16:13:30+02:00", str(START + 10)):
        assert len(exported(database, "--format", "wigle", "--since", since).splitlines()) == 2 + len(HOSTILE) - 10
    assert exported(database, "--format", "kml", "-o", str(tmp_path / "out.kml")) == ""
    assert (tmp_path / "out.kml").read_text() == exported(database, "--format", "kml")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.kml"]


def test_an_export_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "m.db"))
    store.take([("b1", wire.Batch(0, [heard(index, "x" * 32, 48.0, 11.0) for index in range(8000)]))])
    for write in export.FORMATS.values():
        tracemalloc.start()
        size = sum(map(len, write(observations(store))))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size > 800_000
        assert peak < 300_000


@pytest.mark.parametrize(
    ("frequency", "channel"),
    [
        (2412, 1),
        (2472, 13),
        (2484, 14),
        (5180, 36),
        (5885, 177),
        (5935, 2),
        (5955, 1),
        (7115, 233),
        (0, 0),
        (2400, 0),
        (58320, 0),
    ],
)
def test_channels(frequency: int, channel: int) -> None:
    assert export.channel(frequency) == channel


@given(st.text(max_size=40), st.floats(-90, 90), st.floats(-180, 180), st.floats(0, 1e9), st.text(max_size=10))
def test_any_name_goes_through_every_format(ssid: str, latitude: float, longitude: float, at: float, security: str) -> None:
    one = Observation("b1", at, latitude, longitude, None, "02:00:00:00:00:01", ssid or None, 0, -60.0, security, "gps")
    rows = list(csv.reader(io.StringIO("".join(export.wigle([one])), newline=""), strict=True))
    assert [len(row) for row in rows[1:]] == [14, 14]
    geojson.loads("".join(export.geojson([one])))
    assert len(placemarks("".join(export.kml([one])))) == 1


# --- where an access point is --------------------------------------------------------------------------------------------
def located(*found: tuple[float, float, float]) -> tuple[float, float, float]:
    made = Located(found[0][0], found[0][1])
    for latitude, longitude, signal in found:
        made.add(latitude, longitude, signal, 3.0)
    return made.result()


def test_a_centroid_weighs_by_amplitude() -> None:
    assert located((48.0, 11.0, -60.0))[:2] == (48.0, 11.0)
    assert located((48.0, 11.0, -60.0), (48.002, 11.002, -60.0))[:2] == pytest.approx((48.001, 11.001))
    latitude, longitude, _ = located((48.0, 11.0, -40.0), (48.011, 11.011, -60.0))  # 20 dB are a factor of ten
    assert (latitude, longitude) == pytest.approx((48.001, 11.001))
    assert located((48.0, 179.999, -60.0), (48.0, -179.999, -60.0))[1] in (pytest.approx(180.0), pytest.approx(-180.0))
    assert located((90.0, 0.0, -60.0), (90.0, 90.0, -60.0))[0] == 90.0


def test_a_radius_grows_with_the_spread_and_shrinks_with_the_places() -> None:
    one = located((48.0, 11.0, -60.0))[2]
    assert one == pytest.approx(math.hypot(50.0, 3.0))
    assert located(*[(48.0, 11.0, -60.0)] * 100)[2] == pytest.approx(one), "from one place a hundred times is one place"
    near = located(*((48.0 + i * 20 / DEGREE, 11.0, -60.0) for i in range(4)))[2]
    far = located(*((48.0 + i * 200 / DEGREE, 11.0, -60.0) for i in range(4)))[2]
    assert near < one < far


def test_a_walk_around_an_access_point_finds_it() -> None:
    """Path loss exponent 3, shadowing 6 dB, positions 5 m off; amplitudes do better than no weights and than powers."""
    chosen = random.Random(1)
    errors: dict[float, list[float]] = {10.0: [], 20.0: [], math.inf: []}
    held = 0
    for _ in range(300):
        walk = [(x, y) for x in range(-150, 151, 8) for y in (0, 80)] + [(-80, y) for y in range(0, 80, 8)]
        east, north = chosen.uniform(-20, 20), chosen.uniform(10, 40)
        found = []
        for x, y in walk:
            signal = -35 - 30 * math.log10(max(2.0, math.hypot(x - east, y - north))) + chosen.gauss(0, 6)
            if signal > -92:
                found.append(((y + chosen.gauss(0, 5)) / DEGREE, (x + chosen.gauss(0, 5)) / DEGREE, signal))
        for divisor, list_ in errors.items():
            latitude, longitude, radius = located(*((a, b, signal * 20 / divisor) for a, b, signal in found))
            list_.append(distance(latitude, longitude, north / DEGREE, east / DEGREE))
            held += divisor == 20.0 and list_[-1] <= radius
    powers, ours, none = (sorted(list_)[150] for list_ in errors.values())
    assert ours < 10
    assert ours < 0.8 * min(powers, none)
    assert held > 270


# --- the page ------------------------------------------------------------------------------------------------------------
class Page(html.parser.HTMLParser):
    """What a browser made of it: elements by id, text included, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.text: dict[str, str] = {}
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id") or tag
        self.tags.append(tag)
        self.attributes[name] = dict(attrs)
        if tag not in ("meta", "link", "input", "br", "img"):
            self.open.append(name)

    def handle_endtag(self, tag: str) -> None:
        if self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for name in self.open:
            self.text[name] = self.text.get(name, "") + data


def browse(folder: Path, url: str, *flags: str) -> Page:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile",
               "--window-size=1400,900", *flags, "--dump-dom", url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return Page(done.stdout)


class Net:
    """The only way out of a browser: it answers nobody, and keeps what was asked for."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked: list[str] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client = self.server.accept()[0]
            except OSError:
                return
            with client:
                self.asked.append(client.recv(4096).split(b"\r\n")[0].decode("latin1"))

    def flags(self) -> tuple[str, str]:
        return f"--proxy-server=http://127.0.0.1:{self.server.getsockname()[1]}", "--proxy-bypass-list=<-loopback>"


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.server.close()


@pytest.fixture
def drawn(database: str, tmp_path: Path) -> str:
    """The page's URL."""
    done = subprocess.run(
        [PYTHON, str(ROOT / "mothership"), "map", database, "-o", str(tmp_path / "map.html")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path}/map.html: {len(HOSTILE)} access points, 2 boards\n"
    return f"file://{tmp_path}/map.html"


@needs_chromium
@pytest.mark.timeout(150)
def test_all_access_points_are_drawn_and_no_name_is_obeyed(drawn: str, tmp_path: Path, net: Net) -> None:
    seen = browse(tmp_path, drawn, *net.flags())
    assert seen.attributes["html"]["data-drawn"] == str(len(HOSTILE))
    assert seen.text["title"] == "stack: map"
    assert "img" not in seen.tags
    assert seen.tags.count("script") == 2, "its data and its program"
    assert seen.text["summary"] == f"{len(HOSTILE)} access points, {len(HOSTILE)} observations"
    assert "b1ready" in seen.text["boards"]
    assert "b2lost" in seen.text["boards"]
    assert not [asked for asked in net.asked if "leak" in asked or "file" in asked], net.asked


@needs_chromium
@pytest.mark.timeout(150)
def test_what_the_page_protects_from_is_real(tmp_path: Path, net: Net) -> None:
    """The same attacks on a page that does nothing about them: the test above can fail."""
    (tmp_path / "naive.html").write_text(
        "<title>naive</title>" + "".join(name or "" for name in HOSTILE if name != "\ud800"), encoding="utf-8"
    )
    seen = browse(tmp_path, f"file://{tmp_path}/naive.html", *net.flags())
    assert seen.text["title"] == "owned"
    assert [asked for asked in net.asked if "leak.example" in asked]


@needs_chromium
@pytest.mark.timeout(150)
def test_its_policy_stops_what_would_get_through(drawn: str, tmp_path: Path, net: Net) -> None:
    path = tmp_path / "map.html"
    forced = "<img src=http://leak.example/a><script>document.title='owned'</script></body>"
    path.write_text(path.read_text().replace("</body>", forced))
    seen = browse(tmp_path, drawn, *net.flags())
    assert seen.text["title"] == "stack: map"
    assert not [asked for asked in net.asked if "leak" in asked]
    assert seen.attributes["html"]["data-drawn"] == str(len(HOSTILE))


@needs_chromium
@pytest.mark.timeout(150)
def test_an_access_point_can_be_linked_to_and_searched_for(drawn: str, tmp_path: Path) -> None:
    seen = browse(tmp_path, f"{drawn}#02:00:00:00:00:06")
    assert str(HOSTILE[6]) in seen.text["detail"]
    for word in ("02:00:00:00:00:06", "WPA2", "2437 MHz (2.4 GHz)", "-60 dBm", "about 50 m", "2026-09-21 14:13:26 UTC", "b1"):
        assert word in seen.text["detail"]
    seen = browse(tmp_path, f"{drawn}#search=caf%C3%A9")
    assert (seen.attributes["html"]["data-found"], seen.attributes["html"]["data-drawn"]) == ("1", "1")
    assert "Café 日本 🥨" in seen.text["found"]


@needs_chromium
@pytest.mark.timeout(150)
def test_a_map_of_nothing_says_so(tmp_path: Path) -> None:
    Store(str(tmp_path / "m.db"))
    subprocess.run([PYTHON, str(ROOT / "mothership"), "map", "m.db"], cwd=tmp_path, check=True, capture_output=True)
    seen = browse(tmp_path, f"file://{tmp_path}/map.html")
    assert seen.attributes["html"]["data-drawn"] == "0"
    assert "hidden" not in seen.attributes["none"]


def test_a_way_is_thinned_and_broken_where_the_board_was_not_heard() -> None:
    def at(seconds: float, metres: float) -> Observation:
        return Observation(
            "b1", seconds, 48.0 + metres / DEGREE, 11.0, 4.0, "02:00:00:00:00:01", "x", 2437, -60.0, "open", "gps"
        )

    way = page.Way()
    for second in range(100):
        way.add(at(second, second / 2))
    assert [len(part) for part in way.parts] == [17], "3 m from point to point, not half a metre"
    way.add(at(100 + page.BREAK + 1, 50.0))
    assert [len(part) for part in way.parts] == [17, 1]
    for second in range(3 * page.MOST):
        way.add(at(1000.0 + second, 4.0 * second))
    assert way.count == sum(map(len, way.parts)) <= page.MOST
    assert way.step > page.STEP


def test_a_hidden_network_whose_name_was_heard_once_has_a_name() -> None:
    first = Observation("b1", 1.0, 48.0, 11.0, 4.0, "02:00:00:00:00:01", "name", 2437, -60.0, "open", "gps")
    _, points = page.collect(
        [first, first._replace(ssid=None, at=2.0, signal=-50.0, frequency=5180, board="b2"), first._replace(ssid=None, at=0.5)]
    )
    found = points["02:00:00:00:00:01"].facts()
    assert (found["ssid"], found["count"], found["signal"], found["frequency"], found["boards"]) == (
        "name",
        3,
        -50.0,
        5180,
        ("b1", "b2"),
    )
    assert (found["first"], found["last"]) == (0, 2)


def test_the_script_for_certificates_is_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here, and only root can install it")
    done = subprocess.run(["shellcheck", str(ROOT / "mothership/certificate.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
