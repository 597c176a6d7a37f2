"""From settings.py and profiles to tables that PID 1 can trust.

Whatever is wrong with a profile or a row is named in `rejected` and left out; the rest is used. Nothing here raises.
settings.py is PID 1's own and is imported; a profile runs in a process of its own (tables/evaluate.py).
"""

from __future__ import annotations

import os
import sys

from base.printable import printable
from base.stdlib import TYPE_CHECKING, signal
from tables.check import check_tables, service_names, take
from tables.check_settings import CHECKS
from tables.evaluate import Fault, evaluate, line_of
from tables.plain import plain
from tables.tables import LIB, Tables
from tables.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = "settings.py"
MOST_REJECTED = 200  # sentences: all of them are in the log, in an event and in the answer of board()
LONGEST = 1000  # characters of one
INSIST = 1.0  # seconds between two alarms
PROFILE_SECONDS = 4.0  # a profile that takes longer is left out: less than LOOP_TURN_MAX, for a reload is one turn of the loop
OWNERS = "/run/stack/boot/settings_prod.py"  # of the board's owner, from the boot partition: bootfiles.py puts it there


def load(options: dict[str, str] | None = None, owners: str = OWNERS, meanwhile: Callable[[], object] = lambda: None) -> Tables:
    """Settings and profiles, read again, as the kernel command line's `stack.` options choose them; the owner's comes last.

    It takes at most PROFILE_SECONDS for each profile, and calls `meanwhile` a few times a second.
    """
    tables = Tables(options)
    _base(tables, meanwhile)
    names = tables.options.get("stack.profile", "")
    if not names and os.path.exists(f"{LIB}/settings_prod.py"):
        names = "prod"
    known = _all_names(tables)  # of every table on the way: a launcher skips what its profile has
    for name in filter(None, [*names.split(","), owners if os.path.exists(owners) else ""]):
        _overlay(tables, name, meanwhile)
        tables.profiles.append(name)
        known |= _all_names(tables)
    check_tables(tables)
    _check_skipped(tables, known)
    tables.rejected = [printable(text[:LONGEST]) for text in tables.rejected]  # a profile's exception may say anything
    if more := tables.rejected[MOST_REJECTED:]:
        tables.rejected[MOST_REJECTED:] = [f"{len(more)} more mistakes are not listed"]
    return tables


def _all_names(tables: Tables) -> set[str]:
    """Names of services and templates; a row may be anything still."""
    return {row.name for row in tables.values["SERVICES"] if type(getattr(row, "name", 0)) is str}


def _check_skipped(tables: Tables, known: set[str]) -> None:
    """Names in stack.skip of no service: a service that somebody wanted to leave out is running."""
    for name in sorted(tables.skipped - known - {SETTINGS}):
        tables.rejected.append(f"stack.skip names {shown(name)}, which is no service{tables.meant(name, known)}")


def _path(name: str) -> str:
    """A profile's file: a path, or the name of one of ours or of the owner's."""
    ours = f"{LIB}/profiles/{name}.py"
    return name if "/" in name else ours if os.path.exists(ours) else f"{LIB}/settings_{name}.py"


def _base(tables: Tables, meanwhile: Callable[[], object]) -> None:
    """settings.py, under a time limit: a mistake in it must not keep PID 1 from starting."""
    again = "settings" in sys.modules
    for name in [name for name in sys.modules if name.startswith(("settings", "profiles"))]:
        del sys.modules[name]
    try:
        if SETTINGS in tables.skipped:
            raise Fault(f"it took more than {PROFILE_SECONDS:g} s, or nobody wants it: stack.skip names it")
        if again and os.getpid() == 1:  # a reload has services to lose
            evaluate(f"{LIB}/{SETTINGS}", {}, PROFILE_SECONDS, meanwhile)
        _import_settings(tables, first=not again)
    except Fault as fault:
        _leave_out(tables, SETTINGS, str(fault))
    for name in CHECKS:
        take(tables, name, plain(tables.names[name]) if name in tables.names else tables.values[name])
    tables.defaults, tables.default_rows = service_names(tables.values["SERVICES"]), tuple(tables.values["SERVICES"])


def _import_settings(tables: Tables, *, first: bool) -> None:
    """The names of settings.py; Fault where it fails, or takes too long."""
    on_trial = signal.getitimer(signal.ITIMER_REAL)[0] > 0  # pid1/guard.py's alarm: it serves as well
    before = signal.SIG_DFL if on_trial else signal.signal(signal.SIGALRM, _Alarm(first=first))
    if not on_trial:
        signal.setitimer(signal.ITIMER_REAL, PROFILE_SECONDS, INSIST)
    try:
        import settings

        tables.names = dict(vars(settings))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) else line_of(error, "settings")
        raise Fault(f"{where}{type(error).__name__}: {error}") from None
    finally:
        if not on_trial:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class _Alarm:
    """settings.py takes too long: an exception in it, and another one. Where it swallows both there is no way out of its loop
    but to execute PID 1 anew, which leaves it out: at boot, before there is a service."""

    def __init__(self, *, first: bool) -> None:
        self.first = first
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count > 2 and self.first and os.getpid() == 1:
            signal.setitimer(signal.ITIMER_REAL, 0)  # it would go on in the next program
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], f"stack.skip={SETTINGS}"])
        raise TimeoutError(f"took more than {PROFILE_SECONDS:g} s")


def _overlay(tables: Tables, name: str, meanwhile: Callable[[], object]) -> None:
    """Take a profile's values; what is no setting, or cannot be one, is refused."""
    try:
        made = evaluate(_path(name), {**tables.names, **tables.values}, PROFILE_SECONDS, meanwhile, tables.rejected)
    except Fault as fault:
        return _leave_out(tables, f"profile {name}", str(fault))
    for setting, value in made.items():
        if setting in CHECKS:
            take(tables, setting, value)
        else:
            tables.rejected.append(f"{shown(setting)[1:-1]} is not a setting{tables.meant(setting, CHECKS)}; left out")
    return None


def _leave_out(tables: Tables, what: str, why: str) -> None:
    """Leave out a whole file, and say why."""
    tables.rejected.append(f"{what} {'' if why.startswith('line ') else ': '}{why}; left out".replace(" : ", ": "))
    tables.broken = True
