"""Who a service is: users of their own, without a line in /etc/passwd; and what each may publish and hear on the local bus."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING, json
from tables.accounts import OWN, own_account, own_name
from tables.rows import Service
from tables.values import is_id, shown, tuple_fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tables.tables import Tables

WILD = {"#", "+"}
LONGEST_TOPIC = 200  # characters
USUAL = dict(zip(Service._fields, Service._defaults, strict=True))  # type: ignore[attr-defined]
ROW = "bus_rights"  # the service that writes the broker's access list...
CONFIGURATION = "data/mosquitto.conf"  # ...and the file that makes mosquitto read it


def with_rights(rows: list[Any], defaults: tuple[Service, ...]) -> list[Any]:
    """These rows; settings.py's RIGHTS among them, where one needs its files and none makes them.

    A profile with a SERVICES of its own may have been written before there was an access list: without it mosquitto ends.
    """
    ours = [(index, row) for index, row in enumerate(rows) if isinstance(row, Service) and isinstance(row.name, str)]
    if ROW in {row.name for _, row in ours}:
        return rows
    first = next((index for index, row in ours if _needs_rights(row)), None)
    return rows if first is None else [*rows[:first], *(row for row in defaults if row.name == ROW), *rows[first:]]


def _needs_rights(row: Service) -> bool:
    argv, after = (words if isinstance(words, tuple) else () for words in (row.argv, row.after))
    return ROW in after or any(isinstance(word, str) and word.endswith(CONFIGURATION) for word in argv)


def own_users(tables: Tables) -> None:
    """Make known the users of services: those of their own, and as owners in DIRECTORIES whoever a service runs as.

    Services of settings.py that a profile leaves out have theirs too: what belongs to them on the disk stays theirs.
    """
    seen: dict[str, str] = {}  # services, by the names of their users
    for row in (*tables.values["SERVICES"], *tables.default_rows):
        if not isinstance(row, Service) or not isinstance(row.name, str) or not isinstance(row.user, str):
            continue  # the check of the rows says so
        user, name = tables.expand(row.user), own_name(row)
        if name in seen:
            if user == OWN and seen[name] != row.name:
                tables.user_faults[row.name] = f"its own user would be that of {seen[name]!r}: give one of them another name"
            continue
        seen[name] = row.name
        if user == OWN:
            try:
                tables.accounts[name] = own_account(name, tables.accounts)
            except ValueError as error:
                tables.user_faults[row.name] = str(error)
                continue
            tables.group_ids.setdefault(name, tables.accounts[name].gid)
        if account := tables.accounts.get(name if user == OWN else user or "root"):
            tables.owners[name] = account


def bus_rights(tables: Tables) -> str:
    """BUS_RIGHTS: [[name, uid, [what it publishes], [what it hears]], ...] of all services that do not run as root, as JSON.

    `services/bus_rights.py` gets it as an argument: whatever changes it in a reload makes the broker hear of it.
    """
    found: dict[str, list[object]] = {}
    for row in tables.values["SERVICES"]:
        texts = isinstance(row, Service) and isinstance(row.name, str) and isinstance(row.user, str)
        if not texts or next(topic_faults(row), ""):
            continue  # the check of the rows says so
        name, user = own_name(row), tables.expand(row.user)
        account = tables.accounts.get(name if user == OWN else user)
        if (is_id(user) and int(user)) or (account and account.uid):
            uid = account.uid if account else int(user)
            mapped = account.mapped if account else True
            publishes, hears = ([topic.replace(OWN, name) for topic in topics] for topics in (row.publishes, row.hears))
            found.setdefault(name, [name, uid if mapped else 0, publishes, hears])
    return json.dumps(list(found.values()))


def is_pattern(topic: object) -> bool:
    """Whether it is a pattern of topics (MQTT 3.1.1, 4.7.1) that fits into a line of the access list."""
    if not isinstance(topic, str) or not topic.isprintable() or topic != topic.strip() or not 0 < len(topic) <= LONGEST_TOPIC:
        return False
    *before, last = topic.split("/")
    return all(level == "+" or not WILD & {*level} for level in before) and (last in WILD or not WILD & {*last})


def topic_faults(row: Service) -> Iterator[str]:
    """What is no pattern of topics, as sentences."""
    for column, topics in (("publishes", row.publishes), ("hears", row.hears)):
        values: object = topics
        if values is USUAL[column]:
            continue
        if fault := tuple_fault(values, '("wifi/#",)'):
            yield f"{column} {fault}"
            return
        for topic in topics:
            if not is_pattern(topic):
                yield f"{column} {shown(topic)} is not a pattern of topics, such as wifi/# or receiver/+ (MQTT 3.1.1, 4.7.1)"
