"""`mothership rollout`: bring a release to a group, wave after wave. `run` is the process that does it, beside the receiver.

All state is in the database: whoever kills `run` and starts it again goes on where it was. A board that is told twice updates
once, because the roll-out's id is in the command's.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import sys
import threading
import time
from typing import Any

import rollout_store
import rollouts
from boards import PROMISE, ago
from observations import stamp, visible
from receiver import add_tls, remote_of
from rollouts import ABORTED, DONE, PAUSED, RUNNING, Rollout
from store import Store

from uplink import wire
from uplink.remote import Remote

EXPIRES = 600.0  # seconds for which a word counts: after an abort no board begins that hears it late
PREFIX = "rollout."  # of a command's id
NEWEST = 10  # roll-outs that late boards join when they are done
LOOK = 5.0  # seconds between two looks at the database
UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """`30s`, `10min`, `1h`, `2d` in seconds."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :] or "s"
    if not number.isascii() or not number.isdecimal() or len(number) > 8 or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30s, 10min, 1h or 2d")
    return float(int(number) * UNITS[unit])


class Driver:
    """Looks at each roll-out, tells boards, and keeps their answers."""

    def __init__(self, store: Store, remote: Remote, repeat: float) -> None:
        self.store = store
        self.remote = remote
        self.repeat = repeat
        # When no board was heard last: after it all get the time of the promise to speak again. It may have been before us.
        self.deaf = time.time()

    def turn(self, now: float) -> None:
        """Take a step of each roll-out that is open. What is told is in the database before it is sent."""
        if not rollout_store.hears(self.store, now):
            self.deaf = now
        deaf = now - self.deaf < PROMISE
        for place, stored in enumerate(rollout_store.every(self.store)):
            if stored.rollout.state != RUNNING and (stored.rollout.state != DONE or place >= NEWEST):
                continue
            step = rollout_store.look(self.store, stored.rollout.id, now, deaf=deaf, repeat=self.repeat)
            for text in step.said:
                self.remote.log.warning("%s", visible(text))
            for board in step.tell:
                self.remote.log.info("%s: %s is told", stored.rollout.id, board)
                self.remote.publish(wire.topic(board, "cmd"), json.dumps(word(stored, now)).encode(), qos=1)

    def hear(self) -> None:
        """Keep the answers that have come."""
        for topic, payload in self.remote.take():
            if not topic:
                self.remote.log.info("connected")
                continue
            try:
                board, _ = wire.parse_topic(topic)
                result = wire.parse(payload, wire.MOST)
            except wire.Malformed as error:
                self.remote.log.warning("not taken: %s", error)
                continue
            name = str(result.get("id"))
            if name.startswith(PREFIX):
                self.answered(name.removeprefix(PREFIX), board, result)

    def answered(self, name: str, board: str, result: dict[str, Any]) -> None:
        """Keep one answer: it has begun, it refuses, it waits, or it asks whether it may begin now."""
        accepted = result.get("ok") is True
        answer = str(result.get("result") if accepted else result.get("error"))
        self.remote.log.info("%s: %s: %s", name, board, visible(answer[:300]))
        if result.get("asks"):
            rollout_store.asking(self.store, name, board)
        elif isinstance(waits := result.get("waits_for"), list):
            rollout_store.waiting(self.store, name, board, "; ".join(map(str, waits)))
        elif not result.get("again"):
            rollout_store.answered(self.store, name, board, accepted, answer)


