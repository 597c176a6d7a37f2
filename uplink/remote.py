"""A connection to the mothership's broker, in a thread of its own, with TLS or without; tried again for ever."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import deque
from collections.abc import Iterator
from itertools import cycle
from typing import Any, NamedTuple

from _log import get_logger
from onboard import mqtt
from onboard.mqtt import BACKLOG, KEEPALIVE

INBOX = 16 * 1024 * 1024  # bytes in the inbox that nobody has taken
REMOTE_FIRST, REMOTE_MAX = (
    5.0,
    120.0,
)  # seconds between two tries, doubled after each and partly random: a fleet shares the broker


class Tls(NamedTuple):
    """Files in PEM: the authority that signs the broker's certificate, our own certificate, its key."""

    ca: str
    certificate: str | None = None
    key: str | None = None


class Remote(threading.Thread):
    """A connection to a broker far away, in a thread of its own: looking its name up or connecting may take minutes.

    What arrives, and "" with b"" for each new connection, waits in `inbox`; `fd` can be read while there is something.
    Nothing is queued for a broker that is away: `publish` says that it did not send.
    """

    def __init__(
        self,
        name: str,
        addresses: tuple[str, ...],
        patterns: tuple[str, ...],
        *,
        will: tuple[str, bytes] | None = None,
        tls: Tls | None = None,
        protocol: str = "3.1.1",
    ) -> None:
        """`addresses` are host:port, tried in turn; the broker retains `will` when it misses us (MQTT 3.1.1, 3.1.2.5).

        What it has retained under a topic of `patterns` is taken too, but for topics that end in "/cmd": a command is for those
        who are there. `protocol` is a version of MQTT, "3.1.1" or "5".
        """
        super().__init__(daemon=True)
        self.id = name
        self.addresses = addresses
        self.address = addresses[0]
        self.patterns = patterns
        self.will = will
        self.tls = tls
        self.protocol = protocol
        self.longest = REMOTE_MAX  # pause between two tries; for whoever is no part of a fleet it may be shorter
        self.inbox: deque[tuple[str, bytes]] = deque()
        self._in, self._out = 0, 0  # bytes that were put there by our thread, and taken by the other one
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.log = get_logger(name)
        self.dropped = mqtt.Dropped(self.log)
        self.connected = False
        self._client: mqtt.Client | None = None
        self._ending = threading.Event()
        self._lost = False

    def run(self) -> None:
        """Connect and serve; after each end wait, longer each time and partly at random, so that a fleet spreads."""
        waits, addresses = self._pauses(), cycle(self.addresses)
        while not self._ending.is_set():
            self.address = next(addresses)
            try:
                client = self._client = self._make_client()
                host, _, port = self.address.rpartition(":")
                client.connect(host, int(port), keepalive=KEEPALIVE)
                # At the end until our DISCONNECT has gone out: without it the broker would publish our last will.
                while client.loop(timeout=1.0) == mqtt.SENT and (self.connected or not self._ending.is_set()):
                    waits = self._pauses() if self.connected else waits
            except (OSError, ValueError) as error:
                self._say_lost(str(error))
            self.connected = False
            self._ending.wait(next(waits))

    def _pauses(self) -> Iterator[float]:
        return pauses(min(REMOTE_FIRST, self.longest), min(REMOTE_MAX, self.longest))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Hand a message to the connection. True says no more than that it was taken."""
        client = self._client
        return bool(self.connected and client and client.publish(topic, payload, qos, retain).rc == mqtt.SENT)

    def take(self) -> Iterator[tuple[str, bytes]]:
        """All messages in the inbox; they leave it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)
        while self.inbox:
            topic, payload = self.inbox.popleft()
            self._out += len(payload)
            yield topic, payload

    def broker_certificate(self) -> bytes:
        """The broker's certificate in DER; empty without a connection or without TLS."""
        link = self._client.socket() if self._client and self.connected else None
        shown = getattr(link, "getpeercert", None)
        try:
            return (shown(True) or b"") if shown else b""
        except (OSError, ValueError):  # it has just been closed
            return b""

    def end(self) -> None:
        """Send DISCONNECT, so that the broker does not publish our last will."""
        self._ending.set()
        if self._client and self.connected:
            self._client.disconnect()
        self.join(2.0)

    def _make_client(self) -> mqtt.Client:
        client = mqtt.make_client(self.id, self.dropped, protocol=self.protocol)
        if self.tls:
            client.tls_set(self.tls.ca, self.tls.certificate, self.tls.key)
        if self.will:
            client.will_set(*self.will, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        # With this set publish() only queues and wakes our thread: TLS takes no two on one connection at once.
        client.on_socket_register_write = lambda *_: None
        return client

    def _on_message(self, _client: mqtt.Client, _data: Any, packet: mqtt.MQTTMessage) -> None:
        if not (packet.retain and packet.topic.endswith("/cmd")):
            self._arrived(packet.topic, bytes(packet.payload))

    def _arrived(self, topic: str, payload: bytes) -> None:
        while (len(self.inbox) >= BACKLOG or self._in - self._out >= INBOX) and not self._ending.wait(0.05):
            pass  # the inbox is full: stop reading, so that the broker waits
        self._in += len(payload)
        self.inbox.append((topic, payload))
        with contextlib.suppress(BlockingIOError):  # full: it can be read already
            os.write(self._writer, b".")

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, *_: Any) -> None:
        if reason.is_failure:
            self._say_lost(f"refused: {reason}")
            return
        if self.patterns:
            client.subscribe([(pattern, 1) for pattern in self.patterns])
        else:
            self._ready()

    def _on_subscribe(self, client: mqtt.Client, _data: Any, _number: int, reasons: list[Any], *_: Any) -> None:
        """The broker may refuse a subscription (rights, limits). Without it we hear nothing: disconnect, and try again."""
        refused = [
            f"{pattern} ({reason})" for pattern, reason in zip(self.patterns, reasons, strict=False) if reason.is_failure
        ]
        if refused:
            self.log.warning("uplink: %s refuses to send us %s", self.address, ", ".join(refused))
        if len(refused) < len(reasons):
            self._ready()
        else:
            client.disconnect()

    def _ready(self) -> None:
        if self._lost:
            self.log.info("uplink: connected to %s", self.address)
        self._lost = False
        self.connected = True
        self._arrived("", b"")

    def _on_disconnect(self, *arguments: Any) -> None:
        self.connected = False
        if not self._ending.is_set():
            self._say_lost(str(arguments[3]))

    def _say_lost(self, why: str) -> None:
        """Log that the connection is lost: once, not at every try."""
        if not self._lost:
            self.log.warning("uplink: no connection to %s (%s), trying again", self.address, why)
        self._lost = True


def pauses(first: float, most: float) -> Iterator[float]:
    """Seconds to wait before each further try: random, from a range that doubles, so that a fleet spreads over it."""
    while True:
        yield first * random.uniform(0.1, 1.0)
        first = min(2 * first, most)
