"""To the mothership: takes records from the local bus into the outbox, and sends them until they are acknowledged.

A record is committed before it is sent, and deleted only when the mothership says that it has committed it. wire.py has the
format. The connection, whose broker may be far away or nowhere, has a thread of its own; everything else happens here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

import wire
from bus import Bus, Message, Remote, Tls
from outbox import Outbox
from tables import of_this_board

WINDOW = 400  # records under way
BATCH = 100  # records of one message...
BATCH_SIZE = 64 * 1024  # ...or so many bytes, before they are compressed
SILENCE = 10.0  # seconds without an acknowledgement, and what is under way is sent again
ASK = 15.0  # seconds without an answer, and the question is asked again
TURN = 0.2  # seconds: what has come in so long is committed together
STATE = b'{"state": "%s"}'  # retained: ready, disconnected, or, by the broker, lost


class Sender:
    """What is sent when: go-back-N over a connection that may be gone at any time. Time is an argument."""

    def __init__(self, outbox: Outbox, board: str, send: Any) -> None:
        """`send(topic, payload) -> bool` gives a message to the connection."""
        self.outbox = outbox
        self.board = board
        self.send = send
        self.nonce = ""  # of the question that has not been answered; "" once it has
        self.sent = 0  # the highest number under way
        self.acked = 0  # the mothership's last word
        self.due: float | None = None  # to ask, or to send again
        self.connected = False
        self.resent = 0

    def up(self, now: float) -> None:
        """A new connection: ask what the mothership has, before anything is sent."""
        self.connected = True
        self._ask(now)

    def down(self) -> None:
        """The connection is gone."""
        self.connected = False
        self.due = None

    def _ask(self, now: float) -> None:
        self.nonce = os.urandom(6).hex()
        self.send(wire.topic(self.board, "hello"), json.dumps({"nonce": self.nonce}).encode())
        self.due = now + ASK

    def on_ack(self, payload: bytes, now: float) -> None:
        """An acknowledgement, or the answer to our question."""
        answer = wire.parse(payload)
        seq, nonce = answer.get("seq"), answer.get("nonce")
        if not wire.is_number(seq):
            raise wire.Malformed(f"an answer without a number: {payload[:100]!r}")
        assert isinstance(seq, int)
        if self.nonce and nonce == self.nonce:
            self.nonce = ""
            self.outbox.flush(now)
            self.outbox.heard(seq)
            self.sent = 0
        if self.nonce or seq >= self.outbox.next:
            return  # an answer to an earlier question, or about an earlier life
        self.acked = seq
        self.outbox.acknowledged(seq)
        self.due = None
        self.pump(now)

    def pump(self, now: float) -> None:
        """Send what the window takes."""
        if not self.connected or self.nonce:
            return
        under_way = self.outbox.under_way(self.sent)
        while under_way < WINDOW and (records := self.outbox.waiting(self.sent, BATCH, BATCH_SIZE)):
            payload = wire.pack(self.sent if under_way else 0, records)
            if not self.send(wire.topic(self.board, "up"), payload):
                break
            self.sent = records[-1].number
            under_way += len(records)
        if self.due is None and under_way:
            self.due = now + SILENCE

    def tick(self, now: float) -> None:
        """No answer for too long: from the beginning."""
        if self.due is None or now < self.due or not self.connected:
            return
        self.due = None
        if self.nonce:
            self._ask(now)
        else:
            self.resent += self.outbox.under_way(self.sent)
            self.sent = 0
            self.pump(now)


class Uplink:
    """The app: bus, outbox, connection and sender."""

    def __init__(self, bus: Bus, outbox: Outbox, remote: Remote, board: str, chosen: Any) -> None:
        self.bus = bus
        self.urgent = chosen.UPLINK_URGENT
        self.outbox = outbox
        self.remote = remote
        self.sender = Sender(outbox, board, lambda topic, payload: remote.publish(topic, payload, qos=1))
        for kind, pattern in chosen.UPLINK_TOPICS:
            bus.subscribe(pattern, partial(self.take, kind))
        bus.watch(remote.fd, self.arrived)

    def take(self, kind: str, topic: str, message: Message) -> None:
        """A record of the local bus."""
        body = json.dumps({"topic": topic, **message}, separators=(",", ":"), ensure_ascii=False).encode()
        self.outbox.put(kind, body, time.monotonic(), urgent=kind in self.urgent)

    def arrived(self) -> None:
        """From the mothership's broker."""
        now = time.monotonic()
        for topic, payload in self.remote.take():
            if not topic:
                self.remote.publish(wire.topic(self.sender.board, "state"), STATE % b"ready", qos=1, retain=True)
                self.sender.up(now)
                continue
            try:
                self.sender.on_ack(payload, now)
            except wire.Malformed as error:
                self.bus.log.warning("uplink: %s: %s", topic, error)
            else:
                self.bus.publish("ack", {"seq": self.sender.acked})

    def turn(self, now: float) -> None:
        """Commits and repeats that are due, and losses that nobody has been told of."""
        if not self.remote.connected:
            self.sender.down()
        self.outbox.tick(now)
        if self.outbox.lost:
            lost, self.outbox.lost = self.outbox.lost, {}
            self.take("lost", "lost", self.bus.envelope("lost", lost))
        self.sender.tick(now)
        self.sender.pump(now)


def main(arguments: list[str]) -> None:
    """`uplink.py HOST:PORT...`"""
    chosen = of_this_board()
    bus = Bus("uplink")
    board = chosen.UPLINK_BOARD or os.uname().nodename
    if not wire.is_name(board):
        raise SystemExit(f"{board!r} is not a board's name: letters, digits, - _ . and at most {wire.LONGEST} of them")
    outbox = Outbox(chosen.OUTBOX, chosen.OUTBOX_SIZE, chosen.OUTBOX_SPARE, chosen.OUTBOX_GIVE_UP, bus.log.warning)
    tls = Tls(*chosen.UPLINK_TLS) if chosen.UPLINK_TLS else None
    will = (wire.topic(board, "state"), STATE % b"lost")
    remote = Remote(board, tuple(arguments), (wire.topic(board, "ack"),), will=will, tls=tls)
    uplink = Uplink(bus, outbox, remote, board, chosen)
    remote.start()
    try:
        for now in bus.every(TURN):
            uplink.turn(now)
    finally:
        outbox.close(time.monotonic())
        remote.publish(wire.topic(board, "state"), STATE % b"disconnected", qos=1, retain=True)
        remote.end()


if __name__ == "__main__":
    main(sys.argv[1:])
