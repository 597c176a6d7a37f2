"""ctypes, and what has to be so before it is loaded: `from native import ctypes`."""

from __future__ import annotations

import os

TYPE_CHECKING = False


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
    hold_stdio()
    import ctypes

__all__ = ["ctypes"]
