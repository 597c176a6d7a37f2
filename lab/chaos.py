"""Chaos for board and mothership: everything between them is killed, cut, slowed, filled up and set to a wrong time, at random.

    lab/chaos.py [--kills N] [--records N] [--hours H] [--seed N]

uplink.py with its bus and a source of observations on one side, a broker and the receiver on the other, each in a network
namespace of its own, joined by a veth pair. Every 0.5 to 3 seconds each of board, broker and receiver dies by kill -9; the
link is cut, or slowed down by tbf(8); the disk of the outbox is full for a while; the clocks of both sides are set back and
forth (libfaketime, for their processes alone). Afterwards every record that the board had told as committed is in the
database, and none is there twice. A seed gives the same plan of faults; what they meet is up to the machine.

Everything runs in namespaces that end with this process, as root or as an ordinary user.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import heapq
import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
# A tmpfs in our own mount namespace; the folder below it has no file of ours.
FOLDER = next(path for path in map(Path, ("/mnt", "/media", "/srv")) if path.is_dir() and path not in ROOT.parents)
FAR = "10.99.0.2"
DISK = 12 * 1024 * 1024  # bytes of the outbox's disk
RATE = 1500  # observations a second
YOUTH = 15.0  # seconds for a board's first commit
DRAIN = 120.0  # seconds for the waiting records at the end
STAMP = FOLDER / "clock"

BUS = f"listener 0 {FOLDER}/bus.sock\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\nuser root\n"
BROKER = f"listener 1883 {FAR}\nallow_anonymous true\npersistence false\nuser root\n"

# The real uplink, with shorter times. It prints what it has committed to the disk.
UPLINK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from onboard import events
from uplink import outbox, remote, sender
import settings
from uplink import service as uplink

class Told(outbox.Outbox):
    def flush(self, now):
        taken = [json.loads(body).get("data", {}).get("n") for _, body in self.pending]
        super().flush(now)
        if taken and self.durable:
            print(*(number for number in taken if number is not None), flush=True)

uplink.Outbox, outbox.RETRY = Told, 1.0
sender.SILENCE = sender.ASK_MAX = 2.0
sender.ASK_FIRST = 0.5
remote.REMOTE_FIRST, remote.REMOTE_MAX = 0.2, 1.0
events.FILE = f"{sys.argv[2]}/events/none"
if sys.argv[4] == "trust":  # what must not be done: take for stored what was given to a connection
    pump = sender.Sender.pump
    sender.Sender.pump = lambda self, now: (pump(self, now), self.outbox.acknowledged(self.stream.identity, self.sent))
own = {"UPLINK_BOARD": "chaos", "OUTBOX": f"{sys.argv[2]}/disk/outbox", "OUTBOX_SPARE": 0}
uplink.run(type("Chosen", (), {**vars(settings), **own}), (sys.argv[3],))
"""
# The real receiver, with a lease that is shorter by the same factor. A board that came up without its disk and then died comes
# back with another stream, which is refused until the lease ends: it loses time, no record.
RECEIVER = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import streams
streams.LEASE = 10.0
import runpy
runpy.run_module("receiver", run_name="__main__")
"""
# Observations as wifi_analyzer.py makes them, each with a number that no other one has, also after a restart.
SOURCE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from bus import Bus
bus, number, rate = Bus("source"), int(sys.argv[2]), int(sys.argv[3])
for _ in bus.every(0.05):
    for _ in range(rate // 20):
        number += 1
        where = {"latitude": 52.5, "longitude": 13.4, "accuracy": 5.0, "age": 0.1, "position_source": "fake", "event": "seen"}
        heard = {"bssid": f"02:00:00:00:{number // 256 % 256:02x}:{number % 256:02x}", "ssid": "chaos", "frequency": 2412}
        bus.publish("wifi/chaos", {"n": number, **where, **heard, "signal": -60, "security": "WPA2", "source": "chaos"})
"""


