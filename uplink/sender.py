"""What of the outbox is sent when: asked for first, sent in order, and sent again until the mothership has acknowledged it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from uplink import wire
from uplink.outbox import Outbox
from uplink.remote import pauses

WINDOW = 400  # records under way
BATCH = 100  # records of one message...
BATCH_SIZE = 64 * 1024  # ...or so many bytes, before they are compressed
SILENCE = 10.0  # seconds without an acknowledgement, and what is under way is sent again
HIGHEST = 2**61  # that the mothership may answer with: ours go on above it, and must stay numbers of the format
ASK_FIRST, ASK_MAX = 2.0, 60.0  # seconds without an answer, and the question is asked again; doubled, jittered
UNREAD = 600.0  # seconds to wait for a disk that could not be read, and whose records come first, before others are sent
LOOK = 1.0  # seconds between two looks at it


class Sender:
    """What is sent when: go-back-N over a connection that may be gone at any time. Time is an argument."""

    def __init__(self, outbox: Outbox, board: str, send: Callable[[str, bytes], bool], boot_id: str = "") -> None:
        """`send(topic, payload)` gives a message to the connection, and says whether it could."""
        self.outbox = outbox
        self.board = board
        self.send = send
        self.boot_id = boot_id
        self.waiting_until: float | None = None  # for a disk that could not be read
        self.nonce = ""  # of the question that has not been answered; "" once it has
        self.patience = pauses(ASK_FIRST, ASK_MAX)  # for its answer
        self.sent = 0  # the highest number under way
        self.highest = 0  # that was ever sent, or that the mothership has answered with
        self.acked = 0  # the mothership's last word
        self.ahead: float | None = None  # the mothership's clock minus our monotonic one
        self.due: float | None = None  # to ask, or to send again
        self.connected = False
        self.resent = 0

    def up(self, now: float) -> None:
        """A new connection: ask what the mothership has, before anything is sent."""
        self.connected = True
        self.patience = pauses(ASK_FIRST, ASK_MAX)
        self.nonce = os.urandom(6).hex()
        self.waiting_until = now + UNREAD if self.waiting_until is None else self.waiting_until
        self._ask(now)

    def down(self) -> None:
        """The connection is gone."""
        self.connected = False
        self.due = None

    def _ask(self, now: float) -> None:
        """The same question each time: an answer that is later than our patience is an answer too.

        Not before the disk could be read: what was sent from memory before would have other numbers than what the disk knows,
        and of both together nobody could say after a power cut what the mothership has.
        """
        if self.outbox.unread and now < (self.waiting_until or now):
            self.due = now + LOOK
            return
        question = {"nonce": self.nonce, "boot": self.boot_id, "mono": round(now, 3)}
        self.send(wire.topic(self.board, "hello"), json.dumps(question).encode())
        self.due = now + next(self.patience)

    def on_ack(self, payload: bytes, now: float) -> bool:
        """An acknowledgement, or the answer to our question; whether it is one, and nothing that the broker had retained."""
        answer = wire.parse(payload)
        seq, nonce = answer.get("seq"), answer.get("nonce")
        if not wire.is_number(seq):
            raise wire.Malformed(f"an answer without a number: {payload[:100]!r}")
        assert isinstance(seq, int)
        if seq > HIGHEST:
            raise wire.Malformed(f"{seq} is no number that a board comes to: one above it could not be sent")
        if answered := bool(self.nonce and nonce == self.nonce):
            self.nonce = ""
            self.outbox.flush(now)
            self.outbox.heard(seq, self.board)
            self.sent = 0
            self.highest = max(self.highest, seq)
            self.ahead = answer["time"] - now if wire.is_seconds(answer.get("time")) else self.ahead
        if self.nonce or seq > self.highest:
            return False  # an answer to an earlier question, or about what we have not sent
        if answered or seq > self.acked:  # what is no news does not put off sending again
            self.due = None
        fresh, self.acked = nonce is not None or seq > self.acked, max(seq, self.acked)
        self.outbox.acknowledged(seq)
        self.pump(now)
        return fresh

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
            self.highest = max(self.highest, self.sent)
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
            self.outbox.give_up_damaged(BATCH)
            self.pump(now)
