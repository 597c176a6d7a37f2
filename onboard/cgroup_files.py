"""What the files of a control group say (`man 7 cgroups`, Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from base.files import read_file


def figures(folder: str | None) -> dict[str, int | float | None]:
    """What all processes of a group use together; None for what this kernel cannot say, and where there is no group."""
    folder = folder or "/dev/null"  # in which nothing is found
    cpu, pressure = field(f"{folder}/cpu.stat", "usage_usec"), read_file(f"{folder}/memory.pressure").split()
    return {
        "memory_current": number(f"{folder}/memory.current"), "memory_peak": number(f"{folder}/memory.peak"),
        "memory_pressure": float(pressure[1].removeprefix("avg10=")) if pressure else None,
        "pids_current": number(f"{folder}/pids.current"), "cpu_usage": None if cpu is None else cpu / 1e6,
    }  # fmt: skip


def field(path: str, name: str) -> int | None:
    """One field of a file of `name value` lines."""
    return next((int(line.split()[1]) for line in read_file(path).splitlines() if line.startswith(f"{name} ")), None)


def number(path: str) -> int | None:
    text = read_file(path).strip()
    return int(text) if text.isdigit() else None
