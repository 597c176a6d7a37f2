"""The map as a browser draws it: its pixels, its lists, on a phone, and how fast with 200,000 observations."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from conftest import ROOT

sys.path.insert(0, str(ROOT / "mothership"))

import page
from columns import choices, differences, numbers
from locate import DEGREE
from observations import Observation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, and only root can install it")
START, MADE = 1_790_000_000.0, "2026-09-21T18:00:00Z"
Open = Callable[..., Browser]


def heard(index: int, north: float, east: float, **more: Any) -> Observation:
    """An access point so many metres from 48 N 11 E, heard where it is."""
    bssid = f"02:00:{index >> 24 & 255:02x}:{index >> 16 & 255:02x}:{index >> 8 & 255:02x}:{index & 255:02x}"
    across = DEGREE * math.cos(math.radians(48.0))
    one = Observation(
        "b1", START + index, 48.0 + north / DEGREE, 11.0 + east / across, 4.0, bssid, f"net {index}", 2437, -60.0, "WPA2", "gps"
    )
    return one._replace(**more)


def board(name: str, **more: Any) -> dict[str, Any]:
    """A board's row, as page.data makes it."""
    row: dict[str, Any] = {"name": name, "state": "ready", "note": None, "since": "2026-09-21T15:00:00Z", "seen": "2026-09-21T17:50:00Z", "lag": 2.0,
           "records": 7, "boots": 3, "why": None, "model": "Pi", "kernel": "6.12", "way": [], "here": None, "sources": []}  # fmt: skip
    return {**row, **more}


