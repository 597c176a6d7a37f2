"""`make prompt`: the Python prompt of a board that `make run` runs, in a terminal of one's own."""

from __future__ import annotations

import os
import signal
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = HERE  # and not this folder, from where Python runs us
from base.syscalls import check, libc  # noqa: E402
from laptop.namespaces import (  # noqa: E402
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    become_root,
)
from laptop.running import running  # noqa: E402

# The user namespace first: only from inside it we have the right to enter the others.
SPACES = {"user": CLONE_NEWUSER, "pid": CLONE_NEWPID, "net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC,
          "mnt": CLONE_NEWNS}  # fmt: skip
LIBRARY = "/stack/lib/stack"
PROMPT = ["/python/bin/python", "-P", f"{LIBRARY}/prompt/repl.py"]
ENVIRONMENT = {"HOME": "/root", "LANG": "C.UTF-8", "PYTHONPATH": f"{LIBRARY}/names",
               "PATH": "/stack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip


def enter(pid: int) -> None:
    """Enter the board's namespaces as its root. Our next child is in its PID namespace."""
    descriptors = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in SPACES}
    for name, flag in SPACES.items():
        check(libc.setns(descriptors[name], flag), name)
    become_root()
    os.chdir("/")


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command as the terminal's foreground job, so that Ctrl-C does not reach us or make; returns its exit status."""
    terminal = os.isatty(0)
    go, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.read(go, 1)
        try:
            os.execve(command[0], command, environment)
        finally:
            os._exit(127)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else tcsetpgrp(3) would stop us when we take the terminal back
    signal.signal(signal.SIGINT, lambda *_: None)
    if terminal:
        os.setpgid(child, child)
        os.tcsetpgrp(0, child)
    os.close(ready)
    os.close(go)
    status = os.waitpid(child, 0)[1]
    if terminal:
        os.tcsetpgrp(0, os.getpgrp())
    return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Open the prompt of the board that was started last."""
    boards = running(f"{HERE}/build/boards")
    if not boards:
        print("prompt: no board runs from this folder; `make run` in another terminal starts one", file=sys.stderr)
        return 1
    if len(boards) > 1:
        print(f"prompt: {len(boards)} boards run from this folder; this is the one that was started last", file=sys.stderr)
    try:
        enter(boards[-1])
    except OSError as error:
        print(f"prompt: cannot enter the board: {error}; be the user who started it", file=sys.stderr)
        return 1
    status = run(PROMPT, ENVIRONMENT | {"TERM": os.environ.get("TERM", "linux")})
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
