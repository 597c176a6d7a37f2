"""Boards of a simulated fleet that update themselves: those of fleet_boards.py, with slots, a ledger and a trial.

Real are the uplink, its commands and records, the download over TLS, SWUpdate, the ledger, the slots of the file flag on a FAT
of the board's own, and the trial. Played are the firmware, what PID 1 does with the word, a board's start, and its health: it
is well, SICK, or its kernel panics.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from fleet_boards import CHOSEN, NEVER, OUTBOX_SIZE, LocalBus, Loop, SimulatedBoard, Uplink, obey

from base.files import read_file
from onboard import boot_ends, events
from onboard.to_pid1 import SVError
from updates import health, install, ledger, slots, trial
from updates.fat import Fat
from updates.slots import AUTOBOOT, FLAG, FileFlag, opposite, partitions_of
from updates.trial import BAD, GOOD, Judge, Trial
from uplink import service as uplink
from uplink import wire
from uplink.outbox import Outbox
from uplink.remote import Remote

KIND = "lab"  # the first word of /etc/stack-release
SICK, PANIC = "sick", "panic"  # a board's bad end of a new release: never healthy, or its kernel panics
STEADY, DEADLINE = 0.5, 12.0  # seconds of a trial: the boards of a process share one loop
DOWN = (0.2, 1.0)  # seconds that a start takes
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LOOK = 0.2  # seconds between two looks at boards that are busy
WELL = {"complete": True, "faults": [], "rejected": [], "never_ready": [], "uptime": 1.0}
SICKNESS = {**WELL, "faults": ["gps: no fix with the new driver"]}


class Shared(NamedTuple):
    """What all boards use."""

    address: str  # of the broker
    folder: str  # the boards' disks
    card: str  # a BOOT partition to copy
    certificate: str
    place: str  # that bundles name: a link to the place of the board whose turn it is


class UpdatingUplink(Uplink):
    """An uplink whose files of /run are its own board's."""

    board: UpdatingBoard

    def tell_info(self) -> None:
        with self.board.here():
            super().tell_info()

    def read_events(self) -> None:
        with self.board.here():
            super().read_events()


