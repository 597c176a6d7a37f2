"""The board's table as PID 1 has checked it, for its services and the prompt: PID 1 writes it, all others read it.

PID 1 writes it at boot, before the first service starts, and at each reload that it takes. A service that starts later finds
what PID 1 has, whatever a profile on the disk says by then; and it finds it while PID 1 does not answer. Two files in
/run/stack: `table.json` is for everybody; `secrets.json` has all of it, passphrases too, and is root's.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING, json
from onboard.to_pid1 import SOCKET, SVError
from tables.accounts import Account
from tables.check_settings import CHECKS
from tables.plain import pack, unpack
from tables.rows import Service
from tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

FOLDER = os.path.dirname(SOCKET)
PUBLIC, SECRET = "table.json", "secrets.json"
MODES = {PUBLIC: 0o644, SECRET: 0o600}
LARGEST = 1024 * 1024  # bytes of one of them; a table of 20 services has 13,000
# What table.json leaves out: passphrases, what services get as arguments and in their environment, and conditions' constants.
HIDDEN = ("WIFI_NETWORKS", "ENVIRONMENT", "SERVICES", "APPS", "MODES")


# --- PID 1's half -------------------------------------------------------------------------------------------------------
def write(tables: Tables, folder: str = FOLDER) -> None:
    """Both files: a reader finds the old table or the new one. OSError or ValueError where that fails: the old ones stay.

    They are in memory: nothing waits for a disk.
    """
    texts = documents(tables)
    for name, text in texts.items():
        if len(text) > LARGEST:
            raise ValueError(f"{name} would have {len(text)} bytes; the limit is {LARGEST}")
    os.makedirs(folder, exist_ok=True)
    for name, text in texts.items():
        new = f"{folder}/{name}.new"
        if os.path.lexists(new):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODES[name])
        with open(fd, "wb") as file:
            os.fchmod(fd, MODES[name])
            file.write(text.encode())
    for name in texts:
        os.rename(f"{folder}/{name}.new", f"{folder}/{name}")


def documents(tables: Tables) -> dict[str, str]:
    """The texts of both files; each setting is written as JSON once."""
    settings = {name: json.dumps(pack(tables.values[name])) for name in CHECKS}
    public = [name for name in CHECKS if name not in HIDDEN and type(tables.values[name]) is not Service]
    rows = json.dumps([pack(row) for row in (*tables.services.values(), *tables.templates.values())])
    told = {name: getattr(tables, name) for name in ("options", "profiles", "rejected", "order")}
    facts = json.dumps({**told, "owners": {name: [one.uid, one.gid, one.mapped] for name, one in tables.owners.items()}})
    head = f'{{"facts": {facts}, "settings": {{'
    return {
        PUBLIC: head + _members(settings, public) + "}}\n",
        SECRET: head + _members(settings, settings) + f'}}, "services": {rows}}}\n',
    }


def _members(texts: dict[str, str], names: Iterable[str]) -> str:
    return ", ".join(f'"{name}": {texts[name]}' for name in names)


# --- everybody else's ---------------------------------------------------------------------------------------------------
def board_table() -> Tables:
    """The settings that PID 1 has; root's with everything in it. Where there is no board, those of settings.py.

    SVError where there is a table that cannot be read: defaults in its place could cost a board its network.
    """
    folder = os.path.dirname(os.environ.get("STACK_CONTROL", SOCKET))
    for name in (SECRET, PUBLIC):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                return _read(json.loads(file.read(LARGEST + 1).decode()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:  # an app's user
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SVError(f"{folder}/{name} cannot be read: {type(error).__name__}: {error}") from None
    from tables.load import load

    return load({})


def _read(document: dict[str, Any]) -> Tables:
    facts = document["facts"]
    tables = Tables(facts["options"])
    tables.values = {name: unpack(value) for name, value in document["settings"].items()}
    tables.profiles, tables.rejected, tables.order = facts["profiles"], facts["rejected"], facts["order"]
    tables.owners = {name: Account(uid, gid, mapped=mapped) for name, (uid, gid, mapped) in facts["owners"].items()}
    rows = [unpack(row) for row in document.get("services", ())]
    tables.services = {row.name: row for row in rows if not row.name.endswith("@")}
    tables.templates = {row.name: row for row in rows if row.name.endswith("@")}
    return tables
