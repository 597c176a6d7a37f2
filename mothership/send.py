"""`mothership send`: send a board one command, again and again until the board answers or the command expires.

What a board may be told is its own table COMMANDS. Exit status: 0 it is done, 1 the board refuses or fails, 2 no answer.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from observations import visible
from receiver import add_tls, remote_of

from uplink import wire
from uplink.remote import Remote

REPEAT = 2.0  # seconds; a board that is not there hears nothing, and hears the same command only once


def command(operation: str, words: list[str], seconds: float, name: str = "") -> dict[str, Any]:
    """A command as wire.py has it; ValueError, a sentence, where words are missing or too many."""
    fields = wire.COMMANDS[operation]
    if len(words) != len(fields):
        raise ValueError(f"{operation} takes {' and '.join(field.upper() for field in fields) or 'no further word'}")
    found: dict[str, Any] = dict(zip(fields, words, strict=True))
    if "minutes" in found:
        found["minutes"] = float(found["minutes"])
    return {"id": name or uuid.uuid4().hex, "op": operation, "expires": round(time.time() + seconds, 3), **found}


def send(remote: Remote, board: str, order: dict[str, Any], say: Callable[[str], object] = print) -> dict[str, Any] | None:
    """The board's result; None where it did not answer before the command expired.

    What ends a boot ends the one that the board is in, as the broker's retained state of it says.
    """
    due, ready, last = 0.0, order["op"] not in wire.ENDS, ""
    while (now := time.time()) < order["expires"]:
        if now >= due and remote.connected and ready:
            remote.publish(wire.topic(board, "cmd"), json.dumps(order).encode(), qos=1)
            due = now + REPEAT
        select.select([remote.fd], [], [], min(REPEAT / 4, order["expires"] - now))
        for topic, payload in remote.take():
            if not topic:
                due = 0.0
                continue
            try:
                result = wire.parse(payload, wire.MOST)
            except wire.Malformed as error:
                say(f"{board} answers what cannot be read: {error}")
                continue
            if topic.endswith("/state"):
                if not ready:
                    order["boot"], ready = result.get("boot"), True
                continue
            if not result.get("again"):
                return result
            if result.get("error") != last:  # it is asked again and again
                last = str(result.get("error"))
                say(f"{board}: {last}")
    return None


def sentence(answer: Any) -> str:
    """What a board has answered, for people: `gps@ttyUSB0: running again after 1.2 s`."""
    if not isinstance(answer, dict):
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    if "after" not in answer:
        return ", ".join(f"{name} {value}" for name, value in answer.items() if value not in (None, "", []))
    again = " again" if answer.get("state") == "running" and answer.get("restart") else ""
    return f"{answer.get('name')}: {answer.get('state')}{again} after {answer['after']} s"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", metavar="HOST:PORT")
    parser.add_argument("board", metavar="BOARD")
    parser.add_argument("operation", metavar="COMMAND", choices=wire.COMMANDS, help=", ".join(wire.COMMANDS))
    parser.add_argument("words", nargs="*", metavar="NAME", help="of a service; signal also takes a SIGNAL, snooze MINUTES")
    parser.add_argument("--expires", type=float, default=60.0, metavar="SECONDS", help="from now; 60")
    parser.add_argument("--json", action="store_true", help="print the board's answer as JSON")
    parser.add_argument("--id", default="", help="of a command that was sent before: it is not carried out twice")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if not wire.is_name(options.board):
        raise SystemExit(f"{options.board!r} is not a board's name")
    if options.id and not wire.is_name(options.id):
        raise SystemExit(f"{options.id!r} is not an id: letters, digits, - _ . and at most {wire.LONGEST} of them")
    try:
        order = command(options.operation, options.words, options.expires, options.id)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    remote = remote_of(options, "send", tuple(wire.topic(options.board, what) for what in (f"res/{order['id']}", "state")))
    remote.start()
    result = send(remote, options.board, order, lambda text: print(visible(text), file=sys.stderr))
    remote.end()
    if result is None:
        print(f"no answer from {options.board} within {options.expires:g} s; the command has expired", file=sys.stderr)
        sys.exit(2)
    if not result.get("ok"):
        print(visible(f"{options.board}: {result.get('error')}"), file=sys.stderr)
        sys.exit(1)
    answer = result.get("result")
    print(visible(json.dumps(answer, ensure_ascii=False) if options.json else sentence(answer)))
