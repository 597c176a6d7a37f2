"""What is wrong with a row of MOUNTS, DIRECTORIES, DEVICES, SYSCTLS, MODULES, DATA or BOOT_FILES; empty where nothing is."""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.check_services import user_fault
from tables.rows import Device, Directory, Mount
from tables.values import holds_ours, is_number, is_ours, is_pair, is_text, kind_of, path_fault, shown, shown_name, truth_fault

if TYPE_CHECKING:
    from typing import Any

    from tables.tables import Tables

LONGEST_OPTIONS = 4095  # bytes: mount(2) copies one page
SYSCTL_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./")
MODULE_NAME = SYSCTL_NAME - {".", "/"}
PID_1S = "is PID 1's own folder; take another one"


def mount_fault(_: Tables, row: Any) -> str:
    """Faults of one row of MOUNTS."""
    if type(row) is not Mount:
        return "is not a Mount(...) row"
    if not is_text(row.source, row.target, row.fstype, row.options):
        return "source, target, fstype and options must be text"
    if path_fault(row.target):
        return f"target {shown(row.target)} is not absolute"
    if is_ours(row.target):
        return f"target {shown(row.target)} {PID_1S}"
    if len(row.options.encode()) > LONGEST_OPTIONS:
        return f"options are more than {LONGEST_OPTIONS} bytes"
    fault = truth_fault(row.required)
    return f"required {fault}" if fault else ""


def is_open(mode: Any) -> bool:
    """Whether others than its owner may rename what is in a folder of this mode (`man 7 inode`)."""
    return type(mode) is int and bool(mode & 0o022) and not mode & 0o1000


def directory_fault(tables: Tables, row: Any) -> str:
    """Faults of one row of DIRECTORIES."""
    if type(row) is not Directory:
        return "is not a Directory(...) row"
    if not is_text(row.path, row.user, row.group) or path_fault(row.path):
        return f"path {shown(row.path)} is not absolute, or user or group is not text"
    if is_ours(row.path):
        return f"path {shown(row.path)} {PID_1S}"
    if holds_ours(row.path) and (tables.expand(row.user) not in ("", "root", "0") or is_open(row.mode)):
        return f"path {shown(row.path)} has PID 1's own folder in it: it stays root's, and only root writes to it"
    if not is_number(row.mode, 0, 0o7777):
        return f"mode {shown(row.mode)} is not a mode such as 0o755"
    if row.group and row.group not in tables.owners and tables.expand(row.group) not in tables.group_ids:
        return f"group {shown(row.group)} is neither in /etc/group nor a service"
    return "" if row.user in tables.owners else tables.unknown_name(row.user) or user_fault(tables, row.user)


def device_fault(_: Tables, row: Any) -> str:
    """Faults of one row of DEVICES."""
    if type(row) is not Device:
        return "is not a Device(...) row"
    if not is_text(row.path, row.target, row.kind) or path_fault(row.path):
        return f"path {shown(row.path)} is not absolute, or kind or target is not text"
    if is_ours(row.path):
        return f"path {shown(row.path)} {PID_1S}"
    if row.kind not in ("c", "b", "link"):
        return f"kind {shown(row.kind)} is not 'c', 'b' or 'link'"
    for name, most in (("major", 0xFFF), ("minor", 0xFFFFF), ("mode", 0o7777)):  # linux/kdev_t.h: 12 and 20 bits
        if not is_number(getattr(row, name), 0, most):
            return f"{name} {shown(getattr(row, name))} is not a whole number from 0 to {most}"
    return "a link needs a target" if row.kind == "link" and not row.target else ""


def sysctl_fault(_: Tables, row: Any) -> str:
    """Faults of one row of SYSCTLS."""
    if not is_pair(row):
        return f'is {kind_of(row)}, not a pair of texts; write (("kernel.panic", "10"),) with both commas'
    name, value = row
    if not name or set(name) - SYSCTL_NAME or ".." in name or name[0] in "./" or len(name) > 255:
        return f"{shown(name)} is not a name as sysctl(8) writes it, such as kernel.panic"
    return "" if len(value.encode()) < 4096 and "\n" not in value else "its value is not one line of at most 4095 bytes"


def module_fault(_: Tables, row: Any) -> str:
    """Faults of one name of MODULES."""
    good = is_text(row) and row and not row.startswith("-") and not set(row) - MODULE_NAME and len(row) < 64
    return "" if good else "is not a module's name"


def source_fault(_: Tables, row: Any) -> str:
    """Faults of one place of DATA or BOOT_FILES."""
    name, _equals, value = row.partition("=") if is_text(row) else ("", "", "")
    known = name.startswith("/dev/") or name in ("LABEL", "UUID", "PARTLABEL", "PARTUUID")
    if known or (name == "PARTITION" and value.isascii() and value.isdigit()):
        return ""
    return "is neither LABEL=, UUID=, PARTLABEL=, PARTUUID= or PARTITION=3 nor a device such as /dev/mmcblk0p3"


def variable_fault(tables: Tables, row: Any) -> str:
    """Faults of one pair of ENVIRONMENT; its value is not quoted."""
    if not is_pair(row):
        return f'is {kind_of(row)}, not a pair of texts; write (("TZ", "UTC"),) with both commas'
    name, value = row
    if not name or "=" in name:
        return f"{shown_name(name)} is not a variable's name: it is empty or has a '=' in it"
    if len(name.encode()) + len(tables.expand(value).encode()) > 4096:
        return f"{shown(name)} has a value of more than 4096 bytes with its name"
    return tables.unknown_name(value)
