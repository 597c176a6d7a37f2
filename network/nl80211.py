"""Access points as the kernel itself hears them, by pyroute2: `nl80211.py INTERFACE` scans once and prints JSON.

A program of its own: a scan may never return, and importing pyroute2's part for it takes a slow board 2 s.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from typing import Any

import network.parts  # noqa: F401  # isort: skip
from pyroute2.iproute.linux import IPRoute
from pyroute2.iwutil import IW
from pyroute2.netlink.exceptions import NetlinkError

from network.bounds import SSID

MOST = 350  # access points, the strongest: what a pipe holds, for a reader that takes all at the end


def scan(interface: str) -> list[dict[str, Any]]:
    """Access points that a scan of all channels hears (nl80211). It may never return: call it in a child.

    bssid, ssid_hex, frequency (MHz), signal (dBm), security as wifi_scan.py names it. It needs CAP_NET_ADMIN.
    """
    try:
        index = socket.if_nametoindex(interface)
    except OSError:  # in words of our own: Python's depend on its version
        raise OSError(errno.ENODEV, "no interface with this name") from None
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


# Key managements (IEEE 802.11, table 9-190); pyroute2 0.9 names those up to 9, and gives others as hexadecimal digits.
SAE = ("SAE", "FT/SAE", "00-0f-ac-18", "00-0f-ac-19")
OWE = "00-0f-ac-12"


def _security(elements: dict[str, Any], private: bool) -> str:
    """The strongest that is offered, as onboard/wpa_control.py names it by wpa_supplicant's flags."""
    if "RSN" in elements:
        suites = elements["RSN"]["auth_suites"]
        if any(suite in SAE for suite in suites):
            return "WPA3"
        return "OWE" if suites and all(suite == OWE for suite in suites) else "WPA2"
    vendors = [bytes(vendor[:4]) for vendor in elements.get("VENDOR", ())]
    if b"\x00\x50\xf2\x01" in vendors:  # Microsoft's, of 2003
        return "WPA"
    if b"\x50\x6f\x9a\x12" in vendors:  # the Wi-Fi Alliance's, for Hotspot 2.0's online sign-up
        return "OSEN"
    return "WEP" if private else "open"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
