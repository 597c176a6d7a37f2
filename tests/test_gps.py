"""gps.py and fakegps.py: sentences with plain values and fuzzed bytes, a receiver on a pseudo terminal over a real mosquitto."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT, Broker, eventually
from hypothesis import given
from hypothesis import strategies as st

import fakegps
import gps
from onboard import clock, nmea

# From u-blox's protocol specification (M8) and gpsd's NMEA.adoc.
RMC = "GPRMC,083559.00,A,4717.11437,N,00833.91522,E,0.004,77.52,091202,,,A"
GGA = "GPGGA,083559.00,4717.11399,N,00833.91590,E,1,08,1.01,499.6,M,48.0,M,,"


def line(body: str) -> bytes:
    checksum = 0
    for byte in body.encode():
        checksum ^= byte
    return f"${body}*{checksum:02X}\r\n".encode()


def rmc(
    seconds: float = 43200.0, status: str = "A", talker: str = "GN", date: str = "150626", latitude: str = "5230.0000"
) -> bytes:
    whole = int(seconds)
    at = f"{whole // 3600:02}{whole // 60 % 60:02}{whole % 60:02}.00"
    where = f"{latitude},N,01324.0000,E,10.0,90.0" if status == "A" else ",,,,,"
    return line(f"{talker}RMC,{at},{status},{where},{date},,,{'A' if status == 'A' else 'N'}")


def gga(seconds: float = 43200.0, quality: int = 1, talker: str = "GN") -> bytes:
    whole = int(seconds)
    at = f"{whole // 3600:02}{whole // 60 % 60:02}{whole % 60:02}.00"
    where = "5230.0000,N,01324.0000,E" if quality else ",,,"
    return line(f"{talker}GGA,{at},{where},{quality},09,0.8,34.5,M,44.9,M,,")


def fixes(data: bytes) -> list[nmea.Fix]:
    """What is told of sentences that come without a pause, and at the end after one."""
    epochs = nmea.Epochs()
    return [*(fix for sentence in nmea.Parser().feed(data) for fix in epochs.take(sentence, 0.0)), *epochs.flush(1.0)]


# --- sentences ------------------------------------------------------------------------------------------------------
def test_the_checksum_is_the_one_of_the_specification() -> None:
    assert nmea.parse(b"$GPRMC,083559.00,A,4717.11437,N,00833.91522,E,0.004,77.52,091202,,,A*57\r\n") is not None
    assert nmea.parse(b"$GPGGA,092725.00,4717.11399,N,00833.91590,E,1,08,1.01,499.6,M,48.0,M,,*5B") is not None
    assert nmea.parse(b"$GPGGA,092725.00,4717.11399,N,00833.91590,E,1,08,1.01,499.6,M,48.0,M,,*5C") is None
    assert nmea.parse(b"$GPGGA,092725.00,4717.11399,N,00833.91590,E,1,08,1.01,499.6,M,48.0,M,,") is None, "without one"


@pytest.mark.parametrize("first_gga", [True, False], ids=["GGA first", "RMC first"])
def test_both_halves_of_an_instant_make_one_position(first_gga: bool) -> None:
    halves = [line(GGA), line(RMC)] if first_gga else [line(RMC), line(GGA)]
    (fix,) = fixes(b"".join(halves))
    found = fix.position
    assert found is not None
    assert found["latitude"] == pytest.approx(47.2852, abs=1e-4)
    assert found["longitude"] == pytest.approx(8.5653, abs=1e-4)
    assert (found["accuracy"], found["altitude"], found["quality"], found["satellites"]) == (5.0, 499.6, 1, 8)
    assert (found["speed"], found["course"], found["source"]) == (0.0, 77.52, "gps")
    assert fix.utc == 1039422959.0  # 2002-12-09 08:35:59


def test_a_receiver_that_says_only_one_of_them_has_positions_too() -> None:
    for one, accuracy in ((rmc, None), (gga, 4.0)):
        found = fixes(one(1) + one(2) + one(3))
        assert [fix.time for fix in found] == ["000001", "000002", "000003"]
        assert all(fix.position and fix.position["accuracy"] == accuracy for fix in found)


def test_any_talker_and_others_between() -> None:
    noise = line("GPGSV,3,1,11,03,03,111,00") + line("PUBX,00,x") + b"\xff\x00garbage $$\r\n" + line("GNVTG,90.0,T,,M,10.0,N")
    for talker in ("GP", "GN", "GL", "GA", "BD", "GQ"):
        (fix,) = fixes(noise + rmc(talker=talker) + noise + gga(talker=talker) + rmc(talker="GP") + gga(talker="GL"))
        assert fix.position is not None, "once, though a second talker says it again"
    parser = nmea.Parser()
    parser.feed(noise)
    assert (parser.good, parser.bad) == (3, 1)


def test_no_fix_no_position() -> None:
    assert [fix.position for fix in fixes(rmc(status="V") + gga(quality=0))] == [None]
    assert [fix.position for fix in fixes(rmc() + gga(quality=0))] == [None], "one of them says that there is none"
    assert [fix.position for fix in fixes(rmc() + gga(quality=8))] == [None], "a simulator's"
    for mode in "NSM":
        assert fixes(line(f"{RMC[:-1]}{mode}") + rmc())[0].position is None
    assert fixes(rmc(latitude="9100.0000") + gga(1))[0].position is None, "there is no such place"
    assert fixes(rmc(status="V") + gga(quality=0))[0].utc is None


def test_south_west_and_speed() -> None:
    sentence = nmea.parse(line("GPRMC,120000,A,3356.4000,S,07040.2000,W,10,180.0,010126,,"))
    assert sentence is not None
    fix = nmea.read_sentence(nmea.Fix(), sentence)
    assert fix.latitude == pytest.approx(-33.94)
    assert fix.longitude == pytest.approx(-70.67)
    assert fix.speed == pytest.approx(5.144, abs=1e-3)


@pytest.mark.parametrize("date", ["", "000026", "310226", "321326", "15062", "ab0626", "-10626"])
def test_a_date_that_is_none(date: str) -> None:
    sentence = nmea.parse(rmc(date=date))
    assert sentence is not None
    assert nmea.read_sentence(nmea.Fix(), sentence).utc is None


PIECES = st.lists(
    st.one_of(st.binary(max_size=300), st.sampled_from([rmc(), gga(), line(RMC), b"$", b"*", b"\n", b"$GPRMC,", b",,,,*00\n"])),
    max_size=20,
)


@given(PIECES, st.integers(1, 50))
def test_no_bytes_make_it_raise_and_pieces_make_no_difference(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    whole, parts = nmea.Parser(), nmea.Parser()
    sentences = [s for at in range(0, len(data), size) for s in parts.feed(data[at : at + size])]
    assert len(parts._rest) <= nmea.LONGEST
    assert whole.feed(data) == sentences
    epochs = nmea.Epochs()
    for fix in [fix for sentence in sentences for fix in epochs.take(sentence, 0.0)]:
        assert fix.position is None or abs(fix.position["latitude"]) <= 90
        assert fix.utc is None or fix.utc > 0


@given(
    st.lists(st.text(alphabet="0123456789.-+,AVNSEW eE_nif", max_size=12), max_size=15), st.sampled_from(["RMC", "GGA", "GLL"])
)
def test_no_fields_make_it_raise(fields: list[str], kind: str) -> None:
    sentence = nmea.parse(line(f"GP{kind},{','.join(fields)}"))
    assert sentence is not None
    fix = nmea.read_sentence(nmea.Fix(), sentence)
    json.dumps([fix.position, fix.utc], allow_nan=False)


# --- real receivers -------------------------------------------------------------------------------------------------
class Recorder:
    """A bus and its log, as lists."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.lines: list[str] = []
        self.log = self

    def info(self, text: str, *words: Any) -> None:
        self.lines.append(text % words)

    warning = info

    def publish(self, topic: str, data: Any, *, retain: bool = False) -> None:
        self.sent.append((topic, data))

    def watch(self, fd: int, handler: Any) -> None:
        pass

    unwatch = watch


