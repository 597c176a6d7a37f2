"""The network's delays, and what is wrong with a row of its tables, as a sentence for people; empty where nothing is.

`ipaddress` would double PID 1's start: inet_pton(3) knows what an address is.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.rows import Interface, WifiNetwork
from tables.values import is_address, is_number, is_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def interface_fault(_: object, row: Any) -> str:
    """Faults of one row of INTERFACES."""
    if not isinstance(row, Interface):
        return "is not an Interface(...) row"
    if not is_text(row.name, row.module) or not 0 < len(row.name) < 16 or set(row.name) & set("/: \n\t%") or row.name[0] == ".":
        return f"name {row.name!r} is not an interface's name such as eth0, of at most 15 characters"
    for name in ("addresses", "gateways", "nameservers"):
        if not isinstance(getattr(row, name), tuple):
            return f"{name} {getattr(row, name)!r} is not a tuple of texts such as ('192.0.2.5/24',)"
    for address in row.addresses:
        if address not in ("dhcp", "ra") and not _is_network(address):
            return f"address {address!r} is not 'dhcp', 'ra', or like 192.0.2.5/24 or 2001:db8::5/64"
    for address in (*row.gateways, *row.nameservers):
        if not is_address(address):
            return f"{address!r} is not an address such as 192.0.2.1 or 2001:db8::1"
    families = [":" in gateway for gateway in row.gateways]
    if len(families) != len(set(families)):
        return f"gateways {row.gateways!r} has more than one of a family"
    return "" if is_number(row.metric, 1, 2**31 - 1) else f"metric {row.metric!r} is not a number from 1 to {2**31 - 1}"


def _is_network(text: Any) -> bool:
    host, _, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    return is_address(host) and length.isdecimal() and int(length) <= (128 if ":" in host else 32)


def clash(row: Interface, others: Iterable[Interface]) -> str:
    """What a row has taken from those before it."""
    for other in others:
        if other.name == row.name:
            return "the name is taken"
        if other.metric == row.metric:  # its default route would replace the other's
            return f"metric {row.metric} is {other.name}'s; each interface has its own"
    return ""


def wifi_fault(_: object, row: Any) -> str:
    """Faults of one row of WIFI_NETWORKS, without the passphrase: anyone may read what is rejected."""
    if not isinstance(row, WifiNetwork):
        return "is not a WifiNetwork(...) row"
    if (
        not isinstance(row.ssid, (str, bytes))
        or not 0 < len(row.ssid if isinstance(row.ssid, bytes) else row.ssid.encode()) <= 32
    ):
        return "ssid is not a name of 1 to 32 bytes"
    if not is_text(row.psk, row.security) or row.security not in ("", "open", "psk", "sae", "psk+sae"):
        return f"security {row.security!r} is not one of open, psk, sae, psk+sae"
    if not is_number(row.priority, -1000, 1000):
        return f"priority {row.priority!r} is not a number from -1000 to 1000"
    if not isinstance(row.frequencies, tuple) or not all(is_number(one, 2000, 8000) for one in row.frequencies):
        return f"frequencies {row.frequencies!r} is not a tuple of MHz such as (2412, 5180)"
    digits = len(row.psk) == 64 and not row.psk.strip("0123456789abcdefABCDEF")
    if row.security == "open" or not (row.security or row.psk):
        return "an open network has no psk" if row.psk else ""
    if digits:
        return "WPA3 needs the passphrase; 64 digits do for psk alone" if "sae" in row.security else ""
    good = 8 <= len(row.psk.encode()) <= 63 and row.psk.isprintable()
    return "" if good else "psk is not a passphrase of 8 to 63 characters, nor 64 hexadecimal digits"