class Chaos:
    """Board, broker and receiver, and the faults. One loop, one clock, one heap of what comes next."""

    def __init__(self, seed: int, how: str) -> None:
        self.seed = seed
        self.how = (
            how  # uplink deletes a record after its acknowledgement ("ack"), or after sending it ("trust"), which must fail
        )
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.plan: list[tuple[float, int, Callable[[], object]]] = []
        self.told: set[int] = set()
        self.lives = 0
        self.born, self.born_with = 0.0, 0  # when the board was started last, and how many records had been committed then
        self.counts = dict.fromkeys(
            ("kills of board", "kills of broker", "kills of receiver", "cuts", "slow", "disk full", "clocks"), 0
        )
        self.tail = b""  # the beginning of a line that uplink is still writing
        self.far = self._namespace()

    # --- processes --------------------------------------------------------------------------------------------------
    def _namespace(self) -> int:
        """The mothership's network namespace: the pid that holds it open."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout
        holder.stdout.readline()
        self.running["namespace"] = holder
        run("ip link set lo up")
        run(f"ip link add near0 type veth peer name far0 netns {holder.pid}")
        run("ip addr add 10.99.0.1/24 dev near0")
        run("ip link set near0 up")
        for words in (f"ip addr add {FAR}/24 dev far0", "ip link set far0 up", "ip link set lo up"):
            run(f"nsenter -t {holder.pid} -n {words}")
        return holder.pid

    def start(self, name: str) -> None:
        """Start a process; broker and receiver in the mothership's network namespace."""
        far = ["nsenter", "-t", str(self.far), "-n"]
        commands = {
            "bus": ["mosquitto", "-c", f"{FOLDER}/bus.conf"],
            "uplink": [PYTHON, "-c", UPLINK, str(ROOT), str(FOLDER), f"{FAR}:1883", self.how],
            "source": [PYTHON, "-c", SOURCE, str(ROOT), str(self.lives * 10_000_000), str(RATE)],
            "broker": [*far, "mosquitto", "-c", f"{FOLDER}/broker.conf"],
            "receiver": [*far, PYTHON, "-c", RECEIVER, f"{ROOT}/mothership", f"{FAR}:1883", f"{FOLDER}/mothership.db"],
        }
        environment = {**os.environ, "BUS": f"{FOLDER}/bus.sock", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        if FAKETIME and name in ("uplink", "receiver"):
            environment |= {
                "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(STAMP), "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        with open(FOLDER / f"{name}.log", "ab") as log:
            output = subprocess.PIPE if name == "uplink" else log
            self.running[name] = subprocess.Popen(
                commands[name], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=log
            )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()
        if name == "uplink":
            self.hear(process, whole=True)

    def hear(self, process: subprocess.Popen[bytes], *, whole: bool = False) -> None:
        """Read what uplink has committed; a line that its death has cut does not count."""
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        text = self.tail + (process.stdout.read() or b"")
        lines, _, self.tail = text.rpartition(b"\n")
        self.told.update(map(int, lines.split()))
        if whole:
            self.tail = b""

    # --- faults -----------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start everything and plan the faults, each kind by a random generator of its own, so that kinds are independent."""
        STAMP.write_text("+0")
        for name in ("broker", "receiver"):
            self.start(name)
        self.start_board()
        for number, (fault, first, last) in enumerate((
            (self.kill_board, 0.5, 3.0), (self.kill_broker, 0.5, 3.0), (self.kill_receiver, 0.5, 3.0),
            (self.cut, 4.0, 12.0), (self.slow, 4.0, 12.0), (self.fill, 6.0, 15.0), (self.set_clock, 2.0, 6.0),
        )):  # fmt: skip
            self.repeat(random.Random(self.seed * 100 + number), fault, first, last)

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self.plan, (time.monotonic() + seconds, id(action), action))

    def repeat(self, chance: random.Random, fault: Callable[[random.Random], object], first: float, last: float) -> None:
        def again() -> None:
            fault(chance)
            self.at(chance.uniform(first, last), again)

        self.at(chance.uniform(first, last), again)

    def start_board(self) -> None:
        self.lives += 1
        self.born, self.born_with = time.monotonic(), len(self.told)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FOLDER / "bus.sock")
        for name in ("bus", "uplink", "source"):
            self.start(name)

    def kill_board(self, chance: random.Random) -> None:
        """Kill the board, but only after its first commit: on a busy machine it would never get there otherwise."""
        if len(self.told) == self.born_with and time.monotonic() < self.born + YOUTH:
            self.at(0.1, lambda: self.kill_board(chance))
            return
        for name in ("uplink", "source", "bus"):
            self.kill(name)
        self.counts["kills of board"] += 1
        self.start_board()

    def kill_broker(self, _: random.Random) -> None:
        self._restart("broker")

    def kill_receiver(self, _: random.Random) -> None:
        self._restart("receiver")

    def _restart(self, name: str) -> None:
        self.kill(name)
        self.counts[f"kills of {name}"] += 1
        self.start(name)

    def cut(self, chance: random.Random) -> None:
        run("ip link set near0 down")
        self.counts["cuts"] += 1
        self.at(chance.uniform(0.5, 3.0), lambda: run("ip link set near0 up"))

    def slow(self, chance: random.Random) -> None:
        """Limit the link to 512 kbit/s; a packet that waits longer than 0.2 s is dropped."""
        run("tc qdisc replace dev near0 root tbf rate 512kbit burst 8kbit latency 200ms")
        self.counts["slow"] += 1
        self.at(chance.uniform(0.5, 3.0), lambda: run("tc qdisc del dev near0 root"))

    def fill(self, chance: random.Random) -> None:
        """Fill the outbox's disk for a while."""
        with open(FOLDER / "disk/ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        self.counts["disk full"] += 1
        self.at(chance.uniform(0.5, 3.0), lambda: os.truncate(FOLDER / "disk/ballast", 0))

    def set_clock(self, chance: random.Random) -> None:
        """Set the clock by up to two days forward or back."""
        new = STAMP.with_suffix(".new")
        new.write_text(f"{chance.uniform(-172800, 172800):+.0f}")
        new.rename(STAMP)
        self.counts["clocks"] += 1

    # --- run and end -----------------------------------------------------------------------------------------------
    def run(self, kills: int, records: int, seconds: float) -> None:
        """Run until there were enough kills, records and seconds."""
        deadline, limit = time.monotonic() + seconds, time.monotonic() + max(600.0, 2 * seconds)
        self.begin()
        while self.kills < kills or len(self.told) < records or time.monotonic() < deadline:
            if time.monotonic() > limit:
                raise SystemExit(
                    f"chaos: {self.kills} kills and {len(self.told)} records are not enough, and too much time has passed"
                )
            due, _, action = self.plan[0]
            uplink = self.running["uplink"]
            assert uplink.stdout
            if select.select([uplink.stdout], [], [], max(0.0, min(due - time.monotonic(), 0.2)))[0]:
                self.hear(uplink)
            if time.monotonic() >= due:
                heapq.heappop(self.plan)
                action()

    @property
    def kills(self) -> int:
        return sum(count for what, count in self.counts.items() if what.startswith("kills"))

    def drain(self) -> float:
        """Undo all faults, make no more records, and wait until the mothership has them all; returns the seconds that took."""
        began = time.monotonic()
        for mend in ("ip link set near0 up", "tc qdisc del dev near0 root"):
            run(mend, may_fail=True)
        os.truncate(FOLDER / "disk/ballast", 0)
        self.kill("source")
        patience = DRAIN if self.how == "ack" else 10.0
        while (missing := len(self.told - set(self.arrived()))) and time.monotonic() < began + patience:
            self.hear(self.running["uplink"])
            select.select([], [], [], 0.5)
        if missing:
            print(f"chaos: {missing} records have not arrived after {patience:g} s", file=sys.stderr)
        return time.monotonic() - began

    def arrived(self) -> list[int]:
        """The numbers of the observations in the mothership's database."""
        with contextlib.closing(sqlite3.connect(FOLDER / "mothership.db", timeout=30)) as database:
            rows = database.execute("SELECT body FROM record WHERE kind = 'wifi'").fetchall()
        return [json.loads(body)["data"]["n"] for (body,) in rows]

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)


