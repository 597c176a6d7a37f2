"""The one door to the MQTT library, for the board's bus (bus.py) and for the link to the mothership (uplink/remote.py).

Only these two may import this: it loads paho, which costs 40 ms and 14 MiB of a process.
"""

from __future__ import annotations

from paho.mqtt.client import MQTT_ERR_SUCCESS as SENT
from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.client import topic_matches_sub as matches
from paho.mqtt.enums import CallbackAPIVersion

KEEPALIVE = 60  # seconds: silent for 1.5 times as long, the broker takes us for dead (MQTT 3.1.1, 3.1.2.10)
BACKLOG = 1000  # messages that wait for whoever is to take them
PROTOCOLS = {"3.1.1": MQTTv311, "5": MQTTv5}


def make_client(name: str, *, unix: bool = False, protocol: str = "3.1.1") -> Client:
    """A client that connects when it is told to, never by itself: who waits how long before the next try is its owner's."""
    return Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        transport="unix" if unix else "tcp",
        reconnect_on_failure=False,
        protocol=PROTOCOLS[protocol],
    )


__all__ = ["BACKLOG", "KEEPALIVE", "PROTOCOLS", "SENT", "Client", "MQTTMessage", "make_client", "matches"]
