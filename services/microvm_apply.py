"""Carries out a microVM's plan before anything of it runs: host name, files, IPv4 addresses, route, name servers.

Through ioctl(2) (`man 7 netdevice`, `man 7 rtnetlink` has the rest): a minimal root has neither ip(8) nor pyroute2.
"""

from __future__ import annotations

import sys
from fcntl import ioctl

from base.files import write_atomically
from base.stdlib import TYPE_CHECKING, socket
from base.syscalls import interface_up

if TYPE_CHECKING:
    from services.microvm_config import Plan

RESOLV_CONF = "/run/resolv.conf"
SIOCADDRT, SIOCSIFADDR, SIOCSIFNETMASK = 0x890B, 0x8916, 0x891C  # linux/sockios.h
RTF_UP, RTF_GATEWAY = 1, 2  # linux/route.h
LONG = (sys.maxsize.bit_length() + 1) // 8


def apply(plan: Plan) -> list[str]:
    """Do all of it; sentences for what failed, which ends nothing: the main program may do without."""
    notes: list[str] = []
    if plan.hostname:
        socket.sethostname(plan.hostname)
    for file in plan.files:
        try:
            write_atomically(file.path, file.content, file.mode)
        except OSError as error:
            notes.append(f"{file.path} is not written: {error.strerror}")
    for name, address in plan.addresses:
        try:
            set_address(name, address)
        except OSError as error:
            notes.append(f"{name} does not get {address}: {error.strerror}")
    if plan.gateway:
        try:
            add_default_route(plan.gateway)
        except OSError as error:
            notes.append(f"no route to {plan.gateway}: {error.strerror}")
    if plan.nameservers:
        with open(RESOLV_CONF, "w", encoding="ascii") as out:
            out.write("".join(f"nameserver {server}\n" for server in plan.nameservers))
    return notes


def sockaddr(address: str) -> bytes:
    """A struct sockaddr_in."""
    return socket.AF_INET.to_bytes(2, sys.byteorder) + bytes(2) + socket.inet_aton(address) + bytes(8)


def set_address(name: str, address: str) -> None:
    """Give an interface an address and its netmask, and raise it; OSError where the kernel refuses."""
    bare, _, prefix = address.partition("/")
    mask = socket.inet_ntoa((0xFFFFFFFF << (32 - int(prefix)) & 0xFFFFFFFF).to_bytes(4, "big"))
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    try:
        for request, value in ((SIOCSIFADDR, bare), (SIOCSIFNETMASK, mask)):
            ioctl(link.fileno(), request, (name.encode().ljust(16, b"\0") + sockaddr(value)).ljust(40, b"\0"))
    finally:
        link.close()
    interface_up(name)


def add_default_route(gateway: str) -> None:
    """A struct rtentry for 0.0.0.0/0."""
    nowhere, flags = sockaddr("0.0.0.0"), (RTF_UP | RTF_GATEWAY).to_bytes(2, sys.byteorder)
    entry = bytes(LONG) + nowhere + sockaddr(gateway) + nowhere + flags
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    try:
        ioctl(link.fileno(), SIOCADDRT, entry.ljust(120, b"\0"))
    finally:
        link.close()
