"""The words of the network: the states of an interface, the kernel's facts about it, and the actions that links.py asks for.

Pure: names and numbers alone. links.py decides, ladder.py climbs, service.py carries out.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


# --- facts -----------------------------------------------------------------------------------------------------------
class State(enum.StrEnum):
    """From nothing to a mothership that answers."""

    ABSENT = "absent"  # the kernel has no such interface
    DOWN = "down"  # it is there and not raised
    NO_CARRIER = "no carrier"  # no cable, no peer; or Wi-Fi without networks to join
    ASSOCIATING = "associating"  # Wi-Fi: wpa_supplicant is looking for an access point, or exchanges keys
    ADDRESSING = "addressing"  # frames pass; no address yet
    LOCAL = "local"  # it has an address
    ONLINE = "online"  # the mothership has acknowledged a message that was sent over it

    @property
    def carries(self) -> bool:
        """Whether frames pass."""
        return self in (State.ADDRESSING, State.LOCAL, State.ONLINE)

    @property
    def addressed(self) -> bool:
        """Whether it has an address."""
        return self in (State.LOCAL, State.ONLINE)


class Seen(NamedTuple):
    """What the kernel says of an interface."""

    ifindex: int
    up: bool  # raised (IFF_UP)
    carrier: bool  # operstate UP: of Wi-Fi, keys and all (RFC 2863)
    addresses: tuple[str, ...] = ()  # global ones that may be used: "192.0.2.5/24"
    routes: tuple[tuple[str, int], ...] = ()  # default routes: gateway ("" for none), metric
    dynamic: tuple[str, ...] = ()  # the IPv4 addresses that expire: a lease of this run or an earlier one
    crowd: int = 0  # IPv6 routes that the kernel has made from advertisements


class Lease(NamedTuple):
    """What a DHCP server has given us (RFC 2131)."""

    address: str  # "192.0.2.5/24"
    gateway: str = ""
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    seconds: float | None = None  # None: for ever


# --- actions: what service.py does for links.py ------------------------------------------------------------------
class Configure(NamedTuple):
    """Set the kernel's switches of a new interface: router advertisements and their metric."""

    name: str


class Raise(NamedTuple):
    """`ip link set NAME up`."""

    name: str


class Solicit(NamedTuple):
    """Ask the routers for an advertisement now (RFC 4861, 4.1): the kernel does not repeat what it heard before us."""

    name: str


class RefuseRouters(NamedTuple):
    """Let the kernel take no more advertisements: it has no limit of its own for routes, and somebody floods it."""

    name: str


class StartDhcp(NamedTuple):
    """Start a DHCP client; the next one for this interface comes after a StopDhcp, or after its own end."""

    name: str


class StopDhcp(NamedTuple):
    """Kill the DHCP client, whatever it is doing."""

    name: str


class AddAddress(NamedTuple):
    """Add an address, or renew its lifetime."""

    name: str
    address: str
    seconds: float | None  # lifetime: the kernel removes the address then, also if network.py has died


class RemoveAddress(NamedTuple):
    """Take one of ours away."""

    name: str
    address: str


class AddRoute(NamedTuple):
    """The default route of a family."""

    name: str
    gateway: str
    metric: int
    source: str  # our address there: the route goes with it; "" for none


class RemoveRoute(NamedTuple):
    """Take one of ours away."""

    name: str
    gateway: str
    metric: int


class Reassociate(NamedTuple):
    """First rung."""

    name: str


class RestartSupplicant(NamedTuple):
    """Second rung."""

    name: str


class ReloadModule(NamedTuple):
    """Third rung."""

    name: str


class Reboot(NamedTuple):
    """Last rung."""

    name: str


Action = (
    Configure | Raise | Solicit | RefuseRouters | StartDhcp | StopDhcp | AddAddress | RemoveAddress | AddRoute | RemoveRoute
    | Reassociate | RestartSupplicant | ReloadModule | Reboot
)  # fmt: skip


def host(address: str) -> str:
    """`192.0.2.5/24` without its prefix length."""
    return address.partition("/")[0]


def family(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4
