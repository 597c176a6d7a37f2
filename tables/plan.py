"""`stack.py --plan`: what a boot would do, printed on any machine."""

from __future__ import annotations

import sys

from base.near import did_you_mean
from base.stdlib import signal
from tables.load import load
from tables.tables import OPTIONS

USAGE = """stack.py is the init of a board and runs only as PID 1; `make run` boots it in namespaces.

    stack.py --plan [stack.profile=NAME]   print what a boot would do; the exit status is 1 where a table has a fault
    stack.py --help                        print this

Words such as stack.profile=NAME are those of the kernel command line: """


def command_line(arguments: list[str], options: dict[str, str]) -> int:
    """What stack.py does where it is not PID 1; the exit status."""
    unknown = [word for word in arguments if word not in ("--plan", "--help", "-h") and not word.startswith("stack.")]
    if unknown:
        hint = did_you_mean(unknown[0], ("--plan", "--help"))
        print(f"stack.py: there is no argument {unknown[0]!r}{hint}; see stack.py --help", file=sys.stderr)
        return 2
    if "--plan" in arguments and "--help" not in arguments:
        return plan(options)
    asked = "--help" in arguments or "-h" in arguments
    print(USAGE + ", ".join(OPTIONS), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def plan(options: dict[str, str]) -> int:
    """Print what a boot would do; the exit status is 1 where a table has a fault."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--plan | head`
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # what this terminal's encoding has not
    tables = load(options)
    print(f"profile   {', '.join(tables.profiles) or 'default'}")
    for mount in tables.MOUNTS:
        effort = "" if mount.required else " (best effort)"
        print(f"mount     {mount.target:<16} {mount.source} {mount.fstype} {mount.options}{effort}")
    for name in tables.MODULES:
        print(f"module    {name}")
    for name, value in tables.SYSCTLS:
        print(f"sysctl    {name} = {value}")
    for mode in tables.MODES:
        print(f"mode      {mode.name:<16} {', '.join(mode.states)}")
        for state, condition in mode.enter:
            print(f"{'':<26} {state} when {getattr(condition, 'text', '')}")
    for name in tables.order:
        row = tables.services[name]
        print(f"service   {name:<16} {' '.join(word or repr(word) for word in row.argv)}")
        waits = [f"{other} ({tables.services[other].ready or 'started'})" for other in row.after if other in tables.services]
        if waits:
            print(f"{'':<26} after {', '.join(waits)}")
        if row.when is not None:
            print(f"{'':<26} when {getattr(row.when, 'text', '')}")
    for name, row in tables.templates.items():
        print(f"template  {name:<16} {' '.join(row.argv)}")
    for text in tables.rejected:
        print(f"rejected  {text}", file=sys.stderr)
    return 1 if tables.rejected else 0
