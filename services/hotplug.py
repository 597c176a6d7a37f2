"""Kernel device events become module loads, services that run while a device is there, bus messages and stable names.

No udevd: pyudev hears the kernel itself. What is there at boot is found in sysfs, parents first, and its modules are loaded
by one modprobe; what comes later says so in a uevent. The rules are rows of settings.RULES; in what they name, a device's
properties stand as `{devname}`, `{interface}`, `{id_serial_short}`... Where events were lost, sysfs is read again and the
difference is what has happened. The broker and PID 1 may be away: orders for PID 1 wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from errno import ENOBUFS
from itertools import islice
from typing import Any

import pyudev
import pyudev._ctypeslib.utils

from base.files import write_atomically
from bus import Bus
from onboard import to_pid1
from onboard.board_table import board_table
from onboard.to_pid1 import SVError, Unreachable
from services.devices import Properties, describe, fill, fits, link, names, same, scan, uevent
from tables.rows import Rule

SYS, DEV = "/sys", "/dev"
STARTED = "/run/hotplug/started.json"  # services that run because of a device: what a successor of ours has to stop
TURN = 1.0  # s
EVENTS = 1000  # at once; then the bus and our deadlines get their turn
MOST = 20_000  # events to forget at once
PATIENCE = 2.0  # s for PID 1's answer
RETRY = 5.0  # s until PID 1 is asked again
LOADER_TIMEOUT = 60.0  # s for a modprobe: a driver may hang in its start
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
                continue
            except OSError as error:  # pyudev's poll says "error" without a number, and leaves it where it is
                if ENOBUFS in (error.errno, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    raise Overrun from None
                raise SystemExit(f"uevents: {error}") from None  # PID 1 starts us again, and we look at everything anew
            yield event | {"DEVNAME": event["DEVNAME"].removeprefix("/dev/")} if "DEVNAME" in event else event


class Hotplug:
    """The devices that are there, and what follows from them."""

    def __init__(self, bus: Bus, chosen: Any) -> None:
        self.bus = bus
        self.log = bus.log
        self.rules: tuple[Rule, ...] = chosen.RULES
        self.groups: dict[str, int] = chosen.group_ids
        self.monitor = Monitor(chosen.NETLINK_BUFFER)
        self.loader = Loader(bus)
        self.orders = Orders(bus, read_started())
        self.names = Names()
        self.known: dict[str, Properties] = {}  # by path
        self.overruns = 0
        self.lost = False  # events that we have not made good yet
        bus.watch(self.monitor.fileno(), self.on_events)

    def start(self, now: float) -> None:
        """Coldplug. Events have been collected since before: nothing falls between the two."""
        self.rescan()
        self.orders.stop_forgotten()
        self.names.clean()
        self.turn(now)

    def turn(self, now: float) -> None:
        """Carry out what has gathered."""
        if self.lost:
            self.catch_up()
        self.names.apply(self.log)
        self.loader.turn(now)
        self.orders.turn(now)

    # --- what comes in ------------------------------------------------------------------------------------------------
    def on_events(self) -> None:
        """The kernel has something to say."""
        try:
            for event in islice(self.monitor.read(), EVENTS):
                self.on_event(event)
        except Overrun:
            self.overruns += 1
            self.lost = True
            self.log.warning("uevents were lost; every device is looked at anew")
        self.turn(time.monotonic())

    def catch_up(self) -> None:
        """A scan after a loss; and another one later, where events come faster than we can forget them."""
        self.lost = not self.drain()
        self.rescan()

    def drain(self) -> bool:
        """Forget what was said before a scan: the scan knows better. What comes during the scan is heard after it.

        Whether nothing is left: until then the kernel does not say that it has lost more (net/netlink, NETLINK_S_CONGESTED).
        """
        for _ in range(100):
            try:
                return all(count < MOST for count, _ in enumerate(self.monitor.read()))
            except Overrun:
                pass
        return False

    def rescan(self) -> None:
        """Find in sysfs what has come and what has gone."""
        there = {path: uevent(path, SYS) for path in scan(SYS)}
        for path in [path for path in reversed(self.known) if path not in there]:
            self.gone(self.known[path])
        for path, found in there.items():
            if path not in self.known or not same(self.known[path], describe(found, SYS)):
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
        path, found = event["DEVPATH"], describe(event, SYS)
        before = self.known.get(path, {})
        if action == "add" and before and not same(before, found):
            self.gone(before)  # without our hearing of it
            before = {}
        found = {**before, **found}
        if path.startswith("/devices/"):  # drivers, modules and buses have events too
            self.known[path] = found
        if action == "add" and "MODALIAS" in event and not link(path, "driver", SYS):
            self.loader.want(event["MODALIAS"])
        self.names.came(path, names(found, SYS), found.get("DEVNAME", ""))
        self.follow(action, found)

    def gone(self, properties: Properties) -> None:
        """A device is no longer there."""
        path = properties["DEVPATH"]
        self.known.pop(path, None)
        self.names.gone(path)
        self.orders.gone(path)
        self.follow("remove", properties)

    # --- what follows -------------------------------------------------------------------------------------------------
    def follow(self, action: str, properties: Properties) -> None:
        """Do what the rules say; one that cannot be followed is logged, and the others are."""
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

    def carry_out(self, rule: Rule, action: str, properties: Properties) -> None:
        """One rule, for one device."""
        if rule.module:
            self.loader.want(fill(rule.module, properties))
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


class Loader:
    """Modules: one modprobe at a time, for all that has been asked for meanwhile, in the order of asking."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._wanted: dict[str, None] = {}
        self._words = -1  # the pipe with what the running one says
        self._children: list[subprocess.Popen[bytes]] = []  # the running one last; before it those that are stuck in the kernel
        self._deadline = 0.0

    def want(self, module: str) -> None:
        """A module's name, or what a device is (its modalias)."""
        self._wanted[module] = None

    def turn(self, now: float) -> None:
        """Start the next one, or end the one that takes too long."""
        if self._words >= 0 and now >= self._deadline:
            self._bus.log.warning("modprobe: not ready after %g s, ended", LOADER_TIMEOUT)
            self._children[-1].kill()  # a driver that hangs in the kernel ends it when it likes: nobody waits for it
            self._ended()
        self._children = [child for child in self._children if child.poll() is None]
        if self._words < 0 and self._wanted:
            self._start(["modprobe", "-a", "-b", "-q", "--", *self._wanted], now)
            self._wanted.clear()

    def _start(self, argv: list[str], now: float) -> None:
        words, writer = os.pipe()
        try:
            self._children.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer))
        except OSError as error:
            self._bus.log.warning("modprobe: %s", error.strerror)
            os.close(words)
            return
        finally:
            os.close(writer)
        self._words, self._deadline = words, now + LOADER_TIMEOUT
        self._bus.watch(words, self._on_words)

    def _on_words(self) -> None:
        """Its complaints; their end is its own. Its exit status says nothing: most devices need no module."""
        if words := os.read(self._words, 65536):
            self._bus.log.warning("%s", words.decode(errors="replace").strip())
            return
        self._ended()
        self.turn(time.monotonic())

    def _ended(self) -> None:
        self._bus.unwatch(self._words)
        os.close(self._words)
        self._words = -1


