"""What a process may be doing, and how one has ended, in words: errno's names and wait statuses for people."""

from __future__ import annotations

import os
import time
from errno import errorcode

from base.stdlib import signal


class State:
    """What a process is doing. `wanted` says beside it what we asked for."""

    STOPPED = "stopped"  # no process, and none is due
    WAITING = "waiting"  # its `after` are not ready yet; starts anyway at the deadline
    STARTING = "starting"  # has a pid, has not said that it is ready; taken as it is at the deadline
    RUNNING = "running"  # has a pid; with a watchdog, killed at the deadline
    UNMET = "unmet"  # waits for its condition, the row's `when`; started as soon as that is true
    BACKOFF = "backoff"  # died or could not start; started again at the deadline
    STOPPING = "stopping"  # asked to end, or left relatives behind; all of them are killed at the deadline
    ALL = (STOPPED, WAITING, UNMET, STARTING, RUNNING, BACKOFF, STOPPING)
    ALIVE = (STARTING, RUNNING, STOPPING)


def why_not(error: OSError) -> str:
    """An OSError for people, its errno first: "ENOENT no such program: gpsd"."""
    name = errorcode.get(error.errno or 0, "error")
    return f"{name} {error.strerror}: {error.filename}" if error.filename else f"{name} {error.strerror}"


def describe(status: int) -> str:
    """A wait status for people: "exit 1", "signal KILL"."""
    if not os.WIFSIGNALED(status):
        return f"exit {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    names = (n[3:] for n in dir(signal) if n[:3] == "SIG" and n[3] != "_" and getattr(signal, n) == number)
    return f"signal {next(names, number)}"


def jitter() -> float:
    """Between 0.75 and 1: services that failed together should not come back together."""
    return 1 - (time.monotonic_ns() >> 10 & 255) / 1024  # not os.urandom: early in a boot it may wait for the kernel's pool
