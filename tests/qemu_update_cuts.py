"""Power cuts while a board updates itself again and again: it comes up after each, and no slot that is started is a mixture.

`make update-cuts CUTS=30`; five cuts as a test. The board loads a bundle over TLS, writes it, reboots, is on trial, commits, and
begins again. QEMU is killed at a random moment of a phase, and of what was not flushed the card keeps what chance lets it keep
(qemu_powercuts.py). Then the slots are compared with what there is: the card's own two parts, and two bundles.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, ROOT

sys.path.insert(0, str(ROOT / "lab"))
from firmware import Card, Powered
from image import run
from qemu_powercuts import after_the_cut
from qemu_update import BASE, ESB, FILES, STEADY
from update_card import boot_files, bundle, card, root
from update_server import Server

from updates.slots import FLAG, PARTITION_OF, ROOT_OF

CUTS, SEED = int(os.environ.get("STACK_CUTS", "5")), int(os.environ.get("STACK_SEED", "17"))
SECONDS = 150.0  # for a phase to come
# What the board says on its console when a phase begins, and how many seconds later the power is cut at most.
PHASES = {
    "download": (r"SAYS loading", 8.0), "write": (r"SAYS writing", 15.0), "switch": (r"SAYS written", 1.0),
    "trial": (r"SAYS up on trial", 10.0), "commit": (r"SAYS all is well", STEADY + 2.0), "boot": (r"", 8.0),
}  # fmt: skip
UPDATER = """#!/usr/bin/python3
import os, subprocess, sys, time
sys.path.insert(0, "/usr/lib/stack")
from onboard import boot_ends
from updates import ledger
import sv
console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
told = ""
def say(text):
    global told
    if text != told:
        told = text
        os.write(console, f"SAYS {text}\\n".encode())
def look():
    return boot_ends.read(boot_ends.UPDATE)
options = sv.board()["options"]
say(f"up {'on trial' if 'stack.tryboot' in options else 'as always'} in slot {options['stack.slot']}")
while "stack.tryboot" in options and look().get("state") != "committed":
    if "all is well" in str(look().get("missing")):
        say("all is well")
    time.sleep(0.2)
say("loading")
other = "B" if options["stack.slot"] == "A" else "A"
before = ledger.ledger("/var/lib/stack/update").get(other)
trusting = {**os.environ, "SSL_CERT_FILE": "/etc/server.pem"}
update = subprocess.Popen(["sv", "update", "URL"], env=trusting, stdout=console, stderr=console)
while update.poll() is None:
    now = ledger.ledger("/var/lib/stack/update").get(other)
    if now and now != before:
        say(now["state"])
    time.sleep(0.05)
say("written" if update.returncode == 0 else f"refused with {update.returncode}")
if update.returncode == 0:
    sv.reboot()
time.sleep(1000)
"""
ROW = 'SERVICES += (Service("updater", ("/sbin/updater",), ("network", "trial", "keeper")),)\n'


class Known:
    """What may be in a slot: parts by their digests."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, str], str] = {}
        self.sizes: dict[str, set[int]] = {"boot": set(), "root": set()}

    def add(self, name: str, boot: bytes, root: bytes) -> None:
        for part, data in (("boot", boot), ("root", root)):
            self.sizes[part].add(len(data))
            self.parts[part, hashlib.sha256(data).hexdigest()] = name

    def name(self, card: Card, part: str, number: int) -> str:
        """Whose a part is; "?" for none's."""
        for size in sorted(self.sizes[part], reverse=True):  # a bundle's root begins as the card's
            if name := self.parts.get((part, hashlib.sha256(card.content(number, size)).hexdigest())):
                return name
        return "?"

    def slot(self, card: Card, slot: str) -> tuple[str, str]:
        return self.name(card, "boot", PARTITION_OF[slot]), self.name(card, "root", ROOT_OF[slot])


