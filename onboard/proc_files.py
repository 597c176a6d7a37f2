"""What /proc/PID says of one process, for the prompt and for apps (`man 5 proc`)."""

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def memory_and_cpu(pid: int | None) -> tuple[int | None, float | None]:
    """Bytes resident and seconds of CPU of a process; None for one that is not there any more."""
    if pid:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                memory = int(file.read().split()[1]) * PAGE
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return memory, (int(fields[11]) + int(fields[12])) / TICKS
        except OSError:  # it has just died
            pass
    return None, None
