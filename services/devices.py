"""What sysfs says about devices: their properties under udev's names, their stable names, and which rules match.

Pure functions of a folder, /sys on a board, and of the properties of uevents: hotplug.py receives the events and acts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from tables.rows import Rule

SYS = "/sys"
NUMBERS = {"idVendor": "ID_VENDOR_ID", "idProduct": "ID_MODEL_ID", "bcdDevice": "ID_REVISION", "devnum": "ID_USB_DEVNUM"}
LONGEST = 4096  # characters of an attribute: sysfs gives a page
# Properties by which a device differs from its successor at the same sysfs path.
IDENTITY = ("DEVNAME", "MAJOR", "MINOR", "IFINDEX", "PRODUCT", "ID_SERIAL", "ID_USB_DEVNUM")
Properties = dict[str, str]


def scan(sys: str = SYS) -> Iterator[str]:
    """Paths ("/devices/...") of all devices, parents before their children."""
    for folder, _, files in os.walk(f"{sys}/devices"):
        if "uevent" in files:
            yield folder.removeprefix(sys)


def read(path: str, name: str, sys: str = SYS) -> str:
    """One attribute of a device; empty where it has none or its driver returns an error."""
    try:
        with open(f"{sys}{path}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST).strip()
    except (OSError, ValueError):
        return ""


def consoles(sys: str = SYS, command_line: str = "", own: str = "") -> set[str]:
    """Devices of the kernel's console and of ours (`console=ttyS0,115200`): no app may use them as a serial line.

    `own` is settings.CONSOLE. A receiver's app would read the kernel's messages as data, and the prompt would read the app's.
    """
    found = set(read("/class/tty/console", "active", sys).split())
    words = [word.partition("=")[2] for word in command_line.split() if word.startswith("console=")]
    return {name.partition(",")[0].removeprefix("/dev/") for name in (*found, *words, own) if name} - {"console"}


def link(path: str, name: str, sys: str = SYS) -> str:
    """The name of what a device's symbolic link points to: its subsystem, its driver; empty where there is none."""
    try:
        return os.path.basename(os.readlink(f"{sys}{path}/{name}"))
    except (OSError, ValueError):
        return ""


def uevent(path: str, sys: str = SYS) -> Properties:
    """The properties that the kernel would put into a uevent of this device now."""
    pairs = (line.partition("=") for line in read(path, "uevent", sys).splitlines())
    found = {name: value for name, _, value in pairs if name}
    return {**found, "DEVPATH": path, "SUBSYSTEM": link(path, "subsystem", sys)}


def parents(path: str) -> Iterator[str]:
    """A device's path and those of its parents, up to the root of the tree."""
    while path.count("/") > 1:
        yield path
        path = path.rpartition("/")[0]


def describe(event: Properties, sys: str = SYS) -> Properties:
    """A uevent's properties, and as ID_... what udev would add: its USB device and its path."""
    path, found = event["DEVPATH"], dict(event)
    if "/usb" in path:
        found |= usb_identity(path, sys)
    if ("/usb" in path or "DEVNAME" in event or "INTERFACE" in event) and (way := id_path(path, sys)):
        found["ID_PATH"] = way
    return found


def same(one: Properties, other: Properties) -> bool:
    """Whether both describe the same device, not a successor at the same sysfs path."""
    return all(one.get(name) == other.get(name) for name in IDENTITY)


def usb_identity(path: str, sys: str = SYS) -> Properties:
    """Vendor, model and serial number of the nearest USB device (udev-builtin-usb_id.c)."""
    found: Properties = {}
    for parent in parents(path):
        number = read(parent, "bInterfaceNumber", sys)
        if number and not found:
            found["ID_USB_INTERFACE_NUM"] = safe(number)
        if not read(parent, "idVendor", sys):
            continue
        found |= {"ID_BUS": "usb", **{name: safe(read(parent, attribute, sys)) for attribute, name in NUMBERS.items()}}
        found["ID_VENDOR"] = safe(read(parent, "manufacturer", sys)) or found["ID_VENDOR_ID"]
        found["ID_MODEL"] = safe(read(parent, "product", sys)) or found["ID_MODEL_ID"]
        found["ID_SERIAL_SHORT"] = safe(read(parent, "serial", sys))
        found["ID_SERIAL"] = "_".join(filter(None, (found["ID_VENDOR"], found["ID_MODEL"], found["ID_SERIAL_SHORT"])))
        return {name: value for name, value in found.items() if value}
    return {}


def id_path(path: str, sys: str = SYS) -> str:
    """The way to a device through USB's ports, PCI's slots and the platform's addresses (udev-builtin-path_id.c)."""
    words: list[str] = []
    last = ""
    for parent in parents(path):
        subsystem, name = link(parent, "subsystem", sys), os.path.basename(parent)
        if subsystem == "usb" and last != "usb" and "-" in name:
            words.insert(0, f"usb-0:{name.partition('-')[2]}")  # not the bus's number: it depends on who came first
        elif subsystem in ("pci", "platform") and last != subsystem:
            words.insert(0, f"{subsystem}-{name}")
        last = subsystem or last
    return safe("-".join(words))


def safe(text: str) -> str:
    """A text that a device says of itself as part of a file's name (udev's replace_chars): other characters become "_"."""
    text = re.sub(r"[^0-9A-Za-z#+.:=@_-]", "_", "_".join(text.split()))[:80]
    return "_" * len(text) if not text.strip(".") else text


def names(properties: Properties, sys: str = SYS) -> list[str]:
    """Stable names of a serial line below /dev, as udev gives them (60-serial.rules)."""
    if properties.get("SUBSYSTEM") != "tty" or "DEVNAME" not in properties:
        return []
    port = next((number for path in parents(properties["DEVPATH"]) if (number := read(path, "port_number", sys))), "")
    port = f"-port{safe(port)}" if port else ""
    found = []
    if "ID_SERIAL" in properties:
        number = properties.get("ID_USB_INTERFACE_NUM", "00")
        found.append(f"serial/by-id/usb-{properties['ID_SERIAL']}-if{number}{port}")
    if "usb-" in properties.get("ID_PATH", ""):
        found.append(f"serial/by-path/{properties['ID_PATH']}{port}")
    return found


def fits(rule: Rule, action: str, properties: Properties) -> bool:
    """Whether a rule matches this event."""
    return (
        rule.action in (action, "*")
        and fnmatchcase(properties.get("SUBSYSTEM", ""), rule.subsystem)
        and fnmatchcase(properties["DEVPATH"], rule.path)
        and all(name in properties and fnmatchcase(properties[name], pattern) for name, pattern in rule.properties)
    )


def fill(text: str, properties: Properties) -> str:
    """`{devname}` and the like replaced by the device's properties, "/" by "-"; KeyError where it has no such property."""
    return re.sub(r"\{(\w+)\}", lambda match: properties[match[1].upper()].replace("/", "-"), text)
