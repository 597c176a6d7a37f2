"""The interactive prompt of the board: Python with our functions in it. Also what root's shell gives to Python: `-c LINE`."""

from __future__ import annotations

import code
import contextlib
import os
import re
import sys
import textwrap
from functools import cache
from types import CodeType, FunctionType
from typing import Any

if __name__ == "__main__":  # root's shell runs this file: our modules are in the folder above
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from base.printable import printable
from onboard import boot_ends
from prompt import functions, hooks
from prompt.asking import tables
from prompt.shapes import terminal_width

try:
    import readline
except ImportError:  # a Python without readline has only the terminal's own keys
    readline = None  # type: ignore[assignment]

HISTORY = 1000  # lines
SHELL = "/bin/sh"
IMPORTS = re.compile(r"(?:from sv import |import sv\b)")
CALL = re.compile(r"""(\w+)\(\s*(?:(["'])([^"']*))?$""")  # a call whose first argument is being typed


def namespace() -> dict[str, Any]:
    """The names that the prompt has without an import."""
    return {"__name__": "__main__", **{name: value for name, value in vars(functions).items() if not name.startswith("_")}}


class Prompt(code.InteractiveConsole):
    """Python's own console, with our way to show errors."""

    def showtraceback(self) -> None:
        kind, error, trace = sys.exc_info()
        if kind and error:
            hooks.complain(kind, error, trace.tb_next if trace else None)  # without the console's own frame

    def raw_input(self, prompt: str = "") -> str:
        line = super().raw_input(prompt)
        remember()
        return line


# --- keys -------------------------------------------------------------------------------------------------------------
def completions(line: str, text: str) -> list[str] | None:
    """Completions of `text`, the last word of `line`, inside a call of one of our functions; None elsewhere."""
    match = CALL.search(line)
    function = vars(functions).get(match[1]) if match else None
    if match is None or not isinstance(function, FunctionType):
        return None
    names = getattr(sys.modules[function.__module__], "names", None)  # each file of functions has a function `names`
    if names is None or not function.__annotations__.keys() - {"return"}:
        return None
    quote, typed = match[2] or "", match[3] or ""
    found = [name for name in names() if name.startswith(typed)]
    if not quote:
        return [f'"{name}"' for name in found] if not text else None
    return [name[len(typed) - len(text) :] for name in found]  # readline's word may begin behind an @ or a -; it ends the quote


def set_up_keys(names: dict[str, Any]) -> None:
    """Set up Tab and the history."""
    found: list[str] | None = None

    @cache
    def python() -> Any:
        import rlcompleter  # at the first Tab: it brings inspect

        return rlcompleter.Completer(names)

    def complete(text: str, state: int) -> str | None:
        nonlocal found
        if state == 0:
            found = completions(readline.get_line_buffer()[: readline.get_endidx()], text)
        if found is None:
            return python().complete(text, state)  # type: ignore[no-any-return]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY)
    with contextlib.suppress(OSError):
        readline.read_history_file(history())
        if readline.get_current_history_length() >= HISTORY:
            readline.write_history_file(history())


def history() -> str:
    """The file of the history: on the data partition, readable by root alone."""
    return f"{tables().values['KEEP']}/prompt_history"


def remember() -> None:
    """Append the last line to the history at once: a connection may be cut at any time."""
    if readline is None or not sys.stdin.isatty():
        return
    path = history()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.exists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.append_history_file(1, path)


# --- the three ways in ------------------------------------------------------------------------------------------------
def interact() -> None:
    """Run the prompt on a terminal, or a program from stdin."""
    names = namespace()
    if not sys.stdin.isatty():
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), names)
        return
    if readline is not None:
        set_up_keys(names)
    listed = [name for name in names if name != "SVError" and not name.startswith("_")]
    print(textwrap.fill("functions: " + ", ".join(listed), terminal_width() or 80))
    leave = "exit() or Ctrl-D leaves"
    if host := os.environ.get("SSH_CONNECTION") and os.uname().nodename:
        leave += f"; for a shell: ssh -t {host} sh"
    print(f"Tab completes, help(NAME) explains, {leave}")
    if (running := boot_ends.read(boot_ends.PUSHED)).get("running"):
        until = "kept: drop() gives it up" if running.get("kept") else "until the next boot: keep() keeps it"
        print(f"this board runs pushed code ({printable(str(running.get('what')))}), {until}")
    Prompt(names).interact(banner="", exitmsg="")


def run_line(line: str) -> None:
    """`ssh board 'stats_process()'`: print the values of a line that is Python of ours; any other is for the shell."""
    parsed = python_of_ours(line)
    if parsed is None:
        os.execv(SHELL, [SHELL, "-c", line])
    try:
        exec(parsed, namespace())
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python's own flush at its end


def python_of_ours(line: str) -> CodeType | None:
    """The line's code, if it is Python that calls one of our functions, asks for help on one, or begins with an import of sv.

    A call has its bracket right behind a name, which the shell takes for nothing but the beginning of a function.
    """
    import ast  # here: a board that is slow shall not wait for it at each login

    line = line.strip()
    try:
        tree = ast.parse(line)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        named = {node.id for call in calls for node in (call.func, *call.args) if isinstance(node, ast.Name)}
        if not IMPORTS.match(line) and not any(isinstance(vars(functions).get(name), FunctionType) for name in named):
            return None
        return compile(ast.Interactive(tree.body), "<line>", "single")  # which prints the value of each statement
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def main(arguments: list[str]) -> None:
    """Without arguments interactive; `-c LINE` runs one line."""
    hooks.install()
    if arguments[:1] == ["-c"] and len(arguments) > 1:
        run_line(arguments[1])
    else:
        interact()


if __name__ == "__main__":
    main(sys.argv[1:])
