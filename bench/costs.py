"""What PID 1's import costs, before a change and now; and how memory is read."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "/usr/bin/python3"
BEFORE = "6aed65d"  # the last commit whose modules lay flat in one folder


def row(name: str, values: list[str]) -> None:
    print(f"{name:<14}" + "".join(f"{value:>12}" for value in values), flush=True)


def namespace(init: int) -> dict[int, str]:
    """Pid (outside) and program of every process in the PID namespace of `init`."""
    space = os.readlink(f"/proc/{init}/ns/pid")
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{entry}/ns/pid") == space:
                found[int(entry)] = Path(f"/proc/{entry}/comm").read_text().strip()
        except OSError:
            pass
    return found


def memory(pids: list[int], kind: str) -> float:
    """MiB of "Pss" or "Rss", from smaps_rollup."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith(f"{kind}:") else 0
    return total / 1024


def imports(build: Path, rounds: int, before: str) -> None:
    """CPU of PID 1's own imports: `/sbin/stack.py` as installed, which ends at once because it is not PID 1."""
    print(f"\nimport of PID 1, ms of CPU (median of {rounds})")
    now = {"now": install(HERE.parent, build / "now")}
    then = checkout(before, build / "before")
    trees = now | ({f"at {before}": install(then, build / "was")} if then else {})
    bare = [PYTHON, "-ESB", "-c", "pass"]
    commands = {
        "bare": bare,
        **{name: [PYTHON, "-ESB", str(lib.parent.parent / "sbin/stack.py")] for name, lib in trees.items()},
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):  # in turn, so that noise meets all of them
        for name, argv in commands.items():
            took[name].append(cpu(argv))
    base = statistics.median(took["bare"])
    for name, values in took.items():
        middle = statistics.median(values)
        row(name, [f"{middle:.2f}", f"{middle - base:+.2f}"])
    if not then:
        print(f"no commit {before} here: its import is not measured")
    print(f"\nimports that PID 1 does or does not make, ms of CPU over a bare interpreter (median of {rounds})")
    for what in ("os", "ctypes", "enum", "signal", "socket", "json", "typing", "logging"):
        row(what, [f"{statistics.median(cpu([PYTHON, '-ESB', '-c', f'import {what}']) for _ in range(rounds)) - base:+.2f}"])


def checkout(commit: str, folder: Path) -> Path | None:
    """The files of a commit; None where there is no such history."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(["git", "archive", commit], cwd=HERE.parent, capture_output=True, check=False)
    if archive.returncode:
        return None
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def install(tree: Path, folder: Path) -> Path:
    """`make install` of a tree below `folder`; where its modules are."""
    words = [f"PREFIX={folder}", f"SBINDIR={folder}/sbin", "SITEDIR=", f"TARGET_PYTHON={PYTHON}", f"INIT_PYTHON={PYTHON}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["make", "-s", "install", *words], cwd=tree, env=environment, check=True)
    return folder / "lib" / "stack"


def cpu(argv: list[str]) -> float:
    """Milliseconds of user and system time of one run, its messages thrown away."""
    quiet = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawn(argv[0], argv, {}, file_actions=quiet)
    _, _, used = os.wait4(pid, 0)
    return (used.ru_utime + used.ru_stime) * 1e3
