"""End a board's connection to the broker. A broker checks a certificate only when a client connects: after the certificate was
revoked, the connection stays open.

Of two clients with one identifier a broker disconnects the older (MQTT 3.1.1, 3.1.4-2): we connect under the board's name, and
disconnect. The broker publishes the board's last will. A board with a good certificate is back within seconds.
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
    """Connect under the board's name, and disconnect."""
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
