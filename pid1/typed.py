"""What PID 1's console finds out about a line before it runs it: whether it compiles, whether it acts, what may complete it."""

from __future__ import annotations

import builtins
import codeop
import os
import time

from base.stdlib import TYPE_CHECKING, signal
from pid1.closer import fork

if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

TRIED, TRY = 200, 2.0  # a statement of more characters is compiled by a child before, which has so many seconds
# A statement that has one of these names is asked about: they end, stop or start something.
ACTS = frozenset(
    "reboot halt poweroff upgrade shut_down stop start restart reload remove escalate hurry go exited kill killpg raise_signal "
    "pthread_kill signal_process stop_process restart_process start_process tear_down finish disarm execute snooze umount "
    "mount swapoff abort _exit execv execve execvp execl execlp fork forkpty system unlink rmtree remove_tree".split()
)
BY_TEXT = frozenset("getattr eval exec vars __dict__ attrgetter methodcaller compile __import__".split())


def completions(text: str, names: dict[str, Any]) -> list[str]:
    """What `text` may become; without a call of anything but attributes."""
    head, bracket, key = text.rpartition("[")
    path, dot, last = (head if bracket else text).rpartition(".")
    if bracket:
        path, last = head, ""
    value: Any = None
    words = path.split(".") if path else []
    try:
        for number, word in enumerate(words):
            value = getattr(value, word) if number else names[word] if word in names else getattr(builtins, word)
    except (AttributeError, KeyError):
        return []
    if bracket:
        quote = key[:1] if key[:1] in ("'", '"') else '"'
        keys = [one for one in value if isinstance(one, str)] if isinstance(value, dict) else []
        return sorted(f"{head}[{quote}{one}{quote}]" for one in keys if one.startswith(key.strip("'\"")))
    known = dir(value) if dot else [*names, *dir(builtins)]
    hidden = not last.startswith("_")
    return sorted({f"{path}{dot}{one}" for one in known if one.startswith(last) and not (hidden and one.startswith("_"))})


def acting(code: CodeType) -> list[str]:
    """Names in a statement that end, stop or start something; also as texts, where it takes names from texts."""
    names: set[str] = set()
    texts: list[str] = []
    codes = [code]
    while codes:
        one = codes.pop()
        names.update(one.co_names, one.co_varnames, one.co_freevars)
        for value in one.co_consts:
            if isinstance(value, type(code)):
                codes.append(value)
            texts += [one for one in (value if isinstance(value, (tuple, frozenset)) else (value,)) if isinstance(one, str)]
    if names & BY_TEXT:
        for text in texts:
            names.update("".join(char if char.isalnum() or char == "_" else " " for char in text).split())
    return sorted(names & ACTS)


def compiles(source: str) -> bool:
    """Whether a child can compile this: a text of such size may take the compiler's stack, or its time."""
    child = fork(lambda: _try_to_compile(source))
    until = time.monotonic() + TRY
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            return False
        time.sleep(0.001)


def _try_to_compile(source: str) -> None:
    try:
        codeop.compile_command(source, "<try>", "single")
    except Exception:  # the console will say it
        pass
