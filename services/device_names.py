"""Stable names of serial lines: symbolic links below /dev/serial, as udev has them."""

from __future__ import annotations

import os
import shutil
from typing import Any

DEV = "/dev"


class Names:
    """Symbolic links with stable names below /dev/serial. If two devices claim the same name, the first one has it."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[list[str], str]] = {}  # path: names, node
        self._made: dict[str, str] = {}
        self._changed = False

    def came(self, path: str, claims: list[str], node: str) -> None:
        """Record a device (its sysfs path and node) and the names that it claims."""
        if claims and self._claims.get(path) != (claims, node):
            self._claims[path] = (claims, node)
            self._changed = True

    def gone(self, path: str) -> None:
        """Drop the names that a device claims."""
        self._changed |= self._claims.pop(path, None) is not None

    def due(self) -> bool:
        """Whether apply() has something to do."""
        return self._changed

    def clean(self) -> None:
        """Remove the links of an earlier run of this service."""
        shutil.rmtree(f"{DEV}/serial", ignore_errors=True)

    def apply(self, log: Any) -> None:
        """Create the missing links and remove the stale ones. A failure is logged and tried again at the next turn."""
        if not self._changed:
            return
        wanted: dict[str, str] = {}
        for claims, node in self._claims.values():
            for name in claims:
                wanted.setdefault(name, node)
        self._changed = False
        try:
            for name in self._made.keys() - wanted.keys():
                os.unlink(f"{DEV}/{name}")
            for name, node in wanted.items():
                if self._made.get(name) != node:
                    make_link(f"{DEV}/{name}", f"{'../' * name.count('/')}{node}")
        except OSError as error:
            log.warning("stable names: %s: %s", error.filename, error.strerror)
            self._changed = True  # again at the next turn
        self._made = {name: node for name, node in wanted.items() if os.path.islink(f"{DEV}/{name}")}


def make_link(path: str, target: str) -> None:
    """Create a symbolic link; replace an older one atomically, by rename(2). Raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(f"{path}.new"):
        os.unlink(f"{path}.new")
    os.symlink(target, f"{path}.new")
    os.rename(f"{path}.new", path)