class Bench:
    """The board, its web server, and what is on the card."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chance = folder, random.Random(SEED)
        (folder / "web").mkdir()
        keys = folder / "keys"
        run("make", "-s", "-C", ROOT, "update-key", f"KEYS={keys}")
        self.server = Server(folder / "web", folder / "tls", rate=12_000_000)
        files = {
            **FILES, "usr/lib/stack/settings_again.py": ROW,
            "sbin/updater": UPDATER.replace("URL", self.server.url("next.swu", "10.0.2.2")),
            "etc/stack-update.pem": (keys / "update.pem").read_text(), "etc/server.pem": self.server.trusted.read_text(),
        }  # fmt: skip
        squashfs, profile = root("x86_64", folder / "root.squashfs", files), f"{BASE},again"
        self.card = card(folder / "images", "x86_64", profile, squashfs)
        self.known = Known()
        one = Card(self.card)
        self.known.add("the card's", one.content(2, one.places[2][1]), squashfs.read_bytes())
        for number in (1, 2):
            own = folder / f"root{number}.squashfs"
            shutil.copyfile(squashfs, own)
            with own.open("ab") as file:
                file.write(f"bundle {number}".encode().ljust(4096, b"."))
            name = f"1.{number}"
            files_of = {**boot_files("x86_64", profile=profile), "version.txt": name.encode()}
            made = bundle(folder, name, own, files_of, keys)
            self.known.add(name, (folder / f"images-{name}/boot.vfat").read_bytes(), own.read_bytes())
            made.rename(folder / f"{name}.swu")
        self.offer("1.1")
        self.power = Powered("x86_64", self.card, folder, ESB)
        self.before, self.log = folder / "before.img", folder / "log"

    def offer(self, name: str) -> None:
        """What the web server has from now on; a download of another one that has begun starts anew."""
        target = self.folder / "web/next.swu"
        if not target.exists() or not target.samefile(self.folder / f"{name}.swu"):
            target.unlink(missing_ok=True)
            target.hardlink_to(self.folder / f"{name}.swu")

    def start(self) -> None:
        self.power.start(self.drive)

    def drive(self) -> str:
        """The card for QEMU: what is written from now on is in the log too."""
        self.log.unlink(missing_ok=True)
        self.log.touch()
        run("cp", "--sparse=always", self.card, self.before)
        files = f"file.driver=file,file.filename={self.card},log.driver=file,log.filename={self.log}"
        return f"if=none,id=card,driver=blklogwrites,{files}"

    def until_phase(self, phase: str) -> None:
        """Let the board go on, over its resets, until the phase begins; then for a random while."""
        pattern, most = PHASES[phase]
        deadline = time.monotonic() + SECONDS * PATIENCE
        while pattern and not re.search(pattern, self.power.machine.console() if self.power.machine else ""):
            assert self.power.machine
            if self.power.machine.process.poll() is not None:
                self.power.over()
                self.start()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{phase} has not come; {self.power.machine.console()[-3000:]}")
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0.0, most))

    def cut(self) -> tuple[int, str]:
        """Cut the power; the card becomes what it is then. How many writes are lost, and what is in the slots."""
        self.power.cut()
        lost = after_the_cut(self.before, self.log, self.card, self.chance)
        found = Card(self.card)
        plain, tried = found.slots()
        flag = found.read(1, FLAG)[:1] == b"1"
        for slot in (plain, tried) if flag else (plain,):
            boot, of_root = self.known.slot(found, slot)
            assert boot == of_root != "?", f"slot {slot} is started and is a mixture: boot is {boot}, root is {of_root}"
        other = "/".join(dict.fromkeys(self.known.slot(found, tried)))
        return lost, f"starts {tried if flag else plain} ({self.known.slot(found, plain)[0]}; the other one: {other})"

    def close(self) -> None:
        self.power.close()
        self.server.close()


@pytest.mark.timeout(400 * max(CUTS, 5))
def test_power_cuts_in_each_phase_of_an_update(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    bench = Bench(tmp_path)
    phases: list[str] = []
    lost, where = 0, Counter[str]()
    try:
        for number in range(CUTS):
            if not phases:
                phases = list(PHASES)
                bench.chance.shuffle(phases)
            phase = phases.pop()
            bench.start()
            bench.until_phase(phase)
            count, found = bench.cut()
            lost += count
            where[phase] += 1
            print(f"cut {number + 1}, {phase}: {count} writes lost; {found}", flush=True)
            bench.offer(bench.chance.choice(("1.1", "1.2")))
        bench.start()
        bench.until_phase("download")  # it comes up after the last one too
    finally:
        bench.close()
    moments = ", ".join(f"{count} in {phase}" for phase, count in where.items())
    record_property("figure", f"power cuts of an update: {CUTS} ({moments}), each time it came up, no mixed slot; "
                    f"the card lost {lost} unflushed writes; {bench.server.resumed} downloads went on where they were")  # fmt: skip
