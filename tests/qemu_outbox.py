"""What the outbox costs the card: bytes that the data partition is made to write for a record, ext4's journal and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu_storage import FEW

# Observations as wifi_analyzer.py makes them; a scan hears 40 access points. They leave when they are acknowledged.
BURSTS, POINTS = 50, 40
WRITE = f"""
import sys
sys.path.insert(0, "/usr/lib/stack")
from uplink.outbox import Outbox

def written():
    os.sync()
    with open("/sys/block/vdb/stat") as file:
        return int(file.read().split()[6]) * 512  # Documentation/block/stat.rst: sectors of 512 bytes

box = Outbox("/var/lib/outbox", 1 << 26, 0, (), print)
data = {{"latitude": 52.510911, "longitude": 13.376493, "accuracy": 5.0, "age": 0.021, "position_source": "fake", "event": "seen",
        "bssid": "02:00:5e:10:00:01", "ssid": "harbour-office", "frequency": 2412, "signal": -50, "security": "WPA2", "source": "radio"}}
envelope = {{"v": 1, "boot": "0b3f1c1e-6c66-4b3c-9a3e-1f1d5f0b7c11", "from": "wifi_analyzer", "kind": "wifi", "clock": "synchronised",
            "topic": "wifi/02:00:5e:10:00:01", "data": data}}
stream = box.sending()
before, size = written(), 0
for burst in range({BURSTS}):
    for point in range({POINTS}):
        body = json.dumps(envelope | {{"seq": burst * 40 + point, "time": time.time(), "mono": time.monotonic()}}).encode()
        size += len(body)
        box.put("wifi", body, 0.0)
    box.flush(0.0)
    box.acknowledged(stream.identity, box.next - 1 - stream.shift - {POINTS})
    time.sleep(0.05)
result = [written() - before, size, box.durable]
"""


@pytest.mark.timeout(300)
def test_a_record_costs_the_card_less_than_two_kilobytes(
    machine: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from image import run

    disk = tmp_path / "data.img"
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", disk, "64M")
    board = machine("x86_64", FEW, data=disk).up()
    written, size, durable = board.python(WRITE, seconds=200)
    assert durable
    records = BURSTS * POINTS
    record_property("figure", f"the outbox: {records} records of {size // records} bytes, in commits of 20, cost the data partition "
                    f"{written / records:.0f} bytes each, deletion and ext4's journal included")  # fmt: skip
    assert written / records < 2000
