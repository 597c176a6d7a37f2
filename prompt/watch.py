"""What passes on the bus."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from base.printable import printable
from onboard.to_pid1 import SVError
from prompt.asking import tables
from prompt.shapes import nobody_reads, terminal_width


def watch(topic: str = "#", count: int = 0, show: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Print what passes on the bus, live, until Ctrl-C, or until `count` messages have come: time (UTC), topic, data.

    A topic may have MQTT's wildcards: watch("wifi/#"), watch("log/+"). What the broker has retained comes first.
    """
    from tables.rights import is_pattern  # here: a login does not need it

    if count < 0:
        raise SVError(f"watch how many messages? {count} is no such number")
    if not is_pattern(topic.removeprefix("$")):  # $SYS/# is what the broker says of itself
        raise SVError(f'{topic!r} is no topic: such as "gps", "wifi/#" or "log/+"')
    bus = _bus()
    seen = 0

    def arrived(on: str, message: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        with contextlib.suppress(BrokenPipeError):  # the loop below sees it too
            (show or _print)({"topic": on, "message": message})

    bus.subscribe(topic, arrived)
    with contextlib.suppress(KeyboardInterrupt):
        for _ in bus.every(0.1):
            if (count and seen >= count) or nobody_reads():
                break


def _bus() -> Any:
    """Connect to the broker; SVError if that fails."""
    address = os.environ.get("BUS") or tables().BUS
    if address.startswith("/") and not os.path.exists(address):
        raise SVError(f"there is no broker at {address}; see stats_process('broker') and logs('broker')")
    site = f"{tables().LIB}/site"
    if os.path.isdir(site) and site not in sys.path:  # `make install-board` has put the libraries there
        sys.path.append(site)
    before = signal.getsignal(signal.SIGTERM)
    try:
        from bus import Bus
    except ImportError as error:
        raise SVError(f"watching the bus takes paho-mqtt: {error}") from None
    bus = Bus("watch", address)
    signal.signal(signal.SIGTERM, before)  # an app ends by it; a prompt's is its own
    return bus


def _print(one: dict[str, Any]) -> None:
    message = one["message"]
    data = message.get("data", message) if isinstance(message, dict) else message
    line = f"{time.strftime('%H:%M:%S', time.gmtime())} {one['topic']} {json.dumps(data, ensure_ascii=False)}"
    print(printable(line)[: terminal_width() or None], flush=True)
