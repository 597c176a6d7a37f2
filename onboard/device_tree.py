"""The board's model and serial number, and how it was started, from its device tree (Devicetree Specification, 2.3, 3.2)."""

from __future__ import annotations

BIRTH = "/sys/firmware/devicetree/base"
CHOSEN = "/proc/device-tree/chosen/bootloader"  # by a Raspberry Pi's firmware: big-endian numbers of 32 bits


def birth(name: str) -> str | None:
    """A property of the board's device tree, which ends with NUL; None where there is none."""
    try:
        with open(f"{BIRTH}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\0") or None
    except OSError:
        return None


def chosen(name: str, folder: str = CHOSEN) -> int | None:
    """A number that the firmware tells the kernel: `partition`, `tryboot`. None where there is none."""
    try:
        with open(f"{folder}/{name}", "rb") as file:
            return int.from_bytes(file.read(4), "big")
    except OSError:
        return None