class Orders:
    """What PID 1 is to start and to stop. The last word counts, and waits until PID 1 has heard it."""

    def __init__(self, bus: Bus, before: list[str]) -> None:
        self._log = bus.log
        self._before = before
        self._keeping: dict[str, set[str]] = {}  # service: paths of the devices that it runs for
        self._pending: dict[str, str] = {}  # service: start, stop or restart
        self._retry = 0.0
        self._complained = False

    def keep(self, service: str, path: str) -> None:
        """It runs as long as this device, or another one that keeps it, is there."""
        paths = self._keeping.setdefault(service, set())
        if path not in paths:
            paths.add(path)
            self._remember()
            self.give("start", service)

    def gone(self, path: str) -> None:
        """A device has gone, and with the last of them the service."""
        for service in [service for service, paths in self._keeping.items() if path in paths]:
            self._keeping[service].discard(path)
            if not self._keeping[service]:
                del self._keeping[service]
                self._remember()
                self.give("stop", service)

    def stop_forgotten(self) -> None:
        """What a predecessor of ours has started, for devices that are no longer there."""
        for service in self._before:
            if service not in self._keeping:
                self.give("stop", service)
        self._remember()

    def give(self, order: str, service: str) -> None:
        """Start or stop; what was to be stopped and is to run again is another device's."""
        again = order == "start" and self._pending.get(service) in ("stop", "restart")
        self._pending[service] = "restart" if again else order

    def turn(self, now: float) -> None:
        """Tell PID 1."""
        for service, order in list(self._pending.items()):
            if now < self._retry:
                return
            try:
                to_pid1.ask(to_pid1.SOCKET, {"op": order, "name": service}, PATIENCE)
                self._log.info("%s: %s", service, order)
                self._complained = False
            except Unreachable as error:
                self._retry = now + RETRY
                if not self._complained:
                    self._log.warning("%s; %s of %s waits", error, order, service)
                self._complained = True
                return
            except SVError as error:
                self._log.warning("%s: %s", order, error)
            del self._pending[service]

    def _remember(self) -> None:
        try:
            write_atomically(STARTED, json.dumps(list(self._keeping)))
        except OSError as error:
            self._log.warning("%s: %s", STARTED, error.strerror)


