"""What others see of the network: messages, the file that `network()` reads, resolv.conf; and complaints, once each."""

from __future__ import annotations

import json
import os
from typing import Any

from base.files import write_atomically
from bus import Bus
from network.actions import State
from network.bounds import COMPLAINTS
from network.links import Link, Links
from network.radio import Radio
from onboard.facts import Teller

COUNTS = 10.0  # s between two records of counters alone


class Report:
    """The last state of all interfaces that was told."""

    def __init__(self, bus: Bus, chosen: Any, links: Links, radios: dict[str, Radio]) -> None:
        self.bus, self.log, self.chosen, self.links, self.radios = bus, bus.log, chosen, links, radios
        self.overruns = 0
        self.dropped = 0  # of what others say: what was too much, or could not be
        self._told: dict[str, dict[str, Any]] = {}
        self._counts, self._due = (0, 0), 0.0
        self._resolv: str | None = None  # what we have written
        self._complaints: set[str] = set()
        self._teller = Teller("network")

    def tell(self, now: float) -> None:
        """Publish what has changed, and write it down for the prompt and for resolvers."""
        picture = {name: self.describe(link) for name, link in self.links.links.items()}
        changed = [name for name in picture if picture[name] != self._told.get(name)]
        for name in changed:
            before = self._told.get(name, {"state": "start"})["state"]
            if before != picture[name]["state"]:
                self.log.info("%s: %s -> %s", name, before, picture[name]["state"])
                self._complaints = {text for text in self._complaints if not text.startswith(f"{name}:")}
            self.bus.publish(f"network/{name}", picture[name], retain=True)
        counts = self._count()
        if changed or (counts != self._counts and now >= self._due):
            self._told, self._counts, self._due = picture, counts, now + COUNTS
            facts = {"pid": os.getpid(), "overruns": counts[0], "dropped": counts[1], "interfaces": list(picture.values())}
            self._write(self.chosen.NETWORK_STATE, json.dumps(facts))
        self._resolver(now)
        states = [link.state for link in self.links.links.values()]
        self._teller.tell("online", any(state.addressed for state in states), now)
        self._teller.tell("network", str(max(states, key=list(State).index, default="")), now)

    def due(self) -> float | None:
        """When counters that have moved alone are written down, or PID 1 is told again what it has not heard."""
        times = (self._due if self._count() != self._counts else None, self._teller.due())
        return min((one for one in times if one is not None), default=None)

    def _count(self) -> tuple[int, int]:
        return self.overruns, self.dropped + sum(link.dropped for link in self.links.links.values())

    def _resolver(self, now: float) -> None:
        servers, domains = self.links.resolver(now)
        text = "".join(f"nameserver {server}\n" for server in servers)
        text = (f"search {' '.join(domains)}\n" if domains else "") + text
        if not text and self._resolv is None and os.path.exists(self.chosen.RESOLV_CONF):
            return  # an earlier run wrote it: it is used until we know nameservers
        if text != self._resolv and self._write(self.chosen.RESOLV_CONF, "# by network.py\n" + text):
            self._resolv = text

    def _write(self, path: str, text: str) -> bool:
        try:
            write_atomically(path, text)
        except OSError as error:
            self.complain(f"{path}: {error.strerror}")
            return False
        return True

    def describe(self, link: Link) -> dict[str, Any]:
        """One interface: `since` is monotonic, in s; the signal is in dBm."""
        routes = link.seen.routes if link.seen else ()
        radio = self.radios.get(link.name)
        air = radio.air if radio and link.state.carries else {}
        return {
            "name": link.name, "state": link.state, "since": round(link.since, 3),
            "addresses": list(link.seen.addresses) if link.seen else [], "gateway": [gateway for gateway, _ in routes],
            "metric": link.row.metric, "ssid": air.get("ssid"), "signal": air.get("signal"), "rung": link.ladder.rung,
        }  # fmt: skip

    def complain(self, text: str) -> None:
        """Once, until the interface's state changes; COMPLAINTS different ones at most."""
        if text not in self._complaints and len(self._complaints) < COMPLAINTS:
            self._complaints.add(text)
            self.log.warning("%s", text)
