"""ctypes as PID 1 can pay for it, and what has to be so before it is loaded: `from base.native import ctypes`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False


def close_from(first: int, but: tuple[int, ...] = ()) -> None:
    """Close every descriptor from this number on but for these, whatever the limit is now: it may have been higher."""
    try:
        last = max(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # no /proc yet
        last = 4096
    for kept in sorted(but):
        os.closerange(first, kept)
        first = max(first, kept + 1)
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
        close_from(3, getattr(sys.meta_path[0], "held", ()))  # but for the bundle, and what an upgrade hands over
    hold_stdio()
    from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, addressof, dlopen, get_errno

    class Library:
        """What is linked into this Python, libc with it: a function is an attribute, and returns an int."""

        def __init__(self, name, *, use_errno):
            self._handle = dlopen(name, 0)

        def __getattr__(self, name):
            self.__dict__[name] = function = Function((name, self))  # AttributeError where this libc has none of the name
            return function

    simple = type(_SimpleCData)

    class ctypes:
        """The names of `ctypes` that we use (`Doc/library/ctypes.rst`), from the C module underneath.

        The whole of it would cost PID 1 a tenth of its start, and on Python 3.14 it imports sysconfig and threading.
        """

        c_char, c_char_p, c_void_p, c_int, c_uint, c_long, c_ulong, c_uint64 = (
            simple(f"c_{letter}", (_SimpleCData,), {"_type_": letter}) for letter in "czPiIlLQ"
        )
        c_uint32, c_size_t, c_ssize_t = c_uint, c_ulong, c_long  # as every Linux has them
        CDLL, get_errno, addressof = Library, staticmethod(get_errno), staticmethod(addressof)

        @staticmethod
        def create_string_buffer(size):
            return (ctypes.c_char * size)()

    class Function(CFuncPtr):
        """A function of that library, by its name."""

        _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
        _restype_ = ctypes.c_int


__all__ = ["close_from", "ctypes"]
