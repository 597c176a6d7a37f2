"""Keeps each interface up, associated, addressed and routed: links.py decides, netlink.py and wpa_supplicant carry out.

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
import subprocess
import time
from typing import Any

from base.files import write_atomically
from bus import Bus, Message
from network import links
from network.kernel import DhcpClient, Event, Kernel, Monitor, Overrun, solicit
from network.links import Action, Link, Links
from network.supplicant import RUN, connect, fields, has_networks, unescape
from onboard import to_pid1
from onboard.board_table import board_table
from onboard.to_pid1 import SVError

TURN = 1.0  # s: deadlines of a second's precision
ASK_SUPPLICANT = 30.0  # s between looks at SSID and signal
JOB_TIMEOUT = 60.0  # s for a modprobe
PATIENCE = 2.0  # s for PID 1's answer
SUPPLICANT = "wpa_supplicant"  # the service
PROC = "/proc/sys/net"


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
        self.overruns = 0
        self._told: dict[str, dict[str, Any]] = {}
        self._resolv: str | None = None  # what we have written
        self._complaints: set[str] = set()
        bus.watch(self.monitor.fileno(), self.on_events)
        bus.subscribe("ack", self.on_ack)

    # --- what comes in ------------------------------------------------------------------------------------------------
    def on_events(self) -> None:
        """The kernel has something to say."""
        now = time.monotonic()
        try:
            for event in self.monitor.read():
                self._event(event, now)
        except Overrun:
            self.overruns += 1
            self.dirty |= set(self.links.links)
            self.log.warning("netlink: events were lost; every interface is asked for anew")
        self.refresh(now)

    def _event(self, event: Event, now: float) -> None:
        named = {event.name, self.names.get(event.ifindex, "")} & self.links.links.keys()
        self.dirty |= named
        if event.servers:
            for name in named:
                self.do(self.links[name].advertised(dict(event.servers), now), now)

    def refresh(self, now: float) -> None:
        """Ask the kernel for every interface of which something has changed, and let follow what differs."""
        for name in sorted(self.dirty):
            try:
                seen = self.kernel.look(name)
            except OSError as error:
                self._complain(f"{name}: cannot be asked for: {error.strerror}")
                continue  # at the next turn
            self.dirty.discard(name)
            link = self.links[name]
            if seen is not None:
                self.names = {index: other for index, other in self.names.items() if other != name} | {seen.ifindex: name}
                self._learn_module(link)
            if seen != link.seen:
                self.do(link.observe(seen, now), now)
        self.tell(now)

    def _learn_module(self, link: Link) -> None:
        path = f"/sys/class/net/{link.name}/device/driver/module"
        if link.row.module or os.path.exists(path):
            self.modules[link.name] = link.row.module or os.path.basename(os.path.realpath(path))

    def on_client(self, name: str) -> None:
        """A DHCP client has something to say, or has died."""
        now = time.monotonic()
        leases = self.clients[name].read()
        if leases is None:
            self.log.warning("%s: the DHCP client ended; the next one comes in %g s", name, self.chosen.NETWORK_RETRY)
            self._end_client(name)
            self.do(self.links[name].client_ended(now), now)
        for lease in leases or ():
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
        if message["boot"] == self.bus.boot_id:
            self.do(self.links.acknowledged(float(message["mono"]), now), now)
            self.tell(now)

    def turn(self, now: float) -> None:
        """Every second: whatever is due."""
        self.ended = [client for client in self.ended if not client.gone()]
        self.jobs = [job for job in self.jobs if not job.poll(now, self.log.warning)]
        for name, radio in self.radios.items():
            radio.turn(now, carrier=self.links[name].state.carries)
        self.do(self.links.tick(now), now)
        self.refresh(now)

    # --- what goes out ------------------------------------------------------------------------------------------------
    def do(self, actions: list[Action], now: float) -> None:
        """Carry actions out; one that fails is logged, and asked for again because what we see does not change."""
        for action in actions:
            try:
                self._do(action, now)
            except (OSError, SVError) as error:
                words = error.strerror if isinstance(error, OSError) else error
                self._complain(f"{action.name}: {type(action).__name__} {' '.join(map(str, action[1:]))}: {words}")

    def _do(self, action: Action, now: float) -> None:
        name = action.name
        seen = self.links[name].seen
        ifindex = seen.ifindex if seen else 0
        match action:
            case links.Configure():
                self._configure(self.links[name])
            case links.Raise():
                self.kernel.raise_link(ifindex)
            case links.Solicit():
                try:
                    solicit(name)
                except OSError:  # our own address is not confirmed yet: the kernel itself asks when it is
                    pass
            case links.StartDhcp():
                client = DhcpClient(name, socket.gethostname() if self.links[name].row.hostname else "")
                self.clients[name] = client
                self.bus.watch(client.reader, functools.partial(self.on_client, name))
            case links.StopDhcp():
                self._end_client(name)
            case links.AddAddress(_, address, seconds):
                self.kernel.add_address(ifindex, address, seconds)
                self.dirty.add(name)
            case links.AddRoute(_, gateway, metric, source):
                self.kernel.add_route(ifindex, gateway, metric, source)
                self.dirty.add(name)
            case links.RemoveAddress() | links.RemoveRoute():
                self._remove(action, ifindex)
                self.dirty.add(name)
            case _:
                self._climb(action, now)

    def _remove(self, action: links.RemoveAddress | links.RemoveRoute, ifindex: int) -> None:
        try:
            if isinstance(action, links.RemoveAddress):
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

    def _configure(self, link: Link) -> None:
        """The kernel's switches (Documentation/networking/ip-sysctl.rst)."""
        advertised = "ra" in link.row.addresses
        for switch, value in (
            ("ipv6/conf/{}/accept_ra", 2 if advertised else 0),  # 2: even where the board forwards
            ("ipv6/conf/{}/ra_defrtr_metric", link.row.metric),
            ("ipv4/conf/{}/ignore_routes_with_linkdown", 1),  # the next interface takes over without waiting for us
            ("ipv6/conf/{}/ignore_routes_with_linkdown", 1),
        ):
            try:
                with open(f"{PROC}/{switch.format(link.name)}", "w", encoding="ascii") as file:
                    file.write(str(value))
            except OSError as error:  # a kernel without IPv6, or older than 5.12
                self._complain(f"{link.name}: {switch.format(link.name)} = {value}: {error.strerror}")

    def _climb(self, action: Action, now: float) -> None:
        """One rung of the ladder; each is logged."""
        name, link = action.name, self.links[action.name]
        words = f"{name}: {link.state} for {now - link.since:.0f} s"
        if isinstance(action, links.Reassociate):
            self.log.warning("%s: wpa_supplicant shall reassociate", words)
            self.radios[name].send("REASSOCIATE")
        elif isinstance(action, links.RestartSupplicant):
            self.log.warning("%s: wpa_supplicant is restarted", words)
            self._ask(op="restart", name=SUPPLICANT)
        elif isinstance(action, links.ReloadModule):
            module = link.row.module or self.modules.get(name, "")
            if not module:
                self.log.warning("%s: which module drives it is not known; nothing to reload", words)
                return
            self.log.warning("%s: module %s is reloaded", words, module)
            self.jobs.append(Job([["modprobe", "-r", *module.split()], ["modprobe", "-a", *module.split()]], now))
        elif isinstance(action, links.Reboot):
            # The stamp first: it keeps us from asking again and again in this boot, should PID 1 not be able to reboot.
            write_atomically(self.chosen.NETWORK_STAMP, json.dumps({"boot": self.bus.boot_id, "mono": now, "interface": name}))
            self.log.error("%s: nothing else has helped: the board reboots", words)
            self._ask(op="reboot")

    def _ask(self, **request: Any) -> None:
        """Ask PID 1 and do not wait until it is done."""
        to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), request, timeout=PATIENCE)

    # --- what others see --------------------------------------------------------------------------------------------
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
        if changed:
            self._told = picture
            facts = {"pid": os.getpid(), "overruns": self.overruns, "interfaces": list(picture.values())}
            self._write(self.chosen.NETWORK_STATE, json.dumps(facts))
        servers, domains = self.links.resolver(now)
        text = "".join(f"nameserver {server}\n" for server in servers)
        text = (f"search {' '.join(domains)}\n" if domains else "") + text
        if not text and self._resolv is None and os.path.exists(self.chosen.RESOLV_CONF):
            return  # an earlier life's: it serves until we know better
        if text != self._resolv and self._write(self.chosen.RESOLV_CONF, "# by network.py\n" + text):
            self._resolv = text

    def _write(self, path: str, text: str) -> bool:
        try:
            write_atomically(path, text)
        except OSError as error:
            self._complain(f"{path}: {error.strerror}")
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

    def _complain(self, text: str) -> None:
        """Once, until the interface's state changes."""
        if text not in self._complaints:
            self._complaints.add(text)
            self.log.warning("%s", text)


