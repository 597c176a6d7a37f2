"""What new tables mean for the services that there are: a plan, before anything is done about it."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING, NamedTuple
from pid1.instances import instance_row
from tables.rows import Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pid1.process import Process
    from tables.tables import Tables

# Columns that are in force at once. The kernel takes limits at any time, but for memory_max, for which PID 1 would have to wait
# until memory is freed; the others are read by PID 1 alone. Where a service logs to is a policy; whether it does, a descriptor.
LIMITS = ("pids_max", "cpu_weight")
OURS = (
    "after", "ready_timeout", "restart", "stop_signal", "stop_timeout", "kill", "critical", "may", "log", "enabled",
    "publishes", "hears", "when", "tells",
)  # fmt: skip


class Change(NamedTuple):
    """What happens to one service."""

    name: str
    what: str  # a word of WHAT
    row: Service | None  # from now on; None: it leaves the board as soon as it has stopped


# started: it is new; stopped: it has left the table; restarted: its row is another one; adjusted: only columns are that
# can change while it runs; taken: it is not to run, and its next start has the new row.
WHAT = ("started", "stopped", "restarted", "adjusted", "taken")


def plan(processes: Iterable[Process], tables: Tables, *, everything: bool = False) -> list[Change]:
    """What to do about each service, in start order, those first that leave or are instances. Nothing is done here.

    A service whose row has become bad goes on as it was. `everything` restarts all that runs: their environment is new.
    """
    there = {process.row.name: process for process in processes}
    changes = list(_not_in_the_table(there, tables, everything))
    for name in tables.order:
        row, process = tables.services[name], there.get(name)
        if process is None:
            changes.append(Change(name, "started", row))
            continue
        other = everything or process.removed or process.transient  # it was none of the table's so far
        if other or process.row != row:
            runs = process.wanted or process.removed or process.transient or process.done
            while_it_runs = not other and only((*LIMITS, *OURS), process.row, row) and pipes(process.row) == pipes(row)
            changes.append(Change(name, "taken" if not runs else "adjusted" if while_it_runs else "restarted", row))
    return changes


def _not_in_the_table(there: dict[str, Process], tables: Tables, everything: bool) -> Iterator[Change]:
    for name, process in there.items():
        base, at, _ = name.partition("@")
        if name in tables.services:
            continue
        if not process.transient and name not in tables.bad_names:
            yield Change(name, "stopped", None)
        elif process.transient and at and base + at not in tables.bad_names:
            row = instance_row(tables, name) if base + at in tables.templates else None
            if row is None:
                yield Change(name, "stopped", None)
            elif everything or row != process.row or process.removed:
                yield Change(name, "restarted" if process.wanted else "taken", row)


def only(columns: tuple[str, ...], old: Service, new: Service) -> bool:
    """Whether two rows differ in nothing but these columns."""
    return new == old._replace(**{column: getattr(new, column) for column in columns})


def pipes(row: Service) -> bool:
    """Whether it prints to a log pipe."""
    return row.log != "none"
