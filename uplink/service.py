"""The uplink service: it puts records of the local bus and of PID 1 into the outbox, and sends them to the mothership.

It commits a record before it sends it, and deletes it only after the mothership has acknowledged it. wire.py has the format.
The connection has a thread of its own (remote.py), because its broker may be far away. Everything else runs in this thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

from base.files import read_file
from base.syscalls import IN_CLOSE_WRITE, IN_MOVED_TO, PR_SET_DUMPABLE, inotify_add_watch, inotify_init, prctl
from bus import Bus, Message
from onboard import boot_ends, clock, events, to_pid1
from onboard.board_table import board_table
from onboard.device_tree import birth
from onboard.to_pid1 import notify
from uplink import certificates, wire
from uplink.commands import Commands
from uplink.outbox import Outbox
from uplink.outbox_format import forget_copies
from uplink.remote import Remote, Tls
from uplink.sender import Sender
from uplink.updates import Updates, waits_for

LARGEST = 256 * 1024  # bytes of one record
DEPTH = 8  # levels of brackets that a batch and the database add: a record that leaves no room for them would never arrive
MOST_SERVICES = 1000  # services whose state is published
LONGEST = 200  # characters of one published state
SAY_EVERY = 60.0  # seconds between two log lines about dropped records of one kind
BOOTING = 5.0  # seconds between two checks whether the boot is over
RELEASE = "/etc/stack-release"  # "BOARD VERSION", by the image's build


class Uplink:
    """The app: bus, PID 1's events, outbox, connection, sender and commands."""

    def __init__(self, bus: Bus, outbox: Outbox, remote: Remote, board: str, chosen: Any) -> None:
        self.bus = bus
        self.urgent = chosen.UPLINK_URGENT
        self.outbox = outbox
        self.remote = remote
        self.sender = Sender(outbox, board, partial(remote.publish, qos=1), bus.boot_id, self.complain)
        self.commands = Commands(
            outbox,
            bus.boot_id,
            ask,
            lambda data: self.take("cmd", "cmd", bus.envelope("cmd", data)),
            partial(waits_for, chosen),
        )
        self.event = (
            outbox.mark("event") if outbox.mark("events of") == bus.boot_id else 0
        )  # number of PID 1's last event that is in the outbox
        self.updates = Updates(outbox.mark("update of"), lambda: pid_1().get("options") or {})
        self.state = ""
        self.services: dict[str, tuple[Any, float]] = {}  # the last known state of each service, and since when
        self.look: float | None = None  # whether the boot is over
        self.certificate = chosen.UPLINK_TLS[1] if getattr(chosen, "UPLINK_TLS", ()) and len(chosen.UPLINK_TLS) > 1 else ""
        self.check_due = 0.0  # when to check the certificates again
        self.dropped: Counter[str] = Counter()  # dropped records, by kind
        self.quiet: dict[str, float] = {}  # until when no more is logged of a kind
        for kind, pattern in chosen.UPLINK_TOPICS:
            bus.subscribe(pattern, partial(self.take, kind))
        bus.subscribe("diag", self.on_diag)
        bus.watch(remote.fd, self.arrived)
        self.watch_pid_1()

    def complain(self, why: str) -> None:
        """Log what people should know of the connection."""
        self.bus.log.warning("uplink: %s", why)

    # --- records ----------------------------------------------------------------------------------------------------
    def take(self, kind: str, topic: str, message: Message, marks: dict[str, int | str] | None = None) -> None:
        """Put a record into the outbox, in the envelope of the bus (bus.py)."""
        now = time.monotonic()
        try:
            # A lone half of a surrogate pair is no UTF-8, and NaN no JSON: the mothership could not read the whole batch.
            text = json.dumps({**message, "topic": topic}, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            body = text.encode(errors="replace")
            if len(body) > LARGEST:
                raise ValueError(f"{len(body)} bytes are too many for one record")
            json.loads(b"[" * DEPTH + body + b"]" * DEPTH)
        except (ValueError, TypeError, RecursionError) as error:
            self.outbox.lost[kind] = self.outbox.lost.get(kind, 0) + 1
            self.drop(kind, f"a message of {topic[:100]!r} is not recorded: {error}")
            return
        self.outbox.put(kind, body, now, urgent=kind in self.urgent, marks=marks)
        if self.outbox.due is None:  # committed
            self.sender.pump(now)

    def drop(self, kind: str, why: str) -> None:
        """Count a dropped record, and log it, but not each one of a flood."""
        self.dropped[kind] += 1
        now = time.monotonic()
        if now >= self.quiet.get(kind, now):
            self.quiet[kind] = now + SAY_EVERY
            self.bus.log.warning("uplink: %s (%d of this kind so far)", why[:300], self.dropped[kind])

    def watch_pid_1(self) -> None:
        """Watch the file of PID 1's events, and the keeper's record of how the last boot ended (`man 7 inotify`)."""
        fd = inotify_init()
        folder = os.path.dirname(events.FILE)
        try:
            inotify_add_watch(fd, folder, IN_CLOSE_WRITE | IN_MOVED_TO)
        except OSError as error:
            self.bus.log.warning("uplink: %s: %s: nothing is heard from PID 1", folder, error.strerror)

        def changed() -> None:
            os.read(fd, 65536)
            self.read_events()

        self.bus.watch(fd, changed)
        self.read_events()

    def read_events(self) -> None:
        """Read what PID 1 and the keeper have written since the last call, in this process or an earlier one of this boot."""
        boot_id = self.bus.boot_id
        for event in events.since(self.event):
            if missed := event["seq"] - self.event - 1:
                self.outbox.lost["event"] = self.outbox.lost.get("event", 0) + missed
            self.take(event["kind"], event["kind"], event, {"events of": boot_id, "event": event["seq"]})
            self.event = event["seq"]
            data = event.get("data")
            if event["kind"] == "crash" and isinstance(data, dict):
                row = {"state": "failed", "exit": data.get("exit"), "restart": data.get("restart")}
                self.tell_services({data.get("name"): row}, event.get("mono"))
        if self.outbox.mark("record of") != boot_id and (record := boot_ends.read(boot_ends.RECORD)):
            self.take("boot", "boot", self.bus.envelope("boot", record), {"record of": boot_id})
            self.tell_info()
        for ended in self.updates.ended():
            self.take("update", "update", self.bus.envelope("update", ended), {"update of": ended["id"]})
            if ended.get("result") == "committed":
                forget_copies(self.outbox.folder)
        if self.state and self.updates.changed():
            self.tell_info()

    # --- retained state ---------------------------------------------------------------------------------------------
    def tell(self, what: str, data: dict[str, Any], qos: int = 1) -> bool:
        """Publish a retained message below our name. One that is no JSON is dropped, so that it keeps no other back."""
        try:
            payload = json.dumps(data, allow_nan=False).encode()
            if len(payload) > LARGEST:
                raise ValueError(f"{len(payload)} bytes are too many for one message")
            return self.remote.publish(wire.topic(self.sender.board, what), payload, qos=qos, retain=True)
        except (ValueError, TypeError, RecursionError) as error:
            self.drop(what.partition("/")[0], f"{what[:100]!r} is not told: {error}")
            return False

    def tell_state(self, state: str) -> None:
        """Publish the board's state: init, ready, stopping or disconnected."""
        self.state = state
        self.tell("state", {"state": state, "boot": self.bus.boot_id})

    def tell_info(self) -> None:
        """Publish the birth message: which boot of which board, with which software."""
        record = boot_ends.read(boot_ends.RECORD)
        end = record.get("last_end") or {}
        kind, version = (*read_file(RELEASE).split(), "", "")[:2]
        self.tell("info", {
            "boot": self.bus.boot_id, "number": record.get("number"), "model": birth("model"), "serial": birth("serial-number"),
            "kernel": os.uname().release, "image": int(clock.build_date()), "python": sys.version.split()[0],
            "why": {name: end[name] for name in ("cause", "reason")} if end else None,
            "board": kind or None, "release": version or None, "update": self.updates.state(),
            "certificate_until": certificates.until_of(self.certificate) if self.certificate else None,
        })  # fmt: skip

    def on_diag(self, _topic: str, message: Message) -> None:
        """Publish diagnostic.py's report unchanged, and the state of each service that has changed."""
        data = message.get("data") if isinstance(message, dict) else None
        if not isinstance(data, dict):
            self.drop("diag", "a report that is no dictionary is not told")
            return
        self.tell("diag", message, qos=0)
        services = data.get("services")
        rows = services.get("rows") if isinstance(services, dict) else None
        self.tell_services(rows if isinstance(rows, dict) else {}, message.get("mono"))

    def tell_services(self, rows: dict[Any, Any], mono: Any) -> None:
        """Publish the states that are new. A report that the bus has retained may be older than PID 1's events."""
        for name, row in rows.items():
            if fault := why_no_service(name, row, mono) or self._one_too_many(name):
                self.drop("sv", f"the state of service {str(name)[:100]!r} is not told: {fault}")
                continue
            told = {key: row.get(key) for key in ("state", "exit", "restart")}
            known, at = self.services.get(name, (None, 0.0))
            if told != known and mono >= at:
                self.services[name] = (told, mono)
                self.tell(f"sv/{name}", told)

    def _one_too_many(self, name: str) -> str:
        more = len(self.services) >= MOST_SERVICES and name not in self.services
        return f"there are {MOST_SERVICES} already" if more else ""

    def tell_all(self, now: float) -> None:
        """Publish everything again after a new connection: another broker has retained nothing of it."""
        self.tell_state("init")
        self.look = now
        self.tell_info()
        for name, (row, _) in self.services.items():
            self.tell(f"sv/{name}", row)

    # --- from the mothership ----------------------------------------------------------------------------------------
    def arrived(self) -> None:
        """Take a message of the mothership's broker."""
        now = time.monotonic()
        for topic, payload in self.remote.take():
            if not topic:
                self.tell_all(now)
                self.sender.up(now)
            elif topic.endswith("/cmd"):
                self.on_command(payload, now)
            else:
                try:
                    with self.bus.uninterrupted():  # the numbers on the disk and ours must stay the same
                        fresh = self.sender.on_ack(payload, now)
                except wire.Malformed as error:
                    self.bus.log.warning("uplink: %s: %s", topic, error)
                    continue
                if fresh:
                    self.bus.publish("ack", {"seq": self.sender.acked})
                    self.check_certificates(now)

    def check_certificates(self, now: float) -> None:
        """Check the certificates once a day, by the mothership's clock: ours may not be set."""
        ahead = self.sender.ahead
        if not self.certificate or ahead is None or now < self.check_due:
            return
        self.check_due = now + certificates.DAY
        shown = self.remote.broker_certificate()
        for whose, end in (
            (f"the certificate of this board ({self.certificate})", certificates.until_of(self.certificate)),
            (f"the certificate of the broker {self.remote.address}", certificates.until(shown) if shown else None),
        ):
            if text := certificates.warning(whose, end, now + ahead):
                self.bus.log.warning("uplink: %s", text)

    def on_command(self, payload: bytes, now: float) -> None:
        """Carry out a command and answer it; also a reboot, after which PID 1 stops us at once."""
        ahead = self.sender.ahead
        with self.bus.uninterrupted():
            result = self.commands.take(payload, None if ahead is None else now + ahead, now)
            if result is None:
                self.bus.log.warning("uplink: a command without an id: %r", payload[:100])
                return
            self.answer(result)

    def answer(self, result: dict[str, Any]) -> None:
        """The result of a command, to whoever has sent it."""
        self.remote.publish(wire.topic(self.sender.board, f"res/{result['id']}"), json.dumps(result).encode(), qos=1)

    # --- time -------------------------------------------------------------------------------------------------------
    def due(self) -> float | None:
        """Monotonic time of the next thing to do; None if there is none."""
        look = self.look if self.remote.connected else None
        times = (self.outbox.next_deadline(), self.sender.due, look, self.commands.due(time.monotonic()))
        return min((time for time in times if time is not None), default=None)

    def turn(self, now: float) -> None:
        """Do what is due: commit, send again, and make a record of what was lost."""
        if not self.remote.connected:
            self.sender.down()
        elif self.look is not None and now >= self.look:
            self.look = None if is_complete() else now + BOOTING
            if self.look is None:
                self.tell_state("ready")
        for result in self.commands.look(now, now + (self.sender.ahead or 0.0)):
            self.answer(result)
        self.outbox.tick(now)
        if self.outbox.lost:
            lost, self.outbox.lost = self.outbox.lost, {}
            self.take("lost", "lost", self.bus.envelope("lost", lost), {"lost": "{}"})
        self.sender.tick(now)
        self.sender.pump(now)

    def end(self, now: float) -> None:
        """Commit the last records, and send them if there is a connection."""
        self.read_events()
        self.outbox.flush(now)
        self.sender.pump(now)
        self.tell_state("stopping" if pid_1().get("state") == "stopping" else "disconnected")
        self.outbox.close(now)
        self.remote.end()


def why_no_service(name: object, row: object, mono: object) -> str:
    """Why this is no state of a service; "" if it is one. Anything may be on a bus."""
    if not isinstance(name, str) or not wire.is_name(name.replace("@", "-")):
        return "its name cannot be part of a topic: letters, digits, - _ . @"
    if not isinstance(row, dict) or not wire.is_seconds(mono):
        return "it is no row of a report"
    for key in ("state", "exit", "restart"):
        value = row.get(key)
        if isinstance(value, str) and len(value) > LONGEST:
            return f"{key} has {len(value)} characters"
        if not isinstance(value, (str, int, type(None))) or (isinstance(value, int) and abs(value) >= 2**53):
            return f"{key} is neither text nor a number"
    return ""


def ask(request: dict[str, Any]) -> Any:
    """Ask PID 1."""
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), request)


