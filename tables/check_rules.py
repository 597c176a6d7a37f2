"""What is wrong with a row of RULES or COMMANDS, as a sentence for people; empty where nothing is."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.rows import Rule
from tables.values import is_pair, is_text, kind_of, pairs_fault, shown

if TYPE_CHECKING:
    from typing import Any

ACTIONS = "add remove change online offline bind unbind".split()  # lib/kobject_uevent.c; a "move" is a remove and an add
DOES = ("module", "group", "start", "stop", "publish")
OF_SERVICES = ("start", "stop", "restart", "signal")  # what may be commanded
OF_ADDRESSES = ("update",)  # the pattern is of the address that the bundle comes from
OF_BOARD = ("snooze", "reload", "reboot", "halt", "poweroff")


def rule_fault(tables: Any, row: Any) -> str:
    """Faults of one row of RULES."""
    if type(row) is not Rule:
        return "is not a Rule(...) row"
    if not is_text(row.subsystem, row.action, row.path, *(getattr(row, name) for name in DOES)):
        return "every column but properties is text"
    if row.action not in (*ACTIONS, "*"):
        return f"action {shown(row.action)} is not '*' or one of {', '.join(ACTIONS)}"
    if fault := pairs_fault(row.properties, "(('DEVNAME', 'ttyUSB*'),)"):
        return f"properties {fault}"
    if not any(getattr(row, name) for name in DOES):
        return f"it does nothing: give it one of {', '.join(DOES)}"
    if row.action == "*" and (row.start or row.stop):
        return "start and stop need one action, such as add"
    if row.module.startswith("-"):
        return f"module {shown(row.module)} is not a module's name"
    if row.group and row.group not in tables.group_ids:
        return f"group {shown(row.group)} is not in /etc/group"
    if row.start.endswith("@") or row.stop.endswith("@"):
        return "a template is not started or stopped, but an instance of it, such as 'gps@{devname}'"
    if set(row.publish) & set("+#"):
        return f"publish {shown(row.publish)} is a pattern; a topic has no + and no #"
    return ""


def command_fault(_: Any, row: Any) -> str:
    """Faults of one row of COMMANDS."""
    if not is_pair(row):
        return f"is {kind_of(row)}, not a pair of texts; write (('restart', 'gps@*'),) with both commas"
    operation, pattern = row
    if operation not in OF_SERVICES + OF_ADDRESSES + OF_BOARD:
        return f"{shown(operation)} is not one of {', '.join(OF_SERVICES + OF_ADDRESSES + OF_BOARD)}"
    if operation in OF_ADDRESSES and not (pattern.startswith("https://") and "/" in pattern[len("https://") :]):
        return (
            f"{operation} takes an https:// address to the end of its host or further, such as 'https://updates.example.org/*'"
        )
    if operation in OF_BOARD and pattern:
        return f"{operation} is for the board as a whole: its pattern is ''"
    return "" if "*" not in pattern[:-1] else f"pattern {shown(pattern)} has a * that is not its end"
