"""pyroute2's DHCP client, in a child of its own for each interface.

It is asyncio, and some of its faults end one of its tasks silently. So it lives in a forked child that ends when a task does,
and that may be killed at any time; what it has to say is a line of JSON in a pipe.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import signal
import time
from typing import Any

import network.parts  # noqa: F401  # isort: skip
from network.iproute import in_place  # isort: skip

with in_place():
    from pyroute2.dhcp import client as dhcp_client
    from pyroute2.dhcp import leases as dhcp_leases
    from pyroute2.dhcp.hooks import Hook, Trigger

from base.syscalls import PR_SET_PDEATHSIG, prctl
from network.actions import Lease
from network.bounds import LINE, SERVERS, domain_name, lease_of

FOREVER = 0xFFFFFFFF  # seconds of a lease that does not end (RFC 2131, 3.3)


class DhcpClient:
    """pyroute2's DHCP client for one interface, in a child of its own."""

    def __init__(self, name: str, hostname: str) -> None:
        self.name = name
        self._buffer = b""
        self._gone = False
        self.reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pid = os.fork()
        if self.pid == 0:
            _child(name, hostname, writer)
        os.close(writer)

    def read(self) -> list[Lease | ValueError | None] | None:
        """Leases since the last time, None among them where one was lost, an error where one cannot be true.

        None instead of a list: the child has ended, or makes no sense.
        """
        try:
            data = os.read(self.reader, 16 * LINE)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE:
            return None  # no client of ours writes such a line
        leases: list[Lease | ValueError | None] = []
        for line in lines:
            try:
                leases.append(lease_of(json.loads(line)))
            except ValueError as error:
                leases.append(error)
        return leases

    def end(self) -> None:
        """Kill it: it has nothing to save, and a lease that is not released expires."""
        if not self.gone():
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)

    def gone(self) -> bool:
        """Whether it has been reaped. We never wait for it: the kernel may hold it for a while."""
        if not self._gone:  # once reaped, its pid may be reused
            self._gone = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self._gone


def _child(name: str, hostname: str, writer: int) -> None:
    """In the child: be the DHCP client until killed, or until something in it has failed."""
    status = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the child ends when network.py does
        os.closerange(3, writer)  # the broker's link, for one: it must end when network.py closes it
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # By the wall clock, a lease would last or end wrongly in the moment when NTP sets a clock that started in 1970.
        dhcp_client.time = dhcp_leases._now = time.monotonic
        asyncio.run(_lease_forever(name, hostname, writer))
        status = 0
    except BaseException as error:
        os.write(2, f"<4>DHCP on {name}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


class _Lease(dhcp_leases.Lease):  # type: ignore[misc]
    """A lease that is kept in memory alone (the server knows our client id), obtained at a monotonic time."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values, obtained=time.monotonic())

    def dump(self) -> None:
        pass

    @classmethod
    def load(cls, interface: str) -> None:
        return None


async def _lease_forever(name: str, hostname: str, writer: int) -> None:
    def tell(lease: dict[str, Any]) -> None:
        os.write(writer, json.dumps(lease).encode() + b"\n")

    async def granted(lease: dhcp_leases.Lease) -> None:
        options = lease.ack["options"]
        seconds = None if lease.lease_time in (-1, FOREVER) else float(lease.lease_time)
        tell({
            "address": lease.ip, "mask": options.get("subnet_mask") or "255.255.255.0", "seconds": seconds,
            "routers": list(options.get("router") or ())[:SERVERS],
            "nameservers": list(options.get("name_server") or ())[:SERVERS],
            "domain": domain_name(options.get("domain_name") or ""),
        })  # fmt: skip

    async def lost(lease: dhcp_leases.Lease) -> None:
        tell({})

    config = dhcp_client.ClientConfig(
        interface=name,
        lease_type=_Lease,
        hooks=(
            Hook(granted, {Trigger.BOUND, Trigger.RENEWED, Trigger.REBOUND}),
            Hook(lost, {Trigger.EXPIRED, Trigger.UNBOUND}),
        ),
        retransmission=functools.partial(dhcp_client.randomized_increasing_backoff, wait_first=2.0),
        release=False,
        handle_signals=False,
        vendor_id=None,
        host_name=hostname or None,
    )
    async with dhcp_client.AsyncDHCPClient(config) as client:
        await client.bootstrap()
        tasks = [task for task in (client._sender_task, client._receiver_task) if task is not None]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # neither should end: the interface went down, or a packet that it cannot read
            task.result()
        raise OSError(errno.ENETDOWN, "the interface went down")
