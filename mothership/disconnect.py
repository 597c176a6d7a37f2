"""End a board's connection to the broker: after its certificate was revoked, the connection that is there lives on without it.

Of two clients with the same identifier a broker keeps the younger (MQTT 3.1.1, 3.1.4-2): we connect as the board, and leave.
Its last will is told. A board whose certificate is still good comes back within seconds.
"""

from __future__ import annotations

import argparse
import time

from receiver import add_tls, remote_of

from uplink import wire

PATIENCE = 20.0  # seconds for the broker


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("broker", metavar="HOST:PORT", help="the listener of receivers")
    parser.add_argument("board", metavar="BOARD")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Connect under its name, and end."""
    if not wire.is_name(options.board):
        raise SystemExit(f"{options.board!r} is not a board's name")
    remote = remote_of(options, "disconnect", ())
    remote.id = options.board
    remote.start()
    deadline = time.monotonic() + PATIENCE
    while not remote.connected:
        if time.monotonic() > deadline:
            raise SystemExit(f"{options.broker}: no connection within {PATIENCE:g} s: {options.board} may still be there")
        time.sleep(0.05)
    remote.end()
    print(f"{options.board}: a connection under this name has ended; with a certificate that is revoked it cannot come back")