class Serial:
    """A receiver of gps.py on a line that the test reads for it, with the test's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, baud: int = 0) -> None:
        self.bus, self.now, self.bauds = Recorder(), 100.0, list[int]()
        self.data = b""
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(gps, "open_serial", lambda _path, _baud: 99)
        monkeypatch.setattr(gps, "set_line", lambda _fd, baud: self.bauds.append(baud))
        monkeypatch.setattr(os, "read", lambda _fd, _count: self.data)
        bus: Any = self.bus
        self.one = gps.Receiver(bus, "/dev/x", baud)
        self.one.turn(self.now)

    def hear(self, data: bytes) -> None:
        self.data = data
        self.one.on_bytes()

    def go_on(self, seconds: float) -> None:
        """Sleep as `Bus.when` does: until something is due."""
        end = self.now + seconds
        while (due := self.one.due()) <= end:
            self.now = max(self.now, due)
            self.one.turn(self.now)
        self.now = end

    def told(self, topic: str) -> list[Any]:
        return [data for name, data in self.bus.sent if name == topic]


def test_a_receiver_that_speaks_every_six_seconds_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Serial(monkeypatch)
    route = fakegps.Receivers()
    for second in range(0, 120, 6):
        one.hear(rmc(second) + gga(second))
        for _ in range(6):
            one.go_on(1.0)
            last = one.told("receiver/x")[-1]
            assert last["speaks"]
            route.on_receiver("receiver/x", {"mono": one.now, "data": last})
            assert route.speak(one.now)
    assert len(one.told("gps")) == 20
    assert one.bauds == []
    one.go_on(gps.SILENCE)
    assert not one.told("receiver/x")[-1]["speaks"]
    one.go_on(100.0)
    assert one.bauds == [], "where nothing comes, no other rate would help"


def test_a_rate_of_the_settings_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Serial(monkeypatch, baud=57600)
    for _ in range(3):
        one.hear(b"\x00\xff\x80garbage")
        one.go_on(6.0)
    assert set(one.bauds) == {57600}


def test_the_rate_is_another_one_where_bytes_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Serial(monkeypatch)
    for _ in range(4):
        one.hear(b"\x00\xff\x80garbage")
        one.go_on(6.0)
    assert one.bauds == [4800, 38400, 115200, 9600]
    one.hear(b"\x00\xff\x80")  # half a sentence first, as on any line that is opened while it speaks
    one.hear(rmc())
    one.go_on(6.0)
    assert len(one.bauds) == 4
    wind, one = line("WIMWV,1,R,2,N,A"), Serial(monkeypatch)
    for _ in range(10):
        one.hear(wind)
        one.go_on(3.0)
    assert one.bauds == [], "an anemometer speaks NMEA at the right rate"
    assert not any(data["speaks"] for data in one.told("receiver/x"))


def test_times_are_joined_by_their_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """130711.00 in one and 130711 in the other."""
    for first, second in (("130711.00", "130711"), ("130711", "130711.000"), ("130711.50", "130711.5")):
        (fix,) = fixes(line(RMC.replace("083559.00", first)) + line(GGA.replace("083559.00", second)))
        assert fix.kinds == {"RMC", "GGA"}
    assert len(fixes(line(RMC.replace("083559.00", "130711.50")) + line(GGA.replace("083559.00", "130711")))) == 2
    assert len(fixes(line(RMC.replace("083559.00", "130710")) + line(GGA.replace("083559.00", "130711")))) == 2


def test_a_receiver_of_rmc_alone_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Serial(monkeypatch)
    started = one.now
    for second in range(5):
        one.hear(rmc(second))
        if second:
            assert len(one.told("gps")) == second + 1, "before anything else comes"
        one.go_on(1.0)
    assert [data["age"] for data in one.told("gps")] == [0.3, 0.0, 0.0, 0.0, 0.0], "the first one after a pause"
    assert one.now == started + 5


def test_sentences_in_between_are_no_pause_and_a_late_half_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4,800 baud a second's sentences take a second."""
    one = Serial(monkeypatch)
    one.hear(rmc(1))
    for _ in range(4):
        one.go_on(0.2)
        one.hear(b"$GPGSV,")
    assert one.told("gps") == []
    one.hear(b"\r\n" + gga(1))
    assert [(data["age"], data["satellites"]) for data in one.told("gps")] == [(0.8, 9)]
    one.hear(rmc(2))
    one.go_on(0.5)
    one.hear(gga(2))
    assert [data["satellites"] for data in one.told("gps")] == [9, None, 9]