def word(stored: rollout_store.Stored, now: float) -> dict[str, object]:
    """The command to a board, as wire.py has it; its id is the roll-out's."""
    name, release = PREFIX + stored.rollout.id, stored.release
    return {"id": name, "op": "update", "expires": round(now + EXPIRES, 3), "url": release.url, "version": release.version}


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    start = commands.add_parser("start", help="begin a roll-out; beginning it twice does nothing")
    start.add_argument("database", metavar="DATABASE")
    start.add_argument("release", metavar="RELEASE")
    start.add_argument("--group", required=True, metavar="GROUP")
    start.add_argument(
        "--wave", default="1,5%,25%,100%", metavar="N,P%%,...", help="boards in all after each: 1,5%%,25%%,100%%"
    )
    start.add_argument("--pause", type=duration, default=3600.0, metavar="TIME", help="for which a wave stays healthy: 1h")
    start.add_argument("--most-bad", type=int, default=0, metavar="K", help="stop when more boards are bad; 0")
    start.add_argument("--id", default="", metavar="ID", help="of the roll-out; RELEASE-GROUP")
    start.set_defaults(run=run_start)
    status = commands.add_parser("status", help="how far roll-outs are")
    status.add_argument("database", metavar="DATABASE")
    status.add_argument("id", metavar="ID", nargs="?", help="with each of its boards; all roll-outs where none is named")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=run_status)
    for name, state, help_ in (
        ("pause", PAUSED, "tell no further board"), ("resume", RUNNING, "go on"), ("abort", ABORTED, "the same, for good"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=help_)
        command.add_argument("database", metavar="DATABASE")
        command.add_argument("id", metavar="ID")
        command.set_defaults(run=run_change, state=state, most_bad=None)
        if state == RUNNING:
            command.add_argument("--most-bad", type=int, metavar="K", help="go on in spite of so many bad boards")
    run = commands.add_parser("run", help="the process that tells the boards")
    run.add_argument("database", metavar="DATABASE")
    run.add_argument("broker", metavar="HOST:PORT")
    run.add_argument(
        "--repeat", type=duration, default=rollouts.REPEAT, metavar="TIME", help="until a board is told again; 60s"
    )
    add_tls(run)
    run.set_defaults(run=run_driver)


def run_start(options: argparse.Namespace) -> None:
    name = options.id or f"{options.release}-{options.group}"
    if not wire.is_name(name) or len(name) > rollout_store.LONGEST_ID:
        raise SystemExit(
            f"{name[:80]!r} is not an id: letters, digits, - _ . and at most {rollout_store.LONGEST_ID} of them: --id"
        )
    if options.most_bad < 0:
        raise SystemExit(f"--most-bad {options.most_bad}: it is 0 or more")
    store = Store(options.database, make=False)
    try:
        version = rollout_store.release(store, options.release).version
        new = Rollout(name, version, rollouts.parse_waves(options.wave), options.pause, options.most_bad)
        begun = rollout_store.start(store, new, options.release, options.group, time.time())
    except ValueError as error:
        raise SystemExit(visible(str(error))) from None
    count = len(rollout_store.targets_of(store, name))
    print(f"roll-out {name}: {'has begun' if begun else 'had begun already'}, with {count} boards")


def run_status(options: argparse.Namespace) -> None:
    store = Store(options.database, make=False)
    try:
        rows = [rollout_store.one(store, options.id)] if options.id else rollout_store.every(store)
    except ValueError as error:
        raise SystemExit(visible(str(error))) from None
    found = [rollout_store.status(row, rollout_store.targets_of(store, row.rollout.id)) for row in rows]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        where = f"wave {one['wave']} of {len(one['waves'])} ({one['waves'][one['wave'] - 1]})"
        print(visible(f"{one['id']}: {one['state']}, {where}: {one['boards']}; since {stamp(one['started'])}"))
        if one["why"]:
            print(visible(f"  {one['why']}"))
        for target in one["targets"] if options.id else ():
            print(visible(f"  wave {target['wave'] + 1}  {target['board']}  {shown(target, time.time())}"))


def shown(target: dict[str, object], now: float) -> str:
    """How far a board is."""
    told, updated = target["told"], target["updated"]
    if target["bad"]:
        return f"bad: {target['bad']}"
    if isinstance(updated, float):
        return f"updated {ago(now - updated)} ago"
    if target["waits"]:
        return f"waits: {target['waits']}"
    if target["accepted"] is not None:
        return f"{'under way' if target['accepted'] else 'left out'}: {target['answer']}"
    return f"told {ago(now - told)} ago, no answer yet" if isinstance(told, float) else "not told"


def run_change(options: argparse.Namespace) -> None:
    try:
        new = rollout_store.set_state(Store(options.database, make=False), options.id, options.state, options.most_bad)
    except ValueError as error:
        raise SystemExit(visible(str(error))) from None
    print(f"roll-out {new.id}: {new.state}")


def run_driver(options: argparse.Namespace) -> None:
    """Run until SIGTERM."""
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    store = Store(options.database, make=False)
    remote = remote_of(options, "rollout", (wire.topic("+", "res/+"),))
    driver, due = Driver(store, remote, options.repeat), 0.0
    remote.start()
    while not ending.is_set():
        select.select([remote.fd], [], [], 0.5)
        try:
            driver.hear()
            if remote.connected and time.monotonic() >= due:
                due = time.monotonic() + min(LOOK, options.repeat)
                driver.turn(time.time())
        except store.database.error as error:
            remote.log.warning("the database cannot be used now, and is tried again: %s", str(error).strip())
            ending.wait(LOOK)
    remote.end()
    sys.stdout.flush()
