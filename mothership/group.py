"""`mothership group`: groups of boards, each board by its name or many by a pattern such as 'mast-*'."""

from __future__ import annotations

import argparse

import rollout_store
from observations import visible
from store import Store

from uplink import wire

PATTERN = frozenset("*?[]!")


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_ in (("add", run_add, "boards to a group"), ("remove", run_remove, "boards from a group")):
        command = commands.add_parser(name, help=help_)
        command.add_argument("database", metavar="DATABASE")
        command.add_argument("group", metavar="GROUP")
        command.add_argument("boards", metavar="BOARD", nargs="*", help="names")
        command.add_argument("--pattern", action="append", default=[], metavar="PATTERN", help="of names, such as 'mast-*'")
        command.set_defaults(run=run)
    shown = commands.add_parser("list", help="all groups and the boards of each")
    shown.add_argument("database", metavar="DATABASE")
    shown.set_defaults(run=run_list)


def rows(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """What is to be added or removed; exits with a sentence where a word is none."""
    if not wire.is_name(options.group):
        raise SystemExit(f"{options.group!r} is not a group's name: letters, digits, - _ . and at most {wire.LONGEST} of them")
    for board in options.boards:
        if not wire.is_name(board):
            raise SystemExit(f"{board!r} is not a board's name; a pattern takes --pattern")
    for pattern in options.pattern:
        if not 0 < len(pattern) <= wire.LONGEST or set(pattern) - wire.NAME - PATTERN:
            raise SystemExit(f"--pattern {pattern!r}: a board's name with * ? or [...] in it")
    found = [(options.group, "board", name) for name in options.boards]
    found += [(options.group, "pattern", pattern) for pattern in options.pattern]
    if not found:
        raise SystemExit("name boards, or a --pattern")
    return found


def run_add(options: argparse.Namespace) -> None:
    new, store = rows(options), Store(options.database, make=False)
    with store.database.transaction():
        store.database.executemany("INSERT INTO member VALUES (?, ?, ?) ON CONFLICT DO NOTHING", new)
    print(told(store, options.group))


def run_remove(options: argparse.Namespace) -> None:
    old, store = rows(options), Store(options.database, make=False)
    with store.database.transaction():
        store.database.executemany("DELETE FROM member WHERE fleet = ? AND kind = ? AND board = ?", old)
    print(told(store, options.group))


def run_list(options: argparse.Namespace) -> None:
    store = Store(options.database, make=False)
    for (group,) in store.database.execute("SELECT DISTINCT fleet FROM member ORDER BY fleet").fetchall():
        print(told(store, group))


def told(store: Store, group: str) -> str:
    """A group and how many known boards it has: `mast: 3 boards: b1, b2 and mast-*`."""
    named, patterns = rollout_store.members(store, group)
    names = [name for (name,) in store.database.execute("SELECT name FROM board ORDER BY name").fetchall()]
    count = sum(rollout_store.in_group(name, named, patterns) for name in names)
    words = ", ".join((*named, *patterns)) or "nothing"
    return visible(f"{group}: {words}; {count} known {'board' if count == 1 else 'boards'}")
