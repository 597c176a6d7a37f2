"""The mothership's receiver: takes batches from any MQTT 3.1.1 broker, commits them, and only then acknowledges.

`receiver.py HOST:PORT DATABASE`, or `python3 mothership receive HOST:PORT DATABASE`. A malformed message is
refused and counted; the receiver goes on. While the database is away the receiver acknowledges nothing and tries again, and the
boards keep their records.

Several receivers share a fleet by `--share K/N`: each takes the boards whose crc32 is K modulo N. MQTT's own shared
subscriptions will not do: they deal one board's batches, which must arrive in order, out to all receivers, so that most of
them would miss the batch before theirs; and MQTT 3.1.1 has none. Two receivers of the same share do no harm with any
database: each board's row is locked from its last number to the commit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import ssl
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from store import Key, News, Store, Unavailable

from _log import get_logger
from uplink import certificates, wire
from uplink.remote import Remote, Tls

GROUP = 100  # messages of one commit...
GROUP_SIZE = 2 * 1024 * 1024  # bytes of JSON of one commit; Python's objects of it are up to 25 times as large
MOST = wire.MOST  # bytes of a message: a compressed batch is smaller
MOST_OWN = 32  # streams of one outbox
MOST_TOLD = 16 * 1024  # bytes of a state, an info or a question
HEARD = ("up", "hello", "state", "info")  # the topics of every board to which we subscribe
STATES = ("init", "ready", "stopping", "disconnected", "lost")
LONGEST = 2.0  # seconds between two tries to connect: there is one receiver, not a fleet
RETRY, RETRY_MAX = 0.5, 30.0  # seconds between two tries at a database that is away; doubled
SAY_EVERY = 10.0  # seconds between two log lines about refused messages
COUNTS_EVERY = 60.0  # seconds between two log lines of counts, if a count has changed


class Share(NamedTuple):
    """The boards of this receiver: all, or every `of`-th."""

    ours: int = 0
    of: int = 1

    def has(self, board: str) -> bool:
        return self.of == 1 or zlib.crc32(board.encode()) % self.of == self.ours


ALL = Share()


class Receiver:
    """Messages in, commits and answers out."""

    def __init__(self, store: Store, remote: Remote, share: Share = ALL, ending: threading.Event | None = None) -> None:
        self.store = store
        self.remote = remote
        self.share = share
        self.ending = ending or threading.Event()
        self.counts: Counter[str] = Counter()
        self.quiet_until = 0.0  # the next line about what was refused
        self.unsaid = 0

    def turn(self) -> None:
        """Take the messages that have arrived: commit a group of batches, then acknowledge them."""
        batches: list[tuple[str, wire.Batch]] = []
        news: list[News] = []
        size = 0
        for topic, payload in self.remote.take():
            if not topic:
                self.counts["connections"] += 1
                continue
            try:
                size += self._sort(topic, payload, batches, news)
            except (wire.Malformed, RecursionError) as error:
                self._refuse(f"{topic[:100]!r}: {error}")
            if len(batches) + len(news) >= GROUP or size >= GROUP_SIZE:
                self._commit(batches, news)
                batches, news, size = [], [], 0
        self._commit(batches, news)

    def _sort(self, topic: str, payload: bytes, batches: list[tuple[str, wire.Batch]], news: list[News]) -> int:
        """Sort a message into batches or news; returns its size in bytes of JSON."""
        board, what = wire.parse_topic(topic)
        if not self.share.has(board):
            return 0
        self.counts["messages"] += 1
        if len(payload) > (MOST if what == "up" else MOST_TOLD):
            raise wire.Malformed(f"{len(payload)} bytes are more than any of ours")
        if what == "up":
            batch = wire.unpack(payload)
            batches.append((board, batch))
            return batch.size
        if what not in HEARD:
            raise wire.Malformed("nothing of this name was asked for")
        if payload:  # without one: the retained message was cleared
            said = wire.parse(payload, MOST_TOLD)
            if what == "state" and said.get("state") not in STATES:
                raise wire.Malformed(f"{str(said.get('state'))[:50]!r} is not one of {', '.join(STATES)}")
            if what == "hello":
                outbox = said.setdefault("outbox", "")
                own = said.setdefault("own", [outbox])
                if not wire.is_stream(outbox) or not isinstance(own, list) or not all(map(wire.is_stream, own[:MOST_OWN])):
                    raise wire.Malformed(f"{str(outbox)[:50]!r} of {str(own)[:200]} is no stream")
                said["own"] = own[:MOST_OWN]
            news.append(News(board, what, said))
        return len(payload)

    def _commit(self, batches: list[tuple[str, wire.Batch]], news: list[News]) -> None:
        """Commit and acknowledge; while the database is away, try again until it is back or we are to end."""
        pause = RETRY
        while batches or news:
            try:
                answers = self.store.take(batches, news)
            except Unavailable as error:
                self.counts["tries that failed"] += 1
                self.remote.log.warning("the database is away (%s): nothing is acknowledged, trying again", error)
                if self.ending.wait(pause):
                    return
                pause = min(2 * pause, RETRY_MAX)
            except Exception as error:  # an error that should not be; one board's batch must not stop the others
                if len(batches) + len(news) == 1:
                    self._refuse(f"the database cannot store it: {error!r}")
                    return
                for batch in batches:
                    self._commit([batch], [])
                for item in news:
                    self._commit([], [item])
                return
            else:
                taken = (batch for board, batch in batches if not isinstance(answers.get((board, batch.outbox)), str))
                self.counts["records"] += sum(len(batch.records) for batch in taken)
                self.counts["commits"] += 1
                hellos = (item for item in news if item.what == "hello")
                nonces = {(item.board, item.said["outbox"]): item.said.get("nonce") for item in hellos}
                self._answer(answers, nonces)
                return

    def _answer(self, answers: dict[Key, int | str], nonces: dict[Key, Any]) -> None:
        for (board, outbox), found in answers.items():
            nonce = nonces.get((board, outbox))
            answer: dict[str, Any] = {"refused": found} if isinstance(found, str) else {"seq": found}
            answer |= {"outbox": outbox, "nonce": None if nonce is None else str(nonce)[: wire.LONGEST]}
            answer["time"] = round(time.time(), 3)
            if isinstance(found, str):
                self._refuse(f"{board}: {found}")
            payload = json.dumps(answer).encode()
            self.remote.publish(wire.topic(board, "ack"), payload, qos=1, retain=not isinstance(found, str))

    def _refuse(self, why: str) -> None:
        """Count a refused message, and log it, but not each one of a flood."""
        self.counts["refused"] += 1
        now = time.monotonic()
        if now < self.quiet_until:
            self.unsaid += 1
            return
        self.remote.log.warning("refused: %s%s", why[:300], f" ({self.unsaid} more before it)" if self.unsaid else "")
        self.quiet_until, self.unsaid = now + SAY_EVERY, 0

    def told(self) -> str:
        """The counts as one line for the log."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items()) or "nothing yet"


