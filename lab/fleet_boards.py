"""The boards of a simulated fleet: each the real uplink, outbox, format and connection; many in one process.

Not real are their local bus and the loop that serves them: Remote has a thread for each connection, and select(2) takes no
descriptor above 1023, so here one epoll serves paho's external loop of all boards. `serve` is a process that gets its orders
through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import sys
import time
from collections import deque
from heapq import heappop, heappush
from logging import ERROR
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _log import get_logger
from onboard.mqtt import KEEPALIVE
from uplink import service as uplink
from uplink import wire
from uplink.outbox import Outbox
from uplink.remote import REMOTE_FIRST, REMOTE_MAX, Remote, pauses

CHOSEN = SimpleNamespace(UPLINK_TOPICS=(("wifi", "wifi/+"),), UPLINK_URGENT=("evt", "lost"))
OUTBOX_SIZE = 1 << 30  # bytes
NEVER = float("inf")


class LocalBus:
    """The part of a bus that an uplink uses."""

    uninterrupted = staticmethod(contextlib.nullcontext)

    def __init__(self, name: str) -> None:
        self.log = get_logger(name)
        self.boot_id = f"{random.getrandbits(128):032x}"

    def subscribe(self, pattern: str, handler: Any) -> None:
        """Do nothing: records come through `Uplink.take`."""

    def watch(self, fd: int, handler: Any) -> None:
        """Do nothing: our loop looks after each read."""

    def publish(self, topic: str, data: Any, *, retain: bool = False) -> None:
        """Do nothing: nobody listens."""

    def envelope(self, topic: str, data: Any) -> dict[str, Any]:
        """The envelope of the real bus."""
        return {"v": 1, "kind": topic.split("/")[0], "data": data}


class Uplink(uplink.Uplink):
    """An uplink without PID 1's events: 2,000 of them would take more inotify instances than a kernel gives."""

    def watch_pid_1(self) -> None:
        """Watch nothing."""


class SimulatedBoard:
    """One board: a scan of access points now and then, and the connection."""

    def __init__(self, name: str, address: str, folder: str) -> None:
        self.name = name
        self.address = address
        self.outbox = Outbox(folder, OUTBOX_SIZE, 0, (), print)
        patterns, will = (wire.topic(name, "ack"), wire.topic(name, "cmd")), (wire.topic(name, "state"), b'{"state": "lost"}')
        self.remote = Remote(name, (address,), patterns, will=will)
        self.remote.log.setLevel(ERROR)
        self.bus = LocalBus(name)
        self.uplink = Uplink(self.bus, self.outbox, self.remote, name, CHOSEN)  # type: ignore[arg-type]
        self.made = 0
        self.waits = pauses(REMOTE_FIRST, REMOTE_MAX)
        self.next_try = NEVER
        self.patience = NEVER  # for the answer to our CONNECT
        self.misc = NEVER  # when paho looks after its pings
        self.scan = NEVER
        self.times: deque[tuple[int, float]] = deque()  # last number and time of each scan that is not acknowledged
        self.planned = NEVER  # of the loop

    # --- what it observes ------------------------------------------------------------------------------------------
    def observe(self, count: int) -> None:
        """A scan's observations, as wifi_analyzer.py publishes them. Their `seq` counts them."""
        now = time.monotonic()
        for index in range(count):
            self.made += 1
            bssid = f"02:00:{self.made >> 16 & 255:02x}:{self.made >> 8 & 255:02x}:{self.made & 255:02x}:{index & 255:02x}"
            data = {
                "latitude": 48.137154, "longitude": 11.576124, "accuracy": 4.2, "age": 0.412, "position_source": "gps",
                "event": "changed", "bssid": bssid, "ssid": f"harbour-{index}", "frequency": 2412 + 5 * (index % 13),
                "signal": -40 - index, "security": "WPA2-PSK", "source": "wpa_supplicant",
            }  # fmt: skip
            message = {
                "v": 1, "boot": self.bus.boot_id, "from": "wifi_analyzer", "seq": self.made, "kind": "wifi",
                "time": round(time.time(), 3), "mono": round(now, 3), "clock": "synchronised", "data": data,
            }  # fmt: skip
            self.uplink.take("wifi", f"wifi/{bssid}", message)
        self.times.append((self.made, now))

    def acknowledged(self, now: float) -> list[float]:
        """How long (s) each scan took that was acknowledged since the last call."""
        took = []
        while self.times and self.times[0][0] <= self.uplink.sender.acked:
            took.append(now - self.times.popleft()[1])
        return took

    # --- its connection --------------------------------------------------------------------------------------------
    def connect(self, now: float) -> int | None:
        """Begin to connect without waiting; returns the descriptor."""
        host, _, port = self.address.rpartition(":")
        client = self.remote._make_client()
        self.remote._client = client

        def create_socket() -> socket.socket:
            link = socket.socket()
            link.setblocking(False)
            link.connect_ex((host, int(port)))  # the first write tells whether it has worked
            return link

        client._create_socket = create_socket  # type: ignore[method-assign]
        client.connect(host, int(port), keepalive=KEEPALIVE)
        self.patience, self.misc, self.next_try = now + KEEPALIVE, now + KEEPALIVE / 3, NEVER
        return self.fd()

    def fd(self) -> int | None:
        """The descriptor of the connection, while there is one."""
        link = self.remote._client.socket() if self.remote._client else None
        return link.fileno() if link else None

    def lost(self, now: float) -> None:
        """The connection is lost: wait as Remote does, then connect again."""
        self.remote.connected = False
        self.next_try = now + next(self.waits)

    def ask_paho(self, now: float) -> None:
        """Let paho send pings that are due, or give up a silent connection."""
        assert self.remote._client
        self.misc = now + KEEPALIVE / 3
        if not self.remote.connected and now >= self.patience:
            self.remote._client._sock_close()
        else:
            self.remote._client.loop_misc()

    def deadline(self) -> float:
        """Monotonic time at which the board has something to do."""
        wanted = [self.scan, self.next_try, self.misc if self.next_try == NEVER else NEVER]
        wanted += [self.patience] if self.next_try == NEVER and not self.remote.connected else []
        wanted += [time for time in (self.uplink.due(),) if time is not None]
        return min(wanted)


