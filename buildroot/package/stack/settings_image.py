"""The image's own profile: what differs from settings.py because Buildroot made the board. The owner's stands on top of it."""

from __future__ import annotations

import settings
from tables.rows import Directory, Service

_LEFT_OUT = "".split()  # names of services; stack.mk writes here what the menu left out
CONSOLE_LOGIN = "off"  # nobody has a password here; "prompt": whoever holds the cable is root

# The card of buildroot/board/genimage.cfg.in; and 3 of one that was written before there were two slots.
DATA = ("LABEL=data", "PARTITION=7", "PARTITION=3")

# No battery keeps the clock: the first measurements may step it, and rtcsync tells the kernel that it is synchronised.
_NTP = ("pool pool.ntp.org iburst", "makestep 1 3", "rtcsync", "driftfile /var/lib/chrony/drift")
_CHRONYD = Service("chronyd", ("chronyd", "-d", "-u", "chrony", *_NTP), after=("network", "storage"), nice=-5, memory_max="32M")
DIRECTORIES = (*settings.DIRECTORIES, Directory("/var/lib/chrony", 0o750, "chrony"))
# Commits an update when the board is healthy, or goes back to the slot from before. It does nothing but on trial, and critical
# means here: where it cannot judge, the board starts the old slot.
_TRIAL = Service(
    "trial", ("trial",), ("storage", "keeper"), module="updates.trial", restart="on-failure", critical=True, memory_max="64M"
)
SERVICES = tuple(_CHRONYD if row.name == "ntpd" else row for row in settings.SERVICES if row.name not in _LEFT_OUT)
SERVICES += (_TRIAL,)
RULES = tuple(row for row in settings.RULES if row.start.replace("{devname}", "") not in _LEFT_OUT)
