"""The protocol between board and mothership: topics, batches of records, acknowledgements, commands.

    v1/BOARD/up       batch      board to mothership
    v1/BOARD/hello    question   up to which number do you have my records?
    v1/BOARD/ack      answer     all up to this one; retained
    v1/BOARD/state    JSON       init, ready, stopping, disconnected; lost by the broker (last will); retained
    v1/BOARD/info     JSON       which boot of which board with which software; retained
    v1/BOARD/diag     JSON       the last report of diagnostic.py; QoS 0, retained
    v1/BOARD/sv/NAME  JSON       a service's state; retained
    v1/BOARD/cmd      command    mothership to board; never retained
    v1/BOARD/res/ID   result     of the command with this id

All but batches are plain JSON. A batch is the byte 2 (the version) and a zlib stream (RFC 1950) of JSON in UTF-8:
{"outbox": STREAM, "prev": N, "records": [[number, kind, body], ...]}, in rising order. A stream is a random name of the board's
outbox (numbering.py); each has numbers of its own. `prev` is the number of the record sent before these, 0 where the board has
none that is older: who misses `prev` does not take the batch, and the board sends from there again.
A question is {"nonce": TEXT, "outbox": STREAM, "own": [STREAM, ...], "boot": BOOT_ID, "mono": seconds}: `own` are all streams
of this outbox, `mono` is when it was asked, by the board's monotonic clock.
An answer is {"seq": N, "outbox": STREAM, "nonce": TEXT or null, "time": seconds}: the last one by the mothership's clock. Where
another outbox is using this board's name it is {"refused": TEXT, "outbox": STREAM, ...} without "seq", and not retained.
Version 1 had no streams: its batches begin with the byte 1 and have no "outbox"; to the mothership that is the stream "".
A command is {"id": TEXT, "op": TEXT, "expires": seconds, ...} by that clock too, so that it can be judged on a board whose own
clock is not set; its result {"id": TEXT, "ok": true or false, "result": ..., "error": TEXT or null}, with "again": true where
it was not considered yet. An `update` that has to wait says for what, "waits_for": [TEXT, ...], and asks by "asks": true once
it may begin: the mothership then sends it again, or does not. The same id is carried out once, however often it comes, and
answered each time. A command that ends a boot names it ("boot": BOOT_ID, as in state and info): also a board that has forgotten
the id does not end the next one too.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

VERSION = 1  # of the topics
BATCHES = (1, 2)  # versions of a batch that are understood; the last is the one that is sent
MOST = 512 * 1024  # bytes of a batch's JSON: a board sends at most BATCH_SIZE and one more record (service.py, LARGEST)
HIGHEST = 2**61  # number of a record, on both sides
TOPICS = ("up", "hello", "ack", "state", "info", "diag", "cmd")  # below a board's name...
OF_NAMES = ("sv", "res")  # ...and these with one more name below them
SMALL = 4096  # bytes of a question, an answer, a command
LONGEST = 64  # characters of a board's name
# Operations, and what each needs beside the id and the time of its end.
COMMANDS: dict[str, tuple[str, ...]] = {
    "start": ("name",), "stop": ("name",), "restart": ("name",), "signal": ("name", "signal"), "snooze": ("minutes",),
    "update": ("url", "version"), "reload": (), "reboot": (), "halt": (), "poweroff": (),
}  # fmt: skip
ENDS = ("reboot", "halt", "poweroff")


class Malformed(ValueError):
    """What was received is not what the format says; the text is a sentence for people."""


class Batch(NamedTuple):
    """A batch of records, as it was received."""

    prev: int
    records: list[tuple[int, str, Any]]
    outbox: str = ""  # the stream; "" of a board of version 1
    size: int = 0  # bytes of its JSON


def topic(board: str, what: str) -> str:
    """`v1/BOARD/what`."""
    return f"v{VERSION}/{board}/{what}"


def parse_topic(text: str) -> tuple[str, str]:
    """Board and last part of a topic; Malformed for a topic that no board uses."""
    version, board, what = (*text.split("/", 2), "", "")[:3]
    kind, below, name = what.partition("/")
    known = kind in OF_NAMES and is_name(name.replace("@", "-")) if below else kind in TOPICS
    if version != f"v{VERSION}" or not is_name(board) or not known:
        raise Malformed(f"topic {text[:100]!r} is not v{VERSION}/BOARD/WHAT")
    return board, what


def is_name(text: object) -> bool:
    """True if it can name a board: at most 64 letters, digits, - _ and ., but not "." or "..", which are folders."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST and not set(text) - NAME and text.strip(".") != ""


NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def pack(prev: int, records: Iterable[tuple[int, str, bytes]], outbox: str = "") -> bytes:
    """Pack a batch; each body is JSON already."""
    rows = b",".join(b'[%d,"%s",%s]' % (number, kind.encode(), body) for number, kind, body in records)
    text = b'{"outbox":"%s","prev":%d,"records":[%s]}' % (outbox.encode(), prev, rows)
    return bytes([BATCHES[-1]]) + zlib.compress(text, 6)


def unpack(payload: bytes) -> Batch:
    """Unpack a batch and check every field of it; Malformed if one is wrong."""
    if not payload or payload[0] not in BATCHES:
        known = " and ".join(map(str, BATCHES))
        raise Malformed(f"a batch of version {payload[:1].hex() or 'none'}, where {known} are known")
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(payload[1:], MOST)
        if not stream.eof or stream.unused_data:
            raise Malformed(f"a batch that is cut, followed by something, or longer than {MOST} bytes")
        found = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise Malformed(f"not a batch: {error}") from None
    if not isinstance(found, dict) or not is_number(found.get("prev")) or not isinstance(found.get("records"), list):
        raise Malformed('a batch without "prev" and "records"')
    outbox = found.get("outbox", "") if payload[0] > 1 else ""
    if not is_stream(outbox):
        raise Malformed(f"a batch of {str(outbox)[:100]!r}, which is no stream's name")
    last, records = found["prev"], []
    for row in found["records"]:
        match row:
            case [number, str(kind), body] if is_number(number) and number > last and len(kind) <= LONGEST:
                records.append((number, kind, body))
                last = number
            case _:
                raise Malformed(f"a record that is not [number, kind, body] in rising order: {str(row)[:100]}")
    return Batch(found["prev"], records, outbox, len(text))


def parse(payload: bytes, most: int = SMALL) -> dict[str, Any]:
    """A JSON object of at most so many bytes (a question, an answer, a command); Malformed for anything else."""
    try:
        found = json.loads(payload) if len(payload) <= most else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"not a JSON object: {payload[:100]!r}")
    return found


def is_seconds(value: object) -> bool:
    """True for a finite number of seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12


def is_number(value: object) -> bool:
    """True for a number that a record can have, by the same bounds on both sides."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= HIGHEST


def is_stream(value: object) -> bool:
    """True for a name that a stream can have; "" is the stream of version 1."""
    return value == "" or is_name(value)
