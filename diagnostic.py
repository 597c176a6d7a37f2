"""The board's health, at the start and every minute: memory, load, disk, hardware, clock, services, log counts.

Too hot and too little voltage are warnings in the log, once each time that they come.
"""

from __future__ import annotations

import glob
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from bus import Bus, Message
from onboard import boot_ends, clock, to_pid1
from onboard.facts import Teller
from onboard.proc_files import memory_and_cpu

PERIOD = 60.0  # s
LOOK = 5.0  # s between two looks at the hardware and the clock, where a condition of the table asks for them
TELLS = {"clock", "temperature", "voltage", "under_voltage"}  # facts that a look finds
PATIENCE = 2.0  # s, for drivers to answer
HOT = 80.0  # degrees Celsius; a Raspberry Pi slows down from here on
SYS = "/sys"
STORAGE = "/run/stack/storage.json"  # storage.py's record
BOOT_FILES = "/run/stack/bootfiles.json"  # bootfiles.py's: what its owner should know of the files on the boot partition
# Raspberry Pi's firmware, `vcgencmd get_throttled`: what is so now; 16 bits higher, what has been so since the boot.
THROTTLED = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}


class Diagnostic:
    """What is measured against the start, and what the apps tell about their logs."""

    def __init__(self) -> None:
        self.offset = time.time() - time.monotonic()
        self.logs: dict[str, Any] = {}
        self.reader = Reader()
        self.teller = Teller("diagnostic")
        self.watched = False  # a condition of the table asks for what only a look tells
        self.next_report = self.next_look = 0.0
        self.warnings: list[str] = []

    def on_log(self, topic: str, message: Message) -> None:
        self.logs[topic.partition("/")[2]] = message["data"]

    def on_fact(self, topic: str, message: Message) -> None:
        """An app says what it knows of the board, or which mode the board is in: fact/NAME, mode/NAME. PID 1 gets it."""
        if isinstance(message, dict):
            heard = {"from": message.get("from"), "at": message.get("mono")}
            self.teller.tell(topic.removeprefix("fact/"), message.get("data"), time.monotonic(), heard)

    def due(self) -> float:
        """When there is something to do."""
        times = (self.next_report, self.next_look if self.watched or self.teller.asked else None, self.teller.due())
        return min(one for one in times if one is not None)

    def look(self, now: float) -> None:
        """Tell PID 1 of what conditions may ask for: the clock, the temperature to a degree, voltages to a tenth of a volt."""
        self.next_look = now + LOOK
        found = self.reader.result() or {}
        heat, supplies = found.get("temperature"), found.get("power") or ()
        self.teller.tell("clock", clock.state(), now)
        self.teller.tell("temperature", None if heat is None else round(heat), now)
        self.teller.tell("under_voltage", (found.get("throttled") or {}).get("under_voltage"), now)
        volts = {one["name"]: None if one["voltage"] is None else round(one["voltage"], 1) for one in supplies}
        self.teller.tell("voltage", next((one for one in volts.values() if one is not None), None), now)
        for name, one in volts.items():
            self.teller.tell(f"voltage/{name}", one, now)

    def measure(self) -> dict[str, Any]:
        """One report; bytes, seconds, degrees Celsius, volts. What this board does not have is None."""
        disk = os.statvfs("/var")
        found = self.reader.result()
        state = found or {"temperature": None, "power": None, "throttled": None}
        data = data_partition()
        self.warnings = complaints(state) if found else ["the hardware's drivers do not answer"]
        self.warnings += data_complaints(data)
        self.warnings += boot_ends.read(BOOT_FILES).get("notes", [])
        return {
            "memory_total": meminfo("MemTotal"), "memory_available": meminfo("MemAvailable"),
            "load": os.getloadavg(), "disk_total": disk.f_blocks * disk.f_frsize, "disk_free": disk.f_bavail * disk.f_frsize,
            **state, "data": data, "warnings": self.warnings, "uptime": round(time.monotonic(), 1),
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


def temperature(sys: str = SYS) -> float | None:
    """The hottest thermal zone, from millidegrees (Documentation/driver-api/thermal/sysfs-api.rst)."""
    found = [number(path) for path in glob.glob(f"{sys}/class/thermal/thermal_zone*/temp")]
    return max((value / 1000 for value in found if value is not None), default=None)


def power(sys: str = SYS) -> list[dict[str, Any]]:
    """Every power supply; volts (Documentation/ABI/testing/sysfs-class-power counts in microvolts)."""
    found = []
    for folder in sorted(glob.glob(f"{sys}/class/power_supply/*")):
        online, voltage = number(f"{folder}/online"), number(f"{folder}/voltage_now")
        least = number(f"{folder}/voltage_min")
        found.append({
            "name": os.path.basename(folder), "type": text(f"{folder}/type"), "status": text(f"{folder}/status"),
            "online": None if online is None else online != 0, "capacity": number(f"{folder}/capacity"),
            "voltage": None if voltage is None else voltage / 1e6, "voltage_min": None if least is None else least / 1e6,
        })  # fmt: skip
    return found


def throttled(sys: str = SYS) -> dict[str, bool] | None:
    """What the firmware of a Raspberry Pi does about heat and voltage, and whether it ever did; None elsewhere."""
    for path in glob.glob(f"{sys}/devices/platform/soc*/*firmware/get_throttled"):
        bits = number(path, 16)
        if bits is not None:
            now = {name: bool(bits >> bit & 1) for bit, name in THROTTLED.items()}
            return now | {f"{name}_occurred": bool(bits >> bit + 16 & 1) for bit, name in THROTTLED.items()}
    return None


def hardware(sys: str = SYS) -> dict[str, Any]:
    """What the board's hardware says of itself."""
    return {"temperature": temperature(sys), "power": power(sys), "throttled": throttled(sys)}


def complaints(report: dict[str, Any]) -> list[str]:
    """Sentences about hardware that needs attention."""
    found = []
    if report["temperature"] is not None and report["temperature"] >= HOT:
        found.append(f"too hot: {HOT:g} degrees or more")
    found += [f"firmware: {name.replace('_', ' ')}" for name in THROTTLED.values() if (report["throttled"] or {}).get(name)]
    for supply in report["power"] or ():
        if None not in (supply["voltage"], supply["voltage_min"]) and supply["voltage"] < supply["voltage_min"]:
            found.append(f"{supply['name']}: less than {supply['voltage_min']:g} V")
    return found


def data_partition(path: str = STORAGE, sys: str = SYS) -> dict[str, Any] | None:
    """What storage.py has recorded, and the errors that the kernel has found since; None where the table names none.

    After the first one ext4 writes no more (errors=remount-ro), and newer kernels do not show that among the mounts.
    """
    try:
        found: dict[str, Any] = json.loads(text(path) or "")
    except ValueError:
        return None
    return {**found, "errors": number(f"{sys}/fs/ext4/{os.path.basename(found['device'])}/errors_count") or 0}


def data_complaints(data: dict[str, Any] | None) -> list[str]:
    """What somebody should know of the data partition: there may be no other sign of it."""
    if data is None:
        return []
    if not data["mounted"]:
        return [f"the data partition is missing, {data['target']} is in memory: {'; '.join(data['notes'])}"]
    found = ["the data partition was made anew: what was on it is lost"] if "re-made" in data["what"] else []
    return [*found, "the data partition can only be read: the kernel has found errors on it"] if data["errors"] else found


def text(path: str) -> str | None:
    """A file of one line; None where there is none, or where its driver fails."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def number(path: str, base: int = 10) -> int | None:
    """A file with one number."""
    try:
        return int(text(path) or "", base)
    except ValueError:
        return None


class Reader:
    """Reads in a thread of its own: a driver that hangs keeps its reader in the kernel, where nothing can end it."""

    def __init__(self, read: Callable[[], dict[str, Any]] = hardware) -> None:
        self.read = read
        self.thread: threading.Thread | None = None
        self.found: dict[str, Any] | None = None

    def _run(self) -> None:
        self.found = self.read()

    def result(self, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """What has been read; None where it takes longer, and as long as it does."""
        if self.thread is None or not self.thread.is_alive():
            self.found = None
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
        self.thread.join(seconds)
        return None if self.thread.is_alive() else self.found


def ask(op: str, **arguments: Any) -> Any:
    """What PID 1 answers; without the prompt's functions, which would be a megabyte more."""
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), {"op": op, **arguments})


