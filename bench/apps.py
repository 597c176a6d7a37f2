"""What the zygote is worth, in one run: memory of the board of `make run` with and without it, and how soon an app speaks."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from costs import HERE, memory, namespace, row

MEMORY_TARGET = 40.0  # MiB of PSS: PID 1, logd, the zygote, all apps and services of the table that are written in Python
START_TARGET = 60.0  # ms, from the end of an app to the first message of the next one
SETTLE = 7.0  # seconds until every app has done its work several times
WITHOUT = "SERVICES = tuple(row._replace(forked_by='') for row in SERVICES if row.name != 'zygote')\n"
ROUND = "SERVICES += (app('first')._replace(argv=('{PYTHON}', '-P', '/test/first.py')),)\nSV_COOLDOWN = 0.0\n"
# It ends as soon as it has heard itself, and PID 1 starts it again.
FIRST = """
import os, time
from bus import Bus

def heard(topic, message):
    os.write(1, f"HEARD {time.monotonic()}\\n".encode())
    os.write(1, f"ENDS {time.monotonic()}\\n".encode())
    os._exit(0)

bus = Bus("first")
bus.subscribe("first", heard)
for _ in bus.every(0.002):
    bus.publish("first", 1)
"""


@contextmanager
def board(build: Path, venv: Path, profile: str, seconds: float, script: str = FIRST) -> Iterator[int]:
    """PID 1's pid of a board with these lines on top of the laptop's profile, after so many seconds; `script` is first.py."""
    files = build / "files"
    files.mkdir(parents=True, exist_ok=True)
    (files / "first.py").write_text(script)
    (build / "apps.py").write_text(profile)
    pid_file = build / "pid"
    pid_file.unlink(missing_ok=True)
    words = ["--once", "--profile", str(build / "apps.py"), "--files", str(files), "--pid-file", str(pid_file)]
    process = subprocess.Popen(
        [str(venv / "python"), str(HERE.parent / "laptop" / "launcher.py"), *words],
        stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(seconds)
        yield int(pid_file.read_text())
    finally:
        process.terminate()
        process.wait()


def services(init: int) -> dict[str, float]:
    """PSS in MiB of each service's processes, and of PID 1."""
    found: dict[str, float] = {}
    for pid in namespace(init):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        name = next((word[14:].decode() for word in words if word.startswith(b"STACK_SERVICE=")), "PID 1")
        if pid != init and name == "PID 1":  # a copy of PID 1 has its environment; what it is called is in comm
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        found[name] = found.get(name, 0.0) + memory([pid], "Pss")
    return found


def first_message(init: int) -> list[float]:
    """Milliseconds from each end of the app "first" to the first message of its next start."""
    text = Path(f"/proc/{init}/root/run/log/first.log").read_text()
    marks = [(line.split()[-2], float(line.split()[-1])) for line in text.splitlines() if " HEARD " in line or " ENDS " in line]
    return [(at - before) * 1e3 for (word, before), (_, at) in pairwise(marks) if word == "ENDS"]


def measure(build: Path, venv: Path) -> None:
    """Print both, side by side."""
    found, starts = [], []
    for profile in ("", WITHOUT):
        with board(build, venv, profile, SETTLE) as init:
            found.append(services(init))
        with board(build, venv, ROUND + profile, SETTLE) as init:
            starts.append(first_message(init))
    print("\nthe board of `make run`, PSS MiB")
    row("", ["zygote", "without"])
    for name in found[0] | found[1]:
        row(name, [f"{one[name]:.1f}" if name in one else "-" for one in found])
    ours = [sum(size for name, size in one.items() if name not in ("broker", "observations")) for one in found]
    row("Python side", [f"{size:.1f}" for size in ours])  # observations is for a laptop without a terminal
    print(f"target: below {MEMORY_TARGET:g} MiB with the zygote: {'met' if ours[0] < MEMORY_TARGET else 'missed'}")
    print("\nan app's start to its first message, ms")
    row("", ["zygote", "without"])
    medians = [statistics.median(one) for one in starts]
    row("median", [f"{one:.1f}" for one in medians])
    row("fastest", [f"{min(one):.1f}" for one in starts])
    row("starts", [str(len(one)) for one in starts])
    print(f"target: below {START_TARGET:g} ms with the zygote: {'met' if medians[0] < START_TARGET else 'missed'}")


__all__ = ["measure"]
