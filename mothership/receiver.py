"""The mothership's receiver: takes batches from any MQTT 3.1.1 broker, commits them, and only then acknowledges.

`receiver.py HOST:PORT DATABASE`. What is malformed is refused, counted, and does not end it.
"""

from __future__ import annotations

import json
import select
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from store import Store

import wire
from bus import Remote

GROUP = 100  # messages of one commit


class Receiver:
    """Messages in, commits and answers out."""

    def __init__(self, store: Store, remote: Remote) -> None:
        self.store = store
        self.remote = remote
        self.refused = 0
        self.taken = 0

    def turn(self) -> None:
        """Whatever has arrived: one commit for a group of batches, then their acknowledgements."""
        batches: list[tuple[str, wire.Batch]] = []
        questions: dict[str, str] = {}
        for topic, payload in self.remote.take():
            if not topic:
                continue
            try:
                board, what = wire.parse_topic(topic)
                if what == "up":
                    batches.append((board, wire.unpack(payload)))
                elif what == "hello":
                    questions[board] = str(wire.parse(payload).get("nonce", ""))[: wire.LONGEST]
            except wire.Malformed as error:
                self.refused += 1
                self.remote.log.warning("refused: %s", error)
            if len(batches) >= GROUP:
                self._commit(batches, {})
                batches = []
        self._commit(batches, questions)

    def _commit(self, batches: list[tuple[str, wire.Batch]], questions: dict[str, str]) -> None:
        seqs = self.store.take(batches) if batches else {}
        self.taken += sum(len(batch.records) for _, batch in batches)
        for board in {*seqs, *questions}:
            answer = {
                "seq": seqs.get(board) or self.store.last(board),
                "nonce": questions.get(board),
                "time": round(time.time(), 3),
            }
            self.remote.publish(wire.topic(board, "ack"), json.dumps(answer).encode(), qos=1, retain=True)


def main(arguments: list[str]) -> None:
    address, database = arguments
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    remote = Remote("mothership", (address,), (wire.topic("+", "up"), wire.topic("+", "hello")))
    receiver = Receiver(Store(database), remote)
    remote.start()
    while not ending.is_set():
        if select.select([remote.fd], [], [], 1.0)[0]:
            receiver.turn()
    remote.end()


if __name__ == "__main__":
    main(sys.argv[1:])