def run(words: str, *, may_fail: bool = False) -> None:
    done = subprocess.run(words.split(), capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise OSError(f"{words}: {done.stderr.strip()}")


@contextlib.contextmanager
def chaos(seed: int, how: str) -> Iterator[Chaos]:
    """Run in a mount namespace of our own, with a tmpfs as the outbox's disk."""
    run(f"mount -t tmpfs -o size=2g tmpfs {FOLDER}")
    run("mount -t tmpfs -o size=64m tmpfs /dev/shm")  # what is killed leaves libfaketime's files behind
    for name in ("disk", "events"):
        (FOLDER / name).mkdir()
    run(f"mount -t tmpfs -o size={DISK} tmpfs {FOLDER}/disk")
    (FOLDER / "disk/ballast").touch()
    (FOLDER / "bus.conf").write_text(BUS)
    (FOLDER / "broker.conf").write_text(BROKER)
    world = Chaos(seed, how)
    try:
        yield world
    finally:
        world.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trust", dest="how", action="store_const", const="trust", default="ack", help="a board that loses")
    options = parser.parse_args(arguments)
    if "STACK_CHAOS" not in os.environ:  # as root of namespaces that end with us
        words = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvpe(words[0], [*words, PYTHON, __file__, *arguments], {**os.environ, "STACK_CHAOS": "inside"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with chaos(options.seed, options.how) as world:
        world.run(options.kills, options.records, options.hours * 3600)
        told, seconds = len(world.told), world.drain()
        arrived = world.arrived()
        lost, twice = len(world.told - set(arrived)), len(arrived) - len(set(arrived))
        faults = ", ".join(f"{count} {what}" for what, count in world.counts.items())
        if not FAKETIME:
            faults += " (without effect: no libfaketime here)"
        print(f"chaos, seed {options.seed}: {world.kills} kills ({faults}); {told} records committed on the board, "
              f"{lost} lost, {twice} twice; the last ones arrived within {seconds:.1f} s")  # fmt: skip
        if (lost or twice) and options.how == "ack":
            for path in sorted(FOLDER.glob("*.log")):
                print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}", file=sys.stderr)
    return 1 if lost or twice or not told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
