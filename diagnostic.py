"""The board's health, at the start and every minute: memory, load, disk, temperature, clock, services, log counts."""

from __future__ import annotations

import glob
import os
import time
from typing import Any

from bus import Bus, Message
from sv import SVError, board, stats_process

PERIOD = 60.0  # s


class Diagnostic:
    """What is measured against the start, and what the apps tell about their logs."""

    def __init__(self) -> None:
        self.offset = time.time() - time.monotonic()
        self.logs: dict[str, Any] = {}

    def on_log(self, topic: str, message: Message) -> None:
        self.logs[topic.partition("/")[2]] = message["data"]

    def measure(self) -> dict[str, Any]:
        """One report; bytes, seconds, degrees Celsius. What this board does not have is None."""
        disk = os.statvfs("/var")
        return {
            "memory_total": meminfo("MemTotal"), "memory_available": meminfo("MemAvailable"),
            "load": os.getloadavg(), "disk_total": disk.f_blocks * disk.f_frsize, "disk_free": disk.f_bavail * disk.f_frsize,
            "temperature": temperature(), "uptime": round(time.monotonic(), 1),
            "clock_drift": round(time.time() - time.monotonic() - self.offset, 6),
            "services": services(), "logs": self.logs,
        }  # fmt: skip


def meminfo(name: str) -> int | None:
    """A line of /proc/meminfo, in bytes (`man 5 proc`: it counts in kB)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def temperature() -> float | None:
    """The hottest thermal zone, from millidegrees (Documentation/driver-api/thermal/sysfs-api.rst)."""
    found = []
    for path in glob.glob("/sys/class/thermal/thermal_zone*/temp"):
        try:
            with open(path, encoding="ascii") as file:
                found.append(int(file.read()) / 1000)
        except (OSError, ValueError):
            pass
    return max(found, default=None)


def services() -> dict[str, Any] | None:
    """What PID 1 says of itself and of each service; None where it does not answer."""
    try:
        keys = ("state", "restart", "exit", "memory", "cpu")
        rows = {row["name"]: {key: row[key] for key in keys} for row in stats_process()}
        return {"loop": board()["loop"], "log": board()["log"], "rows": rows}
    except SVError:
        return None


def main() -> None:
    bus, diagnostic = Bus("diagnostic"), Diagnostic()
    bus.subscribe("log/+", diagnostic.on_log)
    for _ in bus.every(PERIOD):
        bus.publish("diag", diagnostic.measure(), retain=True)


if __name__ == "__main__":
    main()