class Names:
    """Symbolic links with stable names below /dev/serial. Of devices that claim the same one, the first has it."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[list[str], str]] = {}  # path: names, node
        self._made: dict[str, str] = {}
        self._changed = False

    def came(self, path: str, claims: list[str], node: str) -> None:
        """A device and the names that it may have."""
        if claims and self._claims.get(path) != (claims, node):
            self._claims[path] = (claims, node)
            self._changed = True

    def gone(self, path: str) -> None:
        """A device gives its names back."""
        self._changed |= self._claims.pop(path, None) is not None

    def clean(self) -> None:
        """Remove what a predecessor has left."""
        shutil.rmtree(f"{DEV}/serial", ignore_errors=True)

    def apply(self, log: Any) -> None:
        """Make the links that are missing, remove the others."""
        if not self._changed:
            return
        wanted: dict[str, str] = {}
        for claims, node in self._claims.values():
            for name in claims:
                wanted.setdefault(name, node)
        self._changed = False
        try:
            for name in self._made.keys() - wanted.keys():
                os.unlink(f"{DEV}/{name}")
            for name, node in wanted.items():
                if self._made.get(name) != node:
                    make_link(f"{DEV}/{name}", f"{'../' * name.count('/')}{node}")
        except OSError as error:
            log.warning("stable names: %s: %s", error.filename, error.strerror)
            self._changed = True  # again at the next turn
        self._made = {name: node for name, node in wanted.items() if os.path.islink(f"{DEV}/{name}")}


def make_link(path: str, target: str) -> None:
    """A symbolic link, in one step where there was another one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(f"{path}.new"):
        os.unlink(f"{path}.new")
    os.symlink(target, f"{path}.new")
    os.rename(f"{path}.new", path)


def read_started() -> list[str]:
    """The services that our predecessor in this boot has started."""
    try:
        with open(STARTED, encoding="utf-8") as file:
            return [str(name) for name in json.load(file)]
    except (OSError, ValueError, TypeError):
        return []


def main() -> None:
    bus = Bus("hotplug")
    hotplug = Hotplug(bus, board_table())
    hotplug.start(time.monotonic())
    for now in bus.every(TURN):
        hotplug.turn(now)


if __name__ == "__main__":
    main()
