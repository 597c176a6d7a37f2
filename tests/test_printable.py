"""Text that a neighbour or an app chose, on its way to terminals, logs and pages."""

from __future__ import annotations

import json
import socket
import sys
import unicodedata

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "mothership"))

import observations

from base.printable import printable, printable_line
from onboard import wpa_control
from prompt import shapes

HOSTILE = {
    "C0": "a\x00\x07\x08\x1b[2Jb",
    "bell and title": "\x1b]0;owned\x07",
    "DEL": "a\x7fb",
    "C1": "a\x9b31m\x85\x90b",
    "line ends": "a\r\n\x0b\x0c\x1c\u2028\u2029b",
    "bidi embedding": "a\u202a\u202b\u202c\u202db",
    "bidi override": "user\u202egnp.exe",
    "bidi isolate": "a\u2066\u2067\u2068\u2069b",
    "bidi marks": "a\u200e\u200f\u061cb",
    "no width": "a\u200b\u200c\u200d\u2060\ufeff\u00adb",
    "tags": "a\U000e0001\U000e0041b",
    "surrogates": "a\ud800\udc80b",
    "no characters": "a\ufffe\uffff\U0010ffffb",
}
HARMLESS = ["", "plain", "Café 日本 🥨 ⚓", "naïve\u0301", "עברית", "العربية", "<b>&amp;</b>", "\ufffd"]


def is_safe(text: str) -> bool:
    """By Unicode's own categories: other (controls, formats, surrogates, private, unassigned), and separators but the space."""
    return all(unicodedata.category(char)[0] != "C" and (char == " " or unicodedata.category(char)[0] != "Z") for char in text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_control_character_of_any_kind_passes(text: str) -> None:
    shown = printable(text)
    assert is_safe(shown)
    assert len(shown) == len(text)
    assert all(a == b for a, b in zip(text, shown, strict=True) if a.isprintable()), "what is printed stays"
    assert printable(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text
    assert printable_line(text.encode()) == text.encode()


@given(st.text())
def test_any_text(text: str) -> None:
    assert is_safe(printable(text))
    assert is_safe(printable(text, "\ufffd"))


@given(st.binary())
def test_any_line_of_a_log(line: bytes) -> None:
    shown = printable_line(line)
    text = shown.decode("utf-8", "surrogateescape")
    assert is_safe("".join(char for char in text if char != "\t" and not "\udca0" <= char <= "\udcff"))
    assert b"\x1b" not in shown


def test_lines_of_logs() -> None:
    assert printable_line(b"a\tb\x1b[31m\x7f") == b"a\tb?[31m?"
    assert printable_line("a\tb\u202ec\u2028d\x9b31m é\u00a0!".encode()) == "a\tb?c?d?31m é !".encode()
    assert printable_line("Café".encode("latin-1")) == "Café".encode("latin-1"), "no terminal obeys a byte above 9f"
    assert printable_line(b"caf\xe9 \x9b31m") == b"caf\xe9 ?31m", "but an 8-bit terminal obeys those below"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_everything_goes_through_it(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")[:32]
    assert is_safe(str(wpa_control.name_of(raw)["ssid"] or ""))
    assert wpa_control.name_of(raw)["ssid_hex"] == raw.hex(), "as it was on the air"
    assert is_safe(shapes.cell("status", text))
    assert is_safe(shapes.cell("addresses", [text, "x"]))
    assert is_safe(observations.visible(text))


def test_a_status_is_one_line_without_controls() -> None:
    from test_process import World, make

    one = make(World())
    one.notified({"STATUS": "".join(HOSTILE.values())[:150]}, 1.0)
    assert is_safe(one.status)


def test_bus_py_prints_no_name_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    import bus

    for text in HOSTILE.values():
        bus.show("wifi/\x1b[2J", {"data": {"ssid": text}})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(HOSTILE)
    assert all(map(is_safe, lines))
    assert json.loads(lines[0].split(" ", 1)[1].replace("?", ""))["ssid"].startswith("a")


def test_watch_in_the_prompt_prints_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    from prompt import watch

    for text in HOSTILE.values():
        watch._print({"topic": "wifi/\x1b[2J", "message": {"data": {"ssid": text}}})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(HOSTILE)
    assert all(map(is_safe, lines))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nor_has_the_network_that_we_have_joined_such_a_name(text: str) -> None:
    from network.radio import Radio

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ssid = "".join(f"\\x{byte:02x}" for byte in text.encode("utf-8", "surrogatepass")[:32])
    theirs.send(f"bssid=02:00:00:00:00:01\nssid={ssid}\n".encode())
    one = Radio.__new__(Radio)
    one._socket, one.air = ours, {}
    one._answered()
    assert is_safe(one.air["ssid"])
    ours.close()
    theirs.close()
