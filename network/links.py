"""The state machine of each network interface: what the kernel, DHCP and the mothership say goes in, actions come out.

Pure: no I/O, no clock. `now` is time.monotonic(), in seconds. service.py carries the actions out.
An action that did not succeed is asked for again, because what the kernel shows still differs from what we want.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from network.actions import (
    Action,
    AddAddress,
    AddRoute,
    Configure,
    Lease,
    Raise,
    RefuseRouters,
    RemoveAddress,
    RemoveRoute,
    Seen,
    Solicit,
    StartDhcp,
    State,
    StopDhcp,
    family,
    host,
)
from network.bounds import CROWD, SERVERS, usable
from network.ladder import Ladder
from tables.rows import Interface, NetworkDelays

NAMESERVERS = 3  # what a resolver reads (`man 5 resolv.conf`, MAXNS)
FLOOD_PAUSE = 600.0  # s for which a flood of advertisements makes us deaf to all of them


class Link:
    """One interface."""

    def __init__(
        self, row: Interface, now: float, delays: NetworkDelays, may_reboot: Callable[[float], bool], *, networks: bool
    ) -> None:
        self.row = row
        self.name = row.name
        self.delays = delays
        self.joins = row.wifi and networks  # Wi-Fi with a network to join
        self.state = State.ABSENT
        self.since = now
        self.seen: Seen | None = None
        self.lease: Lease | None = None
        self.rdnss: dict[str, float] = {}  # nameservers from router advertisements, and until when (RFC 8106)
        self.ladder = Ladder(row.name, delays, may_reboot)
        self.proven: float | None = None  # when the mothership's last acknowledgement came this way
        self.local_since = now
        self.client = False  # whether a DHCP client runs
        self._client_due = now  # the next one
        self._expires: float | None = None  # the lease
        self._overdue: float | None = None  # the client should have renewed it, or got one
        self._configured = 0  # the index that our switches were set for
        self._owned: set[str] = set()  # addresses that we added
        self._routed: set[str] = set()  # gateways
        self._renew: set[str] = set()  # addresses whose lifetime has changed
        self._tried: dict[Action | str, float] = {}
        self._deaf: float | None = None  # until when advertisements are refused
        self.dropped = 0  # nameservers above SERVERS

    # --- events -----------------------------------------------------------------------------------------------------
    def observe(self, seen: Seen | None, now: float) -> list[Action]:
        """The kernel has been asked; None where it has no such interface."""
        if seen is None or (self.seen is not None and seen.ifindex != self.seen.ifindex):
            self._owned.clear()  # what it had went with it
            self._routed.clear()
            self._tried.clear()
            self.rdnss.clear()
            self._deaf = None
        self.seen = seen
        return list(self._settle(now))

    def leased(self, lease: Lease | None, now: float) -> list[Action]:
        """The DHCP client has got or renewed a lease; None where it lost it (NAK, expiry)."""
        if not self.client:
            return []  # a late line of a client that we have killed
        self.lease = lease
        self._tried.clear()
        self._expires = self._overdue = None
        if lease is None:
            self._overdue = now + self.delays.DHCP_TIMEOUT
        else:
            self._renew.add(lease.address)
            if lease.seconds is not None:
                self._expires = now + lease.seconds
                self._overdue = now + lease.seconds * 15 / 16  # T2 is at 7/8: half of the time to rebind is over
        return list(self._settle(now))

    def client_ended(self, now: float) -> list[Action]:
        """The DHCP client has died by itself. The lease stays valid: the next client renews it."""
        self.client = False
        self._client_due = now + self.delays.NETWORK_RETRY
        return list(self._settle(now))

    def advertised(self, servers: dict[str, float], now: float) -> list[Action]:
        """A router has named nameservers, each with its lifetime in seconds; 0 takes it back. SERVERS of them are kept."""
        self._forget_nameservers(now)
        for server, seconds in servers.items() if "ra" in self.row.addresses else ():
            if seconds <= 0:
                self.rdnss.pop(server, None)
            elif server in self.rdnss or (len(self.rdnss) < SERVERS and usable(server)):
                self.rdnss[server] = now + seconds
            else:
                self.dropped += 1
        return list(self._settle(now))

    def acknowledged(self, sent: float, now: float) -> list[Action]:
        """The mothership's acknowledgement came while this interface carried the default route; `sent`: monotonic time."""
        if self.state.addressed and self.local_since < sent <= now + 1.0:
            self.proven = now
        return list(self._settle(now))

    def tick(self, now: float) -> list[Action]:
        """Whatever is due."""
        return list(self._settle(now))

    # --- what follows -----------------------------------------------------------------------------------------------
    def _judge(self, now: float) -> State:
        if self.seen is None:
            return State.ABSENT
        if not self.seen.up:
            return State.DOWN
        if not self.seen.carrier:
            return State.ASSOCIATING if self.joins else State.NO_CARRIER
        if not self.seen.addresses:
            return State.ADDRESSING
        fresh = self.proven is not None and now - self.proven < self.delays.ONLINE_TIMEOUT
        return State.ONLINE if fresh else State.LOCAL

    def _forget_nameservers(self, now: float) -> None:
        self.rdnss = {server: until for server, until in self.rdnss.items() if until > now}

    def _settle(self, now: float) -> Iterator[Action]:
        self._forget_nameservers(now)
        if self._expires is not None and now >= self._expires:
            self.lease = self._expires = None
        state, raised = self._judge(now), False
        if state is not self.state:
            entered, before = state, self.state
            self.state, self.since = state, now
            if entered.addressed and not before.addressed:
                self.local_since = now
            if not entered.addressed:
                self.proven = None
            raised = entered.carries and not before.carries
            if raised:
                self._tried.clear()
        yield from self._link(now)  # the metric of the routers' routes comes before their advertisements
        if raised and "ra" in self.row.addresses:
            yield Solicit(self.name)
        yield from self._dhcp(now)
        yield from self._addresses(now)
        yield from self._routes(now)
        if self.joins:
            yield from self.ladder.climb(state, now)

    def _link(self, now: float) -> Iterator[Action]:
        if self.seen is not None and self._configured != self.seen.ifindex:
            self._configured = self.seen.ifindex
            yield Configure(self.name)
        yield from self._routers(now)
        if self.seen is not None and not self.seen.up and self._may_try(Raise(self.name), now):
            yield Raise(self.name)

    def _routers(self, now: float) -> Iterator[Action]:
        """Deaf to advertisements while there is a flood of them; what the kernel has by then goes with its lifetime."""
        if self._deaf is not None and now >= self._deaf:
            self._deaf = None
            yield Configure(self.name)
            yield Solicit(self.name)
        elif self._deaf is None and self.seen is not None and self.seen.crowd > CROWD and "ra" in self.row.addresses:
            self._deaf = now + FLOOD_PAUSE
            yield RefuseRouters(self.name)

    def _dhcp(self, now: float) -> Iterator[Action]:
        wanted = self.state.carries and "dhcp" in self.row.addresses
        if self.client and (not wanted or (self._overdue is not None and now >= self._overdue)):
            self.client = False
            self._client_due = now
            yield StopDhcp(self.name)
        if not wanted:
            self.lease = self._expires = self._overdue = None  # it may be another network when the carrier is back
        elif not self.client and now >= self._client_due:
            self.client = True
            self._overdue = now + self.delays.DHCP_TIMEOUT
            yield StartDhcp(self.name)

    def _addresses(self, now: float) -> Iterator[Action]:
        wanted: dict[str, float | None] = {}
        if self.state.carries:
            wanted = {address: None for address in self.row.addresses if "/" in address}
            if self.lease is not None:
                wanted[self.lease.address] = None if self._expires is None else self._expires - now
        there = self.seen.addresses if self.seen is not None else ()
        mine = set(self._owned)
        if self.seen is not None and "dhcp" in self.row.addresses and (self.lease is not None or not self.state.carries):
            mine.update(self.seen.dynamic)  # until then, addresses of an earlier run of network.py stay in use
        for address in sorted(mine - wanted.keys()):
            self._owned.discard(address)
            yield RemoveAddress(self.name, address)
        for address, seconds in wanted.items():
            if address in self._renew or (address not in there and self._may_try(address, now)):
                self._renew.discard(address)
                self._owned.add(address)
                yield AddAddress(self.name, address, seconds)
        self._renew.clear()

    def _routes(self, now: float) -> Iterator[Action]:
        sources: dict[str, str] = {}
        there = self.seen.addresses if self.seen is not None else ()
        if self.state.carries:
            fixed = {family(address): host(address) for address in reversed(self.row.addresses) if "/" in address}
            sources = {gateway: fixed.get(family(gateway), "") for gateway in self.row.gateways}
            if self.lease is not None and self.lease.gateway and self.lease.address in there:
                sources.setdefault(self.lease.gateway, host(self.lease.address))
        for gateway in sorted(self._routed - sources.keys()):
            self._routed.discard(gateway)
            yield RemoveRoute(self.name, gateway, self.row.metric)
        routes = self.seen.routes if self.seen is not None else ()
        for gateway, source in sources.items():
            if source and not any(host(address) == source for address in there):
                continue  # the kernel does not take a source that it does not have; it will tell us when it has
            action = AddRoute(self.name, gateway, self.row.metric, source)
            if (gateway, self.row.metric) not in routes and self._may_try(action, now):
                self._routed.add(gateway)
                yield action

    def _may_try(self, what: Action | str, now: float) -> bool:
        """Whether it was not tried just now."""
        last = self._tried.get(what)
        if last is not None and now < last + self.delays.NETWORK_RETRY:
            return False
        self._tried[what] = now
        return True

    def due(self, ticked: float) -> float | None:
        """When tick() has something to do, should nothing else happen; None: never. `ticked` is its last call."""
        times = [tried + self.delays.NETWORK_RETRY for tried in self._tried.values()]
        times = [time for time in times if time > ticked] + [*self.rdnss.values()]
        times += [time for time in (self._expires, self._deaf, self._overdue if self.client else None) if time is not None]
        if self.state.carries and "dhcp" in self.row.addresses and not self.client:
            times.append(self._client_due)
        if self.state is State.ONLINE and self.proven is not None:
            times.append(self.proven + self.delays.ONLINE_TIMEOUT)
        if self.joins and (rung := self.ladder.due()) is not None:
            times.append(rung)
        return min(times, default=None)

    # --- looks ------------------------------------------------------------------------------------------------------
    def nameservers(self, now: float) -> list[str]:
        """Those of the row, then DHCP's, then the routers'; a link-local one with its zone (RFC 4007)."""
        found = [*self.row.nameservers, *(self.lease.nameservers if self.lease else ())]
        found += [server for server, until in self.rdnss.items() if until > now]
        return [f"{one}%{self.name}" if one.lower().startswith("fe80:") else one for one in found]


