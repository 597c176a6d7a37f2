"""cloud-init's three files (user-data, meta-data, network-config) as a microVM's plan: what we know of them, and what not.

user-data is a script ("#!"), or "#cloud-config" with hostname, write_files, runcmd, and our own key `stack`, whose value is a
document of microvm_config.py. Other keys are left out with a note. Of meta-data local-hostname is used. network-config is of
version 2 (`ethernets` with addresses, gateway4, routes to default, nameservers) or 1 (`physical` with `static` subnets). No
DHCP: the kernel's `ip=dhcp` does that. (Formats: cloudinit.readthedocs.io, "User data formats", "Networking config Version
1" and "Version 2".)
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from services.microvm_config import (
    MAIN,
    MOST_ADDRESSES,
    MOST_FILES,
    ConfigFault,
    File,
    Plan,
    file,
    hostname,
    ipv4,
    items,
    mapping,
    plan_of,
    read,
    with_prefix,
)
from tables.rows import Service
from tables.values import is_text

if TYPE_CHECKING:
    from typing import Any

NAMES = ("user-data", "meta-data", "network-config")
SCRIPT = "/run/microvm/user-data"  # the script of user-data, or of runcmd
MOST_COMMANDS = 64
OTHER_FORMATS = {
    b"\x1f\x8b": "gzip", b"Content-Type:": "MIME", b"MIME-Version:": "MIME", b"#include": "#include",
    b"## template:": "a template", b"#part-handler": "a part handler", b"#cloud-boothook": "a boothook",
}  # fmt: skip
KNOWN = ("hostname", "fqdn", "write_files", "runcmd", "stack")


def from_files(files: dict[str, bytes]) -> Plan:
    """The plan of the files that are there; ConfigFault names the file."""
    plan = _user_data(files.get("user-data", b""))
    meta = files.get("meta-data", b"").strip()
    if meta and not plan.hostname:
        name = read(meta, "meta-data").get("local-hostname", "")
        plan = plan._replace(hostname=hostname(name, "meta-data"))
    if network := files.get("network-config", b"").strip():
        plan = _network(read(network, "network-config"), plan)
    return plan


def _user_data(text: bytes) -> Plan:
    for begin, name in OTHER_FORMATS.items():
        if text.startswith(begin):
            raise ConfigFault(f"user-data is {name}; a script (#!) and #cloud-config are what this reads")
    if text.startswith(b"#!"):
        return Plan(main=_main(SCRIPT), files=(File(SCRIPT, text, 0o700),))
    if not text.strip():
        return Plan()
    if not text.startswith(b"#cloud-config"):
        raise ConfigFault("user-data begins neither with #! nor with #cloud-config")
    document = read(text, "user-data")
    plan = plan_of(mapping(document["stack"], "stack", "user-data"), "user-data: stack") if "stack" in document else Plan()
    files = tuple(file(one, "user-data: write_files") for one in items(document, "write_files", "user-data", MOST_FILES))
    commands = [_command(one) for one in items(document, "runcmd", "user-data", MOST_COMMANDS)]
    if commands and plan.main:
        raise ConfigFault("user-data has runcmd and stack.main: one of them is the machine's main program")
    if commands:
        plan = plan._replace(main=_main(SCRIPT))
        files += (File(SCRIPT, "\n".join(["#!/bin/sh", *commands, ""]).encode("utf-8", "replace"), 0o700),)
    name = str(document.get("hostname") or document.get("fqdn") or plan.hostname)
    notes = tuple(f"user-data: {str(key)[:40]!r} is not known here, and left out" for key in document if key not in KNOWN)
    return plan._replace(files=(*plan.files, *files), hostname=hostname(name, "user-data"), notes=notes[:16])


def _main(path: str) -> Service:
    return Service(MAIN, (path,), restart="never", tty="/dev/console")


def _command(given: Any) -> str:
    """A line of runcmd: text goes to the shell as it is, the words of a list are quoted for it."""
    if is_text(given):
        return str(given)
    if type(given) is list and given and all(type(word) in (str, int) for word in given):
        return " ".join("'" + str(word).replace("'", "'\\''") + "'" for word in given)
    raise ConfigFault("user-data: a line of runcmd is neither text nor a list of words")


# --- network ---------------------------------------------------------------------------------------------------------------
def _network(document: dict[str, Any], plan: Plan) -> Plan:
    what = "network-config"
    document = mapping(document.get("network", document), "network", what)
    version = document.get("version")
    if version == 2:
        return _version_2(document, plan)
    if version == 1:
        return _version_1(document, plan)
    raise ConfigFault(f"{what} is of version {version!r}; 1 and 2 are read here")


def _version_2(document: dict[str, Any], plan: Plan) -> Plan:
    what = "network-config"
    if unknown := [name for name in document if name not in ("version", "ethernets", "renderer")]:
        raise ConfigFault(f"{what} has {str(unknown[0])[:40]!r}: only ethernets are configured here")
    for name, given in mapping(document.get("ethernets", {}), "ethernets", what).items():
        one = mapping(given, name, what)
        if one.get("dhcp4") is True or one.get("dhcp6") is True:
            raise ConfigFault(f"{what}: {name}: DHCP is not done here; the kernel does it with ip=dhcp on its command line")
        known = ("dhcp4", "dhcp6", "addresses", "gateway4", "nameservers", "routes", "match", "set-name", "optional", "mtu")
        if unknown := [key for key in one if key not in known]:
            raise ConfigFault(f"{what}: {name} has {str(unknown[0])[:40]!r}; there are {', '.join(known)}")
        found = [
            (_interface(one.get("set-name", name)), with_prefix(text, what))
            for text in items(one, "addresses", what, MOST_ADDRESSES)
        ]
        gateways = [ipv4(one.get("gateway4", ""), "gateway", what)]
        for route in items(one, "routes", what, MOST_ADDRESSES):
            way = mapping(route, "a route", what)
            if str(way.get("to")) not in ("default", "0.0.0.0/0"):
                raise ConfigFault(f"{what}: {name}: only a route to default is made here")
            gateways.append(ipv4(way.get("via"), "via", what))
        servers = mapping(one.get("nameservers", {}), "nameservers", what)
        plan = _add(
            plan,
            found,
            gateways,
            [ipv4(text, "nameservers", what) for text in items(servers, "addresses", what, MOST_ADDRESSES)],
        )
    return plan


def _version_1(document: dict[str, Any], plan: Plan) -> Plan:
    what = "network-config"
    for given in items(document, "config", what, MOST_ADDRESSES):
        one = mapping(given, "an item of config", what)
        kind = one.get("type")
        if kind == "nameserver":
            texts = one.get("address")
            plan = _add(
                plan,
                [],
                [],
                [ipv4(text, "address", what) for text in (texts if type(texts) is list else [texts])[:MOST_ADDRESSES]],
            )
            continue
        if kind != "physical":
            raise ConfigFault(f"{what}: type {str(kind)[:40]!r} is not configured here; physical and nameserver are")
        for subnet in items(one, "subnets", what, MOST_ADDRESSES):
            net = mapping(subnet, "a subnet", what)
            if net.get("type") != "static":
                raise ConfigFault(f"{what}: a subnet of type {str(net.get('type'))[:40]!r} is not configured here; static is")
            text, mask = net.get("address"), net.get("netmask")
            text = f"{text}/{_prefix(mask, what)}" if mask is not None and is_text(text) and "/" not in str(text) else text
            servers = [ipv4(server, "dns_nameservers", what) for server in items(net, "dns_nameservers", what, MOST_ADDRESSES)]
            plan = _add(
                plan,
                [(_interface(one.get("name")), with_prefix(text, what))],
                [ipv4(net.get("gateway", ""), "gateway", what)],
                servers,
            )
    return plan


def _add(plan: Plan, addresses: list[tuple[str, str]], gateways: list[str], servers: list[str]) -> Plan:
    if len(plan.addresses) + len(addresses) > MOST_ADDRESSES:
        raise ConfigFault(f"network-config has more than {MOST_ADDRESSES} addresses")
    gateway = next(filter(None, gateways), plan.gateway)
    return plan._replace(
        addresses=(*plan.addresses, *addresses), gateway=gateway, nameservers=(*plan.nameservers, *servers)[:MOST_ADDRESSES]
    )


def _interface(name: Any) -> str:
    if not is_text(name) or not 0 < len(name.encode()) < 16 or set(name) & set("/: \n\t"):
        raise ConfigFault("network-config: a name that no interface can have")
    return str(name)


def _prefix(mask: Any, what: str) -> int:
    """255.255.255.0 as 24, and 24 as it is."""
    if type(mask) is int:
        return mask
    bits = "".join(f"{int(part):08b}" for part in ipv4(mask, "netmask", what).split("."))
    if "01" in bits:
        raise ConfigFault(f"{what}: netmask {mask} is none")
    return bits.count("1")