class Radio:
    """What wpa_supplicant knows of one interface, asked now and then, without waiting for the answer."""

    def __init__(self, name: str, folder: str, bus: Bus) -> None:
        self.name = name
        self.air: dict[str, Any] = {}
        self._folder = folder
        self._bus = bus
        self._socket: socket.socket | None = None
        self._due = 0.0

    def turn(self, now: float, *, carrier: bool) -> None:
        """Ask, if it is time; at once after a new association."""
        if not carrier:
            self.air, self._due = {}, 0.0
        elif now >= self._due:
            self._due = now + (ASK_SUPPLICANT if self.air else 0.0)  # until it has answered, at every turn
            try:
                self.send("STATUS")
                self.send("SIGNAL_POLL")
            except OSError:  # it is not there; the ladder knows when that matters
                pass

    def send(self, command: str) -> None:
        """OSError where nobody listens."""
        if self._socket is None:
            os.makedirs(RUN, exist_ok=True)
            self._socket = connect(self._folder, self.name, f"{RUN}/{self.name}.control")
            self._bus.watch(self._socket.fileno(), self._answered)
        try:
            self._socket.send(command.encode())
        except OSError:
            self._close()
            raise

    def _answered(self) -> None:
        if self._socket is None:
            return
        try:
            told = fields(self._socket.recv(65536).decode("ascii", "replace"))
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        if "ssid" in told:
            self.air["ssid"] = unescape(told["ssid"]).decode("utf-8", "replace")
        if "RSSI" in told:
            self.air["signal"] = int(told["RSSI"])

    def _close(self) -> None:
        if self._socket is not None:
            self._bus.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None


class Job:
    """Programs that run one after the other, each under a time limit, while we go on."""

    def __init__(self, commands: list[list[str]], now: float) -> None:
        self._commands = commands
        self._start(now)

    def _start(self, now: float) -> None:
        self._argv = self._commands.pop(0)
        self._deadline = now + JOB_TIMEOUT
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)

    def poll(self, now: float, warn: Any) -> bool:
        """Whether all is over."""
        status = self._process.poll()
        if status is None and now < self._deadline:
            return False
        if status is None:
            self._process.kill()  # it may hang in the kernel, where nothing can end it: we do not wait for it
        if status != 0:
            warn("%s: %s", " ".join(self._argv), "took too long" if status is None else f"exit status {status}")
        if not self._commands:
            return True
        self._start(now)
        return False


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
    gc.collect()
    gc.freeze()  # what we have imported stays shared with the DHCP clients
    network.refresh(now)
    for now in bus.every(TURN):
        network.turn(now)


if __name__ == "__main__":
    main()
