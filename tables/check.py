"""The walk over all tables: what is wrong with a setting or a row is named in `rejected` and left out; the rest is used."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from base.stdlib import TYPE_CHECKING
from tables.check_files import (
    device_fault,
    directory_fault,
    module_fault,
    mount_fault,
    source_fault,
    sysctl_fault,
    variable_fault,
)
from tables.check_modes import mode_fault, twice
from tables.check_network import clash, interface_fault, wifi_fault
from tables.check_rules import command_fault, rule_fault
from tables.check_services import column_faults, given, service_faults
from tables.check_settings import SECRET, TABLES, setting_fault
from tables.plain import ROWS, plain
from tables.rights import bus_rights, own_users, with_rights
from tables.rows import Interface, Service, WifiNetwork
from tables.tables import FALLBACK, expand_row
from tables.values import is_text, kind_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tables.tables import Tables

ENVIRONMENT_SIZE = 64 * 1024  # bytes: half of what execve(2) takes in any case; the rest is for rows
CIRCLES = 40  # of services that wait for each other: each is looked for in all of the table
SHOWN = 40  # rows of a table that are named one by one

ROW_CHECKS: dict[str, Callable[[Tables, Any], str]] = {
    "MOUNTS": mount_fault, "DIRECTORIES": directory_fault, "DEVICES": device_fault, "SYSCTLS": sysctl_fault,
    "MODULES": module_fault, "DATA": source_fault, "BOOT_FILES": source_fault, "WIFI_NETWORKS": wifi_fault,
    "RULES": rule_fault, "COMMANDS": command_fault, "ENVIRONMENT": variable_fault, "MODES": mode_fault,
}  # fmt: skip


def take(tables: Tables, name: str, value: Any) -> None:
    """A setting's value, or why it is not taken: the one before it stays."""
    fault = setting_fault(name, value)
    if not fault:
        tables.values[name] = value
        return
    before = tables.values[name]
    secret, short = name in SECRET, name not in TABLES and type(before) is not tuple and type(value) is not tuple
    what = f"{name} = {shown(value)}" if short and not secret and type(value) in (str, int, float, bool) else name
    stays = f"{shown(before)} is used" if short and not secret and type(before).__name__ not in ROWS else "the default stays"
    tables.rejected.append(f"{what} {fault}; {stays}")


def check_tables(tables: Tables) -> None:
    """Every row of every table, and what several settings are worth together."""
    _check_health(tables)
    _check_names(tables)
    own_users(tables)
    for name, check in ROW_CHECKS.items():
        tables.values[name] = tuple(_good_rows(tables, name, check))
    tables.rejected += twice(tables)
    _check_environment(tables)
    _check_interfaces(tables)
    check_services(tables)
    _check_rescue(tables)


def _check_names(tables: Tables) -> None:
    """A setting whose `{NAME}` leads nowhere would take all rows with it that name this one: its default stays."""
    for name, value in list(tables.values.items()):
        if type(value) is str and (fault := tables.unknown_name(value)):
            tables.rejected.append(f"{name} {fault}; the default stays")
            usual = tables.names.get(name)
            tables.values.pop(name)  # what nobody has given is the least that its check takes
            if type(usual) is str and usual != value:
                tables.values[name] = usual


def _check_health(tables: Tables) -> None:
    """Settings that would silently keep an unhealthy board from rebooting."""
    values = tables.values
    # A service that fails at once waits for its back-off each time: fewer failures than these would fit.
    least = (values["CRITICAL_FAILURES"] - 1) * (values["BACKOFF_MAX"] + values["SV_COOLDOWN"])
    if values["CRITICAL_WINDOW"] < least:
        tables.rejected.append(
            f"CRITICAL_WINDOW = {values['CRITICAL_WINDOW']:g} is too short for {values['CRITICAL_FAILURES']} failures with a "
            f"back-off of up to {values['BACKOFF_MAX']:g} s; {least:g} is used"
        )
        values["CRITICAL_WINDOW"] = least


