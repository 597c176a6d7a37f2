"""The interfaces' state machine with a clock and a kernel made of plain values."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from network import actions
from network.actions import Action, Lease, Seen, State
from network.ladder import RUNGS
from network.links import Links
from tables.load import load
from tables.rows import Interface

DELAYS = load({}).network_delays()
LEASE = Lease("192.0.2.50/24", "192.0.2.1", ("192.0.2.53",), "example.org", 600.0)


class World:
    """A kernel and a DHCP client that do what they are told, and mind when it makes no sense."""

    def __init__(self, *rows: Interface, networks: bool = True, reboot_after: float = 0.0) -> None:
        self.now = 1000.0
        self.links = Links(rows, self.now, DELAYS, networks=networks, reboot_after=reboot_after)
        self.seen: dict[str, Seen | None] = {row.name: None for row in rows}
        self.clients: set[str] = set()
        self.added: set[tuple[str, str]] = set()
        self.routed: set[tuple[str, str]] = set()
        self.log: list[Action] = []
        self.times: list[tuple[float, Action]] = []
        self.ifindex = 1

    def do(self, wanted: list[Action]) -> list[Action]:
        done = list(wanted)
        for action in done:
            self.log.append(action)
            self.times.append((self.now, action))
            seen = self.seen[action.name]
            match action:
                case actions.StartDhcp(name):
                    assert name not in self.clients, "a second client"
                    self.clients.add(name)
                case actions.StopDhcp(name):
                    self.clients.remove(name)
                case actions.Raise(name):
                    assert seen is not None
                    self.seen[name] = seen._replace(up=True)
                case actions.AddAddress(name, address, _):
                    assert seen is not None
                    assert seen.carrier
                    self.added.add((name, address))
                    self.seen[name] = seen._replace(addresses=tuple({*seen.addresses, address}))
                case actions.RemoveAddress(name, address):
                    assert (name, address) in self.added or (seen and address in seen.dynamic), "not ours"
                    self.added.discard((name, address))
                    if seen:
                        rest = tuple(one for one in seen.addresses if one != address)
                        self.seen[name] = seen._replace(addresses=rest, dynamic=())
                case actions.AddRoute(name, gateway, metric, _):
                    assert seen is not None
                    self.routed.add((name, gateway))
                    self.seen[name] = seen._replace(routes=tuple({*seen.routes, (gateway, metric)}))
                case actions.RemoveRoute(name, gateway, metric):
                    self.routed.remove((name, gateway))
                    if seen:
                        self.seen[name] = seen._replace(routes=tuple(one for one in seen.routes if one != (gateway, metric)))
        for name in {action.name for action in done}:
            if self.seen[name] != self.links[name].seen:
                done += self.look(name)
        return done

    def look(self, name: str) -> list[Action]:
        return self.do(self.links[name].observe(self.seen[name], self.now))

    def look_at(self, name: str) -> Seen:
        seen = self.seen[name]
        assert seen is not None
        return seen

    def appear(self, name: str, *, up: bool = False, carrier: bool = False, **more: Any) -> list[Action]:
        self.ifindex += 1
        self.seen[name] = Seen(self.ifindex, up, carrier, **more)
        return self.look(name)

    def carrier(self, name: str, carrier: bool) -> list[Action]:
        self.seen[name] = self.look_at(name)._replace(carrier=carrier)
        return self.look(name)

    def vanish(self, name: str) -> list[Action]:
        self.seen[name] = None
        self.added = {pair for pair in self.added if pair[0] != name}
        self.routed = {pair for pair in self.routed if pair[0] != name}
        return self.look(name)

    def lease(self, name: str, lease: Lease | None = LEASE) -> list[Action]:
        return self.do(self.links[name].leased(lease, self.now))

    def wait(self, seconds: float, step: float = 1.0) -> list[Action]:
        done: list[Action] = []
        until = self.now + seconds
        while self.now < until:
            self.now += step
            done += self.do(self.links.tick(self.now))
        return done

    def state(self, name: str) -> State:
        return self.links[name].state


ETH = Interface("eth0", metric=100)
WLAN = Interface("wlan0", wifi=True, metric=600)


def local(world: World, name: str) -> None:
    world.appear(name)
    world.carrier(name, True)
    world.lease(name)
    assert world.state(name) is State.LOCAL


# --- the states -----------------------------------------------------------------------------------------------------
def test_from_nothing_to_online_and_back() -> None:
    world = World(ETH)
    assert world.state("eth0") is State.ABSENT
    assert [type(one) for one in world.appear("eth0")] == [actions.Configure, actions.Raise]
    assert world.state("eth0") is State.NO_CARRIER
    assert world.carrier("eth0", True) == [actions.Solicit("eth0"), actions.StartDhcp("eth0")]
    assert world.state("eth0") is State.ADDRESSING
    done = world.lease("eth0")
    assert done == [
        actions.AddAddress("eth0", "192.0.2.50/24", 600.0),
        actions.AddRoute("eth0", "192.0.2.1", 100, "192.0.2.50"),
    ]
    assert world.state("eth0") is State.LOCAL
    world.now += 5
    world.do(world.links.acknowledged(world.now, world.now))
    assert world.state("eth0") is State.ONLINE
    assert set(world.carrier("eth0", False)) == {
        actions.StopDhcp("eth0"), actions.RemoveAddress("eth0", "192.0.2.50/24"), actions.RemoveRoute("eth0", "192.0.2.1", 100),
    }  # fmt: skip
    assert world.state("eth0") is State.NO_CARRIER
    world.vanish("eth0")
    assert world.state("eth0") is State.ABSENT


def test_a_radio_associates_and_one_without_networks_has_no_carrier() -> None:
    for networks, state in ((True, State.ASSOCIATING), (False, State.NO_CARRIER)):
        world = World(WLAN, networks=networks)
        world.appear("wlan0")
        assert world.state("wlan0") is state
    assert not [one for one in world.wait(10_000) if isinstance(one, RUNGS)], "nothing to climb for"


def test_what_the_kernel_has_at_the_start_is_taken_as_it_is() -> None:
    """A restart of network.py: the address stays, and goes only when the new lease is another."""
    world = World(ETH)
    old = "192.0.2.7/24"
    world.appear("eth0", up=True, carrier=True, addresses=(old,), dynamic=(old,), routes=(("192.0.2.1", 100),))
    assert world.state("eth0") is State.LOCAL
    assert actions.RemoveAddress("eth0", old) not in world.log
    world.lease("eth0")
    assert actions.RemoveAddress("eth0", old) in world.log


# --- leases ---------------------------------------------------------------------------------------------------------
def test_a_renewal_gives_the_address_a_new_life() -> None:
    world = World(ETH)
    local(world, "eth0")
    world.wait(300)
    assert world.lease("eth0") == [actions.AddAddress("eth0", "192.0.2.50/24", 600.0)]
    assert not world.wait(500)


def test_an_expired_lease_takes_its_address_and_a_silent_client_is_replaced_before() -> None:
    """A client that hangs would not say a word: its successor has the rest of the time to rebind."""
    world = World(ETH)
    local(world, "eth0")
    assert world.wait(562) == []
    assert world.wait(1) == [actions.StopDhcp("eth0"), actions.StartDhcp("eth0")]
    assert actions.RemoveAddress("eth0", "192.0.2.50/24") in world.wait(40)
    assert world.state("eth0") is State.ADDRESSING


def test_a_lease_that_is_lost_takes_its_address() -> None:
    world = World(ETH)
    local(world, "eth0")
    assert actions.RemoveAddress("eth0", "192.0.2.50/24") in world.lease("eth0", None)


def test_another_address_replaces_the_first() -> None:
    world = World(ETH)
    local(world, "eth0")
    done = world.lease("eth0", LEASE._replace(address="192.0.2.51/24"))
    assert done[0] == actions.RemoveAddress("eth0", "192.0.2.50/24")
    assert world.look_at("eth0").addresses == ("192.0.2.51/24",)


def test_a_client_that_dies_is_started_again_and_the_lease_lives_on() -> None:
    world = World(ETH)
    local(world, "eth0")
    world.clients.clear()
    assert world.do(world.links["eth0"].client_ended(world.now)) == []
    assert world.wait(4) == []
    assert world.wait(1) == [actions.StartDhcp("eth0")]
    assert world.state("eth0") is State.LOCAL


def test_the_last_words_of_a_client_that_was_ended_do_not_count() -> None:
    world = World(ETH)
    local(world, "eth0")
    world.carrier("eth0", False)
    assert world.lease("eth0") == []


def test_a_client_without_a_lease_is_replaced() -> None:
    world = World(ETH)
    world.appear("eth0")
    world.carrier("eth0", True)
    assert world.wait(119) == []
    assert world.wait(1) == [actions.StopDhcp("eth0"), actions.StartDhcp("eth0")]


# --- fixed addresses --------------------------------------------------------------------------------------------------
FIXED = Interface("eth0", addresses=("192.0.2.5/24", "2001:db8::5/64"), gateways=("192.0.2.1", "2001:db8::1"), metric=50)


def test_fixed_addresses_and_routes() -> None:
    world = World(FIXED)
    world.appear("eth0")
    assert world.carrier("eth0", True) == [
        actions.AddAddress("eth0", "192.0.2.5/24", None), actions.AddAddress("eth0", "2001:db8::5/64", None),
        actions.AddRoute("eth0", "192.0.2.1", 50, "192.0.2.5"), actions.AddRoute("eth0", "2001:db8::1", 50, "2001:db8::5"),
    ]  # fmt: skip
    assert world.wait(100) == [], "and that is all"


def test_what_somebody_takes_away_comes_back() -> None:
    world = World(FIXED)
    world.appear("eth0")
    world.carrier("eth0", True)
    world.wait(10)
    world.seen["eth0"] = Seen(world.ifindex, True, True)
    world.look("eth0")
    assert world.look_at("eth0").addresses
    assert world.look_at("eth0").routes


def test_a_carrier_that_was_away_for_a_moment_is_addressed_at_once() -> None:
    world = World(FIXED)
    world.appear("eth0")
    world.carrier("eth0", True)
    world.carrier("eth0", False)
    assert len(world.carrier("eth0", True)) == 4


def test_what_the_kernel_refuses_is_asked_for_again_without_haste() -> None:
    link = Links((FIXED,), 0.0, DELAYS)["eth0"]
    asked = [
        now
        for now in range(100)
        for one in link.observe(Seen(1, True, True), float(now))
        if isinstance(one, actions.AddAddress)
    ]
    assert len(asked) == 2 * 20


# --- proof ------------------------------------------------------------------------------------------------------------
def test_old_acknowledgements_prove_nothing_and_new_ones_do_not_last() -> None:
    world = World(ETH)
    before = world.now
    world.wait(10)
    local(world, "eth0")
    world.now += 1
    for sent in (before, world.links["eth0"].local_since, world.now + 1000):
        world.do(world.links.acknowledged(sent, world.now))
        assert world.state("eth0") is State.LOCAL
    world.do(world.links.acknowledged(world.now, world.now))
    assert world.state("eth0") is State.ONLINE
    world.wait(299)
    assert world.state("eth0") is State.ONLINE
    world.wait(1)
    assert world.state("eth0") is State.LOCAL


def test_an_acknowledgement_proves_the_interface_that_carries_the_default_route() -> None:
    world = World(WLAN, ETH)
    local(world, "wlan0")
    local(world, "eth0")
    preferred = world.links.preferred()
    assert preferred is not None
    assert preferred.name == "eth0", "ethernet before Wi-Fi"
    for routes, first in (((("10.0.0.1", 900), ("10.0.0.1", 50)), "wlan0"), ((("10.0.0.1", 900),), "eth0")):
        link = world.links.links["wlan0"]
        link.seen = world.look_at("wlan0")._replace(routes=routes)
        carries = world.links.preferred()
        assert carries is not None
        assert carries.name == first, "the lowest of its metrics is what the kernel takes"
    link.seen = world.seen["wlan0"]
    world.now += 1
    world.do(world.links.acknowledged(world.now, world.now))
    assert (world.state("eth0"), world.state("wlan0")) == (State.ONLINE, State.LOCAL)
    world.carrier("eth0", False)
    world.now += 1
    world.do(world.links.acknowledged(world.now, world.now))
    assert world.state("wlan0") is State.ONLINE


def test_nameservers_come_in_the_order_of_the_metrics() -> None:
    world = World(WLAN, Interface("eth0", nameservers=("198.51.100.1",)))
    local(world, "wlan0")
    world.lease("wlan0", LEASE._replace(nameservers=("203.0.113.1", "203.0.113.2"), domain="air"))
    local(world, "eth0")
    world.do(world.links["eth0"].advertised({"fe80::1": 60.0}, world.now))
    assert world.links.resolver(world.now) == (["198.51.100.1", "192.0.2.53", "fe80::1%eth0"], ["example.org", "air"])
    assert world.links.resolver(world.now + 61)[0] == ["198.51.100.1", "192.0.2.53", "203.0.113.1"]
    world.carrier("eth0", False)
    assert world.links.resolver(world.now)[0] == ["203.0.113.1", "203.0.113.2"]


def test_a_router_that_names_thousands_of_nameservers_is_heard_for_eight() -> None:
    world = World(ETH)
    local(world, "eth0")
    link = world.links["eth0"]
    world.do(link.advertised({f"2001:db8::{n:x}": 60.0 for n in range(1, 1001)}, world.now))
    assert list(link.rdnss) == [f"2001:db8::{n}" for n in range(1, 9)]
    assert link.dropped == 992
    world.do(link.advertised({"2001:db8::1": 0.0, "2001:db8::2": 600.0, "2001:db8::99": 600.0, "ff02::1": 600.0}, world.now))
    assert "2001:db8::1" not in link.rdnss, "taken back"
    assert "2001:db8::99" in link.rdnss, "in its place"
    world.wait(61)
    assert list(link.rdnss) == ["2001:db8::2", "2001:db8::99"], "the others are forgotten with their lifetime"


def test_nameservers_of_routers_that_are_not_wanted() -> None:
    world = World(Interface("eth0", addresses=("dhcp",)))
    local(world, "eth0")
    world.do(world.links["eth0"].advertised({"2001:db8::53": 60.0}, world.now))
    assert world.links.resolver(world.now)[0] == ["192.0.2.53"]


def test_a_flood_of_routes_makes_an_interface_deaf_for_ten_minutes() -> None:
    world = World(ETH)
    local(world, "eth0")
    world.seen["eth0"] = world.look_at("eth0")._replace(crowd=256)
    assert world.look("eth0") == []
    world.seen["eth0"] = world.look_at("eth0")._replace(crowd=257)
    assert world.look("eth0") == [actions.RefuseRouters("eth0")]
    assert [one for one in world.wait(300) if isinstance(one, actions.RefuseRouters)] == [], "once"
    world.seen["eth0"] = world.look_at("eth0")._replace(crowd=0)
    world.look("eth0")
    world.lease("eth0")
    heard = [one for one in world.wait(301) if isinstance(one, (actions.Configure, actions.Solicit))]
    assert heard == [actions.Configure("eth0"), actions.Solicit("eth0")]
    world.seen["eth0"] = world.look_at("eth0")._replace(crowd=257)
    assert world.look("eth0") == [actions.RefuseRouters("eth0")], "and again"


@pytest.mark.parametrize(
    ("sent", "online"), [(999.0, False), (1000.0, False), (1000.5, True), (1010.0, True), (1011.0, True), (1011.5, False)]
)
def test_which_acknowledgements_prove_an_interface(sent: float, online: bool) -> None:
    """Local since 1000, now 1010: what was sent after the one, and not later than a second from now."""
    world = World(ETH)
    local(world, "eth0")
    world.wait(10)
    world.do(world.links["eth0"].acknowledged(sent, world.now))
    assert (world.state("eth0") is State.ONLINE) is online


# --- the ladder -------------------------------------------------------------------------------------------------------
def rungs(world: World) -> list[tuple[float, str]]:
    return [(when - 1000, type(action).__name__) for when, action in world.times if isinstance(action, RUNGS)]


def test_each_rung_in_its_time_and_again() -> None:
    world = World(WLAN)
    world.appear("wlan0")
    world.wait(1900)
    assert rungs(world) == [
        (60, "Reassociate"),
        (180, "RestartSupplicant"),
        (600, "ReloadModule"),
        (1800, "Reboot"),
        (1860, "Reassociate"),
    ]


@pytest.mark.parametrize(("down", "climbs"), [
    (lambda world: None, ["ReloadModule"]),
    (lambda world: world.appear("wlan0"), ["Reassociate", "RestartSupplicant", "ReloadModule", "Reboot"]),
    (lambda world: world.appear("wlan0", up=True, carrier=True), ["Reassociate", "RestartSupplicant", "ReloadModule", "Reboot"]),
], ids=["absent", "associating", "addressing"])  # fmt: skip
def test_an_absent_radio_has_its_module_alone(down: Callable[[World], object], climbs: list[str]) -> None:
    world = World(WLAN)
    down(world)
    world.wait(1800)
    assert [name for _, name in rungs(world)] == climbs


def test_an_address_that_stays_ends_the_ladder_and_one_that_flaps_does_not() -> None:
    world = World(WLAN)
    world.appear("wlan0")
    world.wait(100)
    world.carrier("wlan0", True)
    world.lease("wlan0")
    world.wait(30)
    world.carrier("wlan0", False)
    world.wait(60)
    assert [name for _, name in rungs(world)] == ["Reassociate", "RestartSupplicant"]
    world.carrier("wlan0", True)
    world.lease("wlan0")
    world.wait(60)
    assert world.links["wlan0"].ladder.rung == 0
    world.carrier("wlan0", False)
    world.wait(100)
    assert [name for _, name in rungs(world)][2:] == ["Reassociate"]


def test_cables_do_not_climb() -> None:
    world = World(ETH)
    world.appear("eth0")
    world.wait(10_000)
    assert rungs(world) == []


def test_no_reboot_while_another_interface_works() -> None:
    world = World(WLAN, FIXED)
    world.appear("wlan0")
    world.appear("eth0")
    world.carrier("eth0", True)
    world.wait(10_000)
    assert "Reboot" not in [name for _, name in rungs(world)]


def test_at_most_one_reboot_an_hour_and_none_in_the_first() -> None:
    world = World(WLAN, reboot_after=1000.0 + 3600.0)
    world.appear("wlan0")
    world.wait(50_000, step=7.0)
    reboots = [when for when, name in rungs(world) if name == "Reboot"]
    assert reboots[0] >= 3600
    assert all(later - earlier >= 3600 for earlier, later in itertools.pairwise(reboots))
    assert len(reboots) > 5


# --- whatever happens -------------------------------------------------------------------------------------------------
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("wlan0", "eth0", "usb0")),
        st.sampled_from(
            (
                "appear",
                "vanish",
                "carrier",
                "no carrier",
                "lease",
                "other lease",
                "lost",
                "died",
                "ack",
                "flush",
                "ra",
                "another",
                "down",
                "wait",
            )
        ),
        st.sampled_from((0.0, 0.1, 1.0, 7.0, 130.0, 700.0, 1900.0)),
    ),
    max_size=60,
)


def happen(world: World, name: str, what: str) -> None:
    seen = world.seen[name]
    if what == "appear" and seen is None:
        world.appear(name)
    elif what == "vanish":
        world.vanish(name)
    elif what in ("carrier", "no carrier") and seen is not None and seen.up:
        world.carrier(name, what == "carrier")
    elif what in ("lease", "other lease", "lost"):
        lease = {"lease": LEASE, "other lease": LEASE._replace(address="10.0.0.9/8", gateway=""), "lost": None}[what]
        world.lease(name, lease)
    elif what == "died" and name in world.clients:
        world.clients.discard(name)
        world.do(world.links[name].client_ended(world.now))
    elif what == "ack":
        world.do(world.links.acknowledged(world.now, world.now))
    elif what == "flush" and seen is not None:
        world.seen[name] = seen._replace(addresses=(), routes=())
        world.look(name)
    elif what == "another" and seen is not None:  # gone and back between two looks
        world.added = {pair for pair in world.added if pair[0] != name}
        world.routed = {pair for pair in world.routed if pair[0] != name}
        world.appear(name, up=True, carrier=True)
    elif what == "down" and seen is not None:
        world.seen[name] = seen._replace(up=False, carrier=False)
        world.look(name)
    elif what == "ra":
        world.do(world.links[name].advertised({"2001:db8::53": 30.0}, world.now))


def test_what_is_due_next_by_hand() -> None:
    world = World(ETH)
    assert world.links.due(world.now) is None, "an absent cable is waited for"
    local(world, "eth0")  # at 1000, for 600 s
    world.wait(6)
    assert world.links.due(world.now) == 1562.5, "fifteen sixteenths of the lease: its client is overdue"
    world.do(world.links["eth0"].advertised({"2001:db8::53": 30.0}, world.now))
    assert world.links.due(world.now) == 1036.0, "the nameserver's lifetime"
    world.wait(31)
    world.do(world.links.acknowledged(world.now, world.now))
    assert world.links.due(world.now) == 1337.0, "online until then"
    world.wait(533)
    assert world.now == 1570.0
    assert world.links.due(world.now) == 1600.0, "the end of the lease; the new client has until 1683"
    world.wait(31)
    assert world.state("eth0") is State.ADDRESSING
    assert world.links.due(world.now) == 1683.0
    world.clients.clear()
    world.do(world.links["eth0"].client_ended(world.now))
    assert world.links.due(world.now) == 1606.0, "five seconds after the client's death"


def nothing_is_due_early(world: World) -> None:
    """Whoever sleeps until due() misses nothing: a tick just before it does nothing and changes nothing."""
    probe = copy.deepcopy(world.links)
    due = probe.due(world.now)
    early = min(world.now + 5000.0 if due is None else due, world.now + 5000.0) - 0.001
    if early > world.now:
        states, told = [link.state for link in probe.links.values()], probe.resolver(world.now)
        assert probe.tick(early) == []
        assert [link.state for link in probe.links.values()] == states
        assert probe.resolver(early) == told


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_in_no_order_of_events_does_anything_get_out_of_step(events: list[tuple[str, str, float]]) -> None:
    world = World(
        ETH, WLAN, FIXED._replace(name="usb0", addresses=("dhcp", "ra", "198.51.100.5/24"), gateways=("198.51.100.1",))
    )
    for name, what, seconds in events:
        world.now += seconds
        happen(world, name, what)
        world.do(world.links.tick(world.now))
        world.links.resolver(world.now)
        for one, link in world.links.links.items():
            seen = world.seen[one]
            assert link.seen == seen
            assert link.state.carries == bool(seen and seen.up and seen.carrier)
            assert link.state.addressed == bool(link.state.carries and seen and seen.addresses)
            assert link.client == (one in world.clients)
        nothing_is_due_early(world)
    reboots = [when for when, action in world.times if isinstance(action, actions.Reboot)]
    assert all(later - earlier >= 3600 for earlier, later in itertools.pairwise(reboots))
    for name in world.links.links:
        world.vanish(name)
    assert (world.clients, world.added, world.routed) == (set(), set(), set()), "nothing is left over"
