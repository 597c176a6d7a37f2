"""A board on a real kernel and a mothership outside of it: its records, and a commanded reboot, which happens once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT, eventually
from qemu_storage import FEW
from servers import Mosquitto, plain

from tables.accounts import own_number

sys.path.insert(0, str(ROOT / "lab"))

# The whole way of a record: PID 1, the uplink as its own user, the data partition, QEMU's network, broker and receiver of this machine.
PROFILE = """
UPLINK = ("10.0.2.2:{port}",)
UPLINK_BOARD = "mast"
SERVICES += tuple(row for row in settings.SERVICES if row.name in ("bus_rights", "broker", "uplink"))
"""


class Mothership:
    """A broker, a receiver, its database and its commands."""

    def __init__(self, folder: Path) -> None:
        self.broker: Mosquitto
        self.broker, self.address = plain(folder)
        self.database = str(folder / "m.db")
        words = [PYTHON, str(ROOT / "mothership"), "receive", self.address, self.database]
        self.receiver = subprocess.Popen(words, stderr=(folder / "receiver.log").open("wb"))

    def send(self, *words: str) -> tuple[int, str]:
        argv = [PYTHON, str(ROOT / "mothership"), "send", self.address, "mast", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def records(self, kind: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.database, timeout=10)) as database:
            rows = database.execute(
                "SELECT body FROM record WHERE board = 'mast' AND kind = ? ORDER BY seq", (kind,)
            ).fetchall()
        return [json.loads(body) for (body,) in rows]

    def close(self) -> None:
        self.receiver.terminate()
        self.receiver.wait()
        self.broker.end()


@pytest.fixture
def mothership(tmp_path: Path) -> Iterator[Mothership]:
    one = Mothership(tmp_path)
    yield one
    one.close()


@pytest.mark.timeout(400)
def test_a_commanded_reboot_happens_once(machine: Callable[..., Any], mothership: Mothership, tmp_path: Path) -> None:
    from image import run

    disk = tmp_path / "data.img"
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", disk, "64M")
    profile = "import settings\n" + FEW + PROFILE.format(port=mothership.address.rpartition(":")[2])
    board = machine("x86_64", profile, data=disk, reboots=True).up()
    first = eventually(lambda: mothership.records("boot"), 60)
    assert first[0]["data"]["number"] == 1
    status, said = mothership.send("poweroff")
    assert (status, said.startswith("mast: this board's COMMANDS refuses poweroff; it lists ")) == (1, True), said
    assert mothership.send("restart", "broker")[0] == 0
    status, said = mothership.send("reboot", "--id", "once")
    assert (status, said.strip()) == (0, "reboot has begun")
    board.reset()
    board.up()
    boots = eventually(lambda: found if len(found := mothership.records("boot")) > 1 else [], 60)
    assert (boots[1]["data"]["number"], boots[1]["data"]["last_end"]["cause"]) == (2, "reboot")
    assert mothership.send("reboot", "--id", "once") == (status, said), "the same command again: its answer, and no reboot"
    (stop,) = mothership.records("stop")
    assert (stop["data"]["command"], stop["boot"]) == ("reboot", boots[0]["boot"])
    assert [one["data"]["id"] for one in mothership.records("cmd")].count("once") == 1
    facts = board.python(
        "from sv import *; result = [board()['boot_id'], stats_process('uplink')[0]['user'], board()['storage']['mounted']]"
    )
    assert facts == [boots[1]["boot"], "uplink", True]
    assert board.python("result = os.stat('/var/lib/outbox/outbox.db').st_uid") == own_number("uplink")
    listing = subprocess.run(
        [PYTHON, str(ROOT / "mothership"), "boards", mothership.database], capture_output=True, text=True, check=True
    )
    assert "mast  ready" in listing.stdout
    assert "reboot: " in listing.stdout


# 300 ms late, one of ten lost, five seconds without anything; and observations all the while.
BAD_NETWORK = """
import sys
sys.path.insert(0, "/usr/lib/stack")
from bus import Bus

def netem(words):
    subprocess.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "netem", *words.split()], check=True)

subprocess.run(["modprobe", "sch_netem"], check=True)
bus, sent = Bus("test", "/run/bus/mqtt.sock"), 0
for turn, _ in enumerate(bus.every(0.5)):
    if turn in (0, 20):
        netem("delay 300ms 100ms loss 10%")
    elif turn == 10:
        netem("loss 100%")
    elif turn == 40:
        subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)
        break
    for _ in range(15 if turn else 0):
        sent += 1
        bus.publish("wifi/test", {"n": sent})
result = sent
"""


@pytest.mark.timeout(400)
def test_a_network_that_delays_loses_and_is_cut(
    machine: Callable[..., Any], mothership: Mothership, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """netem(8), which only a real kernel has."""
    profile = "import settings\n" + FEW + PROFILE.format(port=mothership.address.rpartition(":")[2])
    board = machine("x86_64", profile).up()
    eventually(lambda: mothership.records("up"), 60)
    sent = board.python(BAD_NETWORK, seconds=120)
    found = eventually(lambda: found if len(found := mothership.records("wifi")) >= sent else [], 90)
    assert [one["data"]["n"] for one in found] == list(range(1, sent + 1))
    record_property(
        "figure", f"netem: {sent} records over a network with 300 ms delay, 10 % loss and a cut of 5 s, each there once"
    )
