"""How often the whole board wakes while it has nothing to do: `python3 bench/idle.py [SECONDS]`, a part of `make bench`.

What of the table runs on a laptop, in namespaces: without a radio, a receiver, invented positions, a mothership. mosquitto 2.0
looks at its clock ten times a second, whatever its file says: it is counted apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
PROFILE = """
SERVICES = tuple(row for row in SERVICES if row.name != "fakegps")
WIFI_RECORDING = ""
"""
SETTLE = 20.0  # seconds, for the start and for what is tried again with growing pauses


def sleeps(pid: int) -> int:
    """How often the threads of a process have gone to sleep of themselves."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


def processes(init: int) -> dict[int, str]:
    """Everything in the pid namespace of a board's PID 1."""
    space, found = os.readlink(f"/proc/{init}/ns/pid"), {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == space:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                program = next((word for word in words if word.endswith(".py")), words[0])
                copy = pid != init and program.endswith("stack.py")  # of PID 1: logd, keeper, ...
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip() if copy else Path(program).name
        except OSError:  # it has gone
            continue
    return found


def main(arguments: list[str]) -> None:
    """Print a line a process, and their sum."""
    seconds = float(arguments[0]) if arguments else 60.0
    BUILD.mkdir(parents=True, exist_ok=True)
    profile, pid_file = BUILD / "idle.py", BUILD / "idle.pid"
    profile.write_text(PROFILE)
    pid_file.unlink(missing_ok=True)
    words = ["--once", "--profile", str(profile), "--pid-file", str(pid_file)]
    launcher = subprocess.Popen(
        [str(ROOT / ".venv" / "bin" / "python"), str(ROOT / "laptop" / "launcher.py"), *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(SETTLE)
        board = processes(int(pid_file.read_text()))
        before = {pid: sleeps(pid) for pid in board}
        time.sleep(seconds)
        there = processes(int(pid_file.read_text()))
        rows = [(board[pid], (sleeps(pid) - before[pid]) / seconds) for pid in board if pid in there]
    finally:
        launcher.terminate()
        launcher.wait()
    print(f"\nwake-ups a second of an idle board, over {seconds:g} s")
    ours = sum(rate for name, rate in rows if name != "mosquitto")
    for name, rate in [*rows, ("all but the broker", ours)]:
        print(f"{name:24}{rate:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
