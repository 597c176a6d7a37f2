"""Keeps each interface up, associated, addressed and routed: links.py decides, kernel.py, dhcp.py and wpa_supplicant carry out.

What it knows is retained on the bus under `network/NAME`, and in a file that `network()` in the prompt reads. It waits
for nobody: programs are polled, DHCP clients are children that may be killed, and PID 1 answers at once or is not asked
again. A restart of it leaves addresses and routes as they are.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from base.files import write_atomically
from bus import Bus, Message
from network import actions
from network.actions import Action
from network.bounds import SERVERS
from network.kernel import Kernel, solicit
from network.kernel_events import Event, Monitor, Overrun
from network.links import FLOOD_PAUSE, Link, Links
from network.radio import Radio
from network.report import Report
from network.supplicant import has_networks
from onboard import to_pid1
from onboard.board_table import board_table
from onboard.to_pid1 import SVError

if TYPE_CHECKING:
    from network.dhcp import DhcpClient
    from network.jobs import Job

POLL = 0.5  # s: programs under way are looked at
RETRY = 1.0  # s: the kernel did not answer
GAP = 0.05  # s between two turns, whatever is due
PACE = 20  # an interface is asked for again after so many times as much time as the answer has cost
PATIENCE = 2.0  # s for PID 1's answer
SUPPLICANT = "wpa_supplicant"  # the service


class Network:
    """All interfaces of the board's table, and what is under way for them."""

    def __init__(self, bus: Bus, chosen: Any, now: float) -> None:
        self.bus = bus
        self.log = bus.log
        self.chosen = chosen
        self.kernel, self.monitor = Kernel(), Monitor(chosen.NETLINK_BUFFER)
        delays = chosen.network_delays()
        self.links = Links(chosen.INTERFACES, now, delays, networks=has_networks(chosen),
                           reboot_after=reboot_after(chosen.NETWORK_STAMP, bus.boot_id, delays.REBOOT_INTERVAL))  # fmt: skip
        self.clients: dict[str, DhcpClient] = {}
        self.ended: list[DhcpClient] = []  # to be reaped
        self.radios = {
            link.name: Radio(link.name, chosen.WIFI_CONTROL, bus) for link in self.links.links.values() if link.row.wifi
        }
        self.jobs: list[Job] = []
        self.modules: dict[str, str] = {}  # the driver of each interface, as long as sysfs could say it
        self.names: dict[int, str] = {}  # by ifindex
        self.dirty = set(self.links.links)  # to be asked for
        self._next_look: dict[str, float] = {}  # when an interface may be asked for again
        self._turned = now
        self.report = Report(bus, chosen, self.links, self.radios)
        bus.watch(self.monitor.fileno(), self.on_events)
        bus.subscribe("ack", self.on_ack)

    # --- what comes in ------------------------------------------------------------------------------------------------
    def on_events(self) -> None:
        """Handle the kernel's events that wait."""
        now = time.monotonic()
        try:
            for event in self.monitor.read():
                self._event(event, now)
        except Overrun:
            self.report.overruns += 1
            self.dirty |= set(self.links.links)
            self.log.warning("netlink: events were lost; every interface is asked for anew")
        self.refresh(now)

    def _event(self, event: Event, now: float) -> None:
        named = {event.name, self.names.get(event.ifindex, "")} & self.links.links.keys()
        self.dirty |= named
        for name in named if event.servers else ():
            link = self.links[name]
            before = link.dropped
            self.do(link.advertised(dict(event.servers), now), now)
            if link.dropped > before:
                self.report.complain(f"{name}: routers name more than {SERVERS} nameservers, or some that cannot be: dropped")

    def refresh(self, now: float) -> None:
        """Ask the kernel for every interface of which something has changed, and let follow what differs."""
        for name in sorted(self.dirty):
            if now < self._next_look.get(name, 0.0):
                continue
            try:
                began = time.process_time()
                seen = self.kernel.look(name)
                took = time.process_time() - began
                self._next_look[name] = time.monotonic() + PACE * took  # somebody may flood it with routes
            except OSError as error:
                self.report.complain(f"{name}: cannot be asked for: {error.strerror}")
                self._next_look[name] = now + RETRY
                continue
            self.dirty.discard(name)
            link = self.links[name]
            if seen is not None:
                self.names = {index: other for index, other in self.names.items() if other != name} | {seen.ifindex: name}
                self._learn_module(link)
            if seen != link.seen:
                self.do(link.observe(seen, now), now)
        self.report.tell(now)

    def _learn_module(self, link: Link) -> None:
        path = f"/sys/class/net/{link.name}/device/driver/module"
        if link.row.module or os.path.exists(path):
            self.modules[link.name] = link.row.module or os.path.basename(os.path.realpath(path))

    def on_client(self, name: str) -> None:
        """A DHCP client has printed a line, or has ended."""
        now = time.monotonic()
        leases = self.clients[name].read()
        if leases is None:
            self.report.complain(f"{name}: the DHCP client ended; the next one comes in {self.chosen.NETWORK_RETRY:g} s")
            self._end_client(name)
            self.do(self.links[name].client_ended(now), now)
        for lease in leases or ():
            if isinstance(lease, ValueError):
                self.report.dropped += 1
                self.report.complain(f"{name}: DHCP: a lease is not taken: {lease}")
                self._end_client(name)
                self.do(self.links[name].client_ended(now), now)
                break  # the next client may hear another server
            before = self.links[name].lease
            if lease is None or before is None or lease.address != before.address:
                self.log.info(
                    "%s: DHCP: %s", name, f"{lease.address} via {lease.gateway or 'nobody'}" if lease else "lease lost"
                )
            self.do(self.links[name].leased(lease, now), now)
        self.refresh(now)

    def on_ack(self, _topic: str, message: Message) -> None:
        """The mothership has acknowledged something, in this boot."""
        now = time.monotonic()
        sent = message.get("mono") if isinstance(message, dict) else None
        if isinstance(sent, (int, float)) and message.get("boot") == self.bus.boot_id:
            self.do(self.links.acknowledged(sent, now), now)
            self.report.tell(now)

    def due(self) -> float:
        """When turn() has something to do: the bus sleeps until then."""
        times = [self.links.due(self._turned), self.report.due()]
        times += [radio.due(carrier=self.links[name].state.carries) for name, radio in self.radios.items()]
        times += [self._next_look.get(name, 0.0) for name in self.dirty]
        times += [self._turned + POLL] if self.jobs or self.ended else []
        return max(self._turned + GAP, min((time for time in times if time is not None), default=self._turned + 3600.0))

    def turn(self, now: float) -> None:
        """Whatever is due."""
        self._turned = now
        self.ended = [client for client in self.ended if not client.gone()]
        self.jobs = [job for job in self.jobs if not job.poll(now, self.log.warning)]
        for name, radio in self.radios.items():
            radio.turn(now, carrier=self.links[name].state.carries)
        self.do(self.links.tick(now), now)
        self.refresh(now)

    # --- what goes out ------------------------------------------------------------------------------------------------
    def do(self, wanted: list[Action], now: float) -> None:
        """Carry actions out; one that fails is logged, and asked for again because what we see does not change."""
        for action in wanted:
            try:
                self._do(action, now)
            except (OSError, SVError) as error:
                words = error.strerror if isinstance(error, OSError) else error
                self.report.complain(f"{action.name}: {type(action).__name__} {' '.join(map(str, action[1:]))}: {words}")

    def _do(self, action: Action, now: float) -> None:
        name = action.name
        seen = self.links[name].seen
        ifindex = seen.ifindex if seen else 0
        match action:
            case actions.Configure():
                row = self.links[name].row
                self.kernel.configure(name, "ra" in row.addresses, row.metric, self.report.complain)
            case actions.Raise():
                self.kernel.raise_link(ifindex)
            case actions.RefuseRouters():
                self.log.warning(
                    "%s: a flood of router advertisements: IPv6 starts anew there, deaf for %g s", name, FLOOD_PAUSE
                )
                self.kernel.forget_routers(name, self.report.complain)
            case actions.Solicit():
                try:
                    solicit(name)
                except OSError:  # our own address is not confirmed yet: the kernel itself asks when it is
                    pass
            case actions.StartDhcp():
                from network.dhcp import DhcpClient  # pyroute2 and asyncio: for boards with DHCP

                client = DhcpClient(name, socket.gethostname() if self.links[name].row.hostname else "")
                self.clients[name] = client
                self.bus.watch(client.reader, functools.partial(self.on_client, name))
            case actions.StopDhcp():
                self._end_client(name)
            case actions.AddAddress(_, address, seconds):
                self.kernel.add_address(ifindex, address, seconds)
                self.dirty.add(name)
            case actions.AddRoute(_, gateway, metric, source):
                self.kernel.add_route(ifindex, gateway, metric, source)
                self.dirty.add(name)
            case actions.RemoveAddress() | actions.RemoveRoute():
                self._remove(action, ifindex)
                self.dirty.add(name)
            case _:
                self._climb(action, now)

    def _remove(self, action: actions.RemoveAddress | actions.RemoveRoute, ifindex: int) -> None:
        try:
            if isinstance(action, actions.RemoveAddress):
                self.kernel.remove_address(ifindex, action.address)
            else:
                self.kernel.remove_route(ifindex, action.gateway, action.metric)
        except OSError:  # gone already: the kernel takes a route away with its source, and an address at its end
            pass

    def _end_client(self, name: str) -> None:
        if client := self.clients.pop(name, None):
            self.bus.unwatch(client.reader)
            client.end()
            self.ended.append(client)

    def _climb(self, action: Action, now: float) -> None:
        """One rung of the ladder; each is logged."""
        name, link = action.name, self.links[action.name]
        words = f"{name}: {link.state} for {now - link.since:.0f} s"
        if isinstance(action, actions.Reassociate):
            self.log.warning("%s: wpa_supplicant shall reassociate", words)
            self.radios[name].send("REASSOCIATE")
        elif isinstance(action, actions.RestartSupplicant):
            self.log.warning("%s: wpa_supplicant is restarted", words)
            self._ask(op="restart", name=SUPPLICANT)
        elif isinstance(action, actions.ReloadModule):
            module = link.row.module or self.modules.get(name, "")
            if not module:
                self.log.warning("%s: which module drives it is not known; nothing to reload", words)
                return
            self.log.warning("%s: module %s is reloaded", words, module)
            from network.jobs import Job

            self.jobs.append(Job([["modprobe", "-r", *module.split()], ["modprobe", "-a", *module.split()]], now))
        elif isinstance(action, actions.Reboot):
            # The stamp first: it keeps us from asking again and again in this boot, should PID 1 not be able to reboot.
            write_atomically(self.chosen.NETWORK_STAMP, json.dumps({"boot": self.bus.boot_id, "mono": now, "interface": name}))
            self.log.error("%s: nothing else has helped: the board reboots", words)
            self._ask(op="reboot")

    def _ask(self, **request: Any) -> None:
        """Ask PID 1 and do not wait until it is done."""
        to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), request, timeout=PATIENCE)


def reboot_after(stamp: str, boot_id: str, interval: float) -> float:
    """When the ladder may reboot the board: not in the first hour of a boot, nor within an hour of having asked for it.

    A board without a clock does not know how long ago another boot was; but one that has been up for an hour has not
    been rebooted for an hour.
    """
    try:
        with open(stamp, encoding="ascii") as file:
            last = json.load(file)
        return interval + (float(last["mono"]) if last["boot"] == boot_id else 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return interval


def main() -> None:
    bus, now = Bus("network"), time.monotonic()
    network = Network(bus, board_table(), now)
    network.refresh(now)  # first of all: a link that is raised takes its time
    if any("dhcp" in link.row.addresses for link in network.links.links.values()):
        from network import dhcp  # noqa: F401
    gc.collect()
    gc.freeze()  # what we have imported stays shared with the DHCP clients
    for now in bus.when(network.due):
        network.turn(now)


if __name__ == "__main__":
    main()
