"""Twenty simulated boards through a bad release, which stops by itself, and a good one: what `make fleet-updates` does with 200."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "lab"))

import fleet_updates


@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(fleet_updates.why_not()), reason=f"no {fleet_updates.why_not()} here, and only root can install it")
def test_a_bad_release_stops_and_a_good_one_reaches_all(
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Broker, receiver and the roll-out's process are killed twice each."""
    assert fleet_updates.run(fleet_updates.Chosen(20, 0)) == []
    said = capsys.readouterr().out
    assert "stopped in wave 3" in said
    assert "good release: 20 updated" in said
    record_property("figure", next(line.strip() for line in said.splitlines() if "good release" in line))
