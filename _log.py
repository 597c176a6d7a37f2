"""One line per event: PID 1 to the kernel's log, apps through stdlib logging to stderr, where logd stamps it.

PID 1 calls `debug`, `info`, `warning` and `error` of this module: one write each, no import of `logging`, never an
exception, never a wait. Apps call `get_logger(NAME)`. Both are counted by level in `counts`.
"""

from __future__ import annotations

import os

from base.printable import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

ERR, WARNING, INFO, DEBUG = 3, 4, 6, 7  # `man 3 syslog`
NAMES = {ERR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug"}
counts = dict.fromkeys(NAMES.values(), 0)


class Sink:
    """Where this process's records go. One instance, `sink`, set up once by main()."""

    def __init__(self) -> None:
        self.kmsg = -1  # /dev/kmsg, or -1: the console
        self.console = 2  # stderr, or our own non-blocking opening of the console: it may be stopped with ^S
        self.pipe = -1  # the log pipe to logd, or -1
        self.level = INFO
        self.console_level = INFO
        self.dropped = 0  # records that did not fit into a full pipe


sink = Sink()


def setup(*, kmsg: str = "/dev/kmsg", console: str = "/dev/console") -> None:
    """Open the kernel's log for PID 1; where there is none, records go to the console, or else to stderr."""
    if sink.kmsg < 0:
        sink.kmsg = _open(kmsg, -1)
    if sink.console == 2:
        sink.console = _open(console, 2)


def _open(path: str, otherwise: int) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return otherwise


def record(level: int, text: str) -> None:
    """Write one record. Never raises: a full disk, pipe or console loses the record, not the board."""
    counts[NAMES.get(level, "debug")] += 1
    if level > sink.level:
        return
    text = printable(text.replace("\n", " ")[:800])  # the kernel takes 1,024 bytes a record, its own prefix included
    line = f"<{level}>stack: {text}\n".encode("utf-8", "backslashreplace")
    if sink.kmsg >= 0:
        _write(sink.kmsg, line)
    elif level <= sink.console_level:
        _write(sink.console, line[3:])
    if sink.pipe >= 0 and not _write(sink.pipe, line.replace(b"stack: ", b"", 1)):
        sink.dropped += 1


def _write(fd: int, line: bytes) -> bool:
    try:
        os.write(fd, line)
    except OSError:
        return False
    return True


def debug(text: str) -> None:
    record(DEBUG, text)


def info(text: str) -> None:
    record(INFO, text)


def warning(text: str) -> None:
    record(WARNING, text)


def error(text: str) -> None:
    record(ERR, text)


def get_logger(name: str) -> logging.Logger:
    """A stdlib logger for an app: `<level>text` on stderr, which logd understands, and counts per level."""
    import logging

    class Handler(logging.StreamHandler):  # type: ignore[type-arg]
        """Marks each line with its syslog level and counts it."""

        def emit(self, item: logging.LogRecord) -> None:
            counts[NAMES[_syslog_level(item.levelno)]] += 1
            super().emit(item)

        def format(self, item: logging.LogRecord) -> str:
            mark = f"<{_syslog_level(item.levelno)}>"
            return mark + super().format(item).replace("\n", "\n" + mark)

        def handleError(self, item: logging.LogRecord) -> None:
            pass  # stderr is gone: there is nowhere left to say so, and the count above already has it

    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(Handler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def _syslog_level(levelno: int) -> int:
    return ERR if levelno >= 40 else WARNING if levelno >= 30 else INFO if levelno >= 20 else DEBUG