def services() -> dict[str, Any] | None:
    """What PID 1 says of itself and of each service; None where it does not answer."""
    try:
        rows: dict[str, Any] = {}
        while len(rows) % to_pid1.A_REPLY == 0 and (page := ask("stats", first=len(rows))):
            for row in page:
                memory, cpu = memory_and_cpu(row["pid"])
                kept = {key: row[key] for key in ("state", "restart", "exit")}
                rows[row["name"]] = {**kept, "memory": memory, "cpu": cpu}
        board = ask("board")
        return {"rows": rows, **{name: board[name] for name in ("loop", "log", "modes", "asks_for")}}
    except to_pid1.SVError:
        return None


def main() -> None:
    bus, diagnostic = Bus("diagnostic"), Diagnostic()
    bus.subscribe("log/+", diagnostic.on_log)
    bus.subscribe("fact/+", diagnostic.on_fact)
    bus.subscribe("mode/+", diagnostic.on_fact)
    known: list[str] = []
    boot: dict[str, Any] = {}
    for now in bus.when(diagnostic.due):
        diagnostic.teller.turn(now)
        if now >= diagnostic.next_look:
            diagnostic.look(now)
        if now < diagnostic.next_report:
            continue
        diagnostic.next_report = now + PERIOD
        if not boot and (boot := boot_ends.read(boot_ends.RECORD)):  # the keeper may not have written it yet
            bus.publish("boot", boot, retain=True)
        report = diagnostic.measure()
        diagnostic.watched = not TELLS.isdisjoint((report["services"] or {}).get("asks_for", ()))
        bus.publish("diag", report, retain=True)
        for warning in diagnostic.warnings:
            if warning not in known:
                bus.log.warning("%s", warning)
        known = diagnostic.warnings


if __name__ == "__main__":
    main()
