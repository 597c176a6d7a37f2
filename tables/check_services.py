"""What is wrong with a row of SERVICES, as sentences for people. What may hold a secret, argv and env, is never quoted."""

from __future__ import annotations

from _operator import is_not
from itertools import compress

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from base.syscalls import CAPABILITIES
from tables.check_modes import first_states, is_fact
from tables.rights import topic_faults
from tables.rows import Condition
from tables.values import (
    LONGEST_WORD,
    is_id,
    is_ours,
    is_pair,
    is_text,
    kind_of,
    memory_bytes,
    one_pair,
    pairs_fault,
    path_fault,
    shown,
    shown_name,
    signal_number,
    truth_fault,
    tuple_fault,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tables.rows import Service
    from tables.tables import Tables

RLIMITS = "as core cpu data fsize memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()

TEXTS = ("name", "ready", "restart", "user", "kill", "cwd", "tty", "log", "may", "module", "forked_by", "enabled")
TRUTHS = ("no_new_privs", "critical", "logger")
TUPLES = {"argv": '("sleep", "5")', "after": '("network",)', "groups": '("dialout",)', "capabilities": '("net_admin",)',
          "tells": '("voltage",)'}  # fmt: skip
SECONDS = (("ready_timeout", 0.001, 86400), ("stop_timeout", 0, 3600), ("watchdog", 0, 86400))
NUMBERS = (
    ("nice", -20, 19), ("oom_score", -1000, 1000), ("umask", 0, 0o777), ("pids_max", 0, 4194304), ("cpu_weight", 1, 10000),
)  # fmt: skip

CHOICES = {"restart": ("always", "on-failure", "never"), "log": ("memory", "disk", "none"), "kill": ("all", "main", "mixed")}
MOST_WORDS = 500  # of a column that is a tuple; argv has a limit of its own
TRIALS = 20  # of conditions that take too long: more of them are not tried
LEAST_MEMORY = 1 << 20
LONGEST_NAME = 64  # bytes: it becomes a log's name, a control group's, a socket's (107 bytes with its folder)
# Bytes of a program's words and environment together. execve(2) takes a quarter of the stack's limit, and 128 KiB in any
# case; what is left of that is for what PID 1 adds.
EXEC_SIZE = 120_000
PAIR = '(("TZ", "UTC"),)'
OWN_NAMES = ("stack", "rescue")  # PID 1's own log, and its last resort


def given(row: Service) -> set[str]:
    """The columns that a row sets. Only these are checked: most of a table are defaults, and a default is right."""
    return set(compress(row._fields, map(is_not, row, row._defaults)))  # type: ignore[attr-defined]


def column_faults(row: Service) -> Iterator[str]:
    """Columns that hold another kind of thing than they should: the first look, before anything is done with them."""
    names = given(row)
    for name in TEXTS:
        if name in names and not is_text(value := getattr(row, name)):
            yield f"{name} is {_not_text(value)}"
    for name, example in TUPLES.items():
        value = getattr(row, name)
        if name not in names or (name == "capabilities" and value is None):
            continue
        if fault := tuple_fault(value, example, quote=name != "argv"):
            yield f"{name} {fault}"
        elif len(value) > MOST_WORDS and name != "argv":
            yield f"{name} has {len(value)} words; at most {MOST_WORDS} are taken"
        elif wrong := [word for word in value if not is_text(word)]:
            yield f"{name} has {_not_text(wrong[0]).removesuffix(', not text')} in it; each of its words must be text"
    for name in TRUTHS:
        if name in names and (fault := truth_fault(getattr(row, name))):
            yield f"{name} {fault}"
    if row.when is not None and type(row.when) is not Condition:
        yield f"when is {kind_of(row.when)}, not a function such as lambda b: b.online"
    if "env" in names and (fault := pairs_fault(row.env, PAIR)):
        yield f"env{'' if fault.startswith('[') else ' '}{fault}"
    limits = '(("nofile", 1024),)'
    if fault := tuple_fault(row.rlimits, limits) or one_pair(row.rlimits, (int,), limits):
        yield f"rlimits {fault}"


def _not_text(value: object) -> str:
    return "text with a NUL in it, or with half a character" if type(value) is str else f"{kind_of(value)}, not text"


def service_faults(tables: Tables, row: Service) -> Iterator[str]:
    """Every fault of a row whose columns are of the right kind, as a sentence."""
    names = given(row)
    yield from _name_faults(tables, row)
    if row.argv and not row.argv[0]:
        yield "argv has no program: its first word is empty"
    if row.module and not all(part.isidentifier() for part in row.module.split(".")):
        yield f"module {shown(row.module)} is not the name of a module"
    if row.module and (row.user or row.capabilities is not None):
        yield f"module {shown(row.module)} has PID 1's memory, with passphrases in it: it runs as root or not at all"
    if row.ready not in ("", "notify", "exit") and path_fault(row.ready):
        yield f"ready {shown(row.ready)} is not 'notify', 'exit' or an absolute path"
    elif is_ours(row.ready):
        yield f"ready {shown(row.ready)} is in /run/stack, where PID 1's own files are; take another folder of /run"
    for name, choices in CHOICES.items():
        if name in names and getattr(row, name) not in choices:
            yield f"{name} {shown(getattr(row, name))} is not one of {', '.join(choices)}"
    for name, path in (("cwd", row.cwd), ("tty", row.tty or "/")):
        if name in names and path_fault(path):
            yield f"{name} {shown(path)} is not absolute"
    allowed = tables.values.get(row.may) if row.may else ()
    if type(allowed) is not tuple or not all(map(is_pair, allowed)):
        yield f"may {shown(row.may)} is not a setting that lists requests, such as COMMANDS"
    if row.enabled and row.enabled not in tables.values:
        yield f"enabled {shown(row.enabled)} is no setting{tables.meant(row.enabled, tables.values)}"
    if row.logger and any(other.logger for other in tables.services.values()):
        yield "there is a logger already"
    yield from _zygote_faults(tables, row)
    yield from _condition_faults(tables, row)
    yield from _number_faults(row, names)
    yield from _rights_faults(tables, row)
    yield from exec_faults(tables.environment, row.argv, row.env)


def _zygote_faults(tables: Tables, row: Service) -> Iterator[str]:
    """What keeps a zygote from forking it, or from being one."""
    if row.forked_by:
        if row.forked_by == row.name:
            yield "forked_by is the service itself"
        script = row.argv[:1] == (tables.expand("{PYTHON}"),) and len(row.argv) > 2 and row.argv[1] == "-P"
        if not script or not row.argv[2].endswith(".py"):
            yield 'forked_by is for Python scripts: argv must begin with "{PYTHON}", "-P" and a path that ends in .py'
        for name, value in (("module", row.module), ("tty", row.tty), ("logger", row.logger)):
            if value:
                yield f"forked_by cannot be together with {name}"
    if row.name in tables.zygotes:
        # What a child inherits, and can neither take back nor set anew.
        for name in ("user", "groups", "capabilities", "no_new_privs", "rlimits", "nice", "oom_score", "module"):
            if getattr(row, name) not in ("", (), None, False, 0):
                yield f"{name} cannot be set for a service that is another row's forked_by: all that it forks would have it"


def _condition_faults(tables: Tables, row: Service) -> Iterator[str]:
    if row.when is not None:
        from tables.when import condition_fault

        if tables.slow_conditions >= TRIALS:
            yield f"when is not tried: {TRIALS} others took too long"
        elif fault := condition_fault(row.when, first_states(tables)):
            tables.slow_conditions += "TimeoutError" in fault
            yield f"when {fault}"
    if row.logger and row.when is not None:
        yield "when: all others would wait for the one that reads what they print"
    for pattern in row.tells:
        if not is_fact(pattern.removesuffix("*") or "all"):
            yield f"tells {shown(pattern)} is not the name of a fact, such as voltage or mode/power, nor its beginning and *"


def _name_faults(tables: Tables, row: Service) -> Iterator[str]:
    if not row.name.translate({ord(char): None for char in "_-@."}).isalnum() or len(row.name.encode()) > LONGEST_NAME:
        yield f"name {shown(row.name)} must be letters, digits and _-@. and at most {LONGEST_NAME} bytes"
    if row.name in OWN_NAMES:
        yield "the name is taken: it is PID 1's own"
    elif row.name in tables.services or row.name in tables.templates:
        yield "the name is taken; SERVICES = replaced(SERVICES, Service(...)) puts a row in the place of the one of its name"


def exec_faults(environment: dict[str, str], argv: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """What execve(2) would refuse."""
    for name, _ in env:
        if not name or "=" in name:
            yield f"env has the name {shown_name(name)}; a variable's name is not empty and has no '=' in it"
    variables = environment | dict(env) if env else environment
    characters = sum(map(len, (*argv, *variables, *variables.values())))
    if 4 * characters + 10 * (len(argv) + len(variables)) <= EXEC_SIZE:  # at most four bytes each: no need to count them
        return
    words = [*argv, *(f"{name}={value}" for name, value in variables.items())]
    sizes = [len(word.encode("utf-8", "surrogatepass")) for word in words]
    if any(size > LONGEST_WORD for size in sizes):
        yield f"a word of argv or a variable of env has more than {LONGEST_WORD} bytes, and execve(2) refuses it"
    if sum(sizes) + 9 * len(sizes) > EXEC_SIZE:
        yield f"argv and the environment have more than {EXEC_SIZE} bytes together: write them to a file"


def user_fault(tables: Tables, user: str) -> str:
    """Why there is no such user."""
    user = tables.expand(user)
    known = not user or user in tables.accounts or is_id(user)
    return "" if known else f"user {shown(user)} is not in /etc/passwd"


def _rights_faults(tables: Tables, row: Service) -> Iterator[str]:
    """Faults in who a service is and what it may."""
    if fault := tables.user_faults.get(row.name) or user_fault(tables, row.user):
        yield fault
    yield from topic_faults(row)
    for group in row.groups:
        if group not in tables.group_ids and group not in tables.owners and not is_id(group):
            yield f"group {shown(group)} is not in /etc/group, nor is it a service"
    for capability in row.capabilities or ():
        if capability not in CAPABILITIES:
            known = tables.meant(capability, CAPABILITIES)
            yield f"capability {shown(capability)} is not one of `man 7 capabilities`, such as net_admin{known}"
    for pair in row.rlimits:
        if fault := _rlimit_fault(tables, pair):
            yield fault


def _rlimit_fault(tables: Tables, pair: Any) -> str:
    if type(pair) is not tuple or len(pair) != 2 or not is_text(pair[0]) or type(pair[1]) is not int:
        return 'rlimits has something in it that is not a pair such as ("nofile", 1024)'
    limit, value = pair
    if limit not in RLIMITS:
        return f"rlimit {shown(limit)} is not one of {', '.join(RLIMITS)}{tables.meant(limit, RLIMITS)}"
    most = {"nice": 40, "rtprio": 99}.get(limit, 2**63 - 1)
    if limit == "nofile":  # the kernel refuses more (`man 2 getrlimit`), root too
        allowed = read_file("/proc/sys/fs/nr_open")
        most = int(allowed) if allowed.isdigit() else most
        return "" if 0 <= value <= most else f"rlimit nofile of {value} is not from 0 to {most} (/proc/sys/fs/nr_open)"
    return "" if -1 <= value <= most else f"rlimit {limit} of {value} is not from -1 (no limit) to {most}"


def _number_faults(row: Service, names: set[str]) -> Iterator[str]:
    try:
        if "stop_signal" in names:
            signal_number(row.stop_signal)
    except ValueError as error:
        yield f"stop_signal {error}"
    try:
        if "memory_max" not in names:
            pass
        elif 0 < memory_bytes(row.memory_max) < LEAST_MEMORY:
            yield f"memory_max {shown(row.memory_max)} is not enough for any program"
        elif memory_bytes(row.memory_max) >= 1 << 63:
            yield f"memory_max {shown(row.memory_max)} is more than any board has; 0 is no limit"
    except ValueError as error:
        yield f"memory_max {error}"
    for name, least, most in (*SECONDS, *NUMBERS):
        if name not in names:
            continue
        value, kinds = getattr(row, name), (int,) if (name, least, most) in NUMBERS else (int, float)
        if type(value) not in kinds or not least <= value <= most:
            whole = "whole " if kinds == (int,) else ""
            yield f"{name} {shown(value)} is not a {whole}number from {least} to {most}"
