"""What is wrong with a row of SERVICES, as sentences for people."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from base.syscalls import CAPABILITIES
from tables.rights import topic_faults
from tables.values import is_text, memory_bytes, signal_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tables.rows import Service
    from tables.tables import Tables

RLIMITS = "as core cpu data fsize memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()

RANGES = (
    ("ready_timeout", 0.001, 86400), ("stop_timeout", 0, 3600), ("watchdog", 0, 86400), ("nice", -20, 19),
    ("oom_score", -1000, 1000), ("umask", 0, 0o777), ("pids_max", 0, 4194304), ("cpu_weight", 1, 10000),
)  # fmt: skip

CHOICES = {"restart": ("always", "on-failure", "never"), "log": ("memory", "disk", "none"), "kill": ("all", "main")}
LEAST_MEMORY = 1 << 20


def service_faults(tables: Tables, row: Service) -> Iterator[str]:
    """Every fault of a row, as a sentence."""
    if not is_text(row.name) or not row.name.translate({ord(char): None for char in "_-@."}).isalnum():
        yield f"name {row.name!r} must be letters, digits and _-@."
    if row.name in tables.services or row.name in tables.templates or row.name in ("stack", "rescue"):
        yield "the name is taken"
    if not is_text(*row.argv) or (row.argv and not row.argv[0]):
        yield f"argv {row.argv!r} must be words"
    if row.module and not all(part.isidentifier() for part in row.module.split(".")):
        yield f"module {row.module!r} is not the name of a module"
    if row.module and (row.user or row.capabilities is not None):
        yield f"module {row.module!r} has PID 1's memory, with passphrases in it: it runs as root or not at all"
    if row.ready not in ("", "notify", "exit") and not row.ready.startswith("/"):
        yield f"ready {row.ready!r} is not 'notify', 'exit' or an absolute path"
    for name, choices in CHOICES.items():
        if getattr(row, name) not in choices:
            yield f"{name} {getattr(row, name)!r} is not one of {', '.join(choices)}"
    for name, path in (("cwd", row.cwd), ("tty", row.tty or "/")):
        if not path.startswith("/"):
            yield f"{name} {path!r} is not absolute"
    if row.may and not isinstance(getattr(tables, row.may, None), tuple):
        yield f"may {row.may!r} is not a setting that lists requests, such as COMMANDS"
    if row.logger and any(other.logger for other in tables.services.values()):
        yield "there is a logger already"
    yield from _number_faults(row)
    yield from _rights_faults(tables, row)


def user_fault(tables: Tables, user: str) -> str:
    user = tables.expand(user)
    known = not user or user in tables.accounts or user.isdigit()
    return "" if known else f"user {user!r} is not in /etc/passwd"


def _rights_faults(tables: Tables, row: Service) -> Iterator[str]:
    """Faults in who a service is and what it may."""
    if fault := tables.user_faults.get(row.name) or user_fault(tables, row.user):
        yield fault
    yield from topic_faults(row)
    for group in row.groups:
        if group not in tables.group_ids and group not in tables.owners and not group.isdigit():
            yield f"group {group!r} is not in /etc/group"
    for capability in row.capabilities or ():
        if capability not in CAPABILITIES:
            yield f"capability {capability!r} is not one of `man 7 capabilities`, such as net_admin"
    for limit, value in row.rlimits:
        if limit not in RLIMITS or not isinstance(value, int):
            yield f"rlimit {limit!r} is not one of {', '.join(RLIMITS)} with a number"
    for pair in row.env:
        if len(pair) != 2 or not is_text(*pair) or "=" in pair[0]:
            yield f"env {pair!r} is not a pair such as ('TZ', 'UTC')"


def _number_faults(row: Service) -> Iterator[str]:
    try:
        signal_number(row.stop_signal)
    except ValueError as error:
        yield f"stop_signal {error}"
    try:
        if 0 < memory_bytes(row.memory_max) < LEAST_MEMORY:
            yield f"memory_max {row.memory_max!r} is not enough for any program"
    except ValueError as error:
        yield f"memory_max {error}"
    for name, least, most in RANGES:
        value = getattr(row, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            yield f"{name} {value!r} is not a number from {least:g} to {most:g}"