def _good_rows(tables: Tables, table: str, check: Callable[[Tables, Any], str]) -> Iterator[Any]:
    faults: list[tuple[int, str, str]] = []
    usual = tables.names.get(table, ()) if table == "MOUNTS" else ()
    for index, row in enumerate(tables.values[table]):
        try:
            fault = check(tables, row)
        except Exception as error:
            fault = f"cannot be judged ({type(error).__name__})"
        if fault and (mounts := [one for one in usual if one.target == getattr(row, "target", "")]):
            fault += "; the usual one is mounted"  # a board without /run or /proc cannot be helped
            yield mounts[0]
        if fault:
            faults.append((index, _label(row) if table in TABLES or table in SECRET else shown(row), fault))
        else:
            yield row
    _say(tables, table, faults)


def _say(tables: Tables, table: str, faults: list[tuple[int, str, str]]) -> None:
    """One line for each bad row; but a row without its tuple has become as many as it has columns, and that is said once."""
    loose = [index for index, label, _ in faults if not label]
    run = len(loose) >= 4 and loose[-1] - loose[0] == len(loose) - 1
    if run and table in TABLES:
        tables.rejected.append(
            f"{table}[{loose[0]}] to [{loose[-1]}] are no rows; was one row added without its tuple? A comma makes one: "
            f"{table} += (Row(...),)"
        )
    rest = [one for one in faults if not (run and not one[1])]
    for index, label, fault in rest[:SHOWN]:
        tables.rejected.append(f"{table}[{index}]{' ' if label else ''}{label}{':' if label else ''} {fault}")
    if len(rest) > SHOWN:
        tables.rejected.append(f"{table}: {len(rest) - SHOWN} more rows are left out")


def _label(row: Any) -> str:
    """What a row is called; never the whole row: anyone may read what is rejected, and it may hold a passphrase."""
    if type(row) is WifiNetwork:
        return shown(row.ssid) if type(row.ssid) in (str, bytes) else "one"
    if type(row).__name__ not in ROWS:
        return ""
    name = row[row._fields.index("name")] if "name" in row._fields else getattr(row, "target", "") or getattr(row, "path", "")
    return name[:60] if is_text(name) and name.isprintable() and name else kind_of(row)


def _check_environment(tables: Tables) -> None:
    """Together they must leave room for a program's own words; the last ones go."""
    total, kept = len(tables.values["PATH"].encode()), []
    for name, value in tables.values["ENVIRONMENT"]:
        total += len(name.encode()) + len(tables.expand(value).encode()) + 16
        if total > ENVIRONMENT_SIZE:
            tables.rejected.append(f"ENVIRONMENT: {shown(name)} and what follows it are more than {ENVIRONMENT_SIZE} bytes")
            break
        kept.append((name, value))
    tables.values["ENVIRONMENT"] = tuple(kept)
    tables.environment = {**{name: tables.expand(value) for name, value in kept}, "PATH": tables.values["PATH"]}


def _check_interfaces(tables: Tables) -> None:
    tables.values["INTERFACES"] = [_expanded(tables, row) for row in tables.values["INTERFACES"]]
    interfaces: dict[str, Interface] = {}
    for row in _good_rows(tables, "INTERFACES", interface_fault):
        if fault := clash(row, interfaces.values()):
            tables.rejected.append(f"INTERFACES {row.name}: {fault}")
        else:
            interfaces[row.name] = row
    tables.values["INTERFACES"] = tuple(interfaces.values())


def _expanded(tables: Tables, row: Any) -> Any:
    return row._replace(name=tables.expand(row.name)) if type(row) is Interface and is_text(row.name) else row


def check_services(tables: Tables) -> None:
    """The rows of SERVICES become `services`, `templates` and the `order` of their start."""
    rows = with_rights([plain(row) for row in tables.values["SERVICES"]], tables.default_rows)
    known = service_names(rows)
    tables.zygotes = {row.forked_by for row in rows if type(row) is Service and is_text(row.forked_by)}
    services, faults = tables.services, []
    tables.values["BUS_RIGHTS"] = bus_rights(tables)
    for index, one in enumerate(rows):
        row, fault = _service(tables, one, known)
        if fault:
            faults.append((index, _label(one), fault))
            tables.bad_names.add(_label(one))
        elif row.argv and row.name not in tables.skipped and tables.values.get(row.enabled) != "off":
            (tables.templates if row.name.endswith("@") else services)[row.name] = row
    _say(tables, "SERVICES", faults)
    tables.order = []
    for _ in range(CIRCLES):
        try:
            tables.order = start_order(services)
            return
        except CycleError as error:
            circle = error.args[1]
            tables.rejected.append(f"SERVICES {circle[0]}: after runs in a circle, {' <- '.join(circle)[:200]}")
            del services[circle[0]]
    tables.rejected.append("SERVICES: there are more circles; no service waits for another one")
    services.update({name: row._replace(after=()) for name, row in services.items()})
    tables.order = list(services)


