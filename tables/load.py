"""From settings.py and profiles to tables that PID 1 can trust.

Whatever is wrong with a profile or a row is named in `rejected` and left out; the rest is used. Nothing here raises.
"""

from __future__ import annotations

import os
import sys
from graphlib import CycleError, TopologicalSorter

from base.stdlib import TYPE_CHECKING, signal
from tables.check_network import clash, interface_fault, wifi_fault
from tables.check_rules import command_fault, rule_fault
from tables.check_services import service_faults, user_fault
from tables.rights import bus_rights, own_users
from tables.rows import Device, Directory, Interface, Mount, Service, WifiNetwork
from tables.tables import FALLBACK, LIB, Tables, expand_row
from tables.values import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import SourceFileLoader
    from typing import Any
else:
    from _frozen_importlib_external import SourceFileLoader  # importlib.machinery, without the rest of importlib

PROFILE_SECONDS = 5.0  # a profile that takes longer to evaluate is a fault of the profile
OWNERS = "/run/stack/boot/settings_prod.py"  # of the board's owner, from the boot partition: bootfiles.py puts it there
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


def load(options: dict[str, str] | None = None, owners: str = OWNERS) -> Tables:
    """Settings and profiles, read anew, as the kernel command line's `stack.` options choose them; the owner's comes last."""
    tables = Tables(options)
    for name in [name for name in sys.modules if name.startswith(("settings", "profiles"))]:
        del sys.modules[name]
    _guarded(tables, "settings.py", _base, tables)
    names = (options or {}).get("stack.profile", "")
    if not names and os.path.exists(f"{LIB}/settings_prod.py"):
        names = "prod"
    for name in filter(None, [*names.split(","), owners if os.path.exists(owners) else ""]):
        _guarded(tables, f"profile {name}", _overlay, tables, _path(name))
        tables.profiles.append(name)
    _check_tables(tables)
    return tables


def _path(name: str) -> str:
    """A profile's file: a path, or the name of one of ours or of the owner's."""
    ours = f"{LIB}/profiles/{name}.py"
    return name if "/" in name else ours if os.path.exists(ours) else f"{LIB}/settings_{name}.py"


def _base(tables: Tables) -> None:
    import settings  # not at the top: a mistake in it must not keep PID 1 from starting

    tables.values.update(vars(settings))
    tables.defaults, tables.default_rows = _names(settings.SERVICES), tuple(settings.SERVICES)


def _run(path: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names of a profile after running it on top of `names`. Its byte code is used where it is up to date."""
    code = SourceFileLoader("profile", path).get_code("profile")
    if code and "rows" in code.co_names:  # files of owners from before there were folders import it so
        sys.modules["rows"] = sys.modules["tables.rows"]
    if code and "settings_debian" in code.co_names:
        import profiles.debian

        sys.modules["settings_debian"] = profiles.debian
    names |= {"__name__": "profile", "__file__": path, "__builtins__": __builtins__}
    exec(code or "", names)
    return names


def _overlay(tables: Tables, path: str) -> None:
    """Take a profile's values; one of another type than the default's is refused."""
    for name, value in _run(path, dict(tables.values)).items():
        old = tables.values.get(name)
        if not name.isupper() or name.startswith("_") or value is old:
            continue
        if name not in tables.values:
            tables.rejected.append(f"profile: {name} is not a setting; left out")
        elif isinstance(old, (int, float)) and isinstance(value, (int, float)) and not isinstance(value, bool):
            tables.values[name] = value
        elif isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)) and not isinstance(old, Service):
            tables.values[name] = tuple(value)
        elif type(old) is type(value):
            tables.values[name] = value
        else:
            tables.rejected.append(f"profile: {name} = {value!r} should be like {type(old).__name__}; the default stays")


def _guarded(tables: Tables, what: str, step: Callable[..., object], *arguments: object) -> None:
    """Evaluate somebody's Python under a time limit; its faults are its own."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"took more than {PROFILE_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, PROFILE_SECONDS)
    try:
        step(*arguments)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        where = f" line {error.lineno}" if isinstance(error, SyntaxError) else _line_of(error)
        tables.rejected.append(f"{what}{where}: {type(error).__name__}: {error}; left out")
        tables.broken = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line_of(error: BaseException) -> str:
    trace, line = error.__traceback__, ""
    while trace:
        if trace.tb_frame.f_globals.get("__name__") == "profile":
            line = f" line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


# --- validation -----------------------------------------------------------------------------------------------------
def _check_tables(tables: Tables) -> None:
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
    _check_services(tables)


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


def _check_services(tables: Tables) -> None:
    rows = list(tables.values["SERVICES"])
    known = _names(rows)
    services = tables.services
    tables.values["BUS_RIGHTS"] = bus_rights(tables)
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


def _names(rows: Any) -> set[str]:
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
