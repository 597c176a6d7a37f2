"""Kernel device events become module loads, services that run while a device is there, bus messages and stable names.

There is no udevd: pyudev reads the uevents. What is there at boot is found in sysfs, parents first, and its modules are loaded
by one modprobe; what comes later says so in a uevent. The rules are rows of settings.RULES; in what they name, a device's
properties stand as `{devname}`, `{interface}`, `{id_serial_short}`... If events are lost, sysfs is scanned again and
the difference is handled. The broker and PID 1 may be down: orders wait until PID 1 answers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from base.files import read_file
from bus import Bus
from onboard.board_table import board_table
from onboard.facts import Teller
from services.device_names import DEV, Names
from services.devices import Properties, consoles, describe, fill, fits, link, names, same, scan, uevent
from services.modprobe import Loader
from services.orders import Orders, read_started
from services.uevents import Monitor, Overrun
from tables.rows import Rule

SYS = "/sys"
AGAIN = 1.0  # s until what failed is tried again
GAP = 0.05  # s between two turns, whatever is due
DEVICES = 10_000  # that are known; a Raspberry Pi has some 600
EVENTS = 1000  # at once; then the bus and our deadlines get their turn
MOST = 20_000  # events to forget at once
TOLD = 48_000  # characters of the devices' names that PID 1 is told


class Hotplug:
    """The known devices, and what the rules do for them."""

    def __init__(self, bus: Bus, chosen: Any, monitor: Monitor | None = None, sys: str = SYS) -> None:
        self.bus = bus
        self.log = bus.log
        self.rules: tuple[Rule, ...] = chosen.RULES
        self.groups: dict[str, int] = chosen.group_ids
        self.sys, self.console = sys, chosen.CONSOLE
        self.monitor = monitor or Monitor(chosen.NETLINK_BUFFER)
        self.loader = Loader(bus)
        self.orders = Orders(bus, read_started())
        self.names = Names()
        self.known: dict[str, Properties] = {}  # by path
        self.overruns = 0
        self.lost = False  # events were lost, and sysfs has not been scanned since
        self.dropped = 0  # devices that were too many
        self._said = False
        self._teller = Teller("hotplug")
        self._changed = True  # devices have come or gone since PID 1 was told
        self._turned = 0.0
        bus.watch(self.monitor.fileno(), self.on_events)

    def start(self, now: float) -> None:
        """Coldplug: scan sysfs. The monitor was opened before, so no event is missed between the two."""
        self.rescan()
        self.orders.stop_forgotten()
        self.names.clean()
        self.turn(now)

    def turn(self, now: float) -> None:
        """Do what is due: links, modules, orders to PID 1."""
        self._turned = now
        if self.lost:
            self.catch_up()
        self.names.apply(self.log)
        self.loader.turn(now)
        self.orders.turn(now)
        if self._changed:
            self._changed = False
            self._teller.tell("devices", device_names(self.known.values()), now)
        self._teller.turn(now)
        if not self._said and (self.dropped or self.monitor.dropped or self.loader.dropped):
            self._said = True
            self.log.warning("devices: there are more than %d, or some that say what is no text: left out", DEVICES)

    def due(self) -> float:
        """When turn() has something to do: the bus sleeps until then."""
        times = [
            self.loader.due(),
            self.orders.due(),
            self._teller.due(),
            self._turned + AGAIN if self.lost or self.names.due() else None,
        ]
        return max(self._turned + GAP, min((time for time in times if time is not None), default=self._turned + 3600.0))

    # --- what comes in ------------------------------------------------------------------------------------------------
    def on_events(self) -> None:
        """Handle the uevents that wait, at most EVENTS of them."""
        try:
            for event in islice(self.monitor.read(), EVENTS):
                self.on_event(event)
        except Overrun:
            self.overruns += 1
            self.lost = True
            self.log.warning("uevents were lost; every device is looked at anew")
        self.turn(time.monotonic())

    def catch_up(self) -> None:
        """Scan sysfs after a loss; scan again later if events come faster than drain() drops them."""
        self.lost = not self.drain()
        self.rescan()

    def drain(self) -> bool:
        """Drop the events before a scan, which is newer. Events during the scan are handled after it.

        Returns whether the queue is empty: until then the kernel reports no further loss (net/netlink, NETLINK_S_CONGESTED).
        """
        for _ in range(100):
            try:
                return all(count < MOST for count, _ in enumerate(self.monitor.read()))
            except Overrun:
                pass
        return False

    def rescan(self) -> None:
        """Find in sysfs what has come and what has gone."""
        there = {path: uevent(path, self.sys) for path in islice(scan(self.sys), DEVICES)}
        for path in [path for path in reversed(self.known) if path not in there]:
            self.gone(self.known[path])
        for path, found in there.items():
            if path not in self.known or not same(self.known[path], describe(found, self.sys)):
                self.came("add", found)

    def on_event(self, event: Properties) -> None:
        """One uevent."""
        action, path = event["ACTION"], event["DEVPATH"]
        if action == "remove":
            self.gone({**self.known.get(path, {}), **event})
        elif action == "move":  # a network interface with a new name: one has gone, one has come
            self.gone(self.known.get(event["DEVPATH_OLD"], event | {"DEVPATH": event["DEVPATH_OLD"]}))
            self.came("add", event)
        else:
            self.came(action, event)

    def came(self, action: str, event: Properties) -> None:
        """A device is there, or has changed."""
        path, found = event["DEVPATH"], describe(event, self.sys)
        if path not in self.known and len(self.known) >= DEVICES:
            self.dropped += 1
            return
        before = self.known.get(path, {})
        if action == "add" and before and not same(before, found):
            self.gone(before)  # its remove event was lost
            before = {}
        found = {**before, **found}
        if path.startswith("/devices/"):  # drivers, modules and buses have events too
            self.known[path] = found
            self._changed = True
        if action == "add" and "MODALIAS" in event and not link(path, "driver", self.sys):
            self.loader.want(event["MODALIAS"])
        self.names.came(path, names(found, self.sys), found.get("DEVNAME", ""))
        self.follow(action, found)

    def gone(self, properties: Properties) -> None:
        """A device is no longer there."""
        path = properties["DEVPATH"]
        self.known.pop(path, None)
        self._changed = True
        self.names.gone(path)
        self.orders.gone(path)
        self.follow("remove", properties)

    # --- what follows -------------------------------------------------------------------------------------------------
    def follow(self, action: str, properties: Properties) -> None:
        """Apply each matching rule. A failure is logged; the other rules still apply."""
        for rule in self.rules:
            if fits(rule, action, properties):
                try:
                    self.carry_out(rule, action, properties)
                except KeyError as error:
                    self.log.warning("%s: it has no %s, which a rule names", properties["DEVPATH"], error)
                except FileNotFoundError:
                    pass  # it has gone again: its remove is on the way
                except (OSError, ValueError) as error:
                    self.log.warning("%s: %s", properties["DEVPATH"], error)

    def is_console(self, properties: Properties) -> bool:
        """Whether the kernel's console or our prompt uses this terminal."""
        if properties.get("SUBSYSTEM") != "tty":
            return False
        return properties.get("DEVNAME") in consoles(self.sys, read_file("/proc/cmdline"), self.console)

    def carry_out(self, rule: Rule, action: str, properties: Properties) -> None:
        """One rule, for one device."""
        if rule.module:
            self.loader.want(fill(rule.module, properties))
        if (rule.group or rule.start) and self.is_console(properties):
            self.log.info("%s is the console: no rule gives it to anybody", properties["DEVNAME"])
            return
        if rule.group and action != "remove":
            path = f"{DEV}/{properties['DEVNAME']}"
            os.chown(path, -1, self.groups[rule.group])
            os.chmod(path, 0o660)
        if rule.start and action == "add":
            self.orders.keep(fill(rule.start, properties), properties["DEVPATH"])
        elif rule.start:
            self.orders.give("start", fill(rule.start, properties))
        if rule.stop:
            self.orders.give("stop", fill(rule.stop, properties))
        if rule.publish:
            told = {"action": action, "path": properties["DEVPATH"], "properties": properties}
            self.bus.publish(fill(rule.publish, properties), told)


def device_names(known: Iterable[Properties]) -> list[str]:
    """What conditions of the table may call devices: their names below /dev, and those of network interfaces."""
    found = sorted({name for device in known for name in (device.get("DEVNAME"), device.get("INTERFACE")) if name})
    kept: list[str] = []
    size = 0
    for name in found:
        size += len(name) + 4
        if size <= TOLD and len(name) <= 64 and len(kept) < 2000:
            kept.append(name)
    return kept


def main() -> None:
    bus = Bus("hotplug")
    hotplug = Hotplug(bus, board_table())
    hotplug.start(time.monotonic())
    for now in bus.when(hotplug.due):
        hotplug.turn(now)


if __name__ == "__main__":
    main()
