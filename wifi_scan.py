"""Access points around the board, every five seconds: from wpa_supplicant, or from a recording of its answers.

wpa_supplicant owns the radio; we ask on its control socket (w1.fi, "Control interface") and page with BSS, because
SCAN_RESULTS is cut at 4,096 bytes.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from bus import Bus
from supplicant import unescape

PERIOD = 5.0  # s
AGE_MAX = 30  # s: what wpa_supplicant has not heard for longer is not there
SECURITY = (("SAE", "WPA3"), ("WPA2", "WPA2"), ("RSN", "WPA2"), ("WPA", "WPA"), ("OWE", "OWE"), ("WEP", "WEP"))
Points = list[dict[str, Any]]


class Supplicant:
    """A running wpa_supplicant: reads what the last scan found and asks for the next one, so that nothing waits."""

    source = "wpa_supplicant"

    def __init__(self, interface: str, folder: str) -> None:
        self.path = f"{folder}/{interface}"

    def scan(self) -> Points:
        """OSError where it does not answer."""
        own = tempfile.mktemp(prefix="wifi_scan.")  # the control socket replies to a bound address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(2.0)
            client.bind(own)
            try:
                client.connect(self.path)
                points = list(self._pages(client))
                _request(client, "SCAN")  # FAIL-BUSY: one is on its way already
            finally:
                os.unlink(own)
        return [point for point in points if point.pop("age") <= AGE_MAX]

    def _pages(self, client: socket.socket) -> Iterator[dict[str, Any]]:
        answer = _request(client, "BSS FIRST")
        while point := parse_bss(answer):
            yield point
            answer = _request(client, f"BSS NEXT-{point.pop('id')}")


class Recording:
    """Recorded answers to `BSS RANGE=ALL`, a scan each, over and over."""

    source = "recording"

    def __init__(self, path: str) -> None:
        with open(path, encoding="ascii") as file:
            self.answers = [part for part in file.read().split("####\n") if part.strip()]
        self.turn = 0

    def scan(self) -> Points:
        answer = self.answers[self.turn % len(self.answers)]
        self.turn += 1
        points = [parse_bss(part) for part in answer.split("====\n")]
        return [{key: point[key] for key in point if key not in ("id", "age")} for point in points if point]


def _request(client: socket.socket, command: str) -> str:
    client.send(command.encode())
    while (answer := client.recv(65536).decode("ascii", "replace")).startswith("<"):
        pass  # an event that came between
    return answer


def parse_bss(answer: str) -> dict[str, Any]:
    """One answer to a BSS command; empty for an empty one. Frequency in MHz, signal in dBm, age in s."""
    fields = dict(line.split("=", 1) for line in answer.split("\n") if "=" in line)
    if "bssid" not in fields:
        return {}
    ssid = unescape(fields.get("ssid", ""))
    return {
        "id": int(fields["id"]), "bssid": fields["bssid"],
        "ssid": ssid.decode("utf-8", "replace") if ssid.strip(b"\0") else None, "ssid_hex": ssid.hex(),
        "frequency": int(fields["freq"]), "signal": int(fields["level"]),
        "security": security(fields.get("flags", "")), "age": int(fields.get("age", 0)),
    }  # fmt: skip


def security(flags: str) -> str:
    """The strongest that the flags name, such as [WPA2-PSK+SAE-CCMP][ESS]."""
    return next((name for word, name in SECURITY if word in flags), "open")


def main(arguments: list[str]) -> None:
    """`wifi_scan.py INTERFACE CONTROL_FOLDER [RECORDING]`"""
    interface, folder, recording = (*arguments, "", "", "")[:3]
    radio: Supplicant | Recording = Recording(recording) if recording else Supplicant(interface, folder)
    bus, silent = Bus("wifi_scan"), False
    for _ in bus.every(PERIOD):
        try:
            bus.publish("scan", {"source": radio.source, "points": radio.scan()})
            silent = False
        except OSError as error:
            if not silent:
                bus.log.warning("wpa_supplicant at %s does not answer: %s", f"{folder}/{interface}", error)
            silent = True


if __name__ == "__main__":
    main(sys.argv[1:])
