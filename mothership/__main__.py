"""`python3 mothership COMMAND ...`: everything that is done on the server, each command in a module of its own.

A module has `arguments(parser)`, which says what it takes and names its function: `parser.set_defaults(run=run)`. A new one is
a row below.
"""

from __future__ import annotations

import argparse
import signal

import boards
import disconnect
import export
import page
import receiver
import send
import watch


def main() -> None:
    parser = argparse.ArgumentParser(prog="mothership", description="What boards report: received, kept, shown.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module, help_ in (
        ("receive", receiver, "take what boards send into the database"),
        ("boards", boards, "the boards: state, last word, boots"),
        ("watch", watch, "print what arrives"),
        ("send", send, "have a board do something: one command, and its result"),
        ("disconnect", disconnect, "end the connection of a board whose certificate was revoked"),
        ("export", export, "observations for WiGLE, GIS programs and Google Earth"),
        ("map", page, "one HTML page: boards, their ways, access points"),
    ):
        module.arguments(commands.add_parser(name, help=help_, description=module.__doc__))
    options = parser.parse_args()
    if options.run is not receiver.run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `mothership boards m.db | head`
    options.run(options)


if __name__ == "__main__":
    main()
