"""Access points as the kernel itself hears them, by pyroute2: `nl80211.py INTERFACE` scans once and prints JSON.

A program of its own: a scan may never return, and importing pyroute2's part for it takes a slow board 2 s.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from pyroute2 import IPRoute
from pyroute2.iwutil import IW
from pyroute2.netlink.exceptions import NetlinkError

from network.bounds import SSID

MOST = 350  # access points, the strongest: what a pipe holds, for a reader that takes all at the end


def scan(interface: str) -> list[dict[str, Any]]:
    """Access points that a scan of all channels hears (nl80211). It may never return: call it in a child.

    bssid, ssid_hex, frequency (MHz), signal (dBm), security as wifi_scan.py names it. It needs CAP_NET_ADMIN.
    """
    index = socket.if_nametoindex(interface)
    with IPRoute() as route:
        route.link("set", index=index, state="up")
    started = time.monotonic()
    with IW() as radio:
        found = [message.get_attr("NL80211_ATTR_BSS") for message in radio.scan(index)]
    took = (time.monotonic() - started) * 1000
    points = [access_point(bss) for bss in found if bss.get_attr("NL80211_BSS_SEEN_MS_AGO") <= took]
    return sorted(points, key=lambda point: -int(point["signal"]))[:MOST]


def main(interface: str) -> int:
    """Print what was heard; or say in a sentence why nothing was."""
    try:
        print(json.dumps(scan(interface)))
    except (OSError, NetlinkError) as error:
        why = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror or error
        print(f"<4>nl80211: {interface} cannot scan: {why}", file=sys.stderr)
        return 1
    return 0


def access_point(bss: Any) -> dict[str, Any]:
    """One record of what pyroute2 has parsed. Its SSIDs are bytes."""
    elements = bss.get_attr("NL80211_BSS_INFORMATION_ELEMENTS") or {}
    private = "Privacy" in bss.get_attr("NL80211_BSS_CAPABILITY")["CAPABILITIES"]
    return {
        "bssid": bss.get_attr("NL80211_BSS_BSSID"), "ssid_hex": bytes(elements.get("SSID", b""))[:SSID].hex(),
        "frequency": bss.get_attr("NL80211_BSS_FREQUENCY"),
        "signal": bss.get_attr("NL80211_BSS_SIGNAL_MBM")["VALUE"] // 100, "security": _security(elements, private),
    }  # fmt: skip


def _security(elements: dict[str, Any], private: bool) -> str:
    """The strongest that is offered. WPA of 2003 is a vendor's element that pyroute2 does not parse: it looks like WEP."""
    suites = elements["RSN"]["auth_suites"] if "RSN" in elements else []
    for suite, name in (("SAE", "WPA3"), ("OWE", "OWE")):
        if any(suite in str(offered) for offered in suites):
            return name
    if "RSN" in elements:
        return "WPA2"
    return "WEP" if private else "open"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
