"""A small fleet over real brokers: what `make fleet` does with 2,000 boards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually

sys.path.insert(0, str(ROOT / "lab"))

import fleet
import fleet_programs

from uplink.remote import REMOTE_FIRST, REMOTE_MAX, Remote, pauses


def test_pauses_grow_to_their_end_and_are_drawn() -> None:
    """Nine tenths of each pause are drawn: boards that lost one broker at once do not return at once."""
    fleet = [list(islice(pauses(REMOTE_FIRST, REMOTE_MAX), 10)) for _ in range(200)]
    for turn, drawn in enumerate(zip(*fleet, strict=True)):
        whole = min(REMOTE_FIRST * 2**turn, REMOTE_MAX)
        assert all(whole / 10 <= pause <= whole for pause in drawn)
        assert max(drawn) - min(drawn) > whole / 2


needs_nats = pytest.mark.skipif(
    fleet_programs.find("nats") is None, reason="no nats-server here: requirements-fleet.txt has it"
)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Any]:
    """Start nats-server: `nats(replace=("this", "that"))`, with that in its configuration instead of this; its port."""
    started: list[fleet_programs.Program] = []

    def start(replace: tuple[str, str] = ("", "")) -> int:
        port = fleet_programs.free_port()
        one = fleet_programs.make_broker("nats", port, tmp_path)
        config = tmp_path / "nats.conf"
        config.write_text(config.read_text().replace(*replace))
        one.start()
        started.append(one)
        return port

    yield start
    for one in started:
        one.kill()


@needs_nats
def test_who_is_refused_every_subscription_is_not_connected(nats: Any) -> None:
    """As by a broker that has reached its limit of them: not heard, and not in a hurry either."""
    port = nats(("default_max_consumers: -1", "default_max_consumers: 1"))
    first = Remote("first", (f"127.0.0.1:{port}",), ("v1/a/ack",))
    second = Remote("second", (f"127.0.0.1:{port}",), ("v1/b/ack", "v1/b/cmd"))
    said: list[str] = []

    def note(text: str) -> bool:
        said.append(text)
        return True

    first.start()
    eventually(lambda: first.connected)
    second.log.addFilter(lambda record: note(record.getMessage()))
    second.start()
    try:
        eventually(lambda: len([line for line in said if "refuses to send us v1/b/ack" in line]) >= 2)
        assert not second.connected
        assert not second.inbox
    finally:
        second.end()
        first.end()


def live(kind: str, boards: int, chosen: fleet.Chosen, folder: Path, phases: tuple[str, ...]) -> str:
    """These phases of a small fleet, whose records must all be there, once; its figures."""
    disks = folder / "disks"
    with fleet.Fleet(kind, boards, chosen, folder, disks) as one:
        for phase in phases:
            getattr(one, phase)()
        assert one.check() == []
    assert int(one.row["records"]) > 0
    return f"fleet of {', '.join(f'{value} {name}' for name, value in one.row.items())}"


@pytest.mark.timeout(120)
@pytest.mark.skipif(fleet_programs.find("mosquitto") is None, reason="no mosquitto here, and only root can install it")
def test_a_fleet_loses_nothing_and_nothing_is_there_twice(tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
    """60 boards; the broker and then the receiver are killed; then a backlog."""
    chosen = fleet.Chosen(seconds=2.0, rate=600.0, period=1.0, outage=0.2, backlog=20_000)
    phases = ("connect", "steady", "storm", "restart", "drain", "fastest")
    record_property("figure", live("mosquitto", 60, chosen, tmp_path, phases))


@pytest.mark.timeout(120)
@needs_nats
def test_a_nats_server_takes_mosquittos_place(tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
    """Wildcards, retained messages, QoS 1 and wills, over JetStream; it is killed too."""
    chosen = fleet.Chosen(seconds=2.0, rate=200.0, period=1.0, outage=0.2)
    record_property("figure", live("nats", 20, chosen, tmp_path, ("connect", "steady", "storm", "drain")))