def test_the_age_of_an_observation_counts_from_the_fix() -> None:
    import wifi_analyzer

    bus: Any = Recorder()
    one = wifi_analyzer.Analyzer(bus)
    data = {"latitude": 1.0, "longitude": 2.0, "accuracy": None, "source": "gps", "age": 0.8}
    one.on_gps("gps", {"mono": 50.0, "data": data})
    assert one.position(52.0)["age"] == 2.8
    assert one.position(59.5)["latitude"] is None, "too old, counted from the fix"
    one.on_gps("gps", {"mono": 50.0, "data": {**data, "age": 0.0}})
    assert one.position(59.5)["latitude"] == 1.0


def test_quality_one_without_a_satellite_is_no_position() -> None:
    def said(quality: int, satellites: str) -> dict[str, Any] | None:
        return fixes(line(f"GPGGA,120000,5230.0000,N,01324.0000,E,{quality},{satellites},0.8,34.5,M,44.9,M,,"))[0].position

    assert said(1, "00") is None
    assert said(2, "0") is None
    assert said(1, "04") is not None
    assert said(1, "") is not None, "it does not say how many"
    assert said(6, "00") is not None, "dead reckoning needs none"


def test_gll_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def gll(second: int, status: str = "A", mode: str = ",A") -> bytes:
        return line(f"GPGLL,5230.0000,N,01324.0000,E,1200{second:02}.00,{status}{mode}")

    one = Serial(monkeypatch)
    for second in range(3):
        one.hear(gll(second))
        one.go_on(1.0)
    assert [(data["latitude"], data["longitude"], data["accuracy"]) for data in one.told("gps")] == [(52.5, 13.4, None)] * 3
    assert one.told("receiver/x")[-1]["speaks"]
    one.hear(gll(4, "V"))
    one.hear(gll(5, "A", ",N"))
    one.go_on(1.0)
    assert len(one.told("gps")) == 3
    assert not one.told("receiver/x")[-1]["fix"]
    assert [fix.position is not None for fix in fixes(gll(6, "A", ""))] == [True], "before NMEA 2.3"
    found = fixes(rmc(43200) + gga(43200) + gll(0) + rmc(43201) + gga(43201) + gll(1))
    assert [fix.kinds for fix in found] == [{"RMC", "GGA"}] * 2, "it says nothing new beside those"


