"""`healthy`: what a slot on trial has to show before it is kept. One predicate; what is missing comes as sentences.

Pure, but for look() and greeting(), which ask. What the old slot could not do either is not asked of the new one.
"""

from __future__ import annotations

import re

from base.stdlib import TYPE_CHECKING, NamedTuple
from onboard import boot_ends, to_pid1

if TYPE_CHECKING:
    from typing import Any

    from tables.tables import Tables

SETTLED = 60.0  # seconds: a service that was restarted and has run for less does not stay up yet
MOST, LONGEST = 100, 300  # of the old slot's faults, and characters of each
PATIENCE = 3.0  # seconds for ssh's greeting
ADDRESSED, ACKNOWLEDGED = ("local", "online"), "online"  # states of an interface (network/actions.py)


class Seen(NamedTuple):
    """The board at one moment."""

    board: dict[str, Any]  # what PID 1 says of itself and the board; {} where it does not answer
    rows: list[dict[str, Any]]  # and of each service
    network: dict[str, Any]  # what the network service has written down
    critical: tuple[str, ...] = ()  # services that the table calls so
    ssh: str = ""  # why ssh does not answer; empty where it does, or where no row has it


def missing(seen: Seen, before: dict[str, Any], steady: float) -> list[str]:
    """What a slot on trial still lacks; [] where it is healthy at this moment.

    `before` is what before() has said of the old slot. `steady`: seconds for which a critical service has to have run.
    """
    if not seen.board:
        return ["PID 1 does not answer"]
    found = [] if seen.board.get("complete") else ["services are still being started"]
    rows = {row["name"]: row for row in seen.rows}
    found += [fault for name in seen.critical if (fault := unsteady(name, rows.get(name), steady))]
    known = {alike(text) for text in before.get("faults", ())}
    found += [text for text in faults(seen.board, seen.rows) if alike(text) not in known]
    if seen.ssh:
        found.append(f"ssh does not answer: {seen.ssh}")
    if before.get("online") and not online(seen.network):
        found.append("no interface has an address, and one had before the update")
    if before.get("mothership") and not acknowledged(seen.network):
        found.append("the mothership has acknowledged nothing since the boot, and it did before the update")
    return found


def before(board: dict[str, Any], rows: list[dict[str, Any]], network: dict[str, Any]) -> dict[str, Any]:
    """What is noted of the old slot before it is left: its boot, its faults, and what it reaches."""
    known = [text[:LONGEST] for text in faults(board, rows)]
    return {
        "boot": board.get("boot_id"), "faults": known[:MOST], "online": online(network), "mothership": acknowledged(network),
    }  # fmt: skip


def faults(board: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong on a board, for people."""
    found = [str(text) for text in board.get("faults", ())]
    found += [f"rejected: {text}" for text in board.get("rejected", ())]
    found += [f"{name} has not become ready" for name in board.get("never_ready", ())]
    return found + [f"{row['name']} does not stay up: {row.get('exit')}" for row in rows if flaps(row)]


def flaps(row: dict[str, Any]) -> bool:
    """Whether a service ends unasked: it waits for its next start, or has had one lately."""
    lately = bool(row.get("restart")) and bool(row.get("alive")) and row.get("runtime", 0.0) < SETTLED
    return bool(row.get("wanted")) and (row.get("state") == "backoff" or lately)


def alike(text: str) -> str:
    """A fault without its numbers: pids and times differ from boot to boot."""
    return re.sub(r"\d+", "#", text[:LONGEST])


def unsteady(name: str, row: dict[str, Any] | None, steady: float) -> str:
    """What a critical service lacks; empty where it is ready and steady. A job that has ended well is."""
    if row is None:
        return f"{name}, which is critical, is not there"
    if not row.get("ready"):
        return f"{name}, which is critical, is not ready: it is {row.get('state')}"
    if row.get("alive") and row.get("runtime", 0.0) < steady:
        return f"{name}, which is critical, has not run for {steady:g} s yet"
    return ""


def online(network: dict[str, Any]) -> bool:
    return any(row.get("state") in ADDRESSED for row in network.get("interfaces", ()))


def acknowledged(network: dict[str, Any]) -> bool:
    """Whether the mothership has acknowledged a record lately. In a young boot: since the boot, as /run was empty then."""
    return any(row.get("state") == ACKNOWLEDGED for row in network.get("interfaces", ()))


# --- who asks -----------------------------------------------------------------------------------------------------------
def look(path: str, network: str) -> Seen:
    """What PID 1 at this socket says, and the network's file; nothing of a PID 1 that does not answer. ssh is not asked."""
    rows: list[dict[str, Any]] = []
    try:
        board = to_pid1.ask(path, {"op": "board"})
        while page := to_pid1.ask(path, {"op": "stats", "first": len(rows)}):
            rows += page
    except to_pid1.SVError:
        return Seen({}, [], {})
    return Seen(board, rows, boot_ends.read(network))


def ssh_port(tables: Tables) -> int:
    """Where dropbear listens on this board; 0 where no row has it."""
    row = tables.services.get("dropbear")
    if row is None:
        return 0
    return int(row.argv[1]) if row.module and row.argv[1:] and row.argv[1].isdecimal() else 22


def greeting(port: int) -> str:
    """Why no ssh server greets on loopback (RFC 4253, 4.2: "SSH-2.0-..."); empty where one does."""
    import socket  # here: PID 1's has no create_connection, and the prompt needs none

    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as link:
            heard = link.recv(255)
    except OSError as error:
        return f"{error.strerror or error} on port {port}"
    return "" if heard.startswith(b"SSH-") else f"what listens on port {port} is no ssh server"
