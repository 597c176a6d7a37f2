"""How long a microVM takes, beside a 20-line Python init and busybox init in the same kernel and root: `make bench-boot`.

Each init mounts the same file systems, runs the same program, which writes "hello" to the kernel's log, and powers off. The
times are the kernel's own, of its log: exec of the init (a shell script writes a line and executes it), hello, and "reboot:
Power down". The guest's clock counts instructions, 2 ns each, so the same boot takes the same time on a busy machine.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import microvm
from image import BUILD, step

HELLO = """#!/bin/busybox sh
echo "<0>bench: hello" >/dev/kmsg
"""
MEMORY = """#!/bin/busybox sh
busybox sleep 1
busybox grep -E "^(Rss|Pss|Private_Dirty):" /proc/1/smaps_rollup | busybox sed "s/^/bench: /" >/dev/console
"""
CHART = """#!/usr/bin/python3 -ESB
import sys
sys.path.insert(0, "/usr/lib/stack")
from onboard.to_pid1 import SOCKET, ask
for name, kind, start, end in ask(SOCKET, {"op": "bootchart"}):
    if kind != "service" and end - start > 0.001:
        print(f"bench: {name} {(end - start) * 1000:.1f} ms", flush=True)
"""
# All files are read first: the guest's clock runs on while it waits for the disk of a machine that is busy.
TIMED = """#!/bin/busybox sh
export PATH=/usr/bin
busybox find /usr /etc -type f -exec busybox cat {{}} + >/dev/null
echo "<0>bench: exec" >/dev/kmsg
exec {init}
"""
TWENTY_LINES = """#!/usr/bin/python3 -ESB
import ctypes
import os

MOUNTS = (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"),
          ("cgroup2", "/sys/fs/cgroup"), ("tmpfs", "/run"), ("tmpfs", "/tmp"))
libc = ctypes.CDLL(None)
for kind, target in MOUNTS:
    libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None)
words = open("/proc/cmdline").read().split()
program = next(word.partition("=")[2] for word in words if word.startswith("stack.run="))
pid = os.posix_spawn(program, [program], {"PATH": "/usr/bin:/usr/sbin"})
while True:
    died, status = os.waitpid(-1, 0)
    if died == pid:
        break
print("exit", os.waitstatus_to_exitcode(status), flush=True)
os.sync()
for _, target in MOUNTS[::-1]:
    libc.umount2(target.encode(), 2)
libc.reboot(0x4321FEDC)
"""
RC = """#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
for word in $(cat /proc/cmdline); do case $word in stack.run=*) program=${word#*=} ;; esac; done
$program
echo "exit $?"
poweroff
"""
INITS = {"stack": "/sbin/stack.py", "20-line init": "/sbin/twenty", "busybox init": "/sbin/bbinit"}
FILES = {
    "sbin/hello": HELLO, "sbin/memory": MEMORY, "sbin/chart": CHART, "sbin/twenty": TWENTY_LINES, "etc/rc": RC,
    "sbin/bbinit": "-> /usr/bin/busybox", "etc/inittab": "::once:/etc/rc\n::shutdown:/usr/bin/umount -a -r\n",
}  # fmt: skip


class Boot(NamedTuple):
    """Milliseconds of guest time, and seconds of ours."""

    kernel: float  # from the kernel's start to the exec of init
    hello: float  # from there to hello
    end: float  # from hello to reboot(2)
    whole: float  # from the kernel's start to power-off
    wall: float


def root(target: Path) -> Path:
    """The root with all three inits; each is started through a script that says when."""
    named = {
        f"sbin/timed{n}": TIMED.format(init="/usr/bin/busybox init" if "bbinit" in path else path)
        for n, path in enumerate(INITS.values())
    }
    return microvm.disk(target, {**FILES, **named})


def stamp(console: str, text: str) -> float:
    """The kernel's time of a line, in milliseconds."""
    found = re.search(rf"\[ *(\d+\.\d+)\] {text}", console)
    if found is None:
        raise SystemExit(f"no line {text!r} on the console:\n{console[-3000:]}")
    return float(found[1]) * 1000


def boot(disk: Path, number: int) -> Boot:
    """One boot of the init of this number."""
    started = time.monotonic()
    console, _ = microvm.boot(microvm.command(disk, ("stack.run=/sbin/hello", f"init=/sbin/timed{number}"), memory=256), 300)
    began, hello, end = (stamp(console, text) for text in ("bench: exec", "bench: hello", "reboot: Power down"))
    return Boot(began, hello - began, end - hello, end, time.monotonic() - started)


def memory(disk: Path, number: int) -> dict[str, float]:
    """MiB of PID 1 while its program runs."""
    console, _ = microvm.boot(microvm.command(disk, ("stack.run=/sbin/memory", f"init=/sbin/timed{number}"), memory=256), 300)
    return {name: int(size) / 1024 for name, size in re.findall(r"bench: (\w+): +(\d+) kB", console)}


def chart(disk: Path) -> list[str]:
    """What of stack.py's own boot takes more than a millisecond, as bootchart() has it."""
    console, _ = microvm.boot(microvm.command(disk, ("stack.run=/sbin/chart", "init=/sbin/timed0"), memory=256), 300)
    return re.findall(r"bench: (\w+ [\d.]+ ms)", console)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the machine that runs is ended too
    results: dict[str, list[Boot]] = {name: [] for name in INITS}
    with tempfile.NamedTemporaryFile(dir=BUILD, suffix=".img") as file:
        disk = Path(file.name)
        step("the microVM's root", lambda: root(disk))
        for _ in range(options.rounds):
            for number, name in enumerate(INITS):
                results[name].append(boot(disk, number))
                print(f"lab: {name}: {results[name][-1]}", file=sys.stderr, flush=True)
        steps = chart(disk)
        sizes = {name: memory(disk, number) for number, name in enumerate(INITS)}
    print(f"\nmicroVM; median of {options.rounds}, milliseconds of guest time")
    titles = (f"{'exec to hello':>14}", f"{'of 20-line':>12}", f"{'hello to end':>14}", f"{'whole boot':>12}", f"{'wall s':>8}")
    print(f"{'':<14}{''.join(titles)}{'PSS MiB':>9}{'RSS MiB':>9}")
    small = statistics.median(row.hello for row in results["20-line init"])
    for name, rows in results.items():
        hello, end, whole, wall = (
            statistics.median(getattr(row, key) for row in rows) for key in ("hello", "end", "whole", "wall")
        )
        size = sizes[name]
        print(
            f"{name:<14}{hello:>14.1f}{hello / small:>11.2f}x{end:>14.1f}{whole:>12.0f}{wall:>8.1f}"
            f"{size.get('Pss', 0):>9.1f}{size.get('Rss', 0):>9.1f}",
            flush=True,
        )
    print(f"stack.py's boot: {', '.join(steps)}")


if __name__ == "__main__":
    main()
