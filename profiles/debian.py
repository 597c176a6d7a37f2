"""The profile of `make install-board`: Raspberry Pi OS or any Debian, its root writable and its systemd left as it is.

Its daemons are Debian's, with Debian's own configuration: sshd, wpa_supplicant, whichever keeps the clock. /etc/fstab is
mounted by mount(8). NetworkManager, networkd and udevd do not run: network.py and hotplug.py do their work.
"""

from __future__ import annotations

import os

import settings
from tables.rows import Directory, Mount, Service


def _installed(path: str) -> bool:
    return os.access(path, os.X_OK)


def first_line(path: str) -> str:
    """The first line that is no comment (`man 5 hostname`); empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return ""
    return next((line for line in lines if line and not line.startswith("#")), "")


HOSTNAME = first_line("/etc/hostname") or "stack"
PYTHONPATH = "{LIB}:{LIB}/site"  # libraries for our services alone
WIFI_CONFIG = "/etc/wpa_supplicant/wpa_supplicant.conf"
# Debian's resolver reads /etc/resolv.conf: where that is a link into /run, we write what it leads to; else it stays as it is.
RESOLV_CONF = "/run/resolv.conf"
if os.path.realpath("/etc/resolv.conf").startswith("/run/"):
    RESOLV_CONF = os.path.realpath("/etc/resolv.conf")
MODULES = settings.MODULES if os.path.exists("/proc/device-tree/model") else ()
DATA: tuple[str, ...] = ()  # /var is on the root
BOOT_FILES: tuple[str, ...] = ()  # the boot partition is in /boot/firmware

_OTHERWISE = {"/": Mount("", "/", "", "remount,rw", required=False)}
_NONE = ("/var", "/var/run", "/var/tmp")
MOUNTS = tuple(_OTHERWISE.get(row.target, row) for row in settings.MOUNTS if row.target not in _NONE)
DIRECTORIES: tuple[Directory, ...] = (*settings.DIRECTORIES, Directory("/run/sshd"))

_FSTAB = Service("fstab", ("mount", "-a", "-O", "no_netdev"), ready="exit", restart="never", memory_max="75%")
# So that strangers' silent connections do not keep the owner out: few for an address, many in all, and none for long.
_LIMITS = ("PerSourceMaxStartups=4", "PerSourceNetBlockSize=32:64", "MaxStartups=60:30:120", "LoginGraceTime=30")
_SSHD = settings.DROPBEAR._replace(
    name="sshd",
    argv=("/usr/sbin/sshd", "-D", "-e", *(word for limit in _LIMITS for word in ("-o", limit))),
    after=("fstab",),
    module="",
)
_CLOCK: tuple[Service, ...] = ()
if _installed("/usr/sbin/chronyd"):
    _CLOCK = (
        Service(
            "chronyd", ("chronyd", "-d", "-u", "_chrony", "-f", "/etc/chrony/chrony.conf"), after=("network",), memory_max="32M"
        ),
    )
    DIRECTORIES += (Directory("/run/chrony", 0o750, "_chrony"),)
elif _installed("/usr/lib/systemd/systemd-timesyncd"):
    _CLOCK = (
        Service(
            "timesyncd", ("/usr/lib/systemd/systemd-timesyncd",), after=("network",), user="systemd-timesync",
            capabilities=("sys_time",), no_new_privs=True, memory_max="32M",
        ),
    )  # fmt: skip
    DIRECTORIES += tuple(
        Directory(path, 0o755, "systemd-timesync") for path in ("/run/systemd/timesync", "/var/lib/systemd/timesync")
    )

_OURS = {"dropbear": (_SSHD,), "ntpd": _CLOCK, "storage": (_FSTAB,), "klogd": (), "syslogd": (), "bootfiles": ()}


def _here(row: Service) -> Service:
    """Who waits for the data partition waits for what fstab mounts, and who waits for dropbear for sshd."""
    names = {"storage": "fstab", "dropbear": "sshd"}
    return row._replace(after=tuple(names.get(other, other) for other in row.after))


SERVICES = tuple(_here(new) for row in settings.SERVICES for new in _OURS.get(row.name, (row,)))
