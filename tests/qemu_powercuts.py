"""Thirty power cuts while a board boots, repairs and writes: it comes up after each, no acknowledged file is torn or lost, and
no record of the outbox.

QEMU is killed, and of what the guest has written since its last flush the disk keeps what chance lets it keep, as a card
with a write cache does: QEMU's blklogwrites logs each write and flush, and the disk after the cut is made from that log.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

CUTS, SEED = 30, 4
SECTOR, FLUSH, DISCARD = 512, 1, 4
WRITER = r"""
import hashlib, json, os, random, sys
sys.path.insert(0, "/usr/lib/stack")
from base.files import write_atomically

FOLDER, SLOTS = "/var/lib/files", 40
console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
os.makedirs(FOLDER, exist_ok=True)

def whole(path):
    with open(path, "rb") as file:
        head, _, body = file.read().partition(b"\n")
    number, digest = head.decode().split()
    assert hashlib.sha256(number.encode() + body).hexdigest() == digest, path
    return int(number)

found, bad = {}, []
for name in os.listdir(FOLDER):
    try:
        if not name.endswith(".new"):
            found[name] = whole(f"{FOLDER}/{name}")
    except Exception as error:
        bad.append(repr(error))
with open("/run/stack/storage.json") as file:
    storage = json.load(file)
os.write(console, f"FOUND {json.dumps([found, bad, storage])}\n".encode())
number = max(found.values(), default=0)
while True:
    number += 1
    name, body = str(random.randrange(SLOTS)), os.urandom(random.choice((10, 1000, 5000, 40000)))
    digest = hashlib.sha256(str(number).encode() + body).hexdigest()
    write_atomically(f"{FOLDER}/{name}", f"{number} {digest}\n".encode() + body)
    os.write(console, f"ACK {number} {name}\n".encode())
    with open(f"/var/lib/unsynced{number % 9}", "wb") as file:  # nobody waits for these
        file.write(os.urandom(20000))
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to the disk now, without a flush
"""
# The outbox at work: it commits records, and the oldest of them leave as if the mothership had acknowledged them.
RECORDER = r"""
import json, os, sys, time
sys.path.insert(0, "/usr/lib/stack")
from uplink.outbox import Outbox

console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
said = []
box = Outbox("/var/lib/outbox", 1 << 24, 0, (), said.append)


def waiting():  # id, name of its stream, record; of all streams
    for stream in box.numbers.streams:
        yield from ((record.number + stream.shift, stream.identity, record) for record in box.waiting(stream, 0, 1 << 30, 1 << 30))


kept = [(number, json.loads(record.body)["n"]) for number, _, record in waiting()]
os.write(console, f"KEPT {json.dumps([kept, said])}\n".encode())
number = max((n for _, n in kept), default=0)
while True:
    first = number + 1
    for _ in range(20):
        number += 1
        box.put("wifi", json.dumps({"n": number, "ssid": "x" * 200, "time": time.time()}).encode(), 0.0)
    assert box.due is None and box.durable, said
    os.write(console, f"COMMITTED {first} {number}\n".encode())
    if number % 200 == 0:
        _, identity, last = list(waiting())[-101]  # each round adds 20 to the 100 that stay
        os.write(console, f"GOES {json.loads(last.body)['n']}\n".encode())
        box.acknowledged(identity, last.number)
