"""The list of boards that run from this folder, for `make prompt`."""

from __future__ import annotations

import contextlib
import os


def register(folder: str, pid: int) -> None:
    """Note a board's PID 1 with its PID namespace: the pid alone may be another process's later."""
    with contextlib.suppress(OSError):  # a folder that cannot be written: only `make prompt` will not find it
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{pid}", "w", encoding="ascii") as file:
            file.write(os.readlink(f"/proc/{pid}/ns/pid"))


def forget(folder: str, pid: int) -> None:
    """Remove a board that has ended."""
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}/{pid}")


def running(folder: str) -> list[int]:
    """PID 1 of each board that still runs, the latest last."""
    found = []
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError), open(entry.path, encoding="ascii") as file:
            if entry.name.isdigit() and file.read() == os.readlink(f"/proc/{entry.name}/ns/pid"):
                found.append((entry.stat().st_mtime, int(entry.name)))
    return [pid for _, pid in sorted(found)]
