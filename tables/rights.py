"""Who a service is: users of their own, without a line in /etc/passwd."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.accounts import OWN, own_account, own_name
from tables.rows import Service

if TYPE_CHECKING:
    from tables.tables import Tables


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