def test_a_date_of_another_era(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 weeks back is mended, by the date when this was built; ahead of it is refused; the log says either, once."""
    day = 86400.0
    built = 1_767_225_600.0  # 2026-01-01
    assert gps.in_this_era(built + 200 * day, built) == (built + 200 * day, "")
    for eras in (1, 2):
        found, odd = gps.in_this_era(built + (200 - eras * 7168) * day, built)
        assert found == built + 200 * day
        assert f"{eras * 1024} weeks are added, 2026-07-20T00:00:00Z" in odd
    assert gps.in_this_era(built - day, built)[0] == built + 7167 * day
    assert gps.in_this_era(built + 7167 * day, built)[0] == built + 7167 * day
    assert gps.in_this_era(built + 7168 * day, built)[0] is None
    assert gps.in_this_era(built + 7300 * day, built)[0] is None

    offered: list[float] = []
    monkeypatch.setattr(clock, "offer", lambda utc, _source: offered.append(utc))
    monkeypatch.setattr(clock, "build_date", lambda: built)
    for date, expected, words in (
        ("041206", 1_784_505_600.0, "are added"),
        ("050346", None, "is not taken"),
        ("200726", 1_784_505_600.0, ""),
    ):
        one, offered[:] = Serial(monkeypatch), []
        for second in range(5):
            one.hear(rmc(second, date=date))
            one.go_on(1.0)
        lines = [text for text in one.bus.lines if "its date" in text]
        assert len(lines) == bool(words)
        assert words in "".join(lines)
        assert offered == ([expected + 2] if expected else [])
    old = nmea.parse(rmc(date="060187"))
    assert old is not None
    assert nmea.read_sentence(nmea.Fix(), old).utc == 536_932_800.0, "1987-01-06 12:00:00"


# --- the clock ------------------------------------------------------------------------------------------------------
def test_a_time_is_offered_when_it_has_kept_pace_with_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[float] = []
    monkeypatch.setattr(clock, "offer", lambda utc, _source: offered.append(utc))
    one = gps.Agreement()
    for utc, now in ((1000.0, 1.0), (9000.0, 2.0), (9001.0, 3.0), (9002.4, 4.0), (9003.0, 5.0)):
        one.offer(utc, "x", now)
    assert offered == [9002.4], "the third in a row; and then not for a minute"
    one.offer(9063.0, "x", 65.0)
    assert offered == [9002.4, 9063.0]


def test_the_clock_goes_forward_only_and_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    now = time.time()
    built = os.path.getmtime(clock.__file__)
    monkeypatch.setattr(time, "clock_settime", lambda _clock, utc: steps.append(utc))
    monkeypatch.setattr(clock, "synchronised", lambda: False)
    assert not clock.offer(now - 10.0, "gps")
    assert not clock.offer(now + 0.5, "gps"), "good enough"
    assert not clock.offer(built - 1024 * 7 * 86400, "gps"), "a receiver whose week number has rolled over"
    assert not clock.offer(built + 30 * 365 * 86400, "gps")
    assert steps == []
    assert clock.offer(now + 100.0, "gps")
    assert steps == [now + 100.0]
    monkeypatch.setattr(clock, "synchronised", lambda: True)
    assert not clock.offer(now + 100.0, "gps")

    def refuse(_clock: int, _utc: float) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(clock, "synchronised", lambda: False)
    monkeypatch.setattr(time, "clock_settime", refuse)
    assert not clock.offer(now + 100.0, "gps"), "not ours to set"


# --- fakegps --------------------------------------------------------------------------------------------------------
def test_the_invented_route_is_silent_as_long_as_a_receiver_speaks() -> None:
    one = fakegps.Receivers()
    assert not one.speak(0.0)
    one.on_receiver("receiver/a", {"mono": 100.0, "data": {"speaks": True, "fix": False}})
    assert one.speak(101.0), "also where it has no fix"
    one.on_receiver("receiver/b", {"mono": 101.0, "data": {"speaks": True}})
    one.on_receiver("receiver/a", {"mono": 102.0, "data": {"speaks": False}})
    assert one.speak(103.0), "the other one"
    assert not one.speak(101.0 + fakegps.HAND_BACK), "which died without a word"


# --- on a line --------------------------------------------------------------------------------------------------------
class Line:
    """A pseudo terminal behind a name that comes and goes as a plugged device's does."""

    def __init__(self, folder: Path) -> None:
        self.name = folder / "gps-line"
        self.master = -1
        self.second = 43200

    def plug(self) -> None:
        self.master, slave = pty.openpty()
        self.name.symlink_to(os.ttyname(slave))
        self.slave = slave  # until the other side has opened it, or writing would echo

    def unplug(self) -> None:
        self.name.unlink()
        os.close(self.slave)
        os.close(self.master)

    def say(self, status: str = "A", quality: int = 1) -> bool:
        """One second of a receiver; true, so that `eventually` can be given more than one."""
        self.second += 1
        os.write(self.master, rmc(self.second, status) + gga(self.second, quality))
        return True


class Ear:
    """What a topic says, through bus.py."""

    def __init__(self, broker: Broker, out: Path) -> None:
        self.out = out
        self.file = out.open("w")
        self.process = subprocess.Popen([PYTHON, str(ROOT / "bus.py"), "gps", "receiver/+"], stdout=self.file, stderr=self.file,
                                        env={**os.environ, "BUS": broker.path})  # fmt: skip

    def heard(self, topic: str) -> list[dict[str, Any]]:
        lines = [line.split(" ", 1) for line in self.out.read_text().splitlines()]
        return [json.loads(text) for name, text in lines if name == topic]

    def last(self, topic: str) -> dict[str, Any]:
        return (self.heard(topic) or [{}])[-1]


@pytest.fixture
def line_and_ear(broker: Broker, tmp_path: Path) -> Iterator[tuple[Line, Ear, Path]]:
    """gps.py on a line that nobody has plugged yet, fakegps.py beside it, and an ear."""
    broker.start()
    one, ear, log = Line(tmp_path), Ear(broker, tmp_path / "heard"), tmp_path / "log"
    environment = {**os.environ, "BUS": broker.path}
    with log.open("w") as file:
        apps = [
            subprocess.Popen([PYTHON, str(ROOT / name), *words], stdout=file, stderr=file, env=environment)
            for name, *words in (("gps.py", str(one.name), "0"), ("fakegps.py",))
        ]
    try:
        yield one, ear, log
    finally:
        for app in [*apps, ear.process]:
            app.terminate()
        assert [app.wait(10) for app in apps] == [0, 0], log.read_text()
        ear.process.wait(10)


def test_a_receiver_on_a_line_takes_over_and_hands_back(line_and_ear: tuple[Line, Ear, Path]) -> None:
    one, ear, log = line_and_ear
    eventually(lambda: ear.last("gps").get("source") == "fake", 20)
    for _ in range(2):
        one.plug()
        eventually(lambda: one.say() and ear.last("gps").get("source") == "gps", 20)
        found = ear.last("gps")
        assert found.pop("age") < 1.0
        assert found == {"latitude": 52.5, "longitude": 13.4, "accuracy": 4.0, "speed": 5.14, "source": "gps",
                         "altitude": 34.5, "course": 90.0, "quality": 1, "satellites": 9}  # fmt: skip
        eventually(lambda: ear.last("receiver/gps-line")["fix"])

        eventually(lambda: one.say("V", 0) and not ear.last("receiver/gps-line")["fix"])
        count = len(ear.heard("gps"))
        until = time.monotonic() + 2.5  # fakegps.py would have spoken twice
        eventually(lambda: one.say("V", 0) and time.monotonic() > until)  # noqa: B023
        assert len(ear.heard("gps")) == count, "no fix: neither a real position nor an invented one"
        assert ear.last("receiver/gps-line")["speaks"]

        one.unplug()
        eventually(lambda: ear.last("gps").get("source") == "fake", 10)
        assert not ear.last("receiver/gps-line")["speaks"]
        eventually(lambda: "No such file or directory; tried again" in log.read_text())
    assert "Traceback" not in log.read_text()


def test_a_receiver_that_dies_is_replaced_in_time(broker: Broker, tmp_path: Path) -> None:
    """Killed, it cannot take its leave; and what is no receiver replaces nobody."""
    broker.start()
    one, ear = Line(tmp_path), Ear(broker, tmp_path / "heard")
    one.plug()
    environment = {**os.environ, "BUS": broker.path}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import fakegps; fakegps.HAND_BACK = 3.0; fakegps.main([])"
    apps = [
        subprocess.Popen([PYTHON, *words], env=environment) for words in ([str(ROOT / "gps.py"), str(one.name)], ["-c", code])
    ]
    try:
        eventually(lambda: ear.last("gps").get("source") == "fake", 20)
        count = len(ear.heard("gps"))
        eventually(
            lambda: os.write(one.master, line("WIMWV,1,R,2,N,A") + b"boot: ok\r\n") and len(ear.heard("gps")) > count + 2
        )
        eventually(lambda: one.say() and ear.last("gps").get("source") == "gps", 20)
        apps[0].send_signal(signal.SIGKILL)
        eventually(lambda: ear.last("gps").get("source") == "fake", 10)
    finally:
        for app in [*apps, ear.process]:
            app.kill()
            app.wait(10)


def test_the_line_is_raw_and_the_rate_follows() -> None:
    import termios

    master, slave = pty.openpty()
    fd = gps.open_serial(os.ttyname(slave), 4800)
    attributes = termios.tcgetattr(fd)
    assert attributes[4] == attributes[5] == termios.B4800
    assert not attributes[3] & (termios.ECHO | termios.ICANON)
    gps.set_line(fd, 115200)
    assert termios.tcgetattr(fd)[4] == termios.B115200
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    with pytest.raises((OSError, termios.error)):
        gps.open_serial("/dev/null", 9600)
    for one in (master, slave, fd):
        os.close(one)
    with pytest.raises(SystemExit, match="7 is not a baud rate"):
        gps.main(["/dev/null", "7"])
