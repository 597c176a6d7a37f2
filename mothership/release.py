"""`mothership release`: the images that boards can be updated to. The bundle is at an https:// address of any web server."""

from __future__ import annotations

import argparse
import json
import time

import rollout_store
from observations import stamp, visible
from store import Store

from uplink import wire

HEX = frozenset("0123456789abcdef")


def fault(new: rollout_store.Release) -> str:
    """What is wrong with a release, as a sentence; empty where nothing is."""
    if not wire.is_name(new.name):
        return f"{new.name[:80]!r} is not a release's name: letters, digits, - _ . and at most {wire.LONGEST} of them"
    if not wire.is_name(new.version):
        return f"--version {new.version[:80]!r}: letters, digits, - _ . and at most {wire.LONGEST} of them"
    if not new.url.startswith("https://") or not new.url.isascii() or not new.url.isprintable() or " " in new.url:
        return f"{new.url[:100]!r} is no https:// address"
    if len(new.url) > rollout_store.LONGEST_URL:
        return f"the address has {len(new.url)} characters; it has at most {rollout_store.LONGEST_URL}"
    if len(new.sha256) != 64 or set(new.sha256) - HEX:
        return "--sha256 takes 64 hexadecimal digits, as sha256sum prints them"
    return "" if 0 < len(new.fits) <= 200 else "--fits takes a pattern of at most 200 characters"


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="a release, which roll-outs name")
    add.add_argument("database", metavar="DATABASE")
    add.add_argument("name", metavar="NAME")
    add.add_argument("url", metavar="URL", help="of the bundle: https://...")
    add.add_argument("--sha256", required=True, metavar="HEX", help="of the bundle, to know it by; boards check its signature")
    add.add_argument("--version", required=True, metavar="VERSION", help="as the image has it in /etc/stack-release")
    add.add_argument("--fits", default="*", metavar="PATTERN", help="kind or model of the boards, such as 'rpi*'; all")
    add.set_defaults(run=run_add)
    shown = commands.add_parser("list", help="all releases")
    shown.add_argument("database", metavar="DATABASE")
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.set_defaults(run=run_list)


def run_add(options: argparse.Namespace) -> None:
    new = rollout_store.Release(options.name, options.version, options.url, options.sha256.lower(), options.fits, time.time())
    if why := fault(new):
        raise SystemExit(visible(why))
    try:
        added = rollout_store.add_release(Store(options.database, make=False), new)
    except ValueError as error:
        raise SystemExit(visible(str(error))) from None
    print(f"release {new.name}: version {new.version}" + ("" if added else ", which is there already"))


def run_list(options: argparse.Namespace) -> None:
    rows = rollout_store.releases(Store(options.database, make=False))
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    for row in () if options.json else rows:
        print(visible(f"{row.name}  {row.version}  fits {row.fits}  {stamp(row.added)}  {row.sha256[:12]}  {row.url}"))
