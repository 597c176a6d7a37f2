"""The wall clock: never earlier than the build of these files or than the last stamp, and how far it can be believed.

Boards without a battery start in 1970. PID 1 sets the clock to the build date at least, services/keeper.py to the last stamp on
the data partition, gps.py to what the satellites say; NTP alone may set it back.
"""

from __future__ import annotations

import os
import sys
import time

from base.native import ctypes
from base.syscalls import libc

STARTED = "/run/stack/clock"  # while nothing but a floor has set the clock: when, by that clock, the kernel started
# `make install` writes the date there, in seconds since 1970.
BUILD = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/build_date"
OLDEST = 1_735_689_600  # 2025-01-01, where there is no build date
HORIZON = 20 * 365.25 * 86400  # seconds after the build: a later date is a fault of whoever tells it
SLACK = 1.0  # seconds: less is not worth a step
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


# --- what everybody may ask ---------------------------------------------------------------------------------------
def state() -> str:
    """How far it can be believed: "synchronised" by NTP, "plausible" (set by somebody who may know), or "unset".

    Unset is a clock at its floor (the build date, or the stamp of a clock that was itself unset): it is later than that,
    and nobody knows how much. Whoever has set it since, with date(1) too, has moved it against the kernel's own clock,
    which tells how long the kernel has been up.
    """
    if synchronised():
        return "synchronised"
    return "plausible" if sane(time.time()) and started() > _floor() + SLACK else "unset"


def synchronised() -> bool:
    """Whether something keeps the clock in time (`man 2 adjtimex`)."""
    return int(libc.adjtimex(ctypes.create_string_buffer(256))) not in (-1, TIME_ERROR)


def sane(seconds: float) -> bool:
    """Whether a date can be right: not before these files were made, and not more than HORIZON after."""
    return build_date() <= seconds < build_date() + HORIZON


def build_date() -> float:
    """When these files were installed into the image, in seconds since 1970."""
    return _number(BUILD, OLDEST)


def started() -> float:
    """When the kernel started, by the wall clock; it changes when the clock is set, not when time passes."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def offer(seconds: float, source: str) -> bool:
    """Set the clock to a date from outside, if it can be right, is later than ours, and nothing better has set the clock."""
    now = time.time()
    if synchronised() or not sane(seconds) or seconds <= now + SLACK:
        return False
    try:
        step(seconds)
    except OSError:  # not ours to set: in a user namespace, or without CAP_SYS_TIME
        return False
    print(f"<5>the clock said {date(now)}; it is {date(seconds)}, says {source}", file=sys.stderr)
    return True


# --- setting it -----------------------------------------------------------------------------------------------------
def step(seconds: float) -> None:
    """Set the clock; OSError if we may not."""
    try:
        time.clock_settime(time.CLOCK_REALTIME, seconds)
    except OverflowError as error:  # a time_t of 32 bits ends in 2038
        raise OSError(75, str(error)) from None


def boot() -> str:
    """PID 1's step: at least the build date. What was done, for the log; "" where nothing was.

    A date after the horizon is a real-time clock with an empty battery: nobody has seen it yet, and it goes too.
    """
    now, floor = time.time(), build_date()
    if sane(now):
        _remember(0.0)
        return ""
    try:
        step(floor)
    except OSError as error:
        return f"the clock says {date(now)}, which cannot be, and cannot be set: {error.strerror}"
    finally:
        _remember(started())
    return f"the clock said {date(now)}; it is later than {date(floor)}, when this was built"


def restore(folder: str, *, believed: bool = True) -> None:
    """Set the clock to the stamp if that is later; a stamp that is not `believed` sets nothing."""
    stamp, known = _read_stamp(folder)
    now = time.time()
    if not believed or synchronised() or not sane(stamp) or stamp <= now:
        return
    step(stamp)
    if not known:
        _remember(started())
    print(f"<5>the clock said {date(now)}; it is later than {date(stamp)}, when it was saved", file=sys.stderr)


def save(folder: str) -> None:
    """Save a stamp that survives a power cut; nothing if the clock cannot be right, or is known to be behind."""
    from base.files import write_atomically  # not at the top: PID 1 loads this file and never waits for a disk

    now, how = time.time(), state()
    last, _ = _read_stamp(folder)
    if sane(now) and (how != "unset" or last <= now or not sane(last)):
        write_atomically(f"{folder}/clock", f"{now:.3f} {how}\n")


def date(seconds: float) -> str:
    """As ISO 8601 has it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _floor() -> float:
    """Where nobody has written it, no board has booted here and the clock is somebody else's."""
    return _number(STARTED, 0.0)


def _remember(floor: float) -> None:
    os.makedirs(os.path.dirname(STARTED), exist_ok=True)
    with open(f"{STARTED}.new", "w", encoding="ascii") as file:
        file.write(f"{floor:.3f}\n")
    os.rename(f"{STARTED}.new", STARTED)


def _read_stamp(folder: str) -> tuple[float, bool]:
    try:
        fd = os.open(f"{folder}/clock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="ascii") as file:
            seconds, how = file.read(100).split()
        return float(seconds), how != "unset"
    except (OSError, ValueError):
        return 0.0, False


def _number(path: str, default: float) -> float:
    try:
        with open(path, encoding="ascii") as file:
            return float(file.read(100))
    except (OSError, ValueError):
        return default


libc.adjtimex.argtypes = (ctypes.c_void_p,)
