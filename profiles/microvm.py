"""The profile of a microVM (Firecracker, QEMU's microvm): no PCI, no disks of its own, one program whose end is the machine's.

services/workload.py finds out what the machine is to run. No log daemon runs: the main program has the console. The host may
ask PID 1 over vsock where the profile `vsock` comes after this one: `stack.profile=microvm,vsock`.
"""

from __future__ import annotations

import settings
from tables.rows import Mount, Service

HOSTNAME = "microvm"
CONSOLE_LOGIN = "off"
WATCHDOG = ""
MODULES: tuple[str, ...] = ()
DATA: tuple[str, ...] = ()
BOOT_FILES: tuple[str, ...] = ()
RULES = ()
INTERFACES = ()
SHUTDOWN_TIMEOUT = 10.0
RESCUE_TIMEOUT = 0.0  # nobody is at the console: a machine that cannot start its service is reset at once, and its host sees it
ENVIRONMENT = (("HOME", "/root"), ("TERM", "linux"), ("LANG", "C.UTF-8"))

_KEPT = ("/proc", "/sys", "/sys/fs/cgroup", "/dev", "/run")
MOUNTS = (
    *(row for row in settings.MOUNTS if row.target in _KEPT),
    Mount("tmp", "/tmp", "tmpfs", "nosuid,nodev,mode=1777,size=50%"),
)
DIRECTORIES = ()
SYSCTLS = (("kernel.panic", "-1"), ("kernel.panic_on_oops", "1"), ("vm.panic_on_oom", "0"))
SERVICES = (
    *(row for row in settings.SERVICES if row.name == "vsock"),
    Service("microvm", ("microvm", "{CONSOLE}"), module="services.workload", oom_score=-900, log="none", critical=True),
)
