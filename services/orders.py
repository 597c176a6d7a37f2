"""Services that PID 1 starts and stops for devices. Orders wait until PID 1 answers; a restart of hotplug keeps the list."""

from __future__ import annotations

import json

from base.files import write_atomically
from bus import Bus
from onboard import to_pid1
from onboard.to_pid1 import SVError, Unreachable

STARTED = "/run/hotplug/started.json"  # services that run for a device: read after a restart of hotplug
PATIENCE = 2.0  # s for PID 1's answer
LARGEST = 1024 * 1024  # bytes of that file
RETRY = 5.0  # s until PID 1 is asked again


class Orders:
    """What PID 1 is to start and to stop. Only the last order for a service counts; it waits until PID 1 has answered."""

    def __init__(self, bus: Bus, before: list[str]) -> None:
        self._log = bus.log
        self._before = before
        self._keeping: dict[str, set[str]] = {}  # service: paths of the devices that it runs for
        self._pending: dict[str, str] = {}  # service: start, stop or restart
        self._retry = 0.0
        self._complained = False

    def keep(self, service: str, path: str) -> None:
        """Start a service and keep it until the last of its devices (sysfs paths) is gone."""
        paths = self._keeping.setdefault(service, set())
        if path not in paths:
            paths.add(path)
            self._remember()
            self.give("start", service)

    def gone(self, path: str) -> None:
        """A device has gone: stop each service that it was the last device of."""
        for service in [service for service, paths in self._keeping.items() if path in paths]:
            self._keeping[service].discard(path)
            if not self._keeping[service]:
                del self._keeping[service]
                self._remember()
                self.give("stop", service)

    def stop_forgotten(self) -> None:
        """Stop what an earlier run of hotplug started for devices that are no longer there."""
        for service in self._before:
            if service not in self._keeping:
                self.give("stop", service)
        self._remember()

    def give(self, order: str, service: str) -> None:
        """Queue a start or a stop. A start after a queued stop becomes a restart: the service must open the new device."""
        again = order == "start" and self._pending.get(service) in ("stop", "restart")
        self._pending[service] = "restart" if again else order

    def turn(self, now: float) -> None:
        """Send the queued orders to PID 1; retry every RETRY seconds while it cannot be reached."""
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
        """Monotonic time of the next turn(); None where no order waits."""
        return self._retry if self._pending else None

    def _remember(self) -> None:
        try:
            write_atomically(STARTED, json.dumps(list(self._keeping)))
        except OSError as error:
            self._log.warning("%s: %s", STARTED, error.strerror)


def read_started() -> list[str]:
    """Services that an earlier run of hotplug in this boot has started; none where its list cannot be read."""
    try:
        with open(STARTED, encoding="utf-8") as file:
            return [str(name) for name in json.loads(file.read(LARGEST))]
    except (OSError, ValueError, TypeError):
        return []
