"""The board's network, from the file that the network service writes."""

from __future__ import annotations

import json
import os
import time

from base.near import did_you_mean
from onboard.to_pid1 import SVError
from prompt.asking import ask, service_names, tables
from prompt.shapes import NetworkTable, One

SERVICE = "network"  # its row in the table


class OneInterface(NetworkTable, One):
    """A single interface."""


def network(name: str | None = None) -> NetworkTable:
    """The interfaces that network/service.py keeps, or one of them: a dict for each, also while the bus is down.

    name, state (absent, down, no carrier, associating, addressing, local, online; with "?" what was known when the service
    ended), since (s in this state), addresses, gateway (of its default routes), metric, ssid, signal (dBm), rung (of the
    ladder for Wi-Fi that stays down; 0 is the ground).
    """
    try:
        with open(str(tables().values["NETWORK_STATE"]), encoding="ascii") as file:
            facts = json.load(file)
    except (OSError, ValueError) as error:
        raise SVError(_why_not(error)) from None
    doubt = "" if os.path.exists(f"/proc/{facts['pid']}") else "?"
    now = time.monotonic()
    rows = NetworkTable(
        {**row, "state": row["state"] + doubt, "since": round(now - row["since"], 1)} for row in facts["interfaces"]
    )
    if name is None:
        return rows
    known = {row["name"]: row for row in rows}
    if name not in known:
        there = ", ".join(known) or "none"
        raise SVError(f"there is no interface {name!r} in INTERFACES; there are {there}{did_you_mean(name, known)}")
    return OneInterface([known[name]])


def names() -> list[str]:
    """The names that Tab completes in this file's functions."""
    try:
        return [row["name"] for row in network()]
    except SVError:
        return []


def _why_not(error: Exception) -> str:
    """Why there is no report of the network, as far as PID 1 knows."""
    if SERVICE not in (services := service_names()) and services:
        return "no network service runs here: this board's table has none, and others keep its network"
    row = ask("stats", name=SERVICE)[0]
    if row["state"] != "running":
        return f"the network service is {row['state']}; see status('network')"
    return f"the network service has written nothing yet ({error}); see status('network')"
