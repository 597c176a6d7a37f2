"""Access points as the kernel itself hears them, by pyroute2: `nl80211.py INTERFACE` scans once and prints JSON.

A program of its own: a scan may never return, and importing pyroute2's part for it takes a slow board 2 s.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

from pyroute2 import IPRoute
from pyroute2.iwutil import IW


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
    return [access_point(bss) for bss in found if bss.get_attr("NL80211_BSS_SEEN_MS_AGO") <= took]


def access_point(bss: Any) -> dict[str, Any]:
    """One record of what pyroute2 has parsed. Its SSIDs are bytes."""
    elements = bss.get_attr("NL80211_BSS_INFORMATION_ELEMENTS") or {}
    private = "Privacy" in bss.get_attr("NL80211_BSS_CAPABILITY")["CAPABILITIES"]
    return {
        "bssid": bss.get_attr("NL80211_BSS_BSSID"), "ssid_hex": bytes(elements.get("SSID", b"")).hex(),
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
    print(json.dumps(scan(sys.argv[1])))