class Links:
    """All interfaces of the board."""

    def __init__(self, rows: tuple[Interface, ...], now: float, delays: NetworkDelays, *, networks: bool = True,
                 reboot_after: float = 0.0) -> None:  # fmt: skip
        self.links = {row.name: Link(row, now, delays, self._may_reboot, networks=networks) for row in rows}
        self.delays = delays
        self.reboot_after = reboot_after  # monotonic: the ladder does not reboot the board before

    def __getitem__(self, name: str) -> Link:
        return self.links[name]

    def tick(self, now: float) -> list[Action]:
        """Whatever is due, of all interfaces."""
        return [action for link in self.links.values() for action in link.tick(now)]

    def due(self, ticked: float) -> float | None:
        """When tick() has something to do, should nothing else happen; None: never. `ticked` is its last call."""
        return min((due for link in self.links.values() if (due := link.due(ticked)) is not None), default=None)

    def acknowledged(self, sent: float, now: float) -> list[Action]:
        """An acknowledgement proves the interface that carries the default route."""
        link = self.preferred()
        return link.acknowledged(sent, now) if link else []

    def _may_reboot(self, now: float) -> bool:
        """Not within an hour of the last one, and not where it would cut off another interface that works."""
        if now < self.reboot_after or any(link.state.addressed for link in self.links.values()):
            return False
        self.reboot_after = now + self.delays.REBOOT_INTERVAL
        return True

    def preferred(self) -> Link | None:
        """The interface with the default route that the kernel takes: that of the lowest metric."""
        metrics = {}
        for link in self.links.values():
            if link.state.addressed and link.seen and link.seen.routes:
                metrics[link.name] = min(metric for _, metric in link.seen.routes)
        return self.links[min(metrics, key=lambda name: metrics[name])] if metrics else None

    def resolver(self, now: float) -> tuple[list[str], list[str]]:
        """Nameservers and search domains, those of the preferred interface first."""
        links = sorted((link for link in self.links.values() if link.state.addressed), key=lambda link: link.row.metric)
        servers = [server for link in links for server in link.nameservers(now)]
        domains = [link.lease.domain for link in links if link.lease and link.lease.domain]
        return list(dict.fromkeys(servers))[:NAMESERVERS], list(dict.fromkeys(domains))
