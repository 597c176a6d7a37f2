"""logd: nothing lost, nothing blocked, everything bounded. The daemon is real, PID 1's side is LogPipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Board, eventually

from pid1.log_pipes import QUESTION, QUIET, LogPipes
from pid1.loop import Loop


class Daemon:
    """A log daemon, and the pipes that PID 1 would hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "log"
        self.keep = folder / "keep"
        self.pipes = LogPipes(Loop())
        self.process: subprocess.Popen[bytes] | None = None
        self.options = {
            "folder": self.folder,
            "keep": self.keep,
            "file-size": 262144,
            "total-size": 1 << 24,
            "rate": 1000,
            "burst": 5000,
        }

    def start(self, **options: object) -> None:
        self.options |= {name.replace("_", "-"): value for name, value in options.items()}
        channel = self.pipes.connect()
        fd = channel.fileno()
        words = [f"--{name}={value}" for name, value in self.options.items()]
        command = [sys.executable, "-SBP", str(ROOT / "services" / "logd.py"), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.dup2(fd, 3), close_fds=False)  # noqa: PLW1509
        channel.close()
        self.pipes.flush(0.0)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(10)

    def writer(self, name: str, policy: str = "memory") -> int:
        return self.pipes.write_end(name, policy, 0.0)

    def lines(self, name: str, *, old: bool = False) -> list[str]:
        """The texts, without their stamps."""
        found = []
        for path in ([self.folder / f"{name}.log.1"] if old else []) + [self.folder / f"{name}.log"]:
            if path.exists():
                found += [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
        return found


def last_line(daemon: Daemon, name: str, text: str) -> Callable[[], bool]:
    return lambda: daemon.lines(name)[-1:] == [text]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path)
    yield one
    if one.process and one.process.poll() is None:
        one.stop(signal.SIGKILL)
    for name in list(one.pipes._pipes):
        one.pipes.forget(name)


