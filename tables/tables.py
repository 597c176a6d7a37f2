"""`Tables`: the board's settings after profiles and checks, as PID 1 and its services use them."""

from __future__ import annotations

import os

from base.near import did_you_mean
from base.stdlib import TYPE_CHECKING
from tables.accounts import OWN, ROOT, Account, own_name, read_accounts
from tables.check_settings import CHECKS
from tables.rows import Delays, Mount, NetworkDelays, Service
from tables.values import LONGEST_WORD, is_id, is_text, kind_of

if TYPE_CHECKING:
    from typing import Any

    from tables.names import Settings
else:
    Settings = object

LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OPTIONS = (
    "stack.debug", "stack.profile", "stack.rescue", "stack.skip",
    "stack.run", "stack.seconds", "stack.config", "stack.report", "stack.end",  # services/workload.py reads these
    "stack.slot", "stack.tryboot",  # updates/slots.py, from whoever plays the firmware
)  # fmt: skip

# Enough for the rescue prompt, where settings.py itself cannot be read. What is not named here is then the first of ANYTHING
# that the setting's check takes: ten seconds, an empty table.
FALLBACK: dict[str, Any] = {
    "HOSTNAME": "stack", "CONSOLE": "/dev/console", "LOG": "/run/log", "PYTHON": "/usr/bin/python3",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ENVIRONMENT": (("HOME", "/root"),),
    "MOUNTS": (Mount("proc", "/proc", "proc"), Mount("dev", "/dev", "devtmpfs"), Mount("run", "/run", "tmpfs")),
    "RESCUE_TIMEOUT": 300.0, "CONSOLE_LEVEL": 4, "KEEP": "/var/lib/stack", "LIB": LIB, "PYTHONPATH": LIB,
    "RESCUE": Service(
        "rescue", ("{PYTHON}", "-P", "{LIB}/prompt/console.py", "rescue"), ready="notify", tty="{CONSOLE}",
        env=(("PYTHONPATH", "{PYTHONPATH}"),),
    ),
}  # fmt: skip
HINTS = 40  # mistakes for which the name is looked for that was meant
ANYTHING = ((), "", False, 10.0, 0, 1, 4096, "off", "5", "/run/unset", "unset0", Service("unset", ("true",)))


class Values(dict[str, "Any"]):
    """Settings by name. One that nobody has given is the least that its check takes, found when it is asked for: settings.py
    gives them all."""

    def __missing__(self, name: str) -> Any:
        self[name] = value = FALLBACK[name] if name in FALLBACK else next(one for one in ANYTHING if not CHECKS[name](one))
        return value


