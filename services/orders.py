"""What PID 1 is to start and to stop because of devices; it waits for a PID 1 that is away, and survives a restart of ours."""

from __future__ import annotations

import json

from base.files import write_atomically
from bus import Bus
from onboard import to_pid1
from onboard.to_pid1 import SVError, Unreachable

STARTED = "/run/hotplug/started.json"  # services that run because of a device: what a successor of ours has to stop
PATIENCE = 2.0  # s for PID 1's answer
LARGEST = 1024 * 1024  # bytes of that file
RETRY = 5.0  # s until PID 1 is asked again


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

    def due(self) -> float | None:
        """When turn() has something to do."""
        return self._retry if self._pending else None

    def _remember(self) -> None:
        try:
            write_atomically(STARTED, json.dumps(list(self._keeping)))
        except OSError as error:
            self._log.warning("%s: %s", STARTED, error.strerror)


def read_started() -> list[str]:
    """The services that our predecessor in this boot has started."""
    try:
        with open(STARTED, encoding="utf-8") as file:
            return [str(name) for name in json.loads(file.read(LARGEST))]
    except (OSError, ValueError, TypeError):
        return []
