"""One log for the board: what every service prints, stamped line by line, bounded, readable with `logs()`.

PID 1 hands over the read ends of the services' pipes on descriptor 3 (SCM_RIGHTS) and keeps them too. A line is
looked at with tee(2), written to its file, and only then taken out of its pipe: killed at any moment, the log daemon
loses nothing (in the worst case its successor writes the last batch again).
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.files import open_folder
from base.native import ctypes
from base.stdlib import signal, socket
from base.syscalls import check, libc

SPLICE_F_NONBLOCK = 2
CHANNEL = 3
BATCH = 64 * 1024  # bytes read from one pipe in one go
LINE_MAX = 8 * 1024  # bytes; a longer line is split
TAIL_SECONDS = 1.0  # text without a newline is taken for a line after so long
PAUSE = 0.02  # seconds between two looks at a service that prints too much
LEVELS = {ord("0"): b"error: ", ord("1"): b"error: ", ord("2"): b"error: ", ord("3"): b"error: ", ord("4"): b"warning: "}
# Nobody's terminal is attacked: neither with C0 control characters nor, in UTF-8, with C1.
CONTROL = bytes(byte if byte == 9 or 32 <= byte != 127 else ord("?") for byte in range(256))
C1 = {code: "?" for code in range(0x80, 0xA0)}

libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
libc.tee.restype = ctypes.c_ssize_t


class File:
    """One service's log in one folder: appended to, rotated by size to NAME.log.1."""

    def __init__(self, folder: str, name: str) -> None:
        self.path = f"{folder}/{name}.log"
        self._open()

    def _open(self) -> None:
        """No symbolic link is followed: the folder may be on a disk that somebody else has written."""
        folder, name = os.path.split(self.path)
        at = open_folder(folder)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self.fd = os.open(name, flags, 0o644, dir_fd=at)
        finally:
            os.close(at)
        self.size = os.fstat(self.fd).st_size

    def write(self, block: bytes, limit: int) -> bool:
        """Append; whether the file was rotated for it. A full disk loses the block, not the daemon."""
        rotate = self.size > 0 and self.size + len(block) > limit
        try:
            if rotate:
                old = self.fd
                if os.path.exists(self.path):
                    os.rename(self.path, self.path + ".1")
                self._open()
                os.close(old)
            self.size += os.write(self.fd, block)
        except OSError:
            pass
        return rotate

    def close(self) -> None:
        os.close(self.fd)


class Stream:
    """One service's pipe, its files and its budget of lines."""

    def __init__(self, name: str, fd: int, files: list[File], burst: float, now: float) -> None:
        self.name = name
        self.fd = fd
        self.files = files
        self.tokens = burst
        self.refilled = now
        self.dropped = 0
        self.due: float | None = None  # when to look again: an unfinished line, or the end of a pause
        self.paused = False


