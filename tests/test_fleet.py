"""A small fleet over real brokers: what `make fleet` does with 2,000 boards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually

sys.path.insert(0, str(ROOT / "lab"))

import fleet

from bus import REMOTE_FIRST, REMOTE_MAX, Remote, pauses


def test_pauses_grow_to_their_end_and_are_drawn() -> None:
    """Half of each pause is drawn: boards that lost one broker at once do not return at once."""
    fleet = [list(islice(pauses(REMOTE_FIRST, REMOTE_MAX), 10)) for _ in range(200)]
    for turn, drawn in enumerate(zip(*fleet, strict=True)):
        whole = min(REMOTE_FIRST * 2**turn, REMOTE_MAX)
        assert all(whole / 2 <= pause <= whole for pause in drawn)
        assert max(drawn) - min(drawn) > whole / 4


needs_nats = pytest.mark.skipif(fleet.find("nats") is None, reason="no nats-server here: requirements-fleet.txt has it")


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Any]:
    """Start nats-server: `nats(replace=("this", "that"))`, with that in its configuration instead of this; its port."""
    started: list[fleet.Program] = []

    def start(replace: tuple[str, str] = ("", "")) -> int:
        port = fleet.free_port()
        one = fleet.make_broker("nats", port, tmp_path)
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
