"""What wpa_supplicant knows of one interface: SSID and signal, asked now and then without waiting for the answer."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

from base.printable import printable
from bus import Bus
from network.bounds import SSID
from network.supplicant import RUN
from onboard.wpa_control import connect, fields, unescape

ANSWER = 4096  # bytes: wpa_supplicant's own limit for an answer
FIRST_PAUSE = 0.5  # s; doubled
ASK_SUPPLICANT = 30.0  # s between looks at SSID and signal


class Radio:
    """What wpa_supplicant knows of one interface, asked now and then, without waiting for the answer."""

    def __init__(self, name: str, folder: str, bus: Bus) -> None:
        self.name = name
        self.air: dict[str, Any] = {}
        self._folder = folder
        self._bus = bus
        self._socket: socket.socket | None = None
        self._due = 0.0
        self._pause = FIRST_PAUSE  # until it has answered, soon again

    def turn(self, now: float, *, carrier: bool) -> None:
        """Ask, if it is time; at once after a new association."""
        if not carrier:
            self.air, self._due, self._pause = {}, 0.0, FIRST_PAUSE
        elif now >= self._due:
            self._pause = ASK_SUPPLICANT if self.air else min(2 * self._pause, ASK_SUPPLICANT)
            self._due = now + self._pause
            try:
                self.send("STATUS")
                self.send("SIGNAL_POLL")
            except OSError:  # it is not there; the ladder knows when that matters
                pass

    def due(self, *, carrier: bool) -> float | None:
        """When it is time to ask; None: not at all."""
        return self._due if carrier else None

    def send(self, command: str) -> None:
        """Connect. OSError where wpa_supplicant does not listen."""
        if self._socket is None:
            os.makedirs(RUN, exist_ok=True)
            self._socket = connect(self._folder, self.name, f"{RUN}/{self.name}.control")
            self._bus.watch(self._socket.fileno(), self._answered)
        try:
            self._socket.send(command.encode())
        except OSError:
            self._close()
            raise

    def _answered(self) -> None:
        if self._socket is None:
            return
        try:
            told = fields(self._socket.recv(ANSWER).decode("ascii", "replace"))
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        if "ssid" in told:
            self.air["ssid"] = printable(unescape(told["ssid"])[:SSID].decode("utf-8", "replace"))
        if re.fullmatch(r"-?\d{1,3}", told.get("RSSI", "")):
            self.air["signal"] = int(told["RSSI"])

    def _close(self) -> None:
        if self._socket is not None:
            self._bus.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
