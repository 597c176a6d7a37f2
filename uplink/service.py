"""To the mothership: records of the local bus and of PID 1 go to the outbox, and are sent until they are acknowledged.

A record is committed before it is sent, and deleted only when the mothership says that it has committed it. wire.py has the
format. The connection, whose broker may be far away or nowhere, has a thread of its own; everything else happens here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from base.syscalls import IN_CLOSE_WRITE, IN_MOVED_TO, PR_SET_DUMPABLE, inotify_add_watch, inotify_init, prctl
from bus import Bus, Message, Remote, Tls, pauses
from onboard import boot_ends, clock, events, to_pid1
from onboard.to_pid1 import notify, of_this_board
from uplink import wire
from uplink.commands import Commands
from uplink.outbox import Outbox

WINDOW = 400  # records under way
BATCH = 100  # records of one message...
BATCH_SIZE = 64 * 1024  # ...or so many bytes, before they are compressed
LARGEST = 256 * 1024  # bytes of one record
DEPTH = 8  # brackets around a record on its way and at its destination: one that is nested too deep for them would never arrive
SILENCE = 10.0  # seconds without an acknowledgement, and what is under way is sent again
HIGHEST = 2**61  # that the mothership may answer with: ours go on above it, and must stay numbers of the format
ASK_FIRST, ASK_MAX = 2.0, 60.0  # seconds without an answer, and the question is asked again; doubled, jittered
UNREAD = 600.0  # seconds to wait for a disk that could not be read, and whose records come first, before others are sent
LOOK = 1.0  # seconds between two looks at it
BOOTING = 5.0  # seconds between two looks whether the boot is over
BIRTH = "/sys/firmware/devicetree/base"  # what a board says of itself (Devicetree Specification, 2.3 and 3.2)


class Sender:
    """What is sent when: go-back-N over a connection that may be gone at any time. Time is an argument."""

    def __init__(self, outbox: Outbox, board: str, send: Callable[[str, bytes], bool], boot_id: str = "") -> None:
        """`send(topic, payload)` gives a message to the connection, and says whether it could."""
        self.outbox = outbox
        self.board = board
        self.send = send
        self.boot_id = boot_id
        self.waiting_until: float | None = None  # for a disk that could not be read
        self.nonce = ""  # of the question that has not been answered; "" once it has
        self.patience = pauses(ASK_FIRST, ASK_MAX)  # for its answer
        self.sent = 0  # the highest number under way
        self.highest = 0  # that was ever sent, or that the mothership has answered with
        self.acked = 0  # the mothership's last word
        self.ahead: float | None = None  # the mothership's clock minus our monotonic one
        self.due: float | None = None  # to ask, or to send again
        self.connected = False
        self.resent = 0

    def up(self, now: float) -> None:
        """A new connection: ask what the mothership has, before anything is sent."""
        self.connected = True
        self.patience = pauses(ASK_FIRST, ASK_MAX)
        self.nonce = os.urandom(6).hex()
        self.waiting_until = now + UNREAD if self.waiting_until is None else self.waiting_until
        self._ask(now)

    def down(self) -> None:
        """The connection is gone."""
        self.connected = False
        self.due = None

    def _ask(self, now: float) -> None:
        """The same question each time: an answer that is later than our patience is an answer too.

        Not before the disk could be read: what was sent from memory before would have other numbers than what the disk knows,
        and of both together nobody could say after a power cut what the mothership has.
        """
        if self.outbox.unread and now < (self.waiting_until or now):
            self.due = now + LOOK
            return
        question = {"nonce": self.nonce, "boot": self.boot_id, "mono": round(now, 3)}
        self.send(wire.topic(self.board, "hello"), json.dumps(question).encode())
        self.due = now + next(self.patience)

    def on_ack(self, payload: bytes, now: float) -> bool:
        """An acknowledgement, or the answer to our question; whether it is one, and nothing that the broker had retained."""
        answer = wire.parse(payload)
        seq, nonce = answer.get("seq"), answer.get("nonce")
        if not wire.is_number(seq):
            raise wire.Malformed(f"an answer without a number: {payload[:100]!r}")
        assert isinstance(seq, int)
        if seq > HIGHEST:
            raise wire.Malformed(f"{seq} is no number that a board comes to: one above it could not be sent")
        if answered := bool(self.nonce and nonce == self.nonce):
            self.nonce = ""
            self.outbox.flush(now)
            self.outbox.heard(seq, self.board)
            self.sent = 0
            self.highest = max(self.highest, seq)
            self.ahead = answer["time"] - now if wire.is_seconds(answer.get("time")) else self.ahead
        if self.nonce or seq > self.highest:
            return False  # an answer to an earlier question, or about what we have not sent
        if answered or seq > self.acked:  # what is no news does not put off sending again
            self.due = None
        fresh, self.acked = nonce is not None or seq > self.acked, max(seq, self.acked)
        self.outbox.acknowledged(seq)
        self.pump(now)
        return fresh

    def pump(self, now: float) -> None:
        """Send what the window takes."""
        if not self.connected or self.nonce:
            return
        under_way = self.outbox.under_way(self.sent)
        while under_way < WINDOW and (records := self.outbox.waiting(self.sent, BATCH, BATCH_SIZE)):
            payload = wire.pack(self.sent if under_way else 0, records)
            if not self.send(wire.topic(self.board, "up"), payload):
                break
            self.sent = records[-1].number
            self.highest = max(self.highest, self.sent)
            under_way += len(records)
        if self.due is None and under_way:
            self.due = now + SILENCE

    def tick(self, now: float) -> None:
        """No answer for too long: from the beginning."""
        if self.due is None or now < self.due or not self.connected:
            return
        self.due = None
        if self.nonce:
            self._ask(now)
        else:
            self.resent += self.outbox.under_way(self.sent)
            self.sent = 0
            self.outbox.give_up_damaged(BATCH)
            self.pump(now)


class Uplink:
    """The app: bus, PID 1's events, outbox, connection, sender and commands."""

    def __init__(self, bus: Bus, outbox: Outbox, remote: Remote, board: str, chosen: Any) -> None:
        self.bus = bus
        self.urgent = chosen.UPLINK_URGENT
        self.outbox = outbox
        self.remote = remote
        self.sender = Sender(outbox, board, partial(remote.publish, qos=1), bus.boot_id)
        self.commands = Commands(outbox, bus.boot_id, ask, lambda data: self.take("cmd", "cmd", bus.envelope("cmd", data)))
        self.event = outbox.mark("event") if outbox.mark("events of") == bus.boot_id else 0  # PID 1's last one
        self.state = ""
        self.services: dict[str, tuple[Any, float]] = {}  # the last that we know of each, and since when
        self.look: float | None = None  # whether the boot is over
        for kind, pattern in chosen.UPLINK_TOPICS:
            bus.subscribe(pattern, partial(self.take, kind))
        bus.subscribe("diag", self.on_diag)
        bus.watch(remote.fd, self.arrived)
        self.watch_pid_1()

    # --- records ----------------------------------------------------------------------------------------------------
    def take(self, kind: str, topic: str, message: Message, marks: dict[str, int | str] | None = None) -> None:
        """A record, in the envelope of the bus."""
        now = time.monotonic()
        try:
            # A lone half of a surrogate pair is no UTF-8, and NaN no JSON: the mothership could not read the whole batch.
            text = json.dumps({**message, "topic": topic}, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            body = text.encode(errors="replace")
            if len(body) > LARGEST:
                raise ValueError(f"{len(body)} bytes are too many for one record")
            json.loads(b"[" * DEPTH + body + b"]" * DEPTH)
        except (ValueError, TypeError, RecursionError) as error:
            self.bus.log.warning("uplink: a message of %s is not recorded: %s", topic[:100], error)
            self.outbox.lost[kind] = self.outbox.lost.get(kind, 0) + 1
            return
        self.outbox.put(kind, body, now, urgent=kind in self.urgent, marks=marks)
        if self.outbox.due is None:  # committed
            self.sender.pump(now)

    def watch_pid_1(self) -> None:
        """Hear of each line that PID 1 adds to its events, and of the record that the keeper makes of the last boot's end."""
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
        """What PID 1 and the keeper have told of since we last looked, in this life or in an earlier one of this boot."""
        boot_id = self.bus.boot_id
        for event in events.since(self.event):
            if missed := event["seq"] - self.event - 1:
                self.outbox.lost["event"] = self.outbox.lost.get("event", 0) + missed
            self.take(event["kind"], event["kind"], event, {"events of": boot_id, "event": event["seq"]})
            self.event = event["seq"]
            if event["kind"] == "crash":
                data = event["data"]
                row = {"state": "failed", "exit": data["exit"], "restart": data["restart"]}
                self.tell_services({data["name"]: row}, event["mono"])
        if self.outbox.mark("record of") != boot_id and (record := boot_ends.read(boot_ends.RECORD)):
            self.take("boot", "boot", self.bus.envelope("boot", record), {"record of": boot_id})
            self.tell_info()

    # --- retained state ---------------------------------------------------------------------------------------------
    def tell(self, what: str, data: dict[str, Any], qos: int = 1) -> bool:
        """A retained message below our name."""
        return self.remote.publish(wire.topic(self.sender.board, what), json.dumps(data).encode(), qos=qos, retain=True)

    def tell_state(self, state: str) -> None:
        """init, ready, stopping or disconnected."""
        self.state = state
        self.tell("state", {"state": state, "boot": self.bus.boot_id})

    def tell_info(self) -> None:
        """The birth certificate: which boot of which board, with which software."""
        record = boot_ends.read(boot_ends.RECORD)
        end = record.get("last_end") or {}
        self.tell("info", {
            "boot": self.bus.boot_id, "number": record.get("number"), "model": birth("model"), "serial": birth("serial-number"),
            "kernel": os.uname().release, "image": int(clock.build_date()), "python": sys.version.split()[0],
            "why": {name: end[name] for name in ("cause", "reason")} if end else None,
        })  # fmt: skip

    def on_diag(self, _topic: str, message: Message) -> None:
        """diagnostic.py's report as it is, and of its services those that have changed."""
        self.tell("diag", message, qos=0)
        rows = (message["data"].get("services") or {}).get("rows") or {}
        found = {name: {key: row.get(key) for key in ("state", "exit", "restart")} for name, row in rows.items()}
        self.tell_services(found, message["mono"])

    def tell_services(self, rows: dict[str, Any], mono: float) -> None:
        """What is new: a report that the bus has retained may be older than what PID 1 told. Without a connection, later."""
        for name, row in rows.items():
            known, at = self.services.get(name, (None, 0.0))
            if row != known and mono >= at:
                self.services[name] = (row, mono)
                self.tell(f"sv/{name}", row)

    def tell_all(self, now: float) -> None:
        """A new connection: the broker's successor has retained nothing of what we told this one."""
        self.tell_state("init")
        self.look = now
        self.tell_info()
        for name, (row, _) in self.services.items():
            self.tell(f"sv/{name}", row)

    # --- from the mothership ----------------------------------------------------------------------------------------
    def arrived(self) -> None:
        """From the mothership's broker."""
        now = time.monotonic()
        for topic, payload in self.remote.take():
            if not topic:
                self.tell_all(now)
                self.sender.up(now)
            elif topic.endswith("/cmd"):
                self.on_command(payload, now)
            else:
                try:
                    with self.bus.uninterrupted():  # numbers on the disk and ours must not part
                        fresh = self.sender.on_ack(payload, now)
                except wire.Malformed as error:
                    self.bus.log.warning("uplink: %s: %s", topic, error)
                    continue
                if fresh:
                    self.bus.publish("ack", {"seq": self.sender.acked})

    def on_command(self, payload: bytes, now: float) -> None:
        """Carry out a command, and answer: also where the command is a reboot, and PID 1 has us stopped at once."""
        ahead = self.sender.ahead
        with self.bus.uninterrupted():
            result = self.commands.take(payload, None if ahead is None else now + ahead)
            if result is None:
                self.bus.log.warning("uplink: a command without an id: %r", payload[:100])
                return
            topic = wire.topic(self.sender.board, f"res/{result['id']}")
            self.remote.publish(topic, json.dumps(result).encode(), qos=1)

    # --- time -------------------------------------------------------------------------------------------------------
    def due(self) -> float | None:
        """When there is something to do."""
        times = (self.outbox.next_deadline(), self.sender.due, self.look if self.remote.connected else None)
        return min((time for time in times if time is not None), default=None)

    def turn(self, now: float) -> None:
        """Commits and repeats that are due, and losses that nobody has been told of."""
        if not self.remote.connected:
            self.sender.down()
        elif self.look is not None and now >= self.look:
            self.look = None if is_complete() else now + BOOTING
            if self.look is None:
                self.tell_state("ready")
        self.outbox.tick(now)
        if self.outbox.lost:
            lost, self.outbox.lost = self.outbox.lost, {}
            self.take("lost", "lost", self.bus.envelope("lost", lost), {"lost": "{}"})
        self.sender.tick(now)
        self.sender.pump(now)

    def end(self, now: float) -> None:
        """The last records, committed; and on their way, if there is one."""
        self.read_events()
        self.outbox.flush(now)
        self.sender.pump(now)
        self.tell_state("stopping" if pid_1().get("state") == "stopping" else "disconnected")
        self.outbox.close(now)
        self.remote.end()


def ask(request: dict[str, Any]) -> Any:
    """Ask PID 1."""
    return to_pid1.ask(os.environ.get("STACK_CONTROL", to_pid1.SOCKET), request)


def pid_1() -> dict[str, Any]:
    """What PID 1 says of the board; empty where it does not answer."""
    try:
        found = ask({"op": "board"})
    except to_pid1.SVError:
        return {}
    return found if isinstance(found, dict) else {}


def is_complete() -> bool:
    return bool(pid_1().get("complete"))


def birth(name: str) -> str | None:
    """A property of the board's device tree, which ends with NUL; None where there is none."""
    try:
        with open(f"{BIRTH}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\0") or None
    except OSError:
        return None


def run(chosen: Any, addresses: tuple[str, ...]) -> None:
    """Until SIGTERM, with these settings."""
    bus = Bus("uplink")
    board = chosen.UPLINK_BOARD or os.uname().nodename
    if not wire.is_name(board):
        raise SystemExit(f"{board!r} is not a board's name: letters, digits, - _ . and at most {wire.LONGEST} of them")
    outbox = Outbox(chosen.OUTBOX, chosen.OUTBOX_SIZE, chosen.OUTBOX_SPARE, chosen.OUTBOX_GIVE_UP, bus.log.warning)
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
    prctl(PR_SET_DUMPABLE, 0)  # where all apps are one user, none may look into us (`man 2 ptrace`), or ask PID 1 in our name
    run(of_this_board(), tuple(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