def _service(tables: Tables, row: Any, known: set[str]) -> tuple[Any, str]:
    """A row as it will run, and the first thing that is wrong with it."""
    if type(row) is not Service:
        return row, f"is {kind_of(row)}, not a Service(...) row"
    try:
        if fault := next(column_faults(row), ""):
            return row, fault
        row = expand_row(tables, row)
        if not row.argv:
            return row, ""
        if fault := next(filter(None, map(tables.unknown_name, row_texts(row))), ""):
            return row, fault
        row = _known_zygote(tables, _known_after(tables, row, known), known)
        return row, next(service_faults(tables, row), "")
    except Exception as error:
        return row, f"cannot be judged ({type(error).__name__})"


def row_texts(row: Service) -> tuple[str, ...]:
    """All texts of a row in which {NAME} is replaced."""
    return (*row.argv, *row.groups, *(value for _, value in row.env), row.ready, row.user, row.cwd, row.tty)


def _check_rescue(tables: Tables) -> None:
    """The rescue prompt has to start: a row that cannot is left out as a whole."""
    row, fault = _service(tables, tables.values["RESCUE"]._replace(name="rescue_"), set())
    columns = given(tables.values["RESCUE"])
    wrong = next((name for name in ("after", "when", "logger", "enabled", "forked_by") if name in columns), "")
    fault = fault or (wrong and f"{wrong} cannot be set for it: it is the last resort")
    if fault or not row.argv:
        tables.rejected.append(f"RESCUE {fault or 'has no program'}; the built-in row is used")
        tables.values["RESCUE"] = FALLBACK["RESCUE"]
    if (name := tables.values["RESCUE"].name) != "rescue":  # its log's name is PID 1's choice
        tables.rejected.append(f"RESCUE name {shown(name)} is not taken: it is called rescue")
        tables.values["RESCUE"] = tables.values["RESCUE"]._replace(name="rescue")


def service_names(rows: Any) -> set[str]:
    """Names of services among these rows, without templates: those are not started, so no service can wait for them."""
    return {row.name for row in rows if type(row) is Service and is_text(row.name) and not row.name.endswith("@")}


def _known_after(tables: Tables, row: Service, known: set[str]) -> Service:
    """A row that waits for no one who is not there: a profile may leave out what others of the default table wait for."""
    missing = [other for other in row.after if other not in known or other == row.name]
    for other in filter(lambda other: other == row.name or other not in tables.defaults, missing):
        what = "itself" if other == row.name else "no service"
        known_as = "" if other == row.name else tables.meant(other, known)
        tables.rejected.append(
            f"SERVICES {row.name}: after names {shown(other)}, which is {what}; it does not wait for that{known_as}"
        )
    return row._replace(after=tuple(other for other in row.after if other not in missing)) if missing else row


def _known_zygote(tables: Tables, row: Service, known: set[str]) -> Service:
    """A row whose zygote a profile has left out is executed."""
    if not row.forked_by or row.forked_by in known:
        return row
    if row.forked_by not in tables.defaults:
        meant = tables.meant(row.forked_by, known)
        tables.rejected.append(
            f"SERVICES {row.name}: forked_by names {shown(row.forked_by)}, which is no service; it is executed{meant}"
        )
    return row._replace(forked_by="")


def start_order(services: dict[str, Service]) -> list[str]:
    """Names so that each comes after those in its `after`; CycleError where that cannot be."""
    graph = {name: [other for other in row.after if other in services] for name, row in services.items()}
    return list(TopologicalSorter(graph).static_order())
