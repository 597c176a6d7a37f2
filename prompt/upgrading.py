"""Live upgrades of PID 1, and patches of one module."""

from __future__ import annotations

import os

from onboard import to_pid1
from onboard.to_pid1 import SVError
from prompt.shapes import Facts, Stats

CHECK = 70.0  # seconds: PID 1 gives the check 60, and some are for the way


def upgrade(path: str = "", seconds: float = 10.0, module: str = "", source: str = "") -> Stats:
    """Replace the running PID 1 by the code in a folder, or in one module, while all services go on.

    `path` is a folder with all of our modules, as `make install` makes one; without it, the one that PID 1 came from. The new
    code is checked first. It has `seconds` to prove itself; if it fails, the old code goes on, and SVError says why.

    With `module` ("pid1/loop.py") only this one is replaced, by `source`: its new text, or the file that holds it. That lasts
    until the next boot.

    code, unsupervised_ms (from the old code's last turn to the new code's first), seconds (the trial), state (its format).
    """
    if source and "\n" not in source:
        try:
            with open(os.path.expanduser(source), encoding="utf-8") as file:
                source = file.read()
        except (OSError, ValueError) as error:
            raise SVError(f"{source}: {error}") from None
    if bool(module) != bool(source):
        raise SVError("module and source belong together: upgrade(module='pid1/loop.py', source='/root/loop.py')")
    asked = {"path": os.path.abspath(path) if path else "", "seconds": seconds, "module": module, "source": source}
    path = os.environ.get("STACK_CONTROL", to_pid1.SOCKET)
    return Facts(to_pid1.ask(path, {"op": "upgrade", **asked}, seconds + CHECK))
