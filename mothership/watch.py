"""`mothership watch`: print states, records and results as they arrive. It stores and acknowledges nothing."""

from __future__ import annotations

import argparse
import json
import select
import signal
import threading
import time
from collections.abc import Iterator

from observations import visible
from receiver import add_tls, remote_of

from uplink import wire

WHAT = ("state", "info", "up", "cmd", "diag")
BELOW = ("sv/+", "res/+")  # these have a name of their own below them


def lines(topic: str, payload: bytes) -> Iterator[str]:
    """A message as lines for people."""
    _, board, what = topic.split("/", 2)
    if what == "up":
        for number, kind, body in wire.unpack(payload).records:
            said = body.get("data", body) if isinstance(body, dict) else body
            yield f"{board} {kind} {number} {json.dumps(said, ensure_ascii=False)}"
    elif payload:
        yield f"{board} {what} {payload.decode('utf-8', 'replace')}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", metavar="HOST:PORT")
    parser.add_argument("board", metavar="BOARD", nargs="?", default="+", help="only this one")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.board != "+" and not wire.is_name(options.board):
        raise SystemExit(f"{options.board!r} is not a board's name")
    ending = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    remote = remote_of(options, "watch", tuple(wire.topic(options.board, what) for what in (*WHAT, *BELOW)))
    remote.start()
    while not ending.is_set():
        if not select.select([remote.fd], [], [], 1.0)[0]:
            continue
        for topic, payload in remote.take():
            if not topic:
                continue
            try:
                for line in lines(topic, payload):
                    print(time.strftime("%H:%M:%S"), visible(line), flush=True)
            except (ValueError, RecursionError) as error:  # wire.Malformed is one
                print(time.strftime("%H:%M:%S"), visible(f"{topic[:100]} is malformed: {error}"), flush=True)
    remote.end()
