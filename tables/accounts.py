"""Users and groups by number: those of /etc/passwd and /etc/group, and one for each service that has a user of its own."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tables.rows import Service

OWN = "{name}"  # in a row's column `user`: a user of this service alone
# Their numbers. Debian gives people those up from 1000 and keeps 60000 to 64999 for itself, systemd those up from 60513;
# a user namespace has 65536.
FIRST, COUNT = 40_000, 20_000


class Account(NamedTuple):
    """A user's numbers; `mapped` is false where this user namespace has no such user (`man 7 user_namespaces`)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    mapped: bool = True
    home: str = "/"
    shell: str = "/bin/sh"


ROOT = Account(0, 0)


def own_number(name: str) -> int:
    """The number of a service's own user. It follows from the name alone, so that it is the same in every boot and on every
    board, whatever else is in the table: files on the data partition belong to it. (FNV-1a, draft-eastlake-fnv.)"""
    number = 0xCBF29CE484222325
    for byte in name.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    return FIRST + (number ^ number >> 32) % COUNT


def own_name(row: Service) -> str:
    """What a row's own user is called: as the service, and all instances of a template have one together."""
    return row.name.partition("@")[0]


def own_account(name: str, accounts: dict[str, Account]) -> Account:
    """The account of a service's own user; ValueError says who has its name or its number already."""
    number = own_number(name)
    if (same := accounts.get(name)) and (same.uid, same.gid) != (number, number):
        raise ValueError(
            f"a user {name!r} is in /etc/passwd already, with number {same.uid}: give the service another name, "
            f"or user={name!r}"
        )
    if other := next((one for one, account in accounts.items() if one != name and number in (account.uid, account.gid)), ""):
        raise ValueError(
            f"its user's number {number}, which follows from its name, is that of {other!r}: give the service another name, "
            "or a user of /etc/passwd"
        )
    return Account(number, number, mapped=any(number in ids for ids in mapped_ids()))


def read_accounts(etc: str = "/etc") -> tuple[dict[str, Account], dict[str, int]]:
    """Users and groups from their files: getpwnam(3) may ask a network service, and PID 1 must not wait for one."""
    mapped = mapped_ids()
    users, groups = {"root": ROOT}, {"root": 0}
    for fields in _records(f"{etc}/passwd", 4):
        uid, gid = int(fields[2]), int(fields[3])
        home, shell = [*fields[5:7], "", ""][:2]
        known = any(uid in ids for ids in mapped)
        users[fields[0]] = Account(uid, gid, mapped=known, home=home or "/", shell=shell or "/bin/sh")
    for fields in _records(f"{etc}/group", 3):
        groups[fields[0]] = int(fields[2])
    return users, groups


def _records(path: str, numbers: int) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(":")
        if len(fields) >= numbers and all(field.isdigit() for field in fields[2:numbers]):
            yield fields


def mapped_ids(path: str = "/proc/self/uid_map") -> list[range]:
    """The user ids that there are in this user namespace (`man 7 user_namespaces`)."""
    try:
        with open(path, encoding="ascii") as file:
            rows = [[int(word) for word in line.split()] for line in file]
    except (OSError, ValueError):
        return [range(2**32)]  # no user namespaces in this kernel
    return [range(first, first + count) for first, _, count in rows]
