"""Whether an update may begin now: the board's hours, a network that is not metered, and good power.

uplink asks before it takes the mothership's word, and root's service `update` asks again before it begins.
"""

from __future__ import annotations

import os
import time

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from onboard import boot_ends, clock
from tables.check_settings import minutes_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tables.rows import Interface

HWMON = "/sys/class/hwmon"
UNDER = "rpi_volt"  # drivers/hwmon/raspberrypi-hwmon.c: in0_lcrit_alarm is 1 while the voltage is too low


def waits_for(window: Sequence[str], interfaces: Sequence[Interface], network: str, folder: str = HWMON) -> list[str]:
    """What has to come before an update may begin, as ends of "it waits for ..."; [] where it may begin now.

    `window` is UPDATE_WINDOW, `interfaces` INTERFACES, and `network` the path NETWORK_STATE.
    """
    found = []
    if window:
        found.append(hours(window, time.localtime() if clock.state() != "unset" else None))
    if name := metered(interfaces, network):
        found.append(f"a network that is not metered: now the traffic goes over {name}")
    if power_fault(folder):
        found.append("good power: the board's voltage is too low now")
    return [text for text in found if text]


def hours(window: Sequence[str], now: time.struct_time | None) -> str:
    """The board's hours, where it is not that time; None is a clock that nobody has set."""
    if now is None:
        return f"a clock that is set: its hours are {', '.join(window)}"
    minute = now.tm_hour * 60 + now.tm_min
    for begin, end in filter(None, map(minutes_of, window)):
        if begin <= minute < end or (end <= begin and (minute >= begin or minute < end)):
            return ""
    return f"its hours {', '.join(window)}: it is {minute // 60:02}:{minute % 60:02}"


def metered(interfaces: Sequence[Interface], network: str) -> str:
    """The name of the interface that carries the traffic, where its row is `metered`; empty where that is none, or not known.

    The traffic takes the default route of the lowest metric (`man 8 ip-route`), as network/service.py has written it down.
    """
    rows = boot_ends.read(network).get("interfaces")
    routes = [row for row in rows if isinstance(row, dict) and row.get("gateway")] if isinstance(rows, list) else []
    name = min(routes, key=_metric).get("name") if routes else None
    return next((row.name for row in interfaces if row.name == name and row.metered), "")


def _metric(row: dict[str, Any]) -> float:
    found = row.get("metric")
    return found if isinstance(found, int) else float("inf")


def power_fault(folder: str = HWMON) -> str:
    """Why the power is not good enough to write a slot; empty where nothing says so."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if read_file(f"{folder}/{name}/name") == UNDER and read_file(f"{folder}/{name}/in0_lcrit_alarm") == "1":
            return "the board's voltage is too low now: a write to the card could fail"
    return ""
