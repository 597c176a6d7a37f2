"""What services printed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from base.near import did_you_mean
from onboard.to_pid1 import SVError
from prompt.asking import tables
from prompt.board_facts import board
from prompt.shapes import Lines, colour_wanted, coloured_line, nobody_reads

USUAL = 50  # lines
LEVELS = {"error": ("error: ",), "warning": ("error: ", "warning: "), "info": ("",)}  # and what logd writes before the text
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Line(NamedTuple):
    """One line of a log file."""

    mono: float  # seconds since the kernel's start
    wall: str  # UTC, ISO 8601
    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.wall} {self.mono:>12.6f} {self.name}: {self.words}" if self.wall else f"{self.name}: {self.words}"


def logs(  # noqa: PLR0913
    name: str | None = None, lines: int | None = None, follow: bool = False, since: str | float | None = None,
    until: str | float | None = None, grep: str | None = None, level: str | None = None,
    show: Callable[[str], object] | None = None,
) -> Lines:  # fmt: skip
    """The last lines that a service (or everything) printed; with `follow`, print new ones until Ctrl-C.

    A line: wall time (UTC), seconds since boot, name, text. PID 1's own log is called "stack". The last 50 `lines`; with
    `since`, `until`, `grep` or `level` all that fit. since and until: "90s", "10m", "2h", "3d" ago (a number: seconds ago),
    or UTC, "12:30", "2026-05-01", "2026-05-01T12:30:05" (+02:00 counts). grep: a regular expression, in the text. level:
    "error", or "warning" and worse.
    """
    folder = _folder()
    if name is not None and not os.path.exists(f"{folder}/{name}.log"):
        known = names()
        raise SVError(f"there is no log of {name!r}; there are {', '.join(known) or 'none'}{did_you_mean(name, known)}")
    if lines is not None and lines < 0:
        raise SVError(f"how many lines? {lines} is no such number")
    wanted = _filter(since, until, grep, level)
    chosen = any(one is not None for one in (since, until, grep, level))
    most = lines if lines is not None else None if chosen else USUAL
    found = sorted(line for line in _read_logs(folder, name, None if chosen else most) if wanted(line))
    result = Lines(str(line) for line in (found if most is None else found[len(found) - min(most, len(found)) :]))
    if not follow:
        return result
    show = show or _print
    for text in result:
        show(text)
    _follow(folder, name, wanted, show)
    return Lines()


def _print(text: str) -> None:
    print(coloured_line(text) if colour_wanted() else text, flush=True)


def all_lines(name: str) -> list[Line]:
    """Everything that is kept of what a service printed; [] where it has printed nothing."""
    return sorted(_read_logs(_folder(), name, None))


def names() -> list[str]:
    """Whose logs there are."""
    folder = _folder()
    return sorted(_log_names(folder, None))


def _folder() -> str:
    try:
        folder: str = board()["log_folder"]
    except SVError:
        folder = tables().LOG  # the log can be read even when nobody answers
    return folder


def _log_names(folder: str, name: str | None) -> list[str]:
    if name is not None:
        return [name]
    return [entry[:-4] for entry in os.listdir(folder) if entry.endswith(".log")] if os.path.isdir(folder) else []


# --- which lines ----------------------------------------------------------------------------------------------------
def _filter(
    since: str | float | None, until: str | float | None, grep: str | None, level: str | None
) -> Callable[[Line], bool]:
    """Whether a line is wanted."""
    first, last = _moment("since", since), _moment("until", until)
    if level is not None and level not in LEVELS:
        raise SVError(f"level {level!r} is none of {', '.join(LEVELS)}")
    starts = LEVELS[level or "info"]
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise SVError(f"grep {grep!r} is no regular expression: {error}") from None

    def wanted(line: Line) -> bool:
        return (
            line.words.startswith(starts)
            and pattern.search(line.words) is not None
            and (first is None or not _before(line, first))
            and (last is None or _before(line, last))
        )

    return wanted


def _before(line: Line, moment: float | str) -> bool:
    """Whether a line is older than a moment, on the monotonic clock or in UTC."""
    return line.mono < moment if isinstance(moment, float) else line.wall < moment


def _moment(what: str, text: str | float | None) -> float | str | None:
    """Seconds since the kernel's start for what is so long ago (the wall clock may have been set since), else UTC."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*(?:ago)?\s*", str(text))
    if match:
        return time.monotonic() - float(match[1]) * UNITS[match[2] or "s"]
    from datetime import UTC, datetime

    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", str(text).strip()):
            text = f"{datetime.now(UTC):%Y-%m-%d}T{str(text).strip():0>5}"
        told = datetime.fromisoformat(str(text).strip())
        return (told.astimezone(UTC) if told.tzinfo else told).isoformat()[:19]
    except (ValueError, OverflowError):
        raise SVError(f'{what} {text!r} is no time: "10m", "2h" ago, or UTC, "12:30", "2026-05-01T12:30"') from None


# --- files ----------------------------------------------------------------------------------------------------------
def _read_logs(folder: str, name: str | None, most: int | None) -> list[Line]:
    found: list[Line] = []
    for one in _log_names(folder, name):
        texts: list[str] = []
        for path in (f"{folder}/{one}.log", f"{folder}/{one}.log.1"):
            if most is None or len(texts) < most:
                whole = _whole(path).removesuffix("\n")
                texts = (whole.split("\n") if whole else []) + texts
        found += [_parsed(one, text) for text in (texts if most is None else texts[len(texts) - min(most, len(texts)) :])]
    return found


def _whole(path: str) -> str:
    """The text of a log; "" where there is none, or where logd has renamed it just now."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _parsed(name: str, text: str) -> Line:
    wall, _, rest = text.partition(" ")
    since, _, words = rest.partition(" ")
    try:
        return Line(float(since), wall, name, words)
    except ValueError:
        return Line(0.0, "", name, text)


def _follow(folder: str, name: str | None, wanted: Callable[[Line], bool], show: Callable[[str], object]) -> None:
    files = {one: _open_end(f"{folder}/{one}.log") for one in _log_names(folder, name)}

    def show_new(one: str, file: BinaryIO) -> None:
        for line in _new_lines(one, file):
            if wanted(line):
                show(str(line))

    try:
        while not nobody_reads():
            for one in _log_names(folder, name):
                path = f"{folder}/{one}.log"
                file = files.get(one) or open(path, "rb")
                show_new(one, file)
                if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:  # rotated: the rest of the old one, then the new one
                    show_new(one, file)
                    file.close()
                    file = open(path, "rb")
                    show_new(one, file)
                files[one] = file
            time.sleep(0.2)
    except (KeyboardInterrupt, FileNotFoundError):
        pass


def _open_end(path: str) -> BinaryIO:
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    return file


def _new_lines(name: str, file: BinaryIO) -> list[Line]:
    """The lines that have come since; an unfinished one stays for the next time."""
    start = file.tell()
    whole = file.read().rpartition(b"\n")[0]
    file.seek(start + len(whole) + bool(whole))
    return [_parsed(name, text) for text in whole.decode(errors="replace").split("\n")] if whole else []
