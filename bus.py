"""The local bus for apps: MQTT over a Unix socket, one thread, a paced loop, and a connection that survives the broker.

    bus = Bus("hello")
    for _ in bus.every(1.0):
        bus.publish("hello", {"text": "world"})

An app that only listens ends with `bus.run()`. `python3 bus.py TOPIC` prints what passes on a topic.
What must not be lost must not rely on this bus: it has no memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

import settings
from _log import counts, get_logger
from onboard import clock

VERSION = 1  # of the envelope
BACKLOG = 1000  # messages kept while the broker is away; the oldest go first
ANSWER_TIMEOUT = 5.0  # seconds
CLOCK_PERIOD = 1.0  # seconds between two looks at the clock's state
KEEPALIVE = 60  # seconds: silent for 1.5 times as long, the broker takes us for dead (MQTT 3.1.1, 3.1.2.10)
RECONNECT_FIRST, RECONNECT_MAX = 0.1, 5.0  # seconds; doubled, jittered
PROTOCOLS = {"3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}
REMOTE_FIRST, REMOTE_MAX = 5.0, 120.0  # the same, for a broker that a fleet shares

RIGHTS = "/run/bus-rights"  # services/bus_rights.py puts there what each service may, readable by its user alone
RIGHTS_TIMEOUT = 10.0  # seconds: a service that came with a reload may be here before its rights are
LARGEST = 262_000  # bytes of topic and message: larger ones would end the connection (data/mosquitto.conf, max_packet_size)

Message = dict[str, Any]
Handler = Callable[[str, Message], object]


class Tls(NamedTuple):
    """Files in PEM: who may vouch for the broker, and who we are."""

    ca: str
    certificate: str | None = None
    key: str | None = None


class Bus:
    """One app's connection. Everything happens in the app's own thread, inside `every()` or `run()`."""

    def __init__(self, name: str, address: str = "") -> None:
        self.name = name
        self.log = get_logger(name)
        self.address = address or os.environ.get("BUS", settings.BUS)
        self._client = self._make_client()
        self._handlers: dict[str, Handler] = {}
        self._watched: dict[int, Callable[[], object]] = {}  # other descriptors, served in the same wait
        self._retained: dict[str, bytes] = {}  # the broker forgets when it dies: we tell its successor
        self._waiting: deque[tuple[str, bytes, bool]] = deque(maxlen=BACKLOG)
        self._connected = False
        self._lost: float | None = None  # since when, once it has been said
        self._retry = RECONNECT_FIRST
        self._next_try = 0.0
        self._patience = 0.0  # for the broker's answer to our CONNECT
        self._sequence = 0
        self._clock, self._clock_due = "", 0.0  # its state, and when to ask again
        self._told: dict[str, int] = {}
        self._rights: Message = {}  # our name for the broker, our password, and what we may publish
        self._refused: set[str] = set()  # topics of which it has been said
        self._began = time.monotonic()
        self._ending = self._busy = False
        signal.signal(signal.SIGTERM, self._end)
        self.boot_id = _read("/proc/sys/kernel/random/boot_id")

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{self.name}-{os.urandom(8).hex()}",  # who knew it could have the broker end our connection
            transport="unix" if self.address.startswith("/") else "tcp",
            reconnect_on_failure=False,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    # --- for apps -------------------------------------------------------------------------------------------------
    def publish(self, topic: str, data: Any, *, retain: bool = False) -> None:
        """Send data, in the envelope, as JSON. While the broker is away the last messages wait for it."""
        payload = json.dumps(self.envelope(topic, data)).encode()
        if not self._may_publish(topic, len(payload)):
            return
        if retain:
            self._retained[topic] = payload
        if self._connected and self._client.publish(topic, payload, 0, retain).rc == mqtt.MQTT_ERR_SUCCESS:
            return
        if not retain:  # retained ones are sent again anyway
            self._waiting.append((topic, payload, retain))

    def subscribe(self, pattern: str, handler: Handler) -> None:
        """Call `handler(topic, message)` for what matches, instead of an earlier handler of the same pattern."""
        self._handlers[pattern] = handler
        if self._connected:
            self._client.subscribe(pattern)

    def watch(self, fd: int, handler: Callable[[], object]) -> None:
        """Call `handler()` inside `every()` or `run()` whenever a descriptor can be read, until `unwatch(fd)`."""
        self._watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        """No longer; before the descriptor is closed."""
        self._watched.pop(fd, None)

    def every(self, seconds: float) -> Iterator[float]:
        """Yield the monotonic time every so many seconds, and serve the bus in between. It ends with SIGTERM.

        The pace does not drift: a turn that was late is followed by the next one on time, missed ones are left out.
        """
        due = time.monotonic()
        while not self._ending:
            now = time.monotonic()
            if now >= due:
                yield now
                self._tell_counts()
                due += seconds * max(1, -(-(time.monotonic() - due) // seconds))
            else:
                self._serve(due - now)

    def when(self, due: Callable[[], float | None], most: float = 60.0) -> Iterator[float]:
        """Yield the monotonic time now, and each time that `due()`, a monotonic time, has come; serve the bus in between.

        For apps that sleep until there is something to do; at least every `most` seconds. It ends with SIGTERM.
        """
        while not self._ending:
            now = time.monotonic()
            yield now
            self._tell_counts()
            while (left := min(due() or now + most, now + most) - time.monotonic()) > 0:
                self._serve(left)

    def run(self) -> None:
        """Serve the bus until SIGTERM: for apps that only listen."""
        for _ in self.every(60.0):
            pass

    # --- inside ---------------------------------------------------------------------------------------------------
    def _end(self, *_: object) -> None:
        """Out of whatever wait we are in; and where the exception is swallowed (a destructor, a callback), at the next turn."""
        self._ending = True
        if not self._busy:
            sys.exit(0)

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """What is done in here comes to its end; SIGTERM waits for it."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self._ending:
                sys.exit(0)

    def envelope(self, topic: str, data: Any) -> Message:
        """Data as it is published."""
        self._sequence += 1
        now = time.monotonic()
        if now >= self._clock_due:
            self._clock, self._clock_due = clock.state(), now + CLOCK_PERIOD
        return {
            "v": VERSION, "boot": self.boot_id, "from": self.name, "seq": self._sequence, "kind": topic.split("/")[0],
            "time": None if self._clock == "unset" else round(time.time(), 3), "mono": round(now, 3),
            "clock": self._clock, "data": data,
        }  # fmt: skip

    def _serve(self, seconds: float) -> None:
        """Wait for messages, at most so long; connect if need be."""
        now = time.monotonic()
        link = self._client.socket()
        if link is None and now >= self._next_try:
            self._connect(now)
            return
        if link is None:
            self._wait(min(seconds, self._next_try - now))
            return
        if not self._connected and now >= self._patience:  # it accepted us and never answered
            link.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        self._wait(min(seconds, KEEPALIVE / 3 if self._connected else 1.0), link)  # pings are sent between waits

    def _wait(self, seconds: float, link: Any = None) -> None:
        """One wait for everything: the broker's link, by paho's external loop, and what else is watched."""
        readers, writers = [*self._watched, *([link] if link else [])], [link] if link and self._client.want_write() else []
        readable, writable, _ = select.select(readers, writers, [], seconds)
        if link in readable:
            self._client.loop_read()
        if writable and self._client.socket() is link:
            self._client.loop_write()
        if link:
            self._client.loop_misc()  # pings, and what it does when they are not answered
        for fd in readable:
            if fd in self._watched:  # not if the handler before it has ended it
                self._guarded(f"descriptor {fd}", self._watched[fd])

    def _guarded(self, what: str, handler: Callable[..., object], *arguments: Any) -> None:
        """An app's handler that fails is logged; the app goes on."""
        try:
            handler(*arguments)
        except Exception:
            self.log.exception("bus: the handler of %s failed", what)

    def _may_publish(self, topic: str, size: int) -> bool:
        """The broker drops without a word what it refuses: we say so, once."""
        why = ""
        if len(topic.encode()) + size > LARGEST:
            why = f"{size} bytes are too many for one message"
        elif self._rights and not any(mqtt.topic_matches_sub(one, topic) for one in self._rights["publishes"]):
            why = f"the row of {self._rights['user']!r} in the settings does not name it in `publishes`"
        if why and topic not in self._refused and len(self._refused) < BACKLOG:
            self._refused.add(topic)
            self.log.warning("bus: %s is not published: %s", topic, why)
        return not why

    def _log_in(self) -> None:
        """With our name and password, where there are some; OSError where they are still to come."""
        service = os.environ.get("STACK_SERVICE", "").partition("@")[0]
        self._rights = _read_rights(service) or _read_rights("root")
        if self._rights:
            self._client.username_pw_set(self._rights["user"], self._rights["password"])
        elif service and os.path.exists(RIGHTS) and time.monotonic() < self._began + RIGHTS_TIMEOUT:
            raise OSError(f"no rights in {RIGHTS} yet")

    def _connect(self, now: float) -> None:
        try:
            self._log_in()
            if self.address.startswith("/"):
                self._client.connect(self.address, 1, keepalive=KEEPALIVE)
            else:
                host, _, port = self.address.rpartition(":")
                self._client.connect(host, int(port), keepalive=KEEPALIVE)
        except PermissionError:
            self._say_lost(f'{self.address}: Permission denied: the row needs groups=("broker",), as app(...) has it')
        except OSError as error:
            self._say_lost(f"{error.strerror or error}")
        self._patience = now + ANSWER_TIMEOUT
        self._next_try = now + self._retry * random.uniform(0.5, 1.0)
        self._retry = min(2 * self._retry, RECONNECT_MAX)

    def _on_connect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, *_: Any) -> None:
        if reason.is_failure:
            self._say_lost(f"refused: {reason}")
            return
        self._connected = True
        self._retry = RECONNECT_FIRST
        if self._lost is not None:
            self.log.info("bus: back after %.1f s", time.monotonic() - self._lost)
            self._lost = None
        for pattern in self._handlers:
            self._client.subscribe(pattern)
        for topic, payload in self._retained.items():
            self._client.publish(topic, payload, 0, True)
        while self._waiting:
            topic, payload, retain = self._waiting.popleft()
            self._client.publish(topic, payload, 0, retain)

    def _on_disconnect(self, *arguments: Any) -> None:
        self._connected = False
        self._say_lost(str(arguments[3]))

    def _say_lost(self, why: str) -> None:
        """Once, not at every try."""
        if self._lost is None:
            self._lost = time.monotonic()
            self.log.warning("bus: lost (%s), trying again", why)

    def _on_message(self, _client: mqtt.Client, _data: Any, packet: mqtt.MQTTMessage) -> None:
        try:
            message = json.loads(packet.payload)
        except (ValueError, RecursionError):
            self.log.warning("bus: %s is not JSON", packet.topic)
            return
        for pattern, handler in list(self._handlers.items()):
            if mqtt.topic_matches_sub(pattern, packet.topic):
                self._guarded(pattern, handler, packet.topic, message)

    def _tell_counts(self) -> None:
        """How many warnings and errors we have logged, retained, for diagnostic.py."""
        if counts != self._told:
            self._told = dict(counts)
            self.publish(f"log/{self.name}", self._told, retain=True)


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
        self.protocol = PROTOCOLS[protocol]
        self.longest = REMOTE_MAX  # pause between two tries; for whoever is no part of a fleet it may be shorter
        self.inbox: deque[tuple[str, bytes]] = deque()
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.log = get_logger(name)
        self.connected = False
        self._client: mqtt.Client | None = None
        self._ending = threading.Event()
        self._lost = False

    def run(self) -> None:
        """Connect, serve, and after each end wait, longer each time and by a drawn part: a fleet must not return as one."""
        waits, addresses = self._pauses(), cycle(self.addresses)
        while not self._ending.is_set():
            self.address = next(addresses)
            try:
                client = self._client = self._make_client()
                host, _, port = self.address.rpartition(":")
                client.connect(host, int(port), keepalive=KEEPALIVE)
                # At the end until our DISCONNECT has gone out: without it the broker would publish our last will.
                while client.loop(timeout=1.0) == mqtt.MQTT_ERR_SUCCESS and (self.connected or not self._ending.is_set()):
                    waits = self._pauses() if self.connected else waits
            except (OSError, ValueError) as error:
                self._say_lost(str(error))
            self.connected = False
            self._ending.wait(next(waits))

    def _pauses(self) -> Iterator[float]:
        return pauses(min(REMOTE_FIRST, self.longest), min(REMOTE_MAX, self.longest))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Whether it was given to the connection; that is all it says."""
        client = self._client
        return bool(self.connected and client and client.publish(topic, payload, qos, retain).rc == mqtt.MQTT_ERR_SUCCESS)

    def take(self) -> Iterator[tuple[str, bytes]]:
        """What has arrived."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)
        while self.inbox:
            yield self.inbox.popleft()

    def end(self) -> None:
        """Disconnect in order: no last will."""
        self._ending.set()
        if self._client and self.connected:
            self._client.disconnect()
        self.join(2.0)

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.id, reconnect_on_failure=False, protocol=self.protocol)
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
        while len(self.inbox) >= BACKLOG and not self._ending.wait(0.05):
            pass  # whoever takes is slow: so is the connection
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
        """Refused rights or a broker's limits: who hears nothing is not connected, and tries again."""
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
        """Once, not at every try."""
        if not self._lost:
            self.log.warning("uplink: no connection to %s (%s), trying again", self.address, why)
        self._lost = True


def pauses(first: float, most: float) -> Iterator[float]:
    """Seconds to wait before each further try: drawn from twice as long a time each time, so that a fleet is spread over it."""
    while True:
        yield first * random.uniform(0.1, 1.0)
        first = min(2 * first, most)


def _read_rights(name: str) -> Message:
    """What a service of this name may; empty where there is nothing for us to read."""
    try:
        with open(f"{RIGHTS}/{name}", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def main(arguments: list[str]) -> None:
    """Print what passes on a topic, one line a message."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `bus.py '#' | head`
    bus = Bus("print")
    for pattern in arguments or ["#"]:
        bus.subscribe(pattern, lambda topic, message: print(topic, json.dumps(message["data"], ensure_ascii=False), flush=True))
    bus.run()


if __name__ == "__main__":
    main(sys.argv[1:])
