"""Users and groups by number, from /etc/passwd and /etc/group alone."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Account(NamedTuple):
    """A user's numbers; `mapped` is false where this user namespace has no such user (`man 7 user_namespaces`)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    mapped: bool = True
    home: str = "/"
    shell: str = "/bin/sh"


ROOT = Account(0, 0)


def read_accounts(etc: str = "/etc") -> tuple[dict[str, Account], dict[str, int]]:
    """Users and groups from their files: getpwnam(3) may ask a network service, and PID 1 must not wait for one."""
    mapped = _mapped_ids("/proc/self/uid_map")
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


def _mapped_ids(path: str) -> list[range]:
    try:
        with open(path, encoding="ascii") as file:
            rows = [[int(word) for word in line.split()] for line in file]
    except (OSError, ValueError):
        return [range(2**32)]  # no user namespaces in this kernel
    return [range(first, first + count) for first, _, count in rows]
