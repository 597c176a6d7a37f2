"""What services printed."""

from __future__ import annotations

import os
import time
from typing import BinaryIO

import settings
from onboard.to_pid1 import SVError
from prompt.board_facts import board
from prompt.shapes import Lines


def logs(name: str | None = None, lines: int = 50, follow: bool = False) -> list[str]:
    """The last lines that a service (or everything) printed; with `follow`, print new ones until Ctrl-C.

    A line: wall time (UTC), seconds since boot, name, text. PID 1's own log is called "stack".
    """
    try:
        folder = board()["log_folder"]
    except SVError:
        folder = settings.LOG  # the log can be read even when nobody answers
    if name is not None and not os.path.exists(f"{folder}/{name}.log"):
        there = sorted(entry[:-4] for entry in os.listdir(folder) if entry.endswith(".log")) if os.path.isdir(folder) else []
        raise SVError(f"there is no log of {name!r}; there are {', '.join(there) or 'none'}")
    found = Lines(line for _, line in sorted(_read_logs(folder, name, lines), key=lambda item: item[0])[-lines:])
    if not follow:
        return found
    print(repr(found), flush=True)
    _follow(folder, name)
    return Lines()


def _log_names(folder: str, name: str | None) -> list[str]:
    if name is not None:
        return [name]
    return [entry[:-4] for entry in os.listdir(folder) if entry.endswith(".log")] if os.path.isdir(folder) else []


def _read_logs(folder: str, name: str | None, most: int) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    for one in _log_names(folder, name):
        texts: list[str] = []
        for path in (f"{folder}/{one}.log", f"{folder}/{one}.log.1"):
            if len(texts) < most and os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    texts = file.read().removesuffix("\n").split("\n") + texts
        found += [_parsed(one, text) for text in texts[-most:]]
    return found


def _parsed(name: str, text: str) -> tuple[float, str]:
    wall, _, rest = text.partition(" ")
    since, _, words = rest.partition(" ")
    try:
        return float(since), f"{wall} {since:>12} {name}: {words}"
    except ValueError:
        return 0.0, f"{name}: {text}"


def _follow(folder: str, name: str | None) -> None:
    files = {one: _open_end(f"{folder}/{one}.log") for one in _log_names(folder, name)}
    try:
        while True:
            for one in _log_names(folder, name):
                path = f"{folder}/{one}.log"
                file = files.get(one) or open(path, "rb")
                _print_new(one, file)
                if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:  # rotated: the rest of the old one, then the new one
                    _print_new(one, file)
                    file.close()
                    file = open(path, "rb")
                    _print_new(one, file)
                files[one] = file
            time.sleep(0.2)
    except (KeyboardInterrupt, FileNotFoundError):
        pass


def _open_end(path: str) -> BinaryIO:
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    return file


def _print_new(name: str, file: BinaryIO) -> None:
    """The lines that have come since; an unfinished one stays for the next time."""
    start = file.tell()
    whole = file.read().rpartition(b"\n")[0]
    file.seek(start + len(whole) + bool(whole))
    for text in whole.decode(errors="replace").split("\n") if whole else ():
        print(_parsed(name, text)[1], flush=True)
