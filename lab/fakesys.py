"""A /sys of a Raspberry Pi's hardware over FUSE: `python3 fakesys.py MOUNTPOINT`, for boards that have no such hardware.

Every file can be written, to say what the hardware measures now; what begins with an exclamation mark is for the file
itself: "!ERRNAME" makes its reader fail, "!hang" lets the whole file system hang at the next reader, and never answer.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from onboard.to_pid1 import notify

THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"
FILES = {
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "48312",  # millidegrees
    "class/power_supply/usb/type": "USB",
    "class/power_supply/usb/online": "1",
    "class/power_supply/usb/voltage_now": "5021000",  # microvolts
    "class/power_supply/usb/voltage_min": "4630000",
    "class/power_supply/battery/type": "Battery",
    "class/power_supply/battery/status": "Charging",
    "class/power_supply/battery/capacity": "87",
    "class/power_supply/battery/voltage_now": "3912000",
    THROTTLED: "0",  # bits, in hexadecimal without 0x, as the driver prints them
}


class FakeSys(mfusepy.Operations):  # type: ignore[misc]
    """A file system whose files have one line each."""

    use_ns = True

    def __init__(self, files: dict[str, str]) -> None:
        self.files = {f"/{path}": text for path, text in files.items()}

    def init(self, path: str) -> None:
        """The kernel has mounted us: notify PID 1 (`man 3 sd_notify`)."""
        notify("READY=1")

    def children(self, path: str) -> list[str]:
        """Names in a folder; empty where there is none."""
        start = path.rstrip("/") + "/"
        return sorted({one[len(start) :].split("/")[0] for one in self.files if one.startswith(start)})

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        if path in self.files:
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": 4096}
        if self.children(path):
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self.children(path)]

    def open(self, path: str, fi: Any) -> int:
        fi.direct_io = True  # sizes are not known before the read, as in sysfs
        return 0

    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        text = self.files[path]
        if text == "!hang":
            print(f"hanging at {path}", flush=True)
            while True:
                time.sleep(1000)
        if text.startswith("!"):
            raise mfusepy.FuseOSError(getattr(errno, text[1:], errno.EIO))
        return f"{text}\n".encode()[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
        self.files[path] = data.decode().strip()
        return len(data)

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        return 0


def main(arguments: list[str]) -> None:
    mfusepy.FUSE(FakeSys(FILES), arguments[0], foreground=True, nothreads=True, raw_fi=True, allow_other=True)


if __name__ == "__main__":
    main(sys.argv[1:])
