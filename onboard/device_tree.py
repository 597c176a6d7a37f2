"""The board's model and serial number, from its device tree (Devicetree Specification, 2.3 and 3.2)."""

from __future__ import annotations

BIRTH = "/sys/firmware/devicetree/base"


def birth(name: str) -> str | None:
    """A property of the board's device tree, which ends with NUL; None where there is none."""
    try:
        with open(f"{BIRTH}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\0") or None
    except OSError:
        return None
