"""When which record is sent: first ask what the mothership has, then send in order, and again until it is acknowledged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from uplink import wire
from uplink.numbering import Stream
from uplink.outbox import Outbox
from uplink.remote import pauses

WINDOW = 400  # records under way
BATCH = 100  # records of one message...
BATCH_SIZE = 64 * 1024  # ...or so many bytes, before they are compressed
SMALLEST = 4096  # bytes that every usable broker takes: no record of this size is deleted because a broker refuses it
SILENCE = 10.0  # seconds without an acknowledgement until the batches under way are sent again
ASK_FIRST, ASK_MAX = 2.0, 60.0  # seconds without an answer until the question is asked again; doubled each time, partly random
TOLD = 60.0  # seconds in which the mothership acknowledges nothing until we log it
GROWTH = 50  # acknowledgements in a row until batches that were halved are doubled again


class Sender:
    """Go-back-N over a connection that may end at any time. Time is an argument."""

    def __init__(
        self, outbox: Outbox, board: str, send: Callable[[str, bytes], bool], boot_id: str = "",
        say: Callable[[str], object] = print,
    ) -> None:  # fmt: skip
        """`send(topic, payload)` gives a message to the connection, and says whether it could; `say` is for people."""
        self.outbox = outbox
        self.board = board
        self.send = send
        self.boot_id = boot_id
        self.say = say
        self.stream: Stream = outbox.sending()  # that was asked about
        self.nonce = ""  # of the question that has not been answered; "" once it has
        self.patience = pauses(ASK_FIRST, ASK_MAX)  # for its answer
        self.sent = 0  # the highest number of the stream that is under way
        self.highest = 0  # the highest number that was sent in it, or that the mothership has answered with
        self.acked = 0  # the last number that the mothership has of it
        self.ahead: float | None = None  # the mothership's clock minus our monotonic one
        self.due: float | None = None  # to ask, or to send again
        self.connected = False
        self.resent = 0
        self.batch_size = BATCH_SIZE
        self.doubt = False  # batches under way got no answer: they may be lost, or the mothership is away
        self.moved = True  # the mothership has taken records over this connection
        self.good = 0  # acknowledgements since the batches were made smaller
        self.waited = 0.0  # seconds of a connection in which nothing was taken though something waits...
        self.since: float | None = None  # ...counted up to here
        self.complained = ""  # the complaint that was logged, until it is over

    def up(self, now: float) -> None:
        """There is a connection: ask what the mothership has before sending anything."""
        self.connected = True
        # A broker that disconnects who sends too much looks like a bad connection: what was under way goes in smaller parts.
        self.doubt = self.doubt or (not self.moved and self.outbox.under_way(self.stream, self.sent) > 0)
        self.moved = False
        self._ask_anew(now)

    def down(self) -> None:
        """The connection has ended."""
        self.connected = False
        self.due = self.since = None

    def _ask_anew(self, now: float) -> None:
        """Ask a new question, about the stream that is sent next."""
        if (stream := self.outbox.sending()) != self.stream:
            self.sent = self.highest = self.acked = 0
        self.stream = stream
        self.patience = pauses(ASK_FIRST, ASK_MAX)
        self.nonce = os.urandom(6).hex()
        self._ask(now)

    def _ask(self, now: float) -> None:
        """Send the question, with the same nonce each time: a late answer counts too."""
        question: dict[str, Any] = {"nonce": self.nonce, "outbox": self.stream.identity, "own": self.outbox.numbers.own()}
        question |= {"boot": self.boot_id, "mono": round(now, 3)}
        self.send(wire.topic(self.board, "hello"), json.dumps(question).encode())
        self.due = now + next(self.patience)

    # --- answers ------------------------------------------------------------------------------------------------------
    def on_ack(self, payload: bytes, now: float) -> bool:
        """Take an acknowledgement or an answer. False for one that the broker had retained."""
        answer = wire.parse(payload)
        seq, nonce, stream = answer.get("seq"), answer.get("nonce"), answer.get("outbox", "")
        if stream != self.stream.identity:
            return self._of_another(answer)
        if isinstance(answer.get("refused"), str):
            self._refused(answer["refused"], now)
            return False
        if not wire.is_number(seq):
            raise wire.Malformed(f"an answer without a number that a record can have: {payload[:100]!r}")
        assert isinstance(seq, int)
        answered = bool(self.nonce and nonce == self.nonce)
        if answered:
            self.outbox.flush(now)
            self.ahead = answer["time"] - now if wire.is_seconds(answer.get("time")) else self.ahead
            if not self.outbox.heard(stream, seq):
                self._ask_anew(now)
                return False
            self.nonce = ""
            self.sent = 0
            self.highest = max(self.highest, seq)
        if self.nonce or seq > self.highest:
            return False  # an answer to an earlier question, or for records that we have not sent
        news = answered or seq > self.acked
        if news:  # an answer that tells nothing new does not delay sending again
            self.due = None
        self._learn(progress=seq > self.acked, answered=answered)
        fresh, self.acked = nonce is not None or seq > self.acked, seq if answered else max(seq, self.acked)
        before = self.outbox.count()
        self.outbox.acknowledged(stream, seq)
        self._heard_of(now, moved=self.outbox.count() < before)
        self.pump(now)
        return fresh

    def _of_another(self, answer: dict[str, object]) -> bool:
        """An answer about a stream that we did not ask about: an older one of ours, another outbox's, or an unknown one."""
        if self.nonce and answer.get("nonce") == self.nonce and "outbox" not in answer:
            self._complain("the mothership is older than this board and knows no streams: nothing is sent; update the receiver")
        return False

    def _refused(self, why: str, now: float) -> None:
        """Another outbox uses our name. Send nothing, keep all records, and ask again, each time later."""
        self._complain(f"the mothership refuses our records: {why[:300]}")
        if not self.nonce:
            self._ask_anew(now)

    def _learn(self, *, progress: bool, answered: bool) -> None:
        """Halve the batches if a question is answered and a batch is not; double them again after some acknowledgements."""
        if self.doubt and answered and not progress and self.outbox.count():
            if self.batch_size <= SMALLEST:
                self._give_up_alone()
            self.batch_size, self.good = max(SMALLEST, self.batch_size // 2), 0
        elif progress:
            self.good += 1
            if self.good >= GROWTH:
                self.batch_size, self.good = min(BATCH_SIZE, 2 * self.batch_size), 0
        if answered or progress:
            self.doubt = False

    def _give_up_alone(self) -> None:
        """Delete the oldest record if it was sent alone and is too large for this broker."""
        oldest = self.outbox.waiting(self.stream, 0, 1, 1)
        if oldest and len(oldest[0].body) > SMALLEST:
            self.outbox.give_up_oldest(f"the broker does not take a message with a record of {len(oldest[0].body)} bytes")

    def _heard_of(self, now: float, *, moved: bool) -> None:
        """The mothership has answered; `moved`: it has taken records."""
        if moved or not self.outbox.count():
            self.moved, self.waited = True, 0.0
            if self.complained:
                self.complained = ""
                self.say("the mothership takes our records again")

    def _complain(self, why: str) -> None:
        """Log a complaint once, until it is over."""
        if self.complained != why:
            self.complained = why
            self.say(why)

    # --- records ------------------------------------------------------------------------------------------------------
    def pump(self, now: float) -> None:
        """Send batches until the window is full."""
        if not self.connected or self.nonce:
            return
        if self.outbox.sending() != self.stream:
            self._ask_anew(now)
            return
        under_way = self.outbox.under_way(self.stream, self.sent)
        while under_way < WINDOW and (records := self.outbox.waiting(self.stream, self.sent, BATCH, self.batch_size)):
            payload = wire.pack(self.sent if under_way else 0, records, self.stream.identity)
            if not self.send(wire.topic(self.board, "up"), payload):
                break
            self.sent = records[-1].number
            self.highest = max(self.highest, self.sent)
            under_way += len(records)
        if self.due is None and under_way:
            self.due = now + SILENCE

    def tick(self, now: float) -> None:
        """After too long without an answer ask again, and send again from the first record that is not acknowledged."""
        if self.connected and self.outbox.count():
            self.waited += now - self.since if self.since is not None else 0.0
            self.since = now
            if self.waited >= TOLD and not self.complained:
                self._complain(f"the mothership has taken nothing for {self.waited:.0f} s: {self.outbox.count()} records wait")
        else:
            self.since = None
        if self.due is None or now < self.due or not self.connected:
            return
        self.due = None
        if self.nonce:
            self._ask(now)
        else:
            self.resent += self.outbox.under_way(self.stream, self.sent)
            self.doubt = True
            self.outbox.give_up_damaged(BATCH)
            self._ask_anew(now)