class Logd:
    """All streams, and the one place that sleeps."""

    def __init__(self, options: dict[str, str]) -> None:
        self.folder = options.get("folder", "/run/log")
        self.keep = options.get("keep", "/var/log/board")
        self.file_size = int(options.get("file-size", 262144))
        self.total_size = int(options.get("total-size", 16777216))
        self.rate = float(options.get("rate", 1000))
        self.burst = float(options.get("burst", 5000))
        self.streams: dict[str, Stream] = {}
        self.by_fd: dict[int, Stream] = {}
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
            dues = [stream.due for stream in self.streams.values() if stream.due is not None]
            ready = self.epoll.poll(max(0.0, min(dues) - now) if dues else None)
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
            self.report_dropped(stream, time.monotonic())
            self.read(stream, time.monotonic(), flush=True)

    def receive(self, channel: socket.socket, now: float) -> None:
        """More pipes from PID 1: "NAME POLICY" lines and as many descriptors."""
        try:
            text, rights, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(4 * 256), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except BlockingIOError:
            return
        if not text:  # PID 1 has replaced us, or is gone
            self.ending = True
            return
        block = b"".join(data for _, _, data in rights)
        fds = [int.from_bytes(block[at : at + 4], sys.byteorder) for at in range(0, len(block), 4)]
        for line, fd in zip(text.decode().splitlines(), fds, strict=True):
            name, _, policy = line.partition(" ")
            self.add(name, policy, fd, now)

    def add(self, name: str, policy: str, fd: int, now: float) -> None:
        """Begin to read a service's pipe; a second one under the same name takes the first one's place."""
        if name in self.streams:
            self.remove(self.streams[name])
        folders = [self.folder] + ([self.keep] if policy == "disk" else [])
        files = []
        for folder in folders:
            try:
                files.append(File(folder, name))
            except OSError as error:
                print(f"<4>logd: {folder}/{name}.log: {error.strerror}", file=sys.stderr)
        stream = self.streams[name] = self.by_fd[fd] = Stream(name, fd, files, self.burst, now)
        # Edge-triggered: an unfinished line stays in the pipe and must not wake us again and again.
        self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self.read(stream, now)

    def remove(self, stream: Stream) -> None:
        if not stream.paused:
            self.epoll.unregister(stream.fd)
        os.close(stream.fd)
        del self.by_fd[stream.fd], self.streams[stream.name]
        for file in stream.files:
            file.close()

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
            stream.dropped += count - allowed
            if allowed:
                self.write(stream, block.split(b"\n", allowed)[:allowed], now)
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
            line = line.removesuffix(b"\r").translate(CONTROL)
            if b"\xc2" in line:
                line = line.decode("utf-8", "surrogateescape").translate(C1).encode("utf-8", "surrogateescape")
            for at in range(0, len(line) or 1, LINE_MAX):
                parts += (stamp, level, line[at : at + LINE_MAX], b"\n")
                size += len(stamp) + len(level) + len(line[at : at + LINE_MAX]) + 1
            if size > limit // 2:
                self.append(stream, b"".join(parts), limit)
                parts, size = [], 0
        if parts:
            self.append(stream, b"".join(parts), limit)

    def append(self, stream: Stream, block: bytes, limit: int) -> None:
        for file in stream.files:
            if file.write(block, limit) and file.path.startswith(self.folder):
                self.bound_total()

    def bound_total(self) -> None:
        """Old files of services that came and went count too: the largest go until the board's bound holds."""
        sizes: dict[str, int] = {}
        for entry in os.scandir(self.folder):
            sizes[entry.path] = entry.stat().st_size
        live = {file.path for stream in self.streams.values() for file in stream.files}
        for path in sorted(sizes, key=lambda path: -sizes[path]):
            if sum(sizes.values()) <= self.total_size:
                return
            if path not in live:
                os.unlink(path)
                del sizes[path]

    # --- too much, and too slowly -----------------------------------------------------------------------------------
    def pause(self, stream: Stream, now: float) -> None:
        """It prints more than it may: look at it again in a moment, so that it costs nobody the processor."""
        if not stream.paused:
            self.epoll.unregister(stream.fd)
            stream.paused = True
        stream.due = now + PAUSE

    def look_again(self, stream: Stream, now: float) -> None:
        """The end of a pause, or of the patience with an unfinished line."""
        stream.due = None
        if not stream.paused:
            self.read(stream, now, flush=True)
            return
        tokens = min(self.burst, stream.tokens + (now - stream.refilled) * self.rate)
        if tokens < self.burst / 10:  # until it has earned a tenth of its burst, drop as fast as a pipe can be emptied
            self.drop(stream)
            stream.due = now + PAUSE
            return
        self.report_dropped(stream, now)
        stream.paused = False
        self.epoll.register(stream.fd, select.EPOLLIN | select.EPOLLET)

    def drop(self, stream: Stream) -> None:
        """Empty a pipe, counting its lines: at most what it can hold, once."""
        try:
            for _ in range(4):
                count = check(libc.tee(stream.fd, self.peek_writer, BATCH, SPLICE_F_NONBLOCK))
                take_out(self.peek_reader, count)
                stream.dropped += take_out(stream.fd, count).count(b"\n")
        except BlockingIOError:
            pass

    def report_dropped(self, stream: Stream, now: float) -> None:
        if stream.dropped:
            dropped, stream.dropped = stream.dropped, 0
            self.write(stream, [f"<4>{dropped} lines dropped: more than {self.rate:g} a second".encode()], now)


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
    words = (word.removeprefix("--").partition("=") for word in arguments)
    Logd({name: value for name, equals, value in words if equals}).run()


if __name__ == "__main__":
    main(sys.argv[1:])
