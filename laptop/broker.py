"""The broker of a laptop that has no mosquitto: amqtt from PyPI, on loopback TCP, in the board's own network namespace."""

from __future__ import annotations

import asyncio
import os
import sys

from amqtt.broker import Broker

from onboard.to_pid1 import notify


async def serve() -> None:
    """Listen where $BUS says, and say so when it does."""
    config = {
        "listeners": {"default": {"type": "tcp", "bind": os.environ["BUS"]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    await Broker(config).start()
    print("<4>amqtt has no access list: here any app may publish in any name. mosquitto has one.", file=sys.stderr)
    notify("READY=1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
