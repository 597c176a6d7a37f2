"""The walk over all tables: what is wrong with a setting or a row is named in `rejected` and left out; the rest is used."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from base.stdlib import TYPE_CHECKING
from tables.check_network import clash, interface_fault, wifi_fault
from tables.check_rules import command_fault, rule_fault
from tables.check_services import service_faults, user_fault
from tables.rights import own_users
from tables.rows import Device, Directory, Interface, Mount, Service, WifiNetwork
from tables.tables import FALLBACK, expand_row
from tables.values import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tables.tables import Tables

LEAST = {
    "BACKOFF_FIRST": 0.01,
    "BACKOFF_MAX": 0.01,
    "KILL_RETRY": 0.1,
    "NETWORK_RETRY": 0.1,
    "DHCP_TIMEOUT": 1,
    "CRITICAL_FAILURES": 1,
    "WATCHDOG_TIMEOUT": 3,
    "LOOP_TURN_MAX": 0.1,
}  # seconds: less would be a busy loop


def check_tables(tables: Tables) -> None:
    """Every setting and every row: what is wrong is named in `rejected` and left out."""
    for name, default in FALLBACK.items():
        value = tables.values[name]
        if not isinstance(value, (int, float) if isinstance(default, (int, float)) else type(default)):
            tables.rejected.append(f"{name} = {value!r} should be like {default!r}, which is used")
            tables.values[name] = default
        elif isinstance(default, (int, float)) and not LEAST.get(name, 0) <= value < 1e6:
            tables.rejected.append(f"{name} = {value} is not a sane number; {default} is used")
            tables.values[name] = default
    _check_health(tables)
    own_users(tables)
    for name, check in (
        ("MOUNTS", _mount_fault), ("DIRECTORIES", _directory_fault), ("DEVICES", _device_fault),
        ("SYSCTLS", _sysctl_fault), ("MODULES", _module_fault), ("DATA", _source_fault), ("BOOT_FILES", _source_fault),
        ("WIFI_NETWORKS", wifi_fault), ("RULES", rule_fault), ("COMMANDS", command_fault),
    ):  # fmt: skip
        tables.values[name] = tuple(_good_rows(tables, name, check))
    tables.values["INTERFACES"] = [_expanded(tables, row) for row in tables.values["INTERFACES"]]
    interfaces: dict[str, Interface] = {}
    for row in _good_rows(tables, "INTERFACES", interface_fault):
        if fault := clash(row, interfaces.values()):
            tables.rejected.append(f"INTERFACES {row.name}: {fault}")
        else:
            interfaces[row.name] = row
    tables.values["INTERFACES"] = tuple(interfaces.values())
    check_services(tables)


def _check_health(tables: Tables) -> None:
    """What would keep the board from being reset or rebooted without a word."""
    values = tables.values
    if values["WATCHDOG"] and not values["WATCHDOG"].startswith("/"):
        tables.rejected.append(f"WATCHDOG = {values['WATCHDOG']!r} is not an absolute path; the board has none")
        values["WATCHDOG"] = ""
    # A service that fails at once waits for its back-off each time: fewer failures than these would fit.
    least = (values["CRITICAL_FAILURES"] - 1) * (values["BACKOFF_MAX"] + values["SV_COOLDOWN"])
    if values["CRITICAL_WINDOW"] < least:
        tables.rejected.append(
            f"CRITICAL_WINDOW = {values['CRITICAL_WINDOW']:g} is too short for {values['CRITICAL_FAILURES']} failures with a "
            f"back-off of up to {values['BACKOFF_MAX']:g} s; {least:g} is used"
        )
        values["CRITICAL_WINDOW"] = least


def _good_rows(tables: Tables, table: str, check: Callable[[Tables, Any], str]) -> Iterator[Any]:
    for index, row in enumerate(tables.values[table]):
        try:
            fault = check(tables, row)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            label = _label(row) if table != "WIFI_NETWORKS" or isinstance(row, WifiNetwork) else type(row).__name__
            tables.rejected.append(f"{table}[{index}] {label}: {fault}")
        else:
            yield row


def _label(row: object) -> str:
    if isinstance(row, WifiNetwork):
        return repr(row.ssid)[:60]  # never the whole row: anyone may read what is rejected, and it has the passphrase
    return str(getattr(row, "name", "") or getattr(row, "target", "") or getattr(row, "path", "") or repr(row))[:60]


def _mount_fault(_: Tables, row: Any) -> str:
    if not isinstance(row, Mount):
        return "is not a Mount(...) row"
    if not is_text(row.source, row.target, row.fstype, row.options):
        return "source, target, fstype and options must be text"
    return "" if row.target.startswith("/") else f"target {row.target!r} is not absolute"


def _directory_fault(tables: Tables, row: Any) -> str:
    if not isinstance(row, Directory):
        return "is not a Directory(...) row"
    if not is_text(row.path, row.user, row.group) or not row.path.startswith("/"):
        return f"path {row.path!r} is not absolute"
    if not isinstance(row.mode, int) or not 0 <= row.mode <= 0o7777:
        return f"mode {row.mode!r} is not a mode such as 0o755"
    if row.group and row.group not in tables.owners and tables.expand(row.group) not in tables.group_ids:
        return f"group {row.group!r} is neither in /etc/group nor a service"
    return "" if row.user in tables.owners else user_fault(tables, row.user)


def _device_fault(_: Tables, row: Any) -> str:
    if not isinstance(row, Device):
        return "is not a Device(...) row"
    if not is_text(row.path, row.target) or not row.path.startswith("/"):
        return f"path {row.path!r} is not absolute"
    if row.kind not in ("c", "b", "link"):
        return f"kind {row.kind!r} is not 'c', 'b' or 'link'"
    return "a link needs a target" if row.kind == "link" and not row.target else ""


def _sysctl_fault(_: Tables, row: Any) -> str:
    good = isinstance(row, tuple) and len(row) == 2 and is_text(*row) and ".." not in row[0]
    return "" if good else 'is not a pair of texts such as ("kernel.panic", "10")'


def _module_fault(_: Tables, row: Any) -> str:
    return "" if is_text(row) and row and not row.startswith("-") else "is not a module's name"


def _source_fault(_: Tables, row: Any) -> str:
    known = is_text(row) and (row.startswith("/dev/") or row.split("=")[0] in ("LABEL", "UUID", "PARTLABEL", "PARTUUID"))
    return "" if known else "is neither LABEL=, UUID=, PARTLABEL= or PARTUUID= nor a device such as /dev/mmcblk0p3"


def _expanded(tables: Tables, row: Any) -> Any:
    if not isinstance(row, Interface) or not is_text(row.name):
        return row
    return row._replace(name=tables.expand(row.name))


def check_services(tables: Tables) -> None:
    """The rows of SERVICES become `services`, `templates` and the `order` of their start."""
    rows = list(tables.values["SERVICES"])
    known = service_names(rows)
    services = tables.services
    for index, row in enumerate(rows):
        try:
            fault = "is not a Service(...) row" if not isinstance(row, Service) else ""
            row = row if fault else _known_after(tables, expand_row(tables, row), known)
            fault = fault or next(service_faults(tables, row), "")
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            tables.rejected.append(f"SERVICES[{index}] {_label(row)}: {fault}")
            tables.bad_names.add(_label(row))
        elif row.argv and row.name not in tables.skipped:
            (tables.templates if row.name.endswith("@") else services)[row.name] = row
    tables.order = []
    while services and not tables.order:
        try:
            tables.order = start_order(services)
        except CycleError as error:
            circle = error.args[1]
            tables.rejected.append(f"SERVICES {circle[0]}: after runs in a circle, {' <- '.join(circle)}")
            del services[circle[0]]


def service_names(rows: Any) -> set[str]:
    """Names of services among these rows; templates are started by nobody, so nobody waits for them."""
    return {row.name for row in rows if isinstance(row, Service) and is_text(row.name) and not row.name.endswith("@")}


def _known_after(tables: Tables, row: Service, known: set[str]) -> Service:
    """A row that waits for no one who is not there: a profile may leave out what others of the default table wait for."""
    missing = [other for other in row.after if other not in known or other == row.name]
    for other in filter(lambda other: other == row.name or other not in tables.defaults, missing):
        what = "itself" if other == row.name else "no service"
        tables.rejected.append(f"SERVICES {row.name}: after names {other!r}, which is {what}; it does not wait for that")
    return row._replace(after=tuple(other for other in row.after if other not in missing))


def start_order(services: dict[str, Service]) -> list[str]:
    """Names so that each comes after those in its `after`; CycleError where that cannot be."""
    graph = {name: [other for other in row.after if other in services] for name, row in services.items()}
    return list(TopologicalSorter(graph).static_order())
