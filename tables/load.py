"""From settings.py and profiles to tables that PID 1 can trust.

Whatever is wrong with a profile or a row is named in `rejected` and left out; the rest is used. Nothing here raises.
"""

from __future__ import annotations

import os
import sys

from base.stdlib import TYPE_CHECKING, signal
from tables.check import check_tables, service_names
from tables.rows import Service
from tables.tables import LIB, Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import SourceFileLoader
    from typing import Any
else:
    from _frozen_importlib_external import SourceFileLoader  # importlib.machinery, without the rest of importlib

PROFILE_SECONDS = 5.0  # a profile that takes longer to evaluate is a fault of the profile
OWNERS = "/run/stack/boot/settings_prod.py"  # of the board's owner, from the boot partition: bootfiles.py puts it there


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
    check_tables(tables)
    return tables


def _path(name: str) -> str:
    """A profile's file: a path, or the name of one of ours or of the owner's."""
    ours = f"{LIB}/profiles/{name}.py"
    return name if "/" in name else ours if os.path.exists(ours) else f"{LIB}/settings_{name}.py"


def _base(tables: Tables) -> None:
    import settings  # not at the top: a mistake in it must not keep PID 1 from starting

    tables.values.update(vars(settings))
    tables.defaults, tables.default_rows = service_names(settings.SERVICES), tuple(settings.SERVICES)


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
