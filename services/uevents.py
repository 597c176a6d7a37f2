"""The kernel's uevents, by pyudev: no udevd stands between."""

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
    """More events than our buffer holds: some are lost."""


class Monitor:
    """The kernel's uevents."""

    def __init__(self, buffer: int) -> None:
        # By its name, as the dynamic linker finds it: pyudev would ask ldconfig(8), and a board may have no cache to ask.
        pyudev._ctypeslib.utils.find_library = lambda _: LIBUDEV
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        try:
            self._monitor.set_receive_buffer_size(buffer)
        except OSError:  # in a user namespace: the kernel gives what anybody may have (net.core.rmem_max)
            pass
        self._monitor.start()
        self.dropped = 0  # events that are no text
        self._socket = socket.socket(fileno=os.dup(self.fileno()))

    def fileno(self) -> int:
        """For poll(2)."""
        return int(self._monitor.fileno())

    def read(self) -> Iterator[Properties]:
        """What has come. Overrun, once, where something did not."""
        while True:
            try:
                device = self._monitor.poll(0)
                if device is None:
                    return
                event = dict(device.properties)
            except UnicodeDecodeError:  # a property that is no text
                self.dropped += 1
                continue
            except OSError as error:  # pyudev's poll says "error" without a number, and leaves it where it is
                if ENOBUFS in (error.errno, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    raise Overrun from None
                raise SystemExit(f"uevents: {error}") from None  # PID 1 starts us again, and we look at everything anew
            yield event | {"DEVNAME": event["DEVNAME"].removeprefix("/dev/")} if "DEVNAME" in event else event