def test_lines_are_stamped_levels_are_named_and_terminals_are_safe(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    os.write(fd, b"early\n")  # before the daemon runs
    daemon.start()
    os.write(fd, b"<3>bad\n<4>odd\n<6>fine\nsplit ")
    os.write(fd, "in two \xe9\n\x1b[31mred\r\n\n".encode("latin-1"))
    eventually(lambda: len((daemon.folder / "a.log").read_bytes().splitlines()) == 7)
    lines = (daemon.folder / "a.log").read_bytes().splitlines()
    texts = [line.split(b" ", 2)[2] for line in lines]
    assert texts == [b"early", b"error: bad", b"warning: odd", b"fine", b"split in two \xe9", b"?[31mred", b""]
    assert all(re.match(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d+\.\d{6} ", line) for line in lines)


def test_an_unfinished_line_is_written_after_a_second(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    daemon.start()
    os.write(fd, b"password: ")
    time.sleep(0.3)
    assert daemon.lines("a") == []
    eventually(lambda: daemon.lines("a") == ["password: "], 5)


def test_an_overlong_line_is_split(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    daemon.start()
    os.write(fd, b"x" * 30_000 + b"\nend\n")
    eventually(lambda: daemon.lines("a")[-1:] == ["end"])
    texts = daemon.lines("a")
    assert sum(map(len, texts[:-1])) == 30_000
    assert max(map(len, texts)) <= 8192


def test_terminated_it_writes_what_is_in_the_pipes(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    daemon.start()
    eventually(lambda: (daemon.folder / "a.log").exists())
    for number in range(500):
        os.write(fd, b"%d\n" % number)
    os.write(fd, b"tail")
    daemon.stop()
    assert daemon.lines("a") == [*map(str, range(500)), "tail"]


@pytest.mark.timeout(60)
def test_killed_at_random_moments_it_loses_no_line(daemon: Daemon) -> None:
    """A service prints numbers while the daemon is killed -9 again and again: each number arrives."""
    fd = daemon.writer("a")
    count = 20_000
    script = f"import time, sys\nfor i in range({count}):\n print(i, flush=True)\n if i % 20 == 0: time.sleep(0.002)"
    daemon.start(rate=1e9, burst=1e9, file_size=1 << 24, total_size=1 << 28)
    service = subprocess.Popen([sys.executable, "-c", script], stdout=fd)
    kills = 0
    while service.poll() is None:
        time.sleep(0.05)
        daemon.stop(signal.SIGKILL)
        kills += 1
        daemon.start()
    eventually(lambda: str(count - 1) in daemon.lines("a")[-3:], 20)
    texts = daemon.lines("a")
    assert kills > 10
    assert set(map(int, texts)) == set(range(count))
    assert len(texts) < count * 1.5, "at the worst the last batch of a life is written twice"


def test_a_flood_is_limited_counted_and_disturbs_nobody(daemon: Daemon) -> None:
    loud, quiet = daemon.writer("loud"), daemon.writer("quiet")
    daemon.start(rate=1000, burst=2000)
    script = "import sys, time\nend = time.monotonic() + 2.5\nn = 0\nwhile time.monotonic() < end:\n" \
        " sys.stdout.write('a line of the flood\\n' * 1000); n += 1000; sys.stdout.flush(); time.sleep(0.005)\nprint(n, file=sys.stderr)"  # fmt: skip
    service = subprocess.Popen([sys.executable, "-c", script], stdout=loud, stderr=subprocess.PIPE, text=True)
    delays = []
    for number in range(20):
        os.write(quiet, b"%d\n" % number)
        started = time.monotonic()
        eventually(last_line(daemon, "quiet", str(number)), 5)
        delays.append(time.monotonic() - started)
        time.sleep(0.1)
    printed = int(service.communicate(timeout=20)[1])
    eventually(lambda: any("lines dropped" in line for line in daemon.lines("loud")), 10)
    eventually(lambda: waiting(loud) == 0, 10)
    time.sleep(0.3)  # it has earned some lines again
    os.write(loud, b"the end\n")
    eventually(lambda: daemon.lines("loud")[-1:] == ["the end"], 10)
    texts = daemon.lines("loud", old=True)
    dropped = sum(int(match[1]) for text in texts if (match := re.match(r"warning: (\d+) lines dropped", text)))
    written = sum(text == "a line of the flood" for text in texts)
    assert printed > 50_000
    assert written < 9000
    assert written + dropped == printed
    assert sorted(delays)[10] < 0.5


def test_a_service_that_prints_faster_than_it_is_read_leaves_the_others_their_turn(daemon: Daemon) -> None:
    """With limits that it keeps within. It had been read until its pipe was empty, which it never was."""
    loud, quiet = daemon.writer("loud"), daemon.writer("quiet")
    daemon.start(rate=10**9, burst=10**9)
    service = subprocess.Popen(["yes", "a line without end"], stdout=loud)
    try:
        eventually(lambda: len(daemon.lines("loud")) > 1000, 20)
        for text in ("one", "two", "three"):
            os.write(quiet, f"{text}\n".encode())
            eventually(last_line(daemon, "quiet", text), 10)
    finally:
        service.kill()
        service.wait()
    eventually(lambda: waiting(loud) == 0, 20)


def test_files_are_bounded_each_and_together(daemon: Daemon) -> None:
    daemon.start(file_size=20_000, total_size=100_000, rate=1e9, burst=1e9)
    for number in range(12):
        fd = daemon.writer(f"s{number}")
        for _ in range(40):
            os.write(fd, b"%s\n" % (b"x" * 1000))
        eventually((daemon.folder / f"s{number}.log").exists)
    time.sleep(0.5)
    sizes = {path.name: path.stat().st_size for path in daemon.folder.iterdir()}
    assert max(sizes.values()) <= 20_000
    assert sum(sizes.values()) <= 100_000 + 12 * 4096


def test_chosen_services_are_kept_on_the_data_partition(daemon: Daemon) -> None:
    daemon.start()
    os.write(daemon.writer("kept", "disk"), b"hello\n")
    os.write(daemon.writer("other"), b"hello\n")
    eventually(lambda: (daemon.keep / "kept.log").exists() and "hello" in (daemon.keep / "kept.log").read_text())
    assert "hello" in (daemon.folder / "kept.log").read_text()
    assert not (daemon.keep / "other.log").exists()


def test_five_hundred_services_and_one_that_leaves(daemon: Daemon) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    fds = [daemon.writer(f"s{number}") for number in range(500)]
    daemon.start()
    for fd in fds:
        os.write(fd, b"here\n")
    eventually(lambda: all(daemon.lines(f"s{number}") == ["here"] for number in range(500)))
    os.write(fds[7], b"last words\n")
    daemon.pipes.forget("s7")
    eventually(lambda: daemon.lines("s7") == ["here", "last words"])
    os.write(daemon.writer("s8"), b"still\n")
    eventually(lambda: daemon.lines("s8") == ["here", "still"])


def test_a_pipe_switched_to_packets_ends_in_nobody_elses_log(daemon: Daemon) -> None:
    """A service may set O_DIRECT on its stdout: reads then return a packet each."""
    bad, good = daemon.writer("bad"), daemon.writer("good")
    daemon.start()
    os.set_blocking(bad, False)
    fcntl.fcntl(bad, fcntl.F_SETFL, fcntl.fcntl(bad, fcntl.F_GETFL) | os.O_DIRECT)
    for number in range(300):
        with contextlib.suppress(BlockingIOError):
            os.write(bad, b"FAKE %d\n" % number)
        os.write(good, b"good %d\n" % number)
        if number % 50 == 0:
            time.sleep(0.02)
    eventually(last_line(daemon, "good", "good 299"), 10)
    assert daemon.lines("good") == [f"good {number}" for number in range(300)]
    eventually(lambda: len(daemon.lines("bad")) > 10)


def test_a_log_file_that_vanished_is_made_again(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    daemon.start(file_size=4096)
    os.write(fd, b"x" * 3000 + b"\n")
    eventually((daemon.folder / "a.log").exists)
    (daemon.folder / "a.log").unlink()
    os.write(fd, b"y" * 3000 + b"\n" + b"z\n")
    eventually(lambda: daemon.lines("a")[-1:] == ["z"])


def test_control_characters_of_both_kinds(daemon: Daemon) -> None:
    fd = daemon.writer("a")
    daemon.start()
    os.write(fd, "a\x9b31m\x7fb\u2028c \u202eé\n".encode())
    eventually(
        lambda: (
            (daemon.folder / "a.log").exists() and (daemon.folder / "a.log").read_bytes().endswith("a?31m?b?c ?é\n".encode())
        )
    )


def test_after_a_flood_the_last_lines_are_kept(daemon: Daemon) -> None:
    """They say why it died; the count says how many are missing between."""
    fd = daemon.writer("a")
    daemon.start(rate=1000, burst=5000, file_size=1 << 24)
    script = "seq 20000; echo 'Traceback: the reason'; printf 'and no newline'; exit 3"
    subprocess.run(["sh", "-c", script], stdout=fd, check=False)
    eventually(lambda: daemon.lines("a")[-2:] == ["Traceback: the reason", "and no newline"], 10)
    lines = daemon.lines("a")
    assert lines[:5000] == [str(number) for number in range(1, 5001)]
    missing = [
        int(match[1]) for line in lines if (match := re.match(r"warning: (\d+) lines dropped: more than 1000 a second", line))
    ]
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == sorted(set(numbers)), "each once, in order"
    assert numbers[-50:] == list(range(19951, 20001))
    assert len(numbers) + sum(missing) == 20_000


def test_the_last_lines_of_a_flood_survive_the_daemons_stop_and_the_services_removal(daemon: Daemon) -> None:
    stopped, gone = daemon.writer("stopped"), daemon.writer("gone")
    daemon.start(rate=1, burst=100)
    for fd in (stopped, gone):
        subprocess.run(["sh", "-c", "seq 9000; echo the reason"], stdout=fd, check=True)
        eventually(lambda fd=fd: waiting(fd) == 0, 10)  # type: ignore[misc]
    daemon.pipes.forget("gone")
    eventually(lambda: "the reason" in daemon.lines("gone"), 10)
    daemon.stop()
    assert daemon.lines("stopped")[-2:] == ["9000", "the reason"]


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, 0x541B, b"\0" * 4), sys.byteorder)  # FIONREAD


@pytest.mark.parametrize("how", ["deleted", "renamed", "its folder deleted", "a folder mounted over"])
def test_a_log_file_comes_back_with_the_next_line(daemon: Daemon, how: str) -> None:
    fd = daemon.writer("a", "disk")
    daemon.start()
    os.write(fd, b"before\n")
    eventually(lambda: daemon.lines("a") == ["before"])
    for folder in (daemon.folder, daemon.keep):
        if how == "deleted":
            (folder / "a.log").unlink()
        elif how == "renamed":
            (folder / "a.log").rename(folder / "old")
        elif how == "its folder deleted":
            (folder / "a.log").unlink()
            folder.rmdir()
        else:
            folder.rename(folder.with_name(f"{folder.name}-below"))
            folder.mkdir()
    os.write(fd, b"after\n")
    eventually(lambda: daemon.lines("a") == ["after"])
    assert "after" in (daemon.keep / "a.log").read_text()
    if how == "renamed":
        assert "after" not in (daemon.folder / "old").read_text()


def test_a_link_in_the_place_of_a_log_is_not_followed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.keep.mkdir()
    (tmp_path / "precious").write_text("as it was")
    (daemon.keep / "a.log").symlink_to(tmp_path / "precious")
    fd = daemon.writer("a", "disk")
    daemon.start()
    os.write(fd, b"hello\n")
    eventually(lambda: daemon.lines("a") == ["hello"])
    assert (tmp_path / "precious").read_text() == "as it was"


@pytest.mark.timeout(120)
def test_hundreds_of_services_on_the_disk_under_the_usual_limit(daemon: Daemon) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    fds = [daemon.writer(f"s{number}", "disk") for number in range(450)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    for turn in range(2):
        for fd in fds:
            os.write(fd, b"%d\n" % turn)
    for folder in (daemon.folder, daemon.keep):
        eventually(lambda folder=folder: all(  # type: ignore[misc]
            (folder / f"s{number}.log").exists() and (folder / f"s{number}.log").read_text().endswith(" 1\n") for number in range(450)
        ), 30)  # fmt: skip
    assert daemon.process
    opened = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{daemon.process.pid}/fd")]
    assert sum(name.endswith(".log") for name in opened) <= 201


def test_logs_on_the_disk_are_bounded_together_too(daemon: Daemon) -> None:
    daemon.keep.mkdir()
    for number in range(20):
        (daemon.keep / f"gone{number}.log").write_bytes(b"x" * 20_000)  # of services that no table names any more
    daemon.start(file_size=20_000, total_size=100_000, rate=1e9, burst=1e9)
    fd = daemon.writer("a", "disk")
    for _ in range(40):
        os.write(fd, b"x" * 1000 + b"\n")
    eventually(lambda: sum(path.stat().st_size for path in daemon.keep.iterdir()) <= 100_000)


def test_it_says_that_it_lives_when_it_is_asked_and_at_no_other_time(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "notify"))
    ear.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    os.write(daemon.writer("noise"), b"early\n")
    daemon.start()
    eventually(last_line(daemon, "noise", "early"))
    assert daemon.process
    status = Path(f"/proc/{daemon.process.pid}/status")
    sleeps = status.read_text().partition("\nvoluntary")[2]
    ear.settimeout(1.5)
    with pytest.raises(TimeoutError):
        ear.recv(100)
    assert status.read_text().partition("\nvoluntary")[2] == sleeps, "it has not woken"
    ear.settimeout(5)
    for _ in range(3):
        daemon.pipes._ask(0.0)
        assert ear.recv(100) == b"WATCHDOG=1"
    os.write(daemon.writer("noise"), b"late\n")
    eventually(last_line(daemon, "noise", "late"))
    daemon.process.send_signal(signal.SIGSTOP)
    for _ in range(1000):
        daemon.pipes._ask(0.0)  # PID 1 does not wait for it, however often it has asked
    ear.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ear.recv(100)
    daemon.process.send_signal(signal.SIGCONT)


def test_pid_1_asks_when_somebody_prints_at_most_once_in_quiet_seconds() -> None:
    loop = Loop()
    pipes = LogPipes(loop)
    asked: list[float] = []
    pipes.on_question = asked.append
    writer, other = pipes.write_end("a", "memory", 0.0), pipes.write_end("b", "memory", 0.0)
    reader = pipes._pipes["a"][0]
    with contextlib.closing(pipes.connect()) as channel:
        loop_is_idle = loop._timeout() is None and not loop._epoll.poll(0)
        assert loop_is_idle, "nobody prints: nothing is due"
        os.write(writer, b"line\n")
        loop.turn()
        assert (len(asked), channel.recv(100)) == (1, QUESTION)
        os.write(other, b"line\n")
        assert not loop._epoll.poll(0), "whatever is printed now does not wake PID 1"
        pipes._look_again(asked[0] + QUIET - 0.1)
        assert not loop._epoll.poll(0)
        os.read(reader, 100)
        os.read(pipes._pipes["b"][0], 100)
        pipes._look_again(asked[0] + QUIET)
        assert (loop._timeout(), loop._epoll.poll(0)) == (None, []), "all of it has been read: nothing is due"
        os.write(other, b"line\n")
        loop.turn()
        assert len(asked) == 2
        held = os.dup(reader)  # as the daemon has it
        os.write(writer, b"line\n")
        pipes.forget("a")
        pipes.forget("b")
        pipes._look_again(asked[1] + QUIET)
        assert not loop._epoll.poll(0), "a service that has left the table is not looked at any more"
        os.close(held)


# --- a board ----------------------------------------------------------------------------------------------------------
def test_a_hung_logger_is_replaced_and_blocks_nobody_for_ever(boot: Callable[..., Board]) -> None:
    """Services print until their pipes are full and stand still; the watchdog ends the daemon, and nothing is lost."""
    loud = "n=0; while :; do n=$((n + 1)); echo $n; [ $((n % 500)) = 0 ] && sleep 0.05; done"
    board = boot(
        f"Service('loud', ('bash', '-c', {loud!r})),",
        base="(LOGD._replace(watchdog=3.0),)",
        settings="LOG_RATE, LOG_BURST, LOG_FILE_SIZE, LOG_TOTAL_SIZE = 10**9, 10**9, 2**24, 2**26",
    ).up()
    eventually(lambda: board.log("loud").count("\n") > 1000)
    pid = board.stats("logd")["pid"]
    os.kill(board.outside(pid), signal.SIGSTOP)
    eventually(lambda: board.stats("logd")["restart"] == 1 and board.stats("logd")["state"] == "running", 15)
    eventually(lambda: "no WATCHDOG=1 for 3 s" in board.log())
    before = board.log("loud").count("\n")
    eventually(lambda: board.log("loud").count("\n") > before + 1000)
    words = [line.split(" ", 2)[2] for line in board.log("loud").splitlines()]
    assert not [word for word in words if not word.isdigit()], "the daemon says that it lost some"
    numbers = list(map(int, words))
    assert set(range(1, max(numbers))) <= set(numbers)


def test_a_board_where_nobody_prints_wakes_neither_pid_1_nor_the_logger(boot: Callable[..., Board]) -> None:
    """A logger that hangs then does no harm, and stays; it is replaced as soon as somebody prints."""
    board = boot(
        "Service('speaker', ('sh', '-c', 'read line < /test/go; echo spoken; sleep 1000')),",
        base="(LOGD._replace(watchdog=1.5),)",
    ).up()
    os.mkfifo(board.folder / "files/go")
    os.chmod(board.folder / "files/go", 0o666)
    board.ask("restart", name="speaker")
    board.wait_state("speaker", "running")
    logd = board.outside(board.stats("logd")["pid"])

    def sleeps() -> list[str]:
        return [Path(f"/proc/{pid}/status").read_text().partition("\nvoluntary")[2].split()[1] for pid in (board.pid, logd)]

    def is_idle() -> bool:
        before = sleeps()
        time.sleep(3.0)
        return sleeps() == before

    eventually(is_idle, 30)
    os.kill(logd, signal.SIGSTOP)
    eventually(is_idle, 30)  # PID 1 is told by SIGCHLD that a child has been stopped
    assert board.stats("logd")["restart"] == 0
    (board.folder / "files/go").write_text("now\n")
    eventually(lambda: board.stats("logd")["restart"] == 1, 15)
    eventually(lambda: "spoken" in board.log("speaker"))
