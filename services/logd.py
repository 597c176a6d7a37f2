"""One log for the board: what every service prints, stamped line by line, bounded, readable with `logs()`.

PID 1 hands over the read ends of the services' pipes on descriptor 3 (SCM_RIGHTS) and keeps them too. A line is
looked at with tee(2), written to its file, and only then taken out of its pipe: killed at any moment, the log daemon
loses nothing (in the worst case its successor writes the last batch again).
"""

from __future__ import annotations

import os
import resource
import select
import sys
import time
from contextlib import suppress

from base.native import ctypes
from base.printable import printable_line
from base.stdlib import signal, socket
from base.syscalls import check, libc
from onboard.to_pid1 import notify
from services.log_files import File, bound

SPLICE_F_NONBLOCK = 2
CHANNEL = 3
BATCH = 64 * 1024  # bytes read from one pipe in one go
LINE_MAX = 8 * 1024  # bytes; a longer line is split
TAIL_SECONDS = 1.0  # text without a newline counts as a line after this long
LAST_LINES, LAST_SIZE = 100, 16 * 1024  # lines and bytes that are kept of the dropped ones
OPEN_MOST = 200  # files
PAUSE = 0.02  # seconds between two looks at a service that prints too much
TURN = 0.2  # seconds for one service before the others have their turn, and PID 1's question
LEVELS = {ord("0"): b"error: ", ord("1"): b"error: ", ord("2"): b"error: ", ord("3"): b"error: ", ord("4"): b"warning: "}

libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
libc.tee.restype = ctypes.c_ssize_t


class Stream:
    """One service's pipe, its files and its budget of lines."""

    def __init__(self, name: str, fd: int, files: list[File], burst: float, now: float) -> None:
        self.name = name
        self.fd = fd
        self.files = files
        self.tokens = burst
        self.refilled = now
        self.dropped = 0  # lines, since the last report
        self.last = b""  # the last of them: they say why it died
        self.due: float | None = None  # when to look again: an unfinished line, or the end of a pause
        self.paused = False

    def drop(self, lines: bytes) -> None:
        """Count lines above the rate limit, and keep the last ones."""
        self.dropped += lines.count(b"\n") + (lines[-1:] != b"\n")
        kept = self.last + lines
        self.last = kept if len(kept) <= LAST_SIZE else kept[-LAST_SIZE:].partition(b"\n")[2]

    def take_last(self) -> list[bytes]:
        """The last lines that were dropped, removed from the count: they will be written after all."""
        lines = self.last.removesuffix(b"\n").split(b"\n")[-LAST_LINES:] if self.last else []
        self.last = b""
        self.dropped -= len(lines)
        return lines