def share_of(text: str) -> Share:
    """Parse K/N of --share."""
    ours, _, of = text.partition("/")
    if not (ours.isdecimal() and of.isdecimal() and int(ours) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 0 to N-1, such as 0/2")
    return Share(int(ours), int(of))


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Add the option --tls, of every command that connects to a broker."""
    parser.add_argument(
        "--tls", nargs=3, metavar=("CA", "CERT", "KEY"), help="files in PEM; without them the connection is plain"
    )


def tls_of(files: list[str] | None) -> Tls | None:
    """Load the files of --tls, so that an error is printed at the start: the connection's thread would only try again."""
    if files is None:
        return None
    try:
        context = ssl.create_default_context(cafile=files[0])
        context.load_cert_chain(files[1], files[2])
    except (OSError, ssl.SSLError) as error:
        raise SystemExit(f"--tls {' '.join(files)}: cannot be used: {error}") from None
    return Tls(*files)


def log_of(name: str) -> logging.Logger:
    """How to log: time and text for people, or <LEVEL> and text for systemd's journal, which sets JOURNAL_STREAM."""
    if "JOURNAL_STREAM" in os.environ:
        return get_logger(name)
    logger = logging.getLogger(f"mothership.{name}")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def remote_of(options: argparse.Namespace, name: str, patterns: tuple[str, ...]) -> Remote:
    """A connection with a name of its own: of two clients with the same a broker keeps the younger (MQTT 3.1.1, 3.1.4-2)."""
    host, _, port = options.broker.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:  # the resolver would take it modulo 65,536
        raise SystemExit(f"{options.broker!r} is not HOST:PORT, such as localhost:1883")
    remote = Remote(f"{name}-{os.uname().nodename}-{os.getpid()}", (options.broker,), patterns, tls=tls_of(options.tls))
    remote.longest, remote.log = LONGEST, log_of(name)
    return remote


def warn_of_certificates(remote: Remote, options: argparse.Namespace) -> None:
    """Log a warning some weeks before our certificate or the broker's ends."""
    if options.tls:
        shown = remote.broker_certificate()
        mine, theirs = certificates.until_of(options.tls[1]), certificates.until(shown) if shown else None
        for whose, end in ((f"our certificate ({options.tls[1]})", mine), (f"the certificate of {options.broker}", theirs)):
            if text := certificates.warning(whose, end, time.time()):
                remote.log.warning("%s", text)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", metavar="HOST:PORT", help="any MQTT 3.1.1 broker")
    parser.add_argument("database", metavar="DATABASE", help="a path (SQLite), or postgresql://USER@HOST/NAME")
    parser.add_argument(
        "--share", type=share_of, default=ALL, metavar="K/N", help="of the boards every N-th, from K (0 to N-1)"
    )
    add_tls(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run until SIGTERM. SIGUSR1 logs the counts."""
    ending, asked = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    patterns = tuple(wire.topic("+", what) for what in HEARD)
    remote = remote_of(options, "mothership", patterns)
    receiver = Receiver(Store(options.database), remote, options.share, ending)
    remote.start()
    said, due = receiver.told(), time.monotonic() + COUNTS_EVERY
    while not ending.is_set():
        if select.select([remote.fd], [], [], 1.0)[0]:
            before = receiver.counts["connections"]
            receiver.turn()
            if receiver.counts["connections"] > before:
                remote.log.info("connected to %s", options.broker)
                warn_of_certificates(remote, options)
        told = receiver.told()
        if asked.is_set() or (told != said and time.monotonic() >= due):
            asked.clear()
            remote.log.info("so far: %s", told)
            said, due = told, time.monotonic() + COUNTS_EVERY
    remote.end()
    remote.log.info("ends: %s", receiver.told())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    options = parser.parse_args()
    options.run(options)