class Tables(Settings):
    """The board's settings after profiles and validation; a setting is an attribute under its own name."""

    def __init__(self, options: dict[str, str] | None = None) -> None:
        self.options = options = options or {}
        unknown = sorted(options.keys() - set(OPTIONS))
        self.rejected = [
            f"{name} is not an option of the kernel command line; there are {', '.join(OPTIONS)}" for name in unknown
        ]
        self.broken = False  # a whole file was left out
        self.bad_names: set[str] = set()  # of services whose rows were left out
        self.skipped = set(filter(None, options.get("stack.skip", "").split(",")))
        self.profiles: list[str] = []
        self.values: dict[str, Any] = Values()
        self.names: dict[str, Any] = {}  # all names of settings.py, functions too: what a profile stands on
        self.environment = {**dict(FALLBACK["ENVIRONMENT"]), "PATH": FALLBACK["PATH"]}  # of every service
        self.accounts, self.group_ids = read_accounts()
        self.owners: dict[str, Account] = {}  # whoever runs a service, by its name, for DIRECTORIES
        self.user_faults: dict[str, str] = {}  # of services that cannot have a user of their own
        self.services: dict[str, Service] = {}
        self.templates: dict[str, Service] = {}  # names that end in "@": see pid1/instances.py
        self.zygotes: set[str] = set()  # services that fork others
        self.order: list[str] = []  # of their start
        self.hints = HINTS
        self.slow_conditions = 0  # that were tried
        self.defaults: set[str] = set()  # names of settings.py's services, which profiles may leave out
        self.default_rows: tuple[Service, ...] = ()

    if not TYPE_CHECKING:  # Settings has the names, so that mypy knows a misspelt one

        def __getattr__(self, name: str) -> Any:
            try:
                return self.__dict__["values"][name]
            except KeyError:
                raise AttributeError(f"settings have no {name}{did_you_mean(name, CHECKS)}") from None

    def meant(self, name: str, names: object) -> str:
        """`; did you mean HOSTNAME?`, for the first mistakes of a table: the search takes its time."""
        self.hints -= 1
        return did_you_mean(name, names) if self.hints >= 0 else ""

    def account(self, row: Service) -> Account:
        """The numbers of a row's user and groups."""
        base = self.accounts.get(row.user) or (Account(int(row.user), int(row.user)) if is_id(row.user) else ROOT)
        groups = tuple(int(group) if is_id(group) else self.group_number(group) for group in row.groups)
        return base._replace(groups=groups)

    def owner(self, name: str) -> Account:
        """Who an owner in DIRECTORIES is: a user of /etc/passwd, whoever runs the service of this name, or a number."""
        name = self.expand(name) or "root"
        return self.accounts.get(name) or self.owners.get(name) or Account(int(name), int(name))

    def group_number(self, name: str) -> int:
        """The number of a group of /etc/group, or of that which the service of this name runs in."""
        name = self.expand(name)
        return self.group_ids[name] if name in self.group_ids else self.owners[name].gid

    def delays(self) -> Delays:
        """What the process machine needs of the settings."""
        return Delays(**{name: self.values[name] for name in Delays._fields if name in CHECKS})

    def network_delays(self) -> NetworkDelays:
        """What the network's state machine needs of the settings."""
        return NetworkDelays(**{name: self.values[name] for name in NetworkDelays._fields})

    @property
    def rescue(self) -> Service:
        """The rescue prompt's row; the built-in one, where a profile's cannot be used."""
        try:
            return expand_row(self, self.values["RESCUE"])
        except Exception:  # whatever a profile has made of it
            return expand_row(self, FALLBACK["RESCUE"])

    def expand(self, text: str) -> str:
        """`{NAME}` of a setting that is text or a number becomes its value: rows follow what a profile changes."""
        for _ in range(4):  # a setting may name another
            if "{" not in text:
                break
            text = self._expanded(text)
        return text

    def _expanded(self, text: str) -> str:
        """Each `{NAME}` replaced once; what would make the text too long for a program's word stays."""
        first, *parts = text.split("{")
        done, size, before = [first], len(text), first
        for part in parts:
            name, closed, rest = part.partition("}")
            value = self.values.get(name) if closed and is_name(name) and not before.endswith("$") else None
            known = type(value) in (str, int, float)
            size += len(str(value)) if known else 0
            done.append(f"{value}{rest}" if known and size < LONGEST_WORD else "{" + part)
            before = part
        return "".join(done)

    def unknown_name(self, text: str) -> str:
        """What is wrong with a `{NAME}` that `expand` leaves; empty where nothing is."""
        if "{" not in text:
            return ""
        for name in names_in(self.expand(text)):
            if name not in self.values:
                return f"has {{{name}}} in it, which is no setting{self.meant(name, self.values)}"
            if type(self.values[name]) in (str, int, float):
                return f"has {{{name}}} in it again and again"
            return f"has {{{name}}} in it, which is {kind_of(self.values[name])}: it can only be a word of argv of its own"
        return ""


def names_in(text: str) -> list[str]:
    """The NAMEs of `{NAME}` in a text, but for the shell's `${NAME}`."""
    parts = text.split("{")
    found = [(parts[index], *part.partition("}")) for index, part in enumerate(parts[1:])]
    names = [name for before, name, closed, _ in found if closed and not before.endswith("$")]
    return list(filter(is_name, names))


def is_name(text: str) -> bool:
    """Whether it is a setting's name, or would be if there were one."""
    return text.isupper() and text.replace("_", "A").isalnum()


def expand_row(tables: Tables, row: Service) -> Service:
    """A row with `{NAME}` replaced; an argument that is a table's name alone becomes its items, and none leaves argv empty."""
    texts = (*row.argv, *row.groups, *(value for _, value in row.env), row.ready, row.user, row.cwd, row.tty)
    if not any("{" in text for text in texts):
        return row
    text: dict[str, Any] = {name: tables.expand(getattr(row, name)) for name in ("ready", "user", "cwd", "tty")}
    if text["user"] == OWN:
        text["user"] = own_name(row)
    argv: list[str] = []
    for word in row.argv:
        value = tables.values.get(word[1:-1]) if word[:1] == "{" else None
        if type(value) is tuple and all(map(is_text, value)):
            if not value:
                return row._replace(argv=(), **text)
            argv += value
        else:
            argv.append(tables.expand(word))
    env = tuple((name, tables.expand(value)) for name, value in row.env)
    text["groups"] = tuple(map(tables.expand, row.groups))
    return row._replace(argv=tuple(argv), env=env, **text)