class Logd:
    """All streams, and the loop that reads them."""

    def __init__(self, options: dict[str, str]) -> None:
        self.folder = options.get("folder", "/run/log")
        self.keep = options.get("keep", "/var/log/board")
        self.file_size = int(options.get("file-size", 262144))
        self.total_size = int(options.get("total-size", 16777216))
        self.rate = float(options.get("rate", 1000))
        self.burst = float(options.get("burst", 5000))
        self.streams: dict[str, Stream] = {}
        self.by_fd: dict[int, Stream] = {}
        self.open: dict[File, None] = {}  # files, the one that was written last at the end
        self.epoll = select.epoll()
        self.peek_reader, self.peek_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stamp = (0, "")
        self.ending = False

    # --- the loop -------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Until SIGTERM, and then until the pipes are empty."""
        wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writer)
        self.epoll.register(wakeup, select.EPOLLIN)
        channel = socket.socket(fileno=CHANNEL)
        channel.setblocking(False)
        self.epoll.register(CHANNEL, select.EPOLLIN)
        while not self.ending:
            now = time.monotonic()
            due = min((stream.due for stream in self.streams.values() if stream.due is not None), default=None)
            ready = self.epoll.poll(None if due is None else max(0.0, due - now))
            now = time.monotonic()
            for fd, _ in ready:
                if fd == wakeup:
                    self.ending = True
                elif fd == CHANNEL:
                    self.receive(channel, now)
                elif fd in self.by_fd:
                    self.read(self.by_fd[fd], now)
            for stream in list(self.streams.values()):
                if stream.due is not None and stream.due <= now:
                    self.look_again(stream, now)
        for stream in list(self.streams.values()):
            self.read(stream, time.monotonic(), flush=True)
            self.report_dropped(stream, time.monotonic())

    def receive(self, channel: socket.socket, now: float) -> None:
        """More pipes from PID 1: "NAME POLICY" lines and as many descriptors. Without any it asks whether we are alive."""
        try:
            text, rights, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(4 * 256), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except BlockingIOError:
            return
        if not text:  # PID 1 has replaced us, or is gone
            self.ending = True
            return
        if not rights:
            with suppress(OSError):  # then PID 1 restarts us
                notify("WATCHDOG=1")
        block = b"".join(data for _, _, data in rights)
        fds = [int.from_bytes(block[at : at + 4], sys.byteorder) for at in range(0, len(block), 4)]
        for line, fd in zip(text.decode().splitlines(), fds, strict=False):  # the kernel gives fewer where we have no more
            name, _, policy = line.partition(" ")
            self.add(name, policy, fd, now)

    def add(self, name: str, policy: str, fd: int, now: float) -> None:
        """Begin to read a service's pipe; a second one under the same name takes the first one's place."""
        if name in self.streams:
            self.remove(self.streams[name])
        files = [File(folder, name) for folder in ([self.folder, self.keep] if policy == "disk" else [self.folder])]
        stream = self.streams[name] = self.by_fd[fd] = Stream(name, fd, files, self.burst, now)
        # Edge-triggered: an unfinished line stays in the pipe and must not wake us again and again.
        self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self.append(stream, b"", sys.maxsize)  # a service that has printed nothing has an empty log
        self.read(stream, now)

    def remove(self, stream: Stream) -> None:
        """Close a stream whose pipe has no writer left."""
        self.report_dropped(stream, time.monotonic())
        if not stream.paused:
            self.epoll.unregister(stream.fd)
        os.close(stream.fd)
        del self.by_fd[stream.fd], self.streams[stream.name]
        for file in stream.files:
            file.close()
            self.open.pop(file, None)

    # --- lines ----------------------------------------------------------------------------------------------------
    def read(self, stream: Stream, now: float, *, flush: bool = False) -> None:
        """Take what is in a pipe: peek, write, consume."""
        while True:
            try:
                count = check(libc.tee(stream.fd, self.peek_writer, BATCH, SPLICE_F_NONBLOCK))
            except BlockingIOError:
                return
            if count == 0:  # nobody can write any more: the service has left the table
                self.remove(stream)
                return
            block = take_out(self.peek_reader, count)
            whole = self.cut(block, flush=flush)
            if not whole:
                stream.due = stream.due or now + TAIL_SECONDS
                return
            stream.due = None
            within_budget = self.take(stream, block[:whole], now)
            take_out(stream.fd, whole)
            if not within_budget and not flush:
                self.pause(stream, now)
                return
            if time.monotonic() > now + TURN and not self.ending:
                self.epoll.modify(stream.fd, select.EPOLLIN | select.EPOLLET)  # what is left wakes us again
                return

    @staticmethod
    def cut(block: bytes, *, flush: bool) -> int:
        """How many bytes of a block are whole lines; an overlong or timed-out one counts as whole."""
        whole = block.rfind(b"\n") + 1
        if flush or (whole == 0 and len(block) >= LINE_MAX):
            return len(block)
        return whole

    def take(self, stream: Stream, block: bytes, now: float) -> bool:
        """Write the lines that the service's budget allows, count the others; whether all were allowed."""
        stream.tokens = min(self.burst, stream.tokens + (now - stream.refilled) * self.rate)
        stream.refilled = now
        count = block.count(b"\n") + (block[-1:] != b"\n")
        if count > stream.tokens:
            allowed = int(stream.tokens)
            stream.tokens = 0.0
            *lines, rest = block.split(b"\n", allowed)
            if lines:
                self.write(stream, lines, now)
            stream.drop(rest)
            return False
        stream.tokens -= count
        if stream.dropped:
            self.report_dropped(stream, now)
        self.write(stream, block.removesuffix(b"\n").split(b"\n"), now)
        return True

    def write(self, stream: Stream, lines: list[bytes], now: float) -> None:
        wall = time.time()
        if int(wall) != self.stamp[0]:
            self.stamp = (int(wall), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall)))
        stamp = f"{self.stamp[1]}.{int(wall % 1 * 1000):03d}Z {now:.6f} ".encode()
        limit = max(4096, min(self.file_size, self.total_size // (2 * max(1, len(self.streams)))))
        parts: list[bytes] = []
        size = 0
        for line in lines:
            level = b""
            if line[:1] == b"<" and line[2:3] == b">":
                level, line = LEVELS.get(line[1], b""), line[3:]
            line = printable_line(line.removesuffix(b"\r"))
            for at in range(0, len(line) or 1, LINE_MAX):
                parts += (stamp, level, line[at : at + LINE_MAX], b"\n")
                size += len(stamp) + len(level) + len(line[at : at + LINE_MAX]) + 1
            if size > limit // 2:
                self.append(stream, b"".join(parts), limit)
                parts, size = [], 0
        if parts:
            self.append(stream, b"".join(parts), limit)

    def append(self, stream: Stream, block: bytes, limit: int) -> None:
        """Write to a stream's files."""
        for file in stream.files:
            if file.write(block, limit):
                bound(file.folder, self.total_size, {file.path for other in self.streams.values() for file in other.files})
            self.open.pop(file, None)
            self.open[file] = None
            if len(self.open) > OPEN_MOST:  # hundreds of services have more files than we may open
                oldest = next(iter(self.open))
                oldest.close()
                del self.open[oldest]

    # --- too much, and too slowly -----------------------------------------------------------------------------------
    def pause(self, stream: Stream, now: float) -> None:
        """It prints more than it may: read it again after PAUSE, so that it does not take the processor."""
        if not stream.paused:
            self.epoll.unregister(stream.fd)
            stream.paused = True
        stream.due = now + PAUSE

    def look_again(self, stream: Stream, now: float) -> None:
        """A pause has ended, or an unfinished line has waited for TAIL_SECONDS."""
        stream.due = None
        if not stream.paused:
            self.read(stream, now, flush=True)
            return
        stream.tokens = min(self.burst, stream.tokens + (now - stream.refilled) * self.rate)
        stream.refilled = now
        if stream.tokens < self.burst / 10:  # until it has earned a tenth of its burst, drop as fast as a pipe can be emptied
            self.drop(stream)
            stream.due = now + PAUSE
            return
        self.report_dropped(stream, now)
        stream.paused = False
        self.epoll.register(stream.fd, select.EPOLLIN | select.EPOLLET)

    def drop(self, stream: Stream) -> None:
        """Empty a pipe of its whole lines: at most what it can hold, once."""
        try:
            for _ in range(4):
                count = check(libc.tee(stream.fd, self.peek_writer, BATCH, SPLICE_F_NONBLOCK))
                if count == 0:  # the service has left the table: nobody waits for its budget
                    self.remove(stream)
                    return
                whole = self.cut(take_out(self.peek_reader, count), flush=False)
                if not whole:
                    return
                stream.drop(take_out(stream.fd, whole))
        except BlockingIOError:
            pass

    def report_dropped(self, stream: Stream, now: float) -> None:
        """Write how many lines were dropped, and the last ones, which were kept."""
        if stream.dropped:
            lines = stream.take_last()
            stream.tokens = max(0.0, stream.tokens - len(lines))
            if stream.dropped:
                lines.insert(0, f"<4>{stream.dropped} lines dropped: more than {self.rate:g} a second".encode())
            stream.dropped = 0
            self.write(stream, lines, now)


def take_out(fd: int, count: int) -> bytes:
    """Exactly so many bytes, if they are there. A service may have switched its pipe to packets (O_DIRECT, `man 2 pipe`),
    of which a read returns one; what stays behind in our own pipe would end up in somebody else's log."""
    block = b""
    try:
        while len(block) < count and (more := os.read(fd, count - len(block))):
            block += more
    except BlockingIOError:
        pass  # it has emptied its own pipe in between
    return block


def main(arguments: list[str]) -> None:
    """Run as a service with `logger=True`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a pipe for each service
    words = (word.removeprefix("--").partition("=") for word in arguments)
    Logd({name: value for name, equals, value in words if equals}).run()


if __name__ == "__main__":
    main(sys.argv[1:])
