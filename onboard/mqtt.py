"""The one door to the MQTT library, for the board's bus (bus.py) and for the link to the mothership (uplink/remote.py).

Only these two may import this: it loads paho, which costs 40 ms and 14 MiB of a process.
"""

from __future__ import annotations

from typing import Protocol

from paho.mqtt.client import MQTT_ERR_SUCCESS as SENT
from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.client import topic_matches_sub as matches
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

KEEPALIVE = 60  # seconds: a client that is silent for 1.5 times as long is disconnected by the broker (MQTT 3.1.1, 3.1.2.10)
BACKLOG = 1000  # messages that wait for whoever is to take them
# Bytes of a packet that comes in: paho would make room for whatever its header says, up to 268 MB. The board's broker takes
# 256 KiB from an app (data/mosquitto.conf), and a batch to the mothership has 512 KiB at most (uplink/wire.py).
LARGEST = 1024 * 1024
LONGEST_TOPIC = 65_535  # bytes
_PUBLISH, _QOS_2 = 0x30, 0x04  # in the first byte of a packet (MQTT 3.1.1, 3.3.1)
PROTOCOLS = {"3.1.1": MQTTv311, "5": MQTTv5}


class Log(Protocol):
    """Where what is dropped is told."""

    def warning(self, message: str, *arguments: object) -> None:
        """One line."""


class Dropped:
    """What came from a broker and was not taken: counted, and of the first it is told. It outlives a connection."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.count = 0

    def add(self, why: str) -> None:
        """One more."""
        self.count += 1
        if self.count == 1:
            self.log.warning("mqtt: %s; further ones are counted and not told", why)


class BoundedClient(Client):
    """paho's client, which trusts its broker, with bounds for what it takes from one.

    What is too large or no MQTT ends the connection; a message whose topic is no text is dropped.
    """

    dropped: Dropped

    def _sock_recv(self, bufsize: int) -> bytes:
        length = self._in_packet["remaining_length"]
        if length > LARGEST:  # paho takes an OSError for a connection that is lost
            self.dropped.add(f"the broker sends a packet of {length} bytes, of which we take {LARGEST}: disconnected")
            raise ConnectionError(f"a packet of {length} bytes")
        return super()._sock_recv(bufsize)

    def _packet_handle(self) -> MQTTErrorCode:
        command = self._in_packet["command"]
        if command & 0xF0 == _PUBLISH and command & _QOS_2:  # paho would keep 65,535 of them until the broker releases them
            self.dropped.add("the broker sends a message with QoS 2, which we did not ask for: disconnected")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            return super()._packet_handle()
        except Exception as error:  # struct.error, IndexError, KeyError...: what paho meets in a packet that is no MQTT
            self.dropped.add(f"the broker sends what cannot be read ({error!r}): disconnected")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _handle_on_message(self, message: MQTTMessage) -> None:
        try:
            known = bool(message.topic)
        except UnicodeDecodeError:
            known = False
        if known:
            super()._handle_on_message(message)
        else:
            self.dropped.add("the broker sends a message whose topic is no UTF-8")


def topic_fault(topic: str, *, wild: bool = False) -> str:
    """Why nothing can be published on a topic (with `wild`: subscribed to); "" where it can (MQTT 3.1.1, 1.5.3 and 4.7).

    A broker ends the connection of whoever sends a topic with control characters, at each try again.
    """
    if not topic or not topic.isprintable() or len(topic.encode()) > LONGEST_TOPIC:
        return "a topic is printable text of 1 to 65,535 bytes"
    *before, last = topic.split("/")
    levels = [level for level in (*before, last) if {"+", "#"} & {*level}]
    if not wild:
        return "a topic that is published on has no + and no #" if levels else ""
    fine = all(level == "+" or (level == "#" and "#" not in before) for level in levels)
    return "" if fine else "+ stands for a whole level, # for all levels at the end"


def make_client(name: str, dropped: Dropped, *, unix: bool = False, protocol: str = "3.1.1") -> Client:
    """A client that connects when it is told to, never by itself: who waits how long before the next try is its owner's."""
    client = BoundedClient(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        transport="unix" if unix else "tcp",
        reconnect_on_failure=False,
        protocol=PROTOCOLS[protocol],
    )
    client.dropped = dropped
    return client


__all__ = [
    "BACKLOG",
    "KEEPALIVE",
    "LARGEST",
    "PROTOCOLS",
    "SENT",
    "Client",
    "Dropped",
    "MQTTMessage",
    "make_client",
    "matches",
    "topic_fault",
]
