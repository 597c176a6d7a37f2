"""ctypes, and what has to be so before it is loaded: `from native import ctypes`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False


def close_from(first: int) -> None:
    """Close every descriptor from this number on, whatever the limit is now: it may have been higher."""
    try:
        last = max(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # no /proc yet
        last = 4096
    os.closerange(first, last + 1)


def hold_stdio() -> None:
    """The kernel opens the console for init, if there is one. Descriptors 0 to 2 must not become files of ours.

    Nor of ctypes: where libffi is built with static trampolines, it keeps its own file open for them.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            try:
                os.open("/dev/null", os.O_RDWR)  # the lowest free descriptor: this one
            except OSError:
                os.pipe2(os.O_NONBLOCK)  # no /dev yet: something that takes a few lines and never blocks


if TYPE_CHECKING:
    import ctypes
else:
    if os.getpid() == 1:  # what an initramfs left open, PID 1 would hold for ever, and hand on to every child
        close_from(3)
    hold_stdio()
    # Python 3.14's ctypes imports sysconfig, and that threading, for what it needs on Android and Cygwin alone: one of the
    # 14 milliseconds that `python3 -ESB -c "import stack"` takes on a PC, and 256 KiB. This module stands in for it meanwhile.
    sys.modules.setdefault("sysconfig", sys.modules[__name__])
    import ctypes

    if sys.modules["sysconfig"] is sys.modules[__name__]:
        del sys.modules["sysconfig"]

__all__ = ["close_from", "ctypes"]
