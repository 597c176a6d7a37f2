"""The kernel's uevents, read by pyudev from netlink, without udevd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from errno import ENOBUFS

import pyudev
import pyudev._ctypeslib.utils

from services.devices import Properties

LIBUDEV = "libudev.so.1"


class Overrun(Exception):
    """The socket's buffer overflowed (ENOBUFS, `man 7 netlink`): some events are lost."""


class Monitor:
    """The kernel's uevents."""

    def __init__(self, buffer: int) -> None:
        # pyudev would run ldconfig(8), and a board may have no cache; the dynamic linker finds the library by its name.
        pyudev._ctypeslib.utils.find_library = lambda _: LIBUDEV
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        try:
            self._monitor.set_receive_buffer_size(buffer)
        except OSError:  # in a user namespace, where net.core.rmem_max stays the limit
            pass
        self._monitor.start()
        self.dropped = 0  # events that are not UTF-8
        self._socket = socket.socket(fileno=os.dup(self.fileno()))

    def fileno(self) -> int:
        """The netlink socket's descriptor, for poll(2)."""
        return int(self._monitor.fileno())

    def read(self) -> Iterator[Properties]:
        """Yield the events that wait. Raises Overrun where some were lost, SystemExit where the socket cannot be read."""
        while True:
            try:
                device = self._monitor.poll(0)
                if device is None:
                    return
                event = dict(device.properties)
            except UnicodeDecodeError:  # a property is not UTF-8
                self.dropped += 1
                continue
            except OSError as error:  # pyudev raises it without errno; SO_ERROR still has it
                if ENOBUFS in (error.errno, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    raise Overrun from None
                raise SystemExit(f"uevents: {error}") from None  # PID 1 restarts us, and we scan sysfs again
            yield event | {"DEVNAME": event["DEVNAME"].removeprefix("/dev/")} if "DEVNAME" in event else event
