"""`python3 mothership COMMAND ...`: the commands of the server, each in a module of its own.

A command's module has `arguments(parser)`, which adds its arguments and names its function: `parser.set_defaults(run=run)`. To
add a command, add a row below.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from types import ModuleType

COMMANDS = (
    ("receive", "receiver", "take what boards send into the database"),
    ("boards", "boards", "the boards: state, last word, boots"),
    ("watch", "watch", "print what arrives"),
    ("send", "send", "have a board do something: one command, and its result"),
    ("disconnect", "disconnect", "end the connection of a board whose certificate was revoked"),
    ("heal", "heal", "forget numbers that cannot be right, and who speaks for a board"),
    ("release", "release", "releases: images that boards can be updated to"),
    ("group", "group", "groups of boards, by name and by pattern"),
    ("rollout", "rollout", "bring a release to a group, wave after wave"),
    ("export", "export", "observations for WiGLE, GIS programs and Google Earth"),
    ("map", "page", "one HTML page: boards, their ways, access points"),
)


def load(module: str) -> ModuleType:
    """Import a command's module; if a library is missing, say what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "paho":
            raise SystemExit(
                "this command speaks MQTT and takes the library paho-mqtt: pip install -r requirements-mothership.txt"
            ) from None
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="mothership", description="What boards report: received, kept, shown.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module, help_ in COMMANDS:
        wanted = len(sys.argv) > 1 and sys.argv[1] == name
        found = load(module) if wanted else None  # only its own libraries are needed for a command
        command = commands.add_parser(name, help=help_, description=found.__doc__ if found else None)
        if found:
            found.arguments(command)
    options = parser.parse_args()
    if sys.argv[1] != "receive":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `mothership boards m.db | head`
    options.run(options)


if __name__ == "__main__":
    main()
