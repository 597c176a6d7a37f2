"""The local bus for apps: MQTT over a Unix socket, one thread, a paced loop, and a connection that survives the broker.

    bus = Bus("hello")
    for _ in bus.every(1.0):
        bus.publish("hello", {"text": "world"})

An app that only listens ends with `bus.run()`. `python3 bus.py TOPIC` prints what passes on a topic.
The bus stores nothing: data that must not be lost needs another way.
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
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from _log import counts, get_logger
from base.printable import printable
from onboard import clock, mqtt
from onboard.board_table import board_table
from onboard.mqtt import BACKLOG

VERSION = 1  # of the envelope
KEEPALIVE = 600  # seconds between two pings: our broker is on this board, and when it dies the kernel closes the connection
ANSWER_TIMEOUT = 5.0  # seconds
CLOCK_PERIOD = 1.0  # seconds between two looks at the clock's state
RECONNECT_FIRST, RECONNECT_MAX = 0.1, 5.0  # seconds; doubled, jittered

RIGHTS = "/run/bus-rights"  # services/bus_rights.py puts there what each service may, readable by its user alone
RIGHTS_TIMEOUT = 10.0  # seconds: a service that came with a reload may be here before its rights are
LARGEST = 262_000  # bytes of topic and message: larger ones would end the connection (data/mosquitto.conf, max_packet_size)

Message = dict[str, Any]
Handler = Callable[[str, Message], object]


class Bus:
    """One app's connection. Everything happens in the app's own thread, inside `every()` or `run()`."""

    def __init__(self, name: str, address: str = "") -> None:
        self.name = name
        self.log = get_logger(name)
        self.address = address or os.environ.get("BUS") or board_table().BUS
        self.dropped = mqtt.Dropped(self.log)
        self._client = self._make_client()
        self._handlers: dict[str, Handler] = {}
        self._watched: dict[int, Callable[[], object]] = {}  # other descriptors, served in the same wait
        self._retained: dict[str, bytes] = {}  # sent again after a reconnect: a restarted broker has lost them
        self._waiting: deque[tuple[str, bytes, bool]] = deque(maxlen=BACKLOG)  # while the broker is away; the oldest go first
        self._connected = False
        self._lost: float | None = None  # since when, once it has been logged
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
        # Who knew our id could have the broker end our connection, by connecting with the same.
        client = mqtt.make_client(f"{self.name}-{os.urandom(8).hex()}", self.dropped, unix=self.address.startswith("/"))
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
        if self._connected and self._client.publish(topic, payload, 0, retain).rc == mqtt.SENT:
            return
        if not retain:  # retained ones are sent again anyway
            self._waiting.append((topic, payload, retain))

    def subscribe(self, pattern: str, handler: Handler) -> None:
        """Call `handler(topic, message)` for what matches, instead of an earlier handler of the same pattern.

        ValueError for what is no pattern of topics.
        """
        if fault := mqtt.topic_fault(pattern, wild=True):
            raise ValueError(f"{pattern[:100]!r} cannot be subscribed to: {fault}")
        self._handlers[pattern] = handler
        if self._connected:
            self._client.subscribe(pattern)

    def watch(self, fd: int, handler: Callable[[], object]) -> None:
        """Call `handler()` inside `every()` or `run()` whenever a descriptor can be read, until `unwatch(fd)`."""
        self._watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor; call it before the descriptor is closed."""
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
            while not self._ending and (left := min(due() or now + most, now + most) - time.monotonic()) > 0:
                self._serve(left)

    def run(self) -> None:
        """Serve the bus until SIGTERM: for apps that only listen."""
        for _ in self.when(lambda: None, most=600.0):
            pass

    # --- inside ---------------------------------------------------------------------------------------------------
    def _end(self, *_: object) -> None:
        """Out of whatever wait we are in; and where the exception is swallowed (a destructor, a callback), at the next turn."""
        self._ending = True
        if not self._busy:
            sys.exit(0)

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A block that SIGTERM does not interrupt: the app exits at its end."""
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
        self._tell_counts()
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
        """Whether a message may be published. The broker drops others silently, so we log the reason once a topic."""
        why = mqtt.topic_fault(topic)
        if not why and len(topic.encode()) + size > LARGEST:
            why = f"{size} bytes are too many for one message"
        elif not why and self._rights and not any(mqtt.matches(one, topic) for one in self._rights["publishes"]):
            why = f"the row of {self._rights['user']!r} in the settings does not name it in `publishes`"
        if why and topic not in self._refused and len(self._refused) < BACKLOG:
            self._refused.add(topic)
            self.log.warning("bus: %s is not published: %s", printable(topic[:200]), why)
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
        """Log the loss once, not at every try."""
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
            if mqtt.matches(pattern, packet.topic):
                self._guarded(pattern, handler, packet.topic, message)

    def _tell_counts(self) -> None:
        """How many warnings and errors we have logged, retained, for diagnostic.py."""
        if counts != self._told:
            self._told = dict(counts)
            self.publish(f"log/{self.name}", self._told, retain=True)


def warm_up(folder: str) -> None:
    """What each app does at its start, once in a zygote, with a broker that is a socket of ours in this folder.

    Python writes into what it runs: it counts references, and replaces code by faster forms. What it has written before a fork
    is shared by all apps; afterwards each has a copy of its own. Nothing stays: no connection, no handler, no count.
    """
    before, level = signal.getsignal(signal.SIGTERM), dict(counts)
    bus, path = Bus("warm", f"{folder}/warm"), f"{folder}/warm"
    bus.log.disabled = True
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        bus.subscribe("warm", lambda topic, message: bus.publish("warm", message["data"]))
        bus.publish("warm", {}, retain=True)
        bus._serve(0.0)
        broker, _ = listener.accept()
        with broker:
            text = json.dumps(bus.envelope("warm", {"some": [1, 2.5, "words"], "none": None})).encode()
            packet = b"\0\4warm" + text  # PUBLISH at QoS 0, after CONNACK (MQTT 3.1.1, 3.2 and 3.3)
            broker.sendall(b"\x20\2\0\0" + (b"\x30" + bytes((len(packet) % 128 | 128, len(packet) // 128)) + packet) * 10)
            for _ in range(20):
                bus._serve(0.0)
                bus.publish("warm", 1)
        bus._serve(0.0)
    os.unlink(path)
    signal.signal(signal.SIGTERM, before)
    counts.update(level)


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
        bus.subscribe(pattern, show)
    bus.run()


def show(topic: str, message: Message) -> None:
    """One line for people."""
    print(printable(f"{topic} {json.dumps(message['data'], ensure_ascii=False)}"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
