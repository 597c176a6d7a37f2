"""Board, broker and receiver killed a hundred times on a bad network, with a full disk and wrong clocks: nothing is lost."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from conftest import EMULATED, MOSQUITTO, NO_NAMESPACES, PYTHON, ROOT

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it"),
    pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES),
    pytest.mark.skipif(EMULATED, reason="it is the same Python on every processor, and the load would be the emulator's"),
]


def chaos(*words: str) -> tuple[str, dict[str, int]]:
    """What it prints, and its numbers of kills, records, losses and doubles."""
    done = subprocess.run([PYTHON, str(ROOT / "lab/chaos.py"), *words], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) kills .*; (\d+) records .*, (\d+) lost, (\d+) twice", done.stdout)
    assert found, done.stdout + done.stderr
    kills, records, lost, twice = map(int, found.groups())
    assert (done.returncode != 0) == bool(lost or twice), done.stderr
    return done.stdout.strip(), {"kills": kills, "records": records, "lost": lost, "twice": twice}


@pytest.mark.timeout(900)
def test_a_hundred_kills_lose_nothing(record_property: Callable[[str, object], None]) -> None:
    text, found = chaos("--kills", "100", "--records", "20000", "--seed", "1")
    record_property("figure", text)
    assert found["kills"] >= 100
    assert found["records"] >= 20_000
    assert (found["lost"], found["twice"]) == (0, 0)


@pytest.mark.timeout(300)
def test_a_board_that_trusts_its_connection_loses() -> None:
    """The same chaos finds what it is there to find."""
    _, found = chaos("--kills", "30", "--records", "3000", "--seed", "2", "--trust")
    assert found["lost"] > 0