"""
PROFILE = """
from tables.rows import Service
MODULES = ()
DATA = ("LABEL=data",)
SERVICES = tuple(row for row in SERVICES if row.name in ("logd", "storage", "keeper"))
SERVICES += (Service("writer", ("{PYTHON}", "/root/writer.py"), ("storage",)), Service("recorder", ("{PYTHON}", "/root/recorder.py"), ("storage",)))
"""


def after_the_cut(before: Path, log: Path, target: Path, chance: random.Random) -> int:
    """Make the disk as it is when the power is back; how many writes it has lost.

    The log is one of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst): a super block, and entries of
    one sector, each followed by its data.
    """
    shutil.copyfile(before, target)
    data = log.read_bytes()
    writes: list[tuple[int, bytes]] = []
    flushed, at = 0, SECTOR
    while at + SECTOR <= len(data):
        sector, sectors, flags, _ = struct.unpack_from("<QQQQ", data, at)
        length = 0 if flags & DISCARD else sectors * SECTOR
        block = data[at + SECTOR : at + SECTOR + length]
        if len(block) < length:
            break  # QEMU did not come further
        if flags & FLUSH:
            flushed = len(writes)
        if block:
            writes.append((sector * SECTOR, block))
        at += SECTOR + length
    lost = 0
    with target.open("r+b") as file:
        for index, (offset, block) in enumerate(writes):
            if index >= flushed and chance.random() < 0.5:
                lost += 1
                block = block[: SECTOR * chance.randrange(len(block) // SECTOR)]  # the first sectors, or none
            file.seek(offset)
            file.write(block)
    return lost


def acknowledged(console: str) -> list[tuple[int, str]]:
    return [(int(number), name) for number, name in re.findall(r"ACK (\d+) (\d+)\r?\n", console)]


def what_it_found(board: Any, word: str) -> Any:
    """The first line of the writer ("FOUND") or the recorder ("KEPT"), once all of it is there."""
    board.wait_console(f"{word} ", 120)
    return eventually(lambda: json.loads(board.console().partition(f"{word} ")[2].partition("\n")[0]), 20)


class Records:
    """What the outbox has told as committed, over all boots."""

    def __init__(self) -> None:
        self.committed = self.gone = 0

    def hear(self, console: str) -> None:
        for _, last in re.findall(r"COMMITTED (\d+) (\d+)\r?\n", console):
            self.committed = max(self.committed, int(last))
        for last in re.findall(r"GOES (\d+)\r?\n", console):
            self.gone = max(self.gone, int(last))

    def check(self, kept: list[list[int]]) -> None:
        """Each one that was told and has not been given away is there, once and in order, and no number is used twice."""
        names = [n for _, n in kept]
        assert names == sorted(set(names))
        assert [number for number, _ in kept] == sorted({number for number, _ in kept})
        missing = set(range(self.gone + 1, self.committed + 1)) - set(names)
        assert not missing, f"committed, and gone: {sorted(missing)[:10]}"


@pytest.mark.timeout(1200)
def test_thirty_power_cuts(machine: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    from image import image, run
    from machine import Machine

    root = image(
        "x86_64",
        tmp_path / "root.img",
        {"usr/lib/stack/settings_test.py": PROFILE, "root/writer.py": WRITER, "root/recorder.py": RECORDER},
    )
    disk, log = tmp_path / "data.img", tmp_path / "log"
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", disk, "48M")
    chance = random.Random(SEED)
    promised: dict[str, int] = {}
    records = Records()
    count = lost = early = 0
    for cut in range(CUTS + 1):
        log.unlink(missing_ok=True)
        log.touch()
        before = tmp_path / "before.img"
        disk.replace(before)
        shutil.copyfile(before, disk)
        drive = f"if=none,id=data,driver=blklogwrites,file.driver=file,file.filename={disk},log.driver=file,log.filename={log}"
        board = Machine("x86_64", root, ("stack.profile=qemu,test",),
                        ("-drive", drive, "-device", "virtio-blk-pci,drive=data"))  # fmt: skip
        try:
            if cut < CUTS and chance.random() < 0.3:  # anywhere in the boot
                early += 1
                time.sleep(chance.uniform(1, 6))
            else:
                found, bad, storage = what_it_found(board, "FOUND")
                kept, said = what_it_found(board, "KEPT")
                assert said == [], said
                records.check(kept)
                assert (storage["mounted"], bad) == (True, []), (cut, storage, bad)
                assert "re-made" not in storage["what"], (cut, storage)
                behind = {name: number for name, number in promised.items() if found.get(name, 0) < number}
                assert not behind, (cut, behind, found, storage)
                time.sleep(chance.uniform(0, 3))
        finally:
            board.process.kill()
            board.process.wait()
            told = acknowledged(board.console())
            records.hear(board.console())
            board.close()
        count += len(told)
        promised |= {name: number for number, name in told}
        lost += after_the_cut(before, log, disk, chance)
    assert count > 100
    assert records.committed > 1000
    record_property("figure", f"power cuts: {CUTS} ({early} of them at boot), {count} files acknowledged, 0 torn, 0 lost; "
                    f"{records.committed} records committed by the outbox, 0 lost; "
                    f"the disk lost {lost} unflushed writes")  # fmt: skip
