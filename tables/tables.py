"""`Tables`: the board's settings after profiles and checks, as PID 1 and its services use them."""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING
from tables.accounts import OWN, ROOT, Account, own_name, read_accounts
from tables.rows import Delays, Mount, NetworkDelays, Service

if TYPE_CHECKING:
    from typing import Any

LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OPTIONS = ("stack.debug", "stack.profile", "stack.rescue", "stack.skip")

# Enough for the rescue prompt, where settings.py itself cannot be read.
FALLBACK: dict[str, Any] = {
    **Delays()._asdict(), **NetworkDelays()._asdict(),
    "HOSTNAME": "stack", "CONSOLE": "/dev/console", "LOG": "/run/log", "PYTHON": "/usr/bin/python3",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ENVIRONMENT": (("HOME", "/root"),),
    "MOUNTS": (Mount("proc", "/proc", "proc"), Mount("dev", "/dev", "devtmpfs"), Mount("run", "/run", "tmpfs")),
    "DIRECTORIES": (), "DEVICES": (), "MODULES": (), "SYSCTLS": (), "SERVICES": (), "CONSOLE_LEVEL": 4,
    "SHUTDOWN_TIMEOUT": 20.0, "KILL_TIMEOUT": 2.0, "SYNC_TIMEOUT": 10.0, "RESCUE_TIMEOUT": 300.0,
    "CRITICAL_FAILURES": 5, "CRITICAL_WINDOW": 600.0, "CRITICAL_INTERVAL": 3600.0, "LOOP_TURN_MAX": 5.0,
    "KEEP": "/var/lib/stack", "WATCHDOG": "", "WATCHDOG_TIMEOUT": 30.0, "WATCHDOG_SNOOZE_MAX": 60.0,
    "INTERFACES": (), "WIFI_NETWORKS": (), "RULES": (), "COMMANDS": (),
    "DATA": (), "DATA_OPTIONS": "noexec,noatime", "DATA_REMAKE": False, "DATA_GROW": False, "DATA_WAIT": 10.0,
    "DATA_TIMEOUT": 600.0, "BOOT_FILES": (), "BOOT_WAIT": 2.0,
    "RESCUE": Service(
        "rescue", ("{PYTHON}", "-P", "{LIB}/prompt/functions.py", "rescue"), ready="notify", tty="{CONSOLE}",
        env=(("PYTHONPATH", "{PYTHONPATH}"),),
    ),
    "LIB": LIB, "PYTHONPATH": LIB,
}  # fmt: skip


class Tables:
    """The board's settings after profiles and validation; a setting is an attribute under its own name."""

    def __init__(self, options: dict[str, str] | None = None) -> None:
        options = options or {}
        unknown = sorted(options.keys() - set(OPTIONS))
        self.rejected = [
            f"{name} is not an option of the kernel command line; there are {', '.join(OPTIONS)}" for name in unknown
        ]
        self.broken = False  # a whole file was left out
        self.bad_names: set[str] = set()  # of services whose rows were left out
        self.skipped = set(filter(None, options.get("stack.skip", "").split(",")))
        self.profiles: list[str] = []
        self.values: dict[str, Any] = dict(FALLBACK)
        self.accounts, self.group_ids = read_accounts()
        self.owners: dict[str, Account] = {}  # whoever runs a service, by its name, for DIRECTORIES
        self.user_faults: dict[str, str] = {}  # of services that cannot have a user of their own
        self.services: dict[str, Service] = {}
        self.templates: dict[str, Service] = {}  # names that end in "@": see pid1/instances.py
        self.order: list[str] = []  # of their start
        self.defaults: set[str] = set()  # names of settings.py's services, which profiles may leave out
        self.default_rows: tuple[Service, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"settings have no {name}") from None

    def account(self, row: Service) -> Account:
        """The numbers of a row's user and groups."""
        base = self.accounts.get(row.user) or (Account(int(row.user), int(row.user)) if row.user.isdigit() else ROOT)
        groups = tuple(int(group) if group.isdigit() else self.group_number(group) for group in row.groups)
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
        chosen: dict[str, Any] = {name: self.values.get(name, default) for name, default in Delays()._asdict().items()}
        return Delays(**chosen)

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
            for name, value in self.values.items():
                if isinstance(value, (str, int, float)):
                    text = text.replace("{" + name + "}", str(value))
        return text


def expand_row(tables: Tables, row: Service) -> Service:
    """A row with `{NAME}` replaced; an argument that is a table's name alone becomes its items, and none leaves argv empty."""
    words: Any = row.argv
    if isinstance(words, str):
        raise TypeError(f"argv is one string; write a tuple of words: {tuple(words.split())!r}")
    texts = (*words, *row.groups, *(value for _, value in row.env), row.ready, row.user, row.cwd, row.tty)
    if not any("{" in text for text in texts if isinstance(text, str)):
        return row
    text: dict[str, Any] = {name: tables.expand(getattr(row, name)) for name in ("ready", "user", "cwd", "tty")}
    if text["user"] == OWN:
        text["user"] = own_name(row)
    argv: list[str] = []
    for word in words:
        value = tables.values.get(word[1:-1]) if isinstance(word, str) and word[:1] == "{" else None
        if isinstance(value, tuple):
            if not value:
                return row._replace(argv=(), **text)
            argv += value
        else:
            argv.append(tables.expand(word) if isinstance(word, str) else word)
    env = tuple((name, tables.expand(value)) for name, value in row.env)
    text["groups"] = tuple(map(tables.expand, row.groups))
    return row._replace(argv=tuple(argv), env=env, **text)