def pid_1() -> dict[str, Any]:
    """PID 1's answer to `board`; empty if it does not answer."""
    try:
        found = ask({"op": "board"})
    except to_pid1.SVError:
        return {}
    return found if isinstance(found, dict) else {}


def is_complete() -> bool:
    return bool(pid_1().get("complete"))


def run(chosen: Any, addresses: tuple[str, ...]) -> None:
    """Run until SIGTERM, with these settings."""
    bus = Bus("uplink")
    board = chosen.UPLINK_BOARD or os.uname().nodename
    if not wire.is_name(board):
        raise SystemExit(f"{board!r} is not a board's name: letters, digits, - _ . and at most {wire.LONGEST} of them")
    sizes = chosen.OUTBOX_SIZE, chosen.OUTBOX_SPARE
    outbox = Outbox(chosen.OUTBOX, *sizes, chosen.OUTBOX_GIVE_UP, bus.log.warning, birth("serial-number") or "")
    tls = Tls(*chosen.UPLINK_TLS) if chosen.UPLINK_TLS else None
    will = (wire.topic(board, "state"), json.dumps({"state": "lost", "boot": bus.boot_id}).encode())
    patterns = (wire.topic(board, "ack"), wire.topic(board, "cmd"))
    remote = Remote(board, addresses, patterns, will=will, tls=tls, protocol=chosen.UPLINK_PROTOCOL)
    uplink = Uplink(bus, outbox, remote, board, chosen)
    remote.start()
    notify("READY=1")
    period = int(os.environ.get("WATCHDOG_USEC", "60000000")) / 3e6  # seconds between two signs of life (`man 3 sd_notify`)
    fed = 0.0
    try:
        for now in bus.when(uplink.due, period):
            if now >= fed + period:
                notify("WATCHDOG=1")
                fed = now
            uplink.turn(now)
    finally:
        uplink.end(time.monotonic())


def main(arguments: list[str]) -> None:
    """`uplink.py HOST:PORT...`"""
    prctl(PR_SET_DUMPABLE, 0)  # other apps are the same user: none may look into us (`man 2 ptrace`), or ask PID 1 in our name
    run(board_table(), tuple(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
