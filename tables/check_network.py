"""The network's delays, and what is wrong with a row of its tables, as a sentence for people; empty where nothing is.

`ipaddress` would double PID 1's start: inet_pton(3) knows what an address is.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.rows import Interface, WifiNetwork
from tables.values import is_address, is_id, is_number, is_text, kind_of, shown, truth_fault, tuple_fault

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

NOT_IN_A_NAME = frozenset("/: \n\t%{}")


def interface_fault(tables: Any, row: Any) -> str:
    """Faults of one row of INTERFACES."""
    if type(row) is not Interface:
        return "is not an Interface(...) row"
    if is_text(row.name) and (fault := tables.unknown_name(row.name)):
        return f"name {fault}"
    good = is_text(row.name, row.module) and 0 < len(row.name.encode()) < 16
    if not good or set(row.name) & NOT_IN_A_NAME or row.name[0] == ".":
        return f"name {shown(row.name)} is not an interface's name such as eth0, of at most 15 characters"
    for name in ("addresses", "gateways", "nameservers"):
        if fault := tuple_fault(getattr(row, name), '("192.0.2.5/24",)'):
            return f"{name} {fault}"
    for name in ("wifi", "hostname", "metered"):
        if fault := truth_fault(getattr(row, name)):
            return f"{name} {fault}"
    for address in row.addresses:
        if address not in ("dhcp", "ra") and not _is_network(address):
            return f"address {shown(address)} is not 'dhcp', 'ra', or like 192.0.2.5/24 or 2001:db8::5/64"
    for address in (*row.gateways, *row.nameservers):
        if not is_address(address):
            return f"{shown(address)} is not an address such as 192.0.2.1 or 2001:db8::1"
    families = [":" in gateway for gateway in row.gateways]
    if len(families) != len(set(families)):
        return f"gateways {shown(row.gateways)} has more than one of a family"
    return "" if is_number(row.metric, 1, 2**31 - 1) else f"metric {shown(row.metric)} is not a number from 1 to {2**31 - 1}"


def _is_network(text: Any) -> bool:
    host, _, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    return is_address(host) and is_id(length, 128 if ":" in host else 32)


def clash(row: Interface, others: Iterable[Interface]) -> str:
    """What a row has taken from those before it."""
    for other in others:
        if other.name == row.name:
            return "the name is taken; INTERFACES = replaced(INTERFACES, Interface(...)) puts a row in the place of that one"
        if other.metric == row.metric:  # its default route would replace the other's
            return f"metric {row.metric} is {other.name}'s; each interface has its own"
    return ""


def wifi_fault(_: object, row: Any) -> str:
    """Faults of one row of WIFI_NETWORKS, without the passphrase, in whatever column: anyone may read what is rejected."""
    if type(row) is not WifiNetwork:
        return f'is {kind_of(row)}, not a WifiNetwork(...) row; write (WifiNetwork("name", "passphrase"),)'
    ssid = row.ssid.encode() if isinstance(row.ssid, str) and is_text(row.ssid) else row.ssid
    if type(ssid) is not bytes or not 0 < len(ssid) <= 32:
        return "ssid is not a name of 1 to 32 bytes"
    if not is_text(row.psk):
        return f"psk is {kind_of(row.psk)}, not text"
    if not is_text(row.security) or row.security not in ("", "open", "psk", "sae", "psk+sae"):
        return "security is not one of open, psk, sae, psk+sae"
    if fault := truth_fault(row.hidden):
        return f"hidden {fault}"
    if not is_number(row.priority, -1000, 1000):
        return "priority is not a whole number from -1000 to 1000"
    if type(row.frequencies) is not tuple or not all(is_number(one, 2000, 8000) for one in row.frequencies):
        return f"frequencies, {kind_of(row.frequencies)}, is not a tuple of MHz from 2000 to 8000, such as (2412,)"
    digits = len(row.psk) == 64 and not row.psk.strip("0123456789abcdefABCDEF")
    if row.security == "open" or not (row.security or row.psk):
        return "an open network has no psk" if row.psk else ""
    if digits:
        return "WPA3 needs the passphrase; 64 digits do for psk alone" if "sae" in row.security else ""
    good = 8 <= len(row.psk.encode()) <= 63 and row.psk.isprintable()
    return "" if good else "psk is not a passphrase of 8 to 63 characters, nor 64 hexadecimal digits"
