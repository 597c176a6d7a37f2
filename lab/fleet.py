"""A fleet of boards against one mothership, on this machine's loopback: `make fleet BOARDS="200 2000"`.

Each board is the real uplink (fleet_boards.py); broker and receiver are processes of their own. In turn: all connect at once;
a steady state; the broker is killed and starts again after a while; the receiver is killed and starts again; the fleet
drains; then every board gathers a backlog without a connection, and the receiver takes it as fast as it can. At last
each board's records are counted in the database: one that is lost, or there twice, is exit status 1.

The brokers are mosquitto and nats-server (fleet_programs.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fleet_figures import histogram, most_in_a_second, percentile, table
from fleet_programs import Program, Workers, find, free_port, make_broker, query

ROOT = Path(__file__).resolve().parent.parent
MEMORY = "/dev/shm"  # for the boards' disks: those of 2,000 boards are not one disk
DESCRIPTORS = 10  # descriptors of a simulated board, at most: database, log and its index, connection, two pipes, some to spare
BOUND = 120.0  # seconds until a phase counts as failed


class Chosen(NamedTuple):
    """The options of a run."""

    seconds: float = 60.0  # of the steady state
    rate: float = 2000.0  # records a second, of the whole fleet
    period: float = 10.0  # seconds between two scans of a board: what one has seen is committed and sent together
    outage: float = 5.0  # seconds that broker and receiver stay away
    backlog: int = 300_000  # records of the whole fleet, for the fastest that the receiver can
    disks: str = MEMORY
    workers: int = 2


# --- the fleet -------------------------------------------------------------------------------------------------------------
class Fleet:
    """Boards in some processes, their mothership, and the figures."""

    def __init__(self, kind: str, boards: int, chosen: Chosen, folder: Path, disks: Path) -> None:
        self.kind = kind
        self.boards = boards
        self.chosen = chosen
        port = free_port()
        self.database = folder / "mothership.db"
        self.broker = make_broker(kind, port, folder)
        argv = [sys.executable, str(ROOT / "mothership/receiver.py"), f"127.0.0.1:{port}", str(self.database)]
        self.receiver = Program("receiver", argv, folder / "receiver.log")
        self.port = port
        names = [f"board-{number:05}" for number in range(boards)]
        parts = [names[number :: chosen.workers] for number in range(chosen.workers)]
        self.workers = Workers(_serve, [(part, f"127.0.0.1:{port}", str(disks)) for part in parts])
        self.order = self.workers.order
        self.lags: list[float] = []
        self.connects: list[float] = []
        self.answers: list[float] = []
        self.row: dict[str, str] = {"boards": str(boards), "broker": kind}

    def figures(self) -> Counter[str]:
        """The boards' figures: numbers are added, lists are joined."""
        sums: Counter[str] = Counter()
        for found in self.order("figures"):
            self.lags += found.pop("lags")
            self.connects += found.pop("connects")
            self.answers += found.pop("answers")
            sums.update(found)
        return sums

    def until(self, what: str, check: Callable[[Counter[str]], bool], seconds: float = BOUND) -> Counter[str]:
        """Ask the boards for their figures until a check of them is true."""
        deadline = time.monotonic() + seconds
        while not check(found := self.figures()):
            self.cost()  # neither has ended
            if time.monotonic() > deadline:
                raise SystemExit(f"fleet: after {seconds:g} s still not: {what}; {dict(found)}")
            time.sleep(0.1)
        return found

    def stored(self) -> int:
        """Number of records in the database: the sum of the boards' last numbers, which have no gaps."""
        return int(query(self.database, "SELECT coalesce(sum(seq), 0) FROM board")[0][0])

    def scan(self) -> None:
        """Make the boards observe at the wanted rate."""
        count = max(1, round(self.chosen.rate * self.chosen.period / self.boards))
        self.order("observe", count * self.boards / self.chosen.rate, count)

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    # --- phases --------------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Connect all boards at once, and wait until the mothership has answered each."""
        self.order("connect", 1)  # of each process: until the receiver is there
        self.until("the receiver is there", lambda _: len(self.answers) >= self.chosen.workers)
        began = time.monotonic()
        self.order("connect", self.boards)
        self.until("all boards are answered", lambda _: len(self.answers) >= self.boards)
        connected, answered = max(self.connects) - began, max(self.answers) - began
        self.row["connect s"] = f"{answered:.1f}"
        self.say(f"all {self.boards} connected within {connected:.1f} s, answered within {answered:.1f} s")

    def steady(self) -> None:
        """Measure a steady rate of observations: what arrives, how late, and what it costs."""
        self.scan()
        time.sleep(min(self.chosen.period, self.chosen.seconds))  # until each board's first scan is over
        before, stored, used = self.figures(), self.stored(), self.cost()
        self.lags = []
        began = time.monotonic()
        time.sleep(self.chosen.seconds)
        took = time.monotonic() - began
        receiver, broker = ((now - then) / took for now, then in zip(self.cost(), used, strict=True))
        made, arrived = (self.figures()["made"] - before["made"]) / took, (self.stored() - stored) / took
        middle, late = percentile(self.lags, 50), percentile(self.lags, 99)
        self.row |= {"made/s": f"{made:.0f}", "in database/s": f"{arrived:.0f}", "receiver CPU": f"{receiver:.0%}"}
        self.row |= {"broker CPU": f"{broker:.0%}", "lag p50 s": f"{middle:.2f}", "lag p99 s": f"{late:.2f}"}
        self.say(
            f"steady, {took:.0f} s: {made:.0f} records/s made, {arrived:.0f}/s into the database; of one core the receiver "
            f"took {receiver:.0%}, {self.kind} {broker:.0%}; from record to acknowledgement p50 {middle:.2f} s, "
            f"p99 {late:.2f} s"
        )

    def cost(self) -> tuple[float, float]:
        """CPU seconds of receiver and broker."""
        return self.receiver.used(), self.broker.used()

    def storm(self) -> None:
        """Kill the broker, start it again, and wait until all boards are back."""
        self.broker.kill()
        self.until("all boards have noticed", lambda sums: not sums["connected"])
        time.sleep(self.chosen.outage)
        self.connects, self.answers = [], []
        self.broker.start()
        began = time.monotonic()
        self.until("all boards are back", lambda _: len(self.answers) >= self.boards, 2 * BOUND)
        back = [when - began for when in self.answers]
        most, last = most_in_a_second(self.connects), max(back)
        middle, many, late = (percentile(back, share) for share in (50, 90, 99))
        self.row |= {"storm p50 s": f"{middle:.1f}", "storm max s": f"{last:.1f}", "connects/s": str(most)}
        self.say(
            f"the broker was killed, away for {self.chosen.outage:g} s: answered again after p50 {middle:.1f} s, "
            f"p90 {many:.1f} s, p99 {late:.1f} s, max {last:.1f} s; at most {most} connections within one second; "
            f"answers {histogram(back)}"
        )

    def restart(self) -> None:
        """Kill the receiver, start it again, and wait until all records made by then are acknowledged."""
        before = self.figures()
        self.receiver.kill()
        time.sleep(self.chosen.outage)
        self.receiver.start()
        began = time.monotonic()
        had = self.figures()
        self.until("the receiver has caught up", lambda sums: sums["acked"] >= had["made"])
        took = time.monotonic() - began
        resent = self.figures()["resent"] - before["resent"]
        self.row |= {"receiver back s": f"{took:.1f}"}
        self.say(
            f"the receiver was killed, away for {self.chosen.outage:g} s: caught up {took:.1f} s after its start; "
            f"{resent} records were sent again"
        )

    def drain(self) -> None:
        """Stop observing, and wait until no board has a record left."""
        self.order("observe", 1.0, 0)
        began = time.monotonic()
        sums = self.until("all is acknowledged", lambda sums: sums["acked"] >= sums["made"])
        self.say(f"drained within {time.monotonic() - began:.1f} s: {sums['made']} records made, {sums['resent']} sent again")

    def fastest(self) -> None:
        """Measure the receiver's fastest rate: it is stopped while every board gathers a backlog and fills its window."""
        each = max(1, self.chosen.backlog // self.boards)
        self.order("gather", each)
        first = self.stored()
        self.receiver.signal(signal.SIGSTOP)
        self.order("pump")
        self.receiver.signal(signal.SIGCONT)
        began, used, stored = time.monotonic(), self.receiver.used(), first
        nearly = first + int(0.9 * each * self.boards)  # without the tail: boards whose turn comes late
        deadline = began + BOUND
        while stored < nearly and time.monotonic() < deadline:
            time.sleep(0.1)
            stored = self.stored()
        seconds, cpu = time.monotonic() - began, self.receiver.used() - used
        rate, cost = (stored - first) / seconds, 1e6 * cpu / max(1, stored - first)
        self.row |= {"fastest/s": f"{rate:.0f}", "receiver µs": f"{cost:.0f}"}
        self.say(
            f"a backlog of {each} records on each board: {rate:.0f} records/s into the database; "
            f"the receiver's processor time: {cost:.0f} µs a record, {cpu / seconds:.0%} of one core"
        )
        self.until("all is acknowledged", lambda sums: sums["acked"] >= sums["made"])

    def check(self) -> list[str]:
        """Check that each record that a board committed is in the database once; returns what is wrong."""
        counted = """SELECT board, count(*), count(DISTINCT json_extract(body, '$.seq')), min(json_extract(body, '$.seq')),
                   max(json_extract(body, '$.seq')) FROM record WHERE kind = 'wifi' GROUP BY board"""
        found = {name: tuple(counts) for name, *counts in query(self.database, counted)}
        wrong, total = [], 0
        for name, (committed, waiting) in (item for part in self.order("committed") for item in part.items()):
            total += committed
            if waiting:
                wrong.append(f"{name}: {waiting} records still wait")
            if found.get(name) != (committed, committed, 1, committed):
                wrong.append(f"{name}: {committed} records committed; rows, different ones, first and last: {found.get(name)}")
        self.row |= {"records": str(total), "boards that lack": str(len(wrong))}
        self.row |= {"receiver MB": f"{self.receiver.size():.0f}", "broker MB": f"{self.broker.size():.0f}"}
        self.say(
            f"{total} records of {self.boards} boards: {'WRONG' if wrong else 'each is in the database, once'}; "
            f"receiver {self.receiver.size():.0f} MB, {self.kind} {self.broker.size():.0f} MB"
        )
        return wrong

    def __enter__(self) -> Fleet:
        self.broker.start()
        self.receiver.start()
        self.workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.end()
        self.receiver.kill()
        self.broker.kill()


def _serve(*arguments: Any) -> None:
    """Run boards in a process of its own: this one must not import their modules."""
    from fleet_boards import serve

    raise_descriptors()
    serve(*arguments)


def raise_descriptors() -> int:
    """Raise the limit of descriptors to the hard limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@contextlib.contextmanager
def folders(disks: str) -> Iterator[tuple[Path, Path]]:
    """Temporary folders for the mothership and for the boards."""
    where = disks if os.access(disks, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fleet-") as one, tempfile.TemporaryDirectory(prefix="fleet-", dir=where) as other:
        yield Path(one), Path(other)


def run(kind: str, boards: int, chosen: Chosen) -> tuple[dict[str, str], list[str]]:
    """Run all phases with so many boards; returns the figures, and what is wrong."""
    with folders(chosen.disks) as (folder, disks):
        memory = " (memory: no board waits for a disk here)" if str(disks).startswith(MEMORY) else ""
        print(f"{boards} boards in {chosen.workers} processes, {kind}: {chosen.rate:g} records/s in all", flush=True)
        print(f"  the mothership's database is in {folder}, the boards' outboxes are in {disks}{memory}", flush=True)
        with Fleet(kind, boards, chosen, folder, disks) as fleet:
            fleet.connect()
            fleet.steady()
            fleet.storm()
            fleet.restart()
            fleet.drain()
            if chosen.backlog:
                fleet.fastest()
            return fleet.row, fleet.check()


def main() -> int:
    usual = Chosen()
    parser = argparse.ArgumentParser(prog="make fleet", description=__doc__)
    parser.add_argument("boards", nargs="*", type=int, default=[2000])
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of the steady state")
    parser.add_argument("--rate", type=float, default=usual.rate, help="records a second, of the whole fleet")
    parser.add_argument("--period", type=float, default=usual.period, help="seconds between two scans of a board")
    parser.add_argument("--outage", type=float, default=usual.outage, help="seconds that the killed stay away")
    parser.add_argument("--backlog", type=int, default=usual.backlog, help="records of the whole fleet; 0 for none")
    parser.add_argument("--disks", default=usual.disks, help="folder for the boards' outboxes")
    parser.add_argument("--workers", type=int, default=usual.workers, help="processes for the boards")
    parser.add_argument("--broker", default="mosquitto", choices=("mosquitto", "nats", "both"))
    options = vars(parser.parse_args())
    sizes, broker = options.pop("boards"), options.pop("broker")
    chosen = Chosen(**options)
    if max(sizes) / chosen.workers * DESCRIPTORS > raise_descriptors():
        raise SystemExit(
            f"fleet: {chosen.workers} processes may not have the descriptors of {max(sizes)} boards: more --workers"
        )
    kinds = ("mosquitto", "nats") if broker == "both" else (broker,)
    for kind in kinds:
        if not find(kind):
            raise SystemExit(f"fleet: no {kind} here")
    results = [run(kind, boards, chosen) for kind in kinds for boards in sizes]
    print(table([row for row, _ in results]))
    for line in [line for _, wrong in results for line in wrong]:
        print(f"fleet: {line}", file=sys.stderr)
    return 1 if any(wrong for _, wrong in results) else 0


if __name__ == "__main__":
    sys.exit(main())