class Loop:
    """The loop of all boards of this process, and their figures."""

    def __init__(self, names: list[str], address: str, folder: str) -> None:
        self.boards = [SimulatedBoard(name, address, f"{folder}/{name}") for name in names]
        self.poll = select.epoll()
        self.by_fd: dict[int, SimulatedBoard] = {}
        self.writing: set[int] = set()
        self.heap: list[tuple[float, int]] = []
        self.number = {board.name: index for index, board in enumerate(self.boards)}
        self.period, self.count = NEVER, 0  # seconds between a board's scans, and observations of one
        self.lags: list[float] = []
        self.connects: list[float] = []  # monotonic times of the broker's CONNACK
        self.answers: list[float] = []  # monotonic times of the mothership's first answer on a connection
        self.asking: set[str] = set()

    def turn(self, most: float) -> None:
        """Wait for events, at most so long, and handle them."""
        now = time.monotonic()
        wait = min(most, max(0.0, self.heap[0][0] - now) if self.heap else most)
        for fd, event in self.poll.poll(wait):
            if board := self.by_fd.get(fd):
                self._io(board, fd, event)
        now = time.monotonic()
        while self.heap and self.heap[0][0] <= now:
            when, index = heappop(self.heap)
            if when == self.boards[index].planned:
                self._due(self.boards[index], now)

    def _io(self, board: SimulatedBoard, fd: int, event: int) -> None:
        client, was = board.remote._client, board.remote.connected
        assert client
        if event & ~select.EPOLLOUT:
            client.loop_read()
        if event & select.EPOLLOUT and board.fd() == fd:
            client.loop_write()
        now = time.monotonic()
        if board.remote.connected and not was:
            self.connects.append(now)
            self.asking.add(board.name)
            board.waits = pauses(REMOTE_FIRST, REMOTE_MAX)
        if board.remote.inbox:
            board.uplink.arrived()
            self.lags += board.acknowledged(now)
            if board.name in self.asking and not board.uplink.sender.nonce:
                self.asking.discard(board.name)
                self.answers.append(now)
        self._after(board, fd, now)

    def _due(self, board: SimulatedBoard, now: float) -> None:
        board.planned = NEVER
        fd = board.fd()
        if now >= board.next_try:
            fd = board.connect(now)
            if fd is not None:
                self.by_fd[fd] = board
                self.poll.register(fd, select.EPOLLIN)
        if now >= board.scan:
            board.scan += self.period
            board.observe(self.count)
        if fd is not None and (now >= board.misc or (not board.remote.connected and now >= board.patience)):
            board.ask_paho(now)
        board.uplink.turn(now)
        self._after(board, fd, now)

    def _after(self, board: SimulatedBoard, fd: int | None, now: float) -> None:
        """Look after a board's connection once it was served, and plan its next turn."""
        if board.fd() is None:
            if fd is not None:  # closing it has taken it out of the poll
                self.by_fd.pop(fd, None)
                self.writing.discard(fd)
            if board.next_try == NEVER and board.remote._client is not None:
                board.lost(now)
        elif fd is not None and board.remote._client and board.remote._client.want_write() != (fd in self.writing):
            self.writing ^= {fd}
            self.poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if fd in self.writing else 0))
        self.plan(board)

    def plan(self, board: SimulatedBoard) -> None:
        """Plan a board's next turn."""
        if (wanted := board.deadline()) < board.planned:
            board.planned = wanted
            heappush(self.heap, (wanted, self.number[board.name]))

    # --- orders ----------------------------------------------------------------------------------------------------
    def connect(self, most: int) -> None:
        """Connect so many boards at once, as after a power cut."""
        for board in [board for board in self.boards if board.next_try == NEVER and board.fd() is None][:most]:
            board.next_try = time.monotonic()
            self.plan(board)

    def observe(self, period: float, count: int) -> None:
        """From now on each board makes so many observations every so many seconds; the boards are spread over the period."""
        self.period, self.count = period, count
        now = time.monotonic()
        for board in self.boards:
            board.scan = now + random.uniform(0.0, period) if count else NEVER
            self.plan(board)

    def gather(self, count: int) -> None:
        """Make so many observations of each board at once, and commit them."""
        for board in self.boards:
            board.uplink.sender.connected = False  # until `pump`
            board.observe(count)
            board.outbox.flush(time.monotonic())
            self.plan(board)

    def pump(self) -> None:
        """Send what the boards' windows take."""
        for board in self.boards:
            board.uplink.sender.connected = board.remote.connected
            board.uplink.turn(time.monotonic())
            self._after(board, board.fd(), time.monotonic())

    def figures(self) -> dict[str, Any]:
        """The figures since the last call, and the present state."""
        found = {
            "connected": sum(board.remote.connected for board in self.boards), "lags": self.lags, "connects": self.connects,
            "answers": self.answers, "resent": sum(board.uplink.sender.resent for board in self.boards),
            "made": sum(board.made for board in self.boards),
            "acked": sum(board.uplink.sender.acked for board in self.boards),
        }  # fmt: skip
        self.lags, self.connects, self.answers = [], [], []
        return found

    def committed(self) -> dict[str, tuple[int, int]]:
        """For each board the number of records committed, and of those that still wait."""
        for board in self.boards:
            board.outbox.flush(time.monotonic())
        return {board.name: (board.outbox.next - 1, board.outbox.count()) for board in self.boards}


def serve(orders: Connection, names: list[str], address: str, folder: str) -> None:
    """The process: serve boards until the order is "end". An order is a method of Loop with its arguments; each is answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    uplink.pid_1 = lambda: {"complete": True}  # nobody answers at the control socket
    os.makedirs(folder, exist_ok=True)
    obey(Loop(names, address, folder), orders)


def obey(loop: Loop, orders: Connection) -> None:
    """Turn the loop, and carry out what fleet_programs.Workers orders, until that is "end"."""
    loop.poll.register(orders.fileno(), select.EPOLLIN)
    while True:
        loop.turn(1.0)
        if orders.poll():
            order, *arguments = orders.recv()
            if order == "end":
                return
            orders.send(getattr(loop, order)(*arguments))