class UpdatingBoard(SimulatedBoard):
    """One board: a card, two slots, and what becomes of a word to update."""

    def __init__(self, name: str, shared: Shared, pool: ThreadPoolExecutor) -> None:
        self.name, self.address, self.shared, self.pool = name, shared.address, shared, pool
        self.folder = f"{shared.folder}/{name}"
        os.makedirs(f"{self.folder}/update")
        with open(shared.card, "rb") as source, open(f"{self.folder}/card", "wb") as target:
            target.write(source.read())
        self.runs = {"A": "1.0", "B": ""}  # versions in the slots
        self.bad = ""  # what goes wrong with versions of `bad_version`
        self.bad_version = ""
        self.writes: Counter[str] = Counter()  # how often a version was written
        self.words: Counter[str] = Counter()  # and told
        self.failed = ""  # why the last one was not written
        self.work: Future[Any] | None = None
        self.until = NEVER  # of a start
        self.trial: Trial | None = None
        self.born = 0.0
        self.new_objects()
        self.power_on(count=False)

    # --- a boot ----------------------------------------------------------------------------------------------------
    def new_objects(self) -> None:
        """What a start begins with, the outbox on the disk apart."""
        self.bus = LocalBus(self.name)
        self.outbox = Outbox(f"{self.folder}/outbox", OUTBOX_SIZE, 0, (), lambda text: None)
        patterns = (wire.topic(self.name, "ack"), wire.topic(self.name, "cmd"))
        will = (wire.topic(self.name, "state"), json.dumps({"state": "lost", "boot": self.bus.boot_id}).encode())
        self.remote = Remote(self.name, (self.address,), patterns, will=will)
        self.remote.log.setLevel(100)
        self.made, self.scan = 0, NEVER
        self.waits = uplink_pauses()
        self.next_try = self.patience = self.misc = self.planned = NEVER
        self.times = type(self).empty()
        self.state: dict[str, Any] = {}

    @staticmethod
    def empty() -> Any:
        from collections import deque

        return deque()

    def firmware(self) -> dict[str, str]:
        """Pick a slot and clear the flag: the words for PID 1."""
        fat = Fat(f"{self.folder}/card")
        tried = fat.read(FLAG)[:1] == b"1"
        if tried:
            fat.rewrite(FLAG, b"0\n")
        number = partitions_of(fat.read(AUTOBOOT).decode())[int(tried)]
        return {"stack.slot": slots.BOOT_OF[number], **({"stack.tryboot": "1"} if tried else {})}

    def power_on(self, *, count: bool = True) -> None:
        """Start what the firmware picks; a kernel that panics starts again."""
        self.words_of_kernel = self.firmware()
        self.slots = FileFlag(f"{self.folder}/card", self.words_of_kernel)
        self.slot = self.slots.current()
        if self.is_bad(PANIC):
            return self.power_on()
        with open(f"{self.folder}/release", "w", encoding="ascii") as file:
            file.write(f"{KIND} {self.runs[self.slot]}\n")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/update.json")
        self.born, self.trial = time.monotonic(), None
        with self.here():
            self.uplink = UpdatingUplink.__new__(UpdatingUplink)
            self.uplink.board = self
            self.uplink.__init__(self.bus, self.outbox, self.remote, self.name, CHOSEN)  # type: ignore[misc]
            self.uplink.commands.ask = self.pid_1
            self.uplink.updates.options = lambda: self.words_of_kernel
            folder = f"{self.folder}/update"
            if self.slot == self.slots.default():
                trial.report(folder, self.slot, self.slot)
            else:
                self.trial = Trial(folder, self.slots, Judge(STEADY, DEADLINE), f"{self.folder}/log")
                self.trial.begin()
            self.uplink.read_events()
        return None

    def is_bad(self, how: str) -> bool:
        return self.bad == how and self.runs[self.slot] == self.bad_version

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """The paths of a board, for as long as this one runs."""
        before = boot_ends.UPDATE, boot_ends.RECORD, events.FILE, uplink.RELEASE, CURRENT[0]
        boot_ends.UPDATE, boot_ends.RECORD = f"{self.folder}/update.json", f"{self.folder}/boot.json"
        events.FILE, uplink.RELEASE, CURRENT[0] = f"{self.folder}/events", f"{self.folder}/release", self.bus.boot_id
        try:
            yield
        finally:
            boot_ends.UPDATE, boot_ends.RECORD, events.FILE, uplink.RELEASE, CURRENT[0] = before

    # --- PID 1 -----------------------------------------------------------------------------------------------------
    def pid_1(self, request: dict[str, Any]) -> Any:
        """What PID 1 answers to the word (pid1/update_word.py); the service that it starts is a thread."""
        url, version = request["url"], request["version"]
        if self.runs[self.slot] == version:
            return f"this board runs {version} already"
        if self.work is not None:
            raise SVError("another update is under way")
        if "waits_for" in request:
            return {"waits_for": request["waits_for"]}
        self.words[version] += 1
        self.work = self.pool.submit(self.write, url, {**health.before(*self.seen()[:3]), "boot": self.bus.boot_id})
        return f"the update to {version} has begun"

    def write(self, url: str, before: dict[str, Any]) -> dict[str, Any]:
        """`sv update`, in a thread. The engine's links are in one place for all boards: one board at a time."""
        other = opposite(self.slot)
        devices = {number: f"{self.folder}/{number}" for number in (2, 3, 5, 6)}
        for number in (slots.PARTITION_OF[other], slots.ROOT_OF[other]):
            with open(devices[number], "wb") as file:
                file.truncate(1 << 20)
        release, place = f"{self.folder}/release", f"{self.folder}/slot"
        where = install.Where(f"{self.folder}/update", self.shared.certificate, devices, place, release)
        with open(f"{self.shared.folder}/engine.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.shared.place)
            os.symlink(where.place, self.shared.place)
            found = install.begin(url, where, self.slots, lambda *words: None, before)
        with open(devices[slots.ROOT_OF[other]], "rb") as file:
            self.runs[other] = file.read(64).split(b"\n")[0].decode()
        self.writes[self.runs[other]] += 1
        return found

    def seen(self) -> health.Seen:
        board = {**(SICKNESS if self.is_bad(SICK) else WELL), "boot_id": self.bus.boot_id}
        network = {"interfaces": [{"name": "wlan0", "state": "online" if self.uplink.sender.acked else "local"}]}
        return health.Seen(board, [], network)

    # --- time ------------------------------------------------------------------------------------------------------
    def busy(self) -> bool:
        return self.work is not None or self.trial is not None or self.until != NEVER

    def step(self, now: float) -> bool:
        """Look at what is under way. True where the board has to be started again."""
        if self.until != NEVER:
            if now >= self.until:
                self.until = NEVER
                self.power_on()
                self.next_try = now
            return False
        if self.work is not None and self.work.done():
            work, self.work = self.work, None
            if (error := work.exception()) is None:
                return True
            self.failed = f"{type(error).__name__}: {error}"
        if self.trial is not None:
            with self.here():
                verdict = self.trial.turn(self.seen(), now - self.born)
                self.uplink.read_events()
            if verdict == BAD:
                return True
            self.trial = None if verdict == GOOD else self.trial
        return False


CURRENT = [""]  # the boot id of the board that runs just now


def uplink_pauses() -> Any:
    from uplink.remote import REMOTE_FIRST, pauses

    return pauses(REMOTE_FIRST, 2 * REMOTE_FIRST)  # the fleet's broker is away for seconds


class UpdatingLoop(Loop):
    """The loop of such boards."""

    def __init__(self, names: list[str], shared: Shared) -> None:
        super().__init__([], shared.address, shared.folder)
        self.pool = ThreadPoolExecutor(2)
        self.boards = [UpdatingBoard(name, shared, self.pool) for name in names]
        self.number = {board.name: index for index, board in enumerate(self.boards)}

    def turn(self, most: float) -> None:
        busy = [board for board in self.boards if board.busy()]  # type: ignore[attr-defined]
        super().turn(min(most, LOOK) if busy else most)
        now = time.monotonic()
        for board in self.boards:
            assert isinstance(board, UpdatingBoard)
            if board.busy():
                if board.step(now):
                    self.end(board, now)
                self._after(board, board.fd(), now)

    def end(self, board: UpdatingBoard, now: float) -> None:
        """A reboot: the uplink's end, and a start after a while."""
        client, fd = board.remote._client, board.fd()
        with board.here():
            board.uplink.read_events()
        board.outbox.flush(now)
        board.uplink.sender.pump(now)
        board.uplink.tell_state("stopping")
        if client is not None and fd is not None:
            client.disconnect()
            deadline = time.monotonic() + 1.0
            while client.want_write() and board.fd() == fd and time.monotonic() < deadline:
                client.loop_write()
            self.by_fd.pop(fd, None)
            self.writing.discard(fd)
            with contextlib.suppress(OSError):
                self.poll.unregister(fd)
            client._sock_close()
        board.remote.connected = False
        board.outbox.close(now)
        os.close(board.remote.fd)
        os.close(board.remote._writer)
        board.new_objects()
        board.until = now + random.uniform(*DOWN)

    # --- orders ----------------------------------------------------------------------------------------------------
    def sicken(self, bad: dict[str, str], version: str) -> None:
        """These boards have a bad end with this version."""
        for board in self.boards:
            assert isinstance(board, UpdatingBoard)
            board.bad, board.bad_version = bad.get(board.name, ""), version

    def look(self) -> dict[str, Any]:
        """Each board: the slot and version that runs, the default, whether it is busy, and how often it was told and wrote."""
        return {
            board.name: {
                "slot": board.slot, "runs": board.runs[board.slot], "default": board.slots.default(), "busy": board.busy(),
                "failed": board.failed, "writes": dict(board.writes), "words": dict(board.words),
                "ledger": ledger.ledger(f"{board.folder}/update"),
            }
            for board in self.boards if isinstance(board, UpdatingBoard)
        }  # fmt: skip


def serve(orders: Connection, names: list[str], shared: Shared, trusted: str) -> None:
    """The process, as fleet_boards.serve()."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["SSL_CERT_FILE"] = trusted
    os.sync = lambda: None  # of the whole machine's disks: those of the boards are in memory
    # One kernel runs them all, and a boot is known by its id.
    vars(trial)["read_file"] = lambda path: CURRENT[0] if path == BOOT_ID else read_file(path)
    uplink.pid_1 = lambda: {"complete": True}
    obey(UpdatingLoop(names, shared), orders)