def write(path: Path, found: Iterable[Observation], boards: Iterable[dict[str, Any]] = ()) -> str:
    """The page of these, and its URL."""
    ways, points = page.collect(found)
    rows = [*boards] or [board(name, way=[differences(part) for part in way.parts]) for name, way in ways.items()]
    path.write_text(page.html({"made": MADE, "boards": rows, "points": page.packed(points.values())}), encoding="utf-8")
    return f"file://{path}"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open a page in a browser of its own."""
    browsers: list[Browser] = []

    def start(url: str, **options: Any) -> Browser:
        browsers.append(Browser(str(CHROMIUM), tmp_path, **options))
        browsers[-1].open(url)
        return browsers[-1]

    yield start
    for one in browsers:
        one.close()


def pixels(browser: Browser, x: float, y: float, wide: int, high: int) -> list[tuple[int, int, int]]:
    """Red, green and blue of each pixel of the map in this box."""
    flat = browser.run(f"Array.from(pen.getImageData({round(x)}, {round(y)}, {wide}, {high}).data)")
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 4)]


def near(one: tuple[int, int, int], other: tuple[int, int, int], most: int = 40) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= most


def at(browser: Browser, index: int) -> tuple[float, float]:
    """Where an access point is on the screen, by its place in the page."""
    x, y = browser.run(f"screen(xs[{index}], ys[{index}])")
    return x, y


def test_columns_take_as_few_bytes_as_they_can() -> None:
    assert numbers([-90, -40, 100])["size"] == 1
    assert numbers([0, 65535])["size"] == 2
    assert numbers([-90_000_000, 90_000_000])["size"] == 4
    assert numbers([0, 253_402_300_799])["size"] == 8, "a clock that went wrong"
    assert numbers([]) == {"least": 0, "size": 1, "data": ""}
    assert numbers([7, 9]) == {"least": 7, "size": 1, "data": "AAI="}
    assert choices(["a", None, "a"]) == {"values": ["a", None], "which": {"least": 0, "size": 1, "data": "AAEA"}}
    assert differences([(5, 7), (6, 5)]) == [5, 7, 1, -2]


@needs_chromium
@pytest.mark.timeout(150)
def test_500_access_points_beside_each_other_keep_their_colour(tmp_path: Path, opened: Open) -> None:
    """Each halo was drawn above the dot beside it, and 500 of them were white."""
    crowd = [heard(index, 4.0 * (index % 25), 5.0 * (index // 25)) for index in range(500)]
    browser = opened(write(tmp_path / "map.html", [*crowd, heard(500, -3000, 0), heard(501, 3000, 0)], [board("b1")]))
    (left, bottom), (right, top) = at(browser, 0), at(browser, 499)
    inside = pixels(browser, left, top, max(4, round(right - left)), max(4, round(bottom - top)))
    assert browser.run("document.documentElement.dataset.drawn") == "502"
    coloured = sum(near(one, (0x3A, 0x93, 0xC8)) for one in inside) / len(inside)
    assert coloured > 0.8, f"{coloured:.0%} of {len(inside)} pixels have the colour of WPA2"
    assert (255, 255, 255) in pixels(browser, left - 8, bottom - 8, 16, 16), "a halo is there, where nothing is beside it"


@needs_chromium
@pytest.mark.timeout(150)
def test_a_way_lies_above_the_dots_and_a_name_above_the_way(tmp_path: Path, opened: Open) -> None:
    found = [heard(index, 0.0, 40.0 * index) for index in range(10)]
    browser = opened(write(tmp_path / "map.html", found))
    x, y = at(browser, 5)
    assert near(pixels(browser, x, y, 1, 1)[0], (0x3F, 0x7B, 0xF0)), "the way's colour, in the middle of a dot"
    dot = pixels(browser, x, y - 4, 1, 1)[0]
    assert near(dot, (0x3A, 0x93, 0xC8)), "the dot's, beside the way; no halo of the way covers it"
    name = pixels(browser, x + 11, y - 6, 30, 12)
    assert any(near(one, (0x1C, 0x23, 0x2B)) for one in name), "the name's letters"


@needs_chromium
@pytest.mark.timeout(150)
def test_lists_are_searched_sorted_and_filtered_and_states_have_an_age(tmp_path: Path, opened: Open) -> None:
    found = [
        heard(0, 0, 0, signal=-80.0, ssid="zebra"),
        heard(1, 50, 0, signal=-40.0, ssid="mast cafe", at=START - 9),
        heard(2, 90, 0, ssid="ant", security="open"),
    ]
    rows = [
        board("mast-7", state="lost", since="2026-09-19T18:00:00Z"),
        board("quiet", note="gps fails", records=900),
        board("roof", records=40),
    ]
    browser = opened(write(tmp_path / "map.html", found, rows))
    root = "document.documentElement.dataset"

    def names(list_: str) -> list[str]:
        return list(browser.run(f"[...document.querySelectorAll('#{list_} .name')].map(one => one.textContent)"))

    def pick(select: str, value: str) -> None:
        browser.run(f"$('{select}').value = '{value}'; $('{select}').dispatchEvent(new Event('change'))")

    ages = browser.run("[...document.querySelectorAll('#boards .age')].map(one => one.textContent)")
    assert ages == ["2 days", "3 h", "3 h"]
    assert "gps fails" in browser.run("$('boards').textContent")
    assert "10 min" in browser.run("$('boards').textContent"), "how long ago its last records came"
    pick("boards-sort", "records")
    assert names("boards") == ["quiet", "roof", "mast-7"]
    pick("boards-sort", "state")
    assert names("boards")[0] == "mast-7"
    pick("boards-state", "trouble")
    assert sorted(names("boards")) == ["mast-7", "quiet"]
    pick("boards-state", "")
    for order, wanted in (
        ("signal", ["mast cafe", "ant", "zebra"]),
        ("name", ["ant", "mast cafe", "zebra"]),
        ("last", ["ant", "zebra", "mast cafe"]),
    ):
        pick("found-sort", order)
        assert names("found") == wanted, order
    browser.run("$('search').value = 'MAST'; $('search').dispatchEvent(new Event('input'))")
    assert (names("boards"), names("found")) == (["mast-7"], ["mast cafe"])
    assert browser.run(f"[{root}.boards, {root}.found]") == ["1", "1"]
    assert browser.run("$('legend').offsetHeight") == 0, "what was found is not below a long legend"
    browser.run("$('boards').querySelector('button').click()")
    assert browser.run("$('detail').textContent").startswith("×mast-7")
    browser.run("$('search').value = ''; $('search').dispatchEvent(new Event('input'))")
    browser.run("[...$('legend').children].find(one => one.textContent.startsWith('open')).click()")
    assert "ant" not in names("found"), "what the legend hides is not listed"
    browser.picture()
    assert browser.run(f"{root}.drawn") == "2"


@needs_chromium
@pytest.mark.timeout(150)
def test_on_a_phone_the_cards_leave_room_for_the_map(tmp_path: Path, opened: Open) -> None:
    found = [heard(index, 30.0 * (index % 8), 30.0 * (index // 8)) for index in range(64)]
    browser = opened(
        write(tmp_path / "map.html", found, [board(f"b{index}") for index in range(30)]), width=390, height=844, phone=True
    )
    free = """(() => { let free = 0, all = 0; for (let x = 5; x < innerWidth; x += 10) for (let y = 5; y < innerHeight; y += 10) {
        all++; free += document.elementFromPoint(x, y) === canvas; } return free / all; })()"""
    assert browser.run("innerWidth") == 390
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run(free) > 0.75
    for index in (0, 63):
        x, y = at(browser, index)
        assert browser.run(f"document.elementFromPoint({x}, {y}) === canvas"), "what is fitted is not under a card"
    x, y = at(browser, 20)
    browser.click(x, y)
    assert browser.run("$('detail').hidden") is False
    assert browser.run(free) > 0.5
    assert browser.run("$('detail').getBoundingClientRect().bottom <= innerHeight")
    browser.run("$('close').click(); $('more').click()")
    assert browser.run("$('lists').getBoundingClientRect().height") > 200, "the lists are there when they are asked for"
    assert (
        browser.run("Math.min(...[...document.querySelectorAll('.row')].map(one => one.getBoundingClientRect().height))") >= 36
    ), "for fingers"
    browser.run("go(20)")
    x, y = at(browser, 20)
    assert browser.run(f"document.elementFromPoint({x}, {y}) === canvas")


def fleet(count: int) -> Iterator[Observation]:
    """Four boards that drive about, and at each observation hear an access point that nobody has heard."""
    chosen = random.Random(1)
    for index in range(count):
        turn = index // 4 / (count // 4) * 40 + index % 4 * 11
        north, east = 5500 * math.sin(turn / 7) * math.cos(turn / 3), 6000 * math.cos(turn / 7) * math.sin(turn / 2)
        bssid = chosen.randbytes(6).hex(":")
        yield heard(index, north + chosen.gauss(0, 3), east + chosen.gauss(0, 3), board=f"b{index % 4}", bssid=bssid,
                    ssid=f"FRITZ!Box {index:06}", security=chosen.choice(["WPA2", "WPA2", "WPA3", "open"]))  # fmt: skip


DRAG = """(async () => {
  const times = [], fire = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, { pointerId: 1, clientX: x, clientY: y, pointerType: "mouse" }));
  canvas.setPointerCapture = () => {};
  fire("pointerdown", 1000, 300);
  const start = performance.now();
  for (let i = 1; i <= 90; i++) { fire("pointermove", 1000 - 5 * i, 300 + 3 * i); await new Promise(requestAnimationFrame); }
  const passed = performance.now() - start;
  fire("pointerup", 550, 570);
  return 1000 * 90 / passed;
})()"""


@needs_chromium
@pytest.mark.timeout(300)
def test_200_000_observations_are_shown_at_once_and_can_be_dragged(tmp_path: Path, opened: Open, record_property: Any) -> None:
    """It was 51 MB, 4.2 s and 7 pictures a second. The bounds are for a busy machine; what was measured is printed."""
    url = write(tmp_path / "map.html", fleet(200_000))
    size = (tmp_path / "map.html").stat().st_size / 1e6
    browser = opened(url)
    rate = browser.run(DRAG)
    loads = []
    for _ in range(3):  # the best of three: other programs want the processor too
        loads.append(browser.run("performance.getEntriesByName('drawn')[0].startTime") / 1000)
        browser.open("about:blank")
        browser.open(url)
    first = min(loads)
    record_property(
        "figure",
        f"map of 200,000 access points: {size:.1f} MB, first picture after {first:.2f} s, a drag has {rate:.0f} pictures/s",
    )
    assert browser.run("$('summary').textContent") == "200,000 access points, 200,000 observations"
    assert size < 15
    assert first < 8
    assert rate > 10
    before = browser.run("[view.x, view.y]")
    for kind, x, y, buttons in (
        ("mousePressed", 900, 400, 1),
        ("mouseMoved", 800, 420, 1),
        ("mouseMoved", 700, 450, 1),
        ("mouseReleased", 700, 450, 0),
    ):
        browser.mouse(kind, x, y, buttons)
    moved = [
        (one - other) * browser.run("view.scale") for one, other in zip(before, browser.run("[view.x, view.y]"), strict=True)
    ]
    assert moved == pytest.approx([-200, 50], abs=2), "a real mouse drags the map with it"
