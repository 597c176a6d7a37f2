"""The board's wall clock: it only ever goes forward, and only by somebody who knows better."""

from __future__ import annotations

import ctypes
import os
import sys
import time

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
STEP = 1.0  # s: less is not worth a step
HORIZON = 20 * 365.25 * 86400  # s: who says a date that is further from our own build is wrong


def offer(utc_seconds: float, source: str) -> bool:
    """Somebody knows the time: step the clock forward to it where nothing keeps it synchronised. Whether it was stepped."""
    built = os.path.getmtime(__file__)
    if not built <= utc_seconds <= built + HORIZON or utc_seconds - time.time() < STEP or synchronised():
        return False
    try:
        time.clock_settime(time.CLOCK_REALTIME, utc_seconds)
    except OSError:  # not our clock: in a user namespace, or without CAP_SYS_TIME
        return False
    print(f"<6>clock: {source} says {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(utc_seconds))} UTC", file=sys.stderr)
    return True


def synchronised() -> bool:
    """Whether something keeps the clock in time (`man 2 adjtimex`)."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256))) not in (-1, TIME_ERROR)
