"""The emulated Raspberry Pi 3B, from boot to poweroff, with network over USB and Wi-Fi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import eventually


def test_from_boot_to_poweroff(machine: Callable[..., Any]) -> None:
    """It is slow, as a Raspberry Pi Zero is: fewer apps, everything else as on the others."""
    few = "('console', 'klogd', 'fakegps', 'wifi_analyzer', 'diagnostic')"
    board = machine("raspi3b", f"SERVICES = tuple(row for row in SERVICES if row.name not in {few})").up(240)

    def states() -> dict[str, str]:
        found = {row["name"]: row["state"] for row in board.python("import sv; result = sv.network()")}
        return found if (found["usb0"], found["wlan0"]) == ("local", "local") else {}

    assert eventually(states, 120)["eth0"] == "absent"
    assert board.python("result = open('/proc/device-tree/model').read()").startswith("Raspberry Pi 3 Model B")
    loaded = board.python("result = open('/proc/modules').read()")
    assert "bcm2835_wdt" in loaded
    board.python("import sv; sv.poweroff()")
    assert board.event("SHUTDOWN", seconds=120)["data"] == {"guest": True, "reason": "guest-shutdown"}
