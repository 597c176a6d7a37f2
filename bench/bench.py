"""The budgets of PID 1 beside its peers, in one run: `make bench`.

Each supervisor runs as PID 1 of namespaces of its own, with 50 services that stamp their own start. Times are medians
of several rounds, taken in turn so that a busy machine hurts all alike.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # and this folder, from where it is run
import apps  # noqa: E402
import costs  # noqa: E402
import scale  # noqa: E402
from costs import memory, namespace, row  # noqa: E402

from base.syscalls import PR_SET_PDEATHSIG, mount, prctl  # noqa: E402
from laptop import namespaces  # noqa: E402
from laptop.root import make_root  # noqa: E402

BUILD = HERE.parent / "build" / "bench"
INSTALLED = HERE.parent / "build" / "root" / "stack"
STAMP = "/bench/stamp"
OUT = "/bench/out/stamps"
VENV = HERE.parent / ".venv" / "bin"


class Peer(NamedTuple):
    """How a supervisor is told about services, and how it runs and ends."""

    name: str
    program: str  # for which a missing one is skipped
    prepare: Callable[[Path, int], list[str]]  # folder of its configuration, number of services -> argv
    stop: int = signal.SIGTERM


def service(index: int) -> list[str]:
    return [STAMP, OUT, f"s{index}"]


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def stack(folder: Path, count: int) -> list[str]:
    rows = f"SERVICES = tuple(Service(f's{{i}}', ('{STAMP}', '{OUT}', f's{{i}}')) for i in range({count}))\n"
    text = "SV_COOLDOWN = 0.0\nMOUNTS = DIRECTORIES = DEVICES = MODULES = SYSCTLS = ()\n" + rows
    write(folder / "settings.py", "from tables.rows import Service\nWATCHDOG = ''\n" + text)
    # A copy of the interpreter: its pages must not count as shared with those of the bench itself.
    shutil.copy(os.path.realpath("/usr/bin/python3"), folder / "python3")
    return ["/bench/conf/python3", "-ESB", "/stack/sbin/stack.py", "stack.profile=/bench/conf/settings.py"]


def busybox(folder: Path, count: int) -> list[str]:
    write(folder / "inittab", "".join(f"::respawn:{' '.join(service(index))}\n" for index in range(count)))
    return [shutil.which("busybox") or "", "init"]


def run_scripts(folder: Path, count: int) -> None:
    for index in range(count):
        write(folder / f"s{index}" / "run", f"#!/bin/sh\nexec {' '.join(service(index))}\n", 0o755)


def runit(folder: Path, count: int) -> list[str]:
    run_scripts(folder, count)
    return ["/usr/bin/runsvdir", "/bench/conf"]


def s6(folder: Path, count: int) -> list[str]:
    run_scripts(folder, count)
    return ["/usr/bin/s6-svscan", "/bench/conf"]


def dinit(folder: Path, count: int) -> list[str]:
    """It smoothly recovers a service that has died (dinit-service(5)), up to three times in ten seconds."""
    write(folder / "boot", "type = internal\n" + "".join(f"waits-for = s{index}\n" for index in range(count)))
    for index in range(count):
        write(
            folder / f"s{index}",
            f"type = process\ncommand = {' '.join(service(index))}\nsmooth-recovery = yes\nrestart-delay = 0\n",
        )
    shutil.copy(shutil.which("dinit") or "", folder.parent / "dinit")  # a build of one's own may lie anywhere
    return ["/bench/dinit", "--system-mgr", "--services-dir", "/bench/conf", "--quiet"]


def supervisord(folder: Path, count: int) -> list[str]:
    text = "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile=/tmp/supervisord.pid\nuser=root\n"
    for index in range(count):
        text += f"[program:s{index}]\ncommand={' '.join(service(index))}\nautorestart=true\n"
        text += "stdout_logfile=NONE\nstderr_logfile=NONE\n"
    write(folder / "supervisord.conf", text)
    return ["/python/bin/python", "/python/bin/supervisord", "-c", "/bench/conf/supervisord.conf"]


def circus(folder: Path, count: int) -> list[str]:
    text = "[circus]\ncheck_delay=1\nendpoint=ipc:///tmp/c1\npubsub_endpoint=ipc:///tmp/c2\nstats_endpoint=ipc:///tmp/c3\n"
    for index in range(count):
        text += f"[watcher:s{index}]\ncmd={' '.join(service(index))}\ncopy_env=True\nsingleton=True\n"
    write(folder / "circus.ini", text)
    return ["/python/bin/python", "/python/bin/circusd", "/bench/conf/circus.ini"]


PEERS = (
    Peer("stack", "/usr/bin/python3", stack, signal.SIGUSR1),
    Peer("busybox init", "busybox", busybox, signal.SIGUSR1),
    Peer("runit", "runsvdir", runit, signal.SIGHUP),
    Peer("s6", "s6-svscan", s6),
    Peer("dinit", "dinit", dinit, signal.SIGTERM),
    Peer("circus", str(VENV / "circusd"), circus),
    Peer("supervisord", str(VENV / "supervisord"), supervisord),
)


class Run:
    """One supervisor, running as PID 1."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self.out = folder / "out" / "stamps"
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir(parents=True)
        (folder / "out").chmod(0o777)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.keeper = os.fork()
        if self.keeper == 0:
            self._keep(argv, folder, writer)
        os.close(writer)
        with os.fdopen(reader) as file:
            words = file.read().split()
        if len(words) != 2:
            raise SystemExit(f"{argv[0]} did not start: {' '.join(words)}")
        self.pid, self.started = int(words[0]), int(words[1])

    def _keep(self, argv: list[str], folder: Path, writer: int) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        namespaces.enter_namespaces()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(argv, folder, writer, os.readlink("/proc/self"))
            finally:
                os._exit(1)
        os.close(writer)
        os.waitpid(pid, 0)
        os._exit(0)

    def _become(self, argv: list[str], folder: Path, writer: int, outside: str) -> None:
        inittab = folder / "conf" / "inittab"
        files = {"inittab": inittab.read_bytes()} if inittab.exists() else {}
        make_root({"stack": str(INSTALLED), "+bench": str(folder)}, str(VENV / "python"), files, {})
        if files:  # busybox has one place for it
            users = {name: Path("/etc", name).read_bytes() for name in ("passwd", "group", "ld.so.cache")}
            mount("etc", "/etc", "tmpfs", 0, "")
            for name, text in (users | files).items():
                Path("/etc", name).write_bytes(text)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.environ.clear()
        os.environ.update({"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"})
        os.write(writer, f"{outside} {time.monotonic_ns()}".encode())
        os.execv(argv[0], argv)

    def stamps(self) -> list[tuple[str, int, int]]:
        """Name, ns since exec, pid inside the namespace."""
        if not self.out.exists():
            return []
        rows = [line.split() for line in self.out.read_text().splitlines()]
        return [(name, int(when) - self.started, int(pid)) for name, when, pid in rows]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[tuple[str, int, int]]:
        deadline = time.monotonic() + seconds
        while len(rows := self.stamps()) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {len(rows)} of {count} stamps after {seconds:g} s")
            time.sleep(0.005)
        return rows

    def end(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.keeper, 0)


def prepare(peer: Peer, count: int) -> tuple[list[str], Path]:
    folder = BUILD / "peers" / peer.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "conf").mkdir(parents=True)
    for program in ("stamp", "orphans", "reaper"):
        shutil.copy(BUILD / program, folder / program)
    argv = peer.prepare(folder / "conf", count)
    if os.getuid() == 0:  # some write beside their configuration
        for path in (folder / "conf").rglob("*"):
            os.chown(path, namespaces.FOREIGN_ROOT, namespaces.FOREIGN_ROOT)
        os.chown(folder / "conf", namespaces.FOREIGN_ROOT, namespaces.FOREIGN_ROOT)
    return argv, folder


def switches(pids: list[int]) -> int:
    """Times that these processes went to sleep."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("voluntary_ctxt") else 0
    return total


def measure(peer: Peer, count: int, *, idle: float = 0.0) -> dict[str, float]:
    """One life of a supervisor with `count` services: start, restart, memory, idle, stop. Times in ms."""
    argv, folder = prepare(peer, count)
    run = Run(argv, folder)
    try:
        starts = [when / 1e6 for _, when, _ in run.wait_for(count)]
        result = {"first": min(starts), "all": max(starts)}
        time.sleep(1.3)  # s6 and runit wait a second before they start again what has just started
        tree = namespace(run.pid)
        own = [pid for pid, comm in tree.items() if comm != "stamp"]
        services = [pid for pid, comm in tree.items() if comm == "stamp"]
        result |= {"PSS": memory(own, "Pss"), "RSS": memory(own, "Rss"), "processes": len(own)}
        if idle:
            before = switches(own)
            time.sleep(idle)
            result["wake-ups/s"] = (switches(own) - before) / idle
        killed = time.monotonic_ns() - run.started
        os.kill(services[0], signal.SIGKILL)
        result["restart"] = (run.wait_for(count + 1)[-1][1] - killed) / 1e6
        result["stop"] = stop_time(run, peer)
        return result
    finally:
        run.end()


def stop_time(run: Run, peer: Peer) -> float:
    """From the signal to the death of the last service, in ms."""
    poller = select.poll()
    waiting = 0
    for pid in [pid for pid, comm in namespace(run.pid).items() if comm == "stamp"]:
        poller.register(os.pidfd_open(pid), select.POLLIN)
        waiting += 1
    started = time.monotonic()
    os.kill(run.pid, peer.stop)
    while waiting and time.monotonic() < started + 30:
        for fd, _ in poller.poll(30_000):
            poller.unregister(fd)
            os.close(fd)
            waiting -= 1
    return (time.monotonic() - started) * 1e3


def orphans(argv: list[str], folder: Path) -> float:
    """Median ms from the death of 1,000 orphans to the last one reaped."""
    run = Run(argv, folder)
    try:
        return statistics.median(int(when) + run.started for _, when, _ in run.wait_for(11, 60)) / 1e6
    finally:
        run.end()


def stack_orphans(folder: Path, _: int) -> list[str]:
    argv = stack(folder, 0)
    row = f"SERVICES = (Service('orphans', ('/bench/orphans', '{OUT}', '1000')),)\n"
    write(folder / "settings.py", (folder / "settings.py").read_text() + row)
    return argv


def c_orphans(_: Path, __: int) -> list[str]:
    return ["/bench/reaper", "/bench/orphans", OUT, "1000"]


def compare(rounds: int) -> None:
    there = [peer for peer in PEERS if shutil.which(peer.program)]
    if missing := [peer.name for peer in PEERS if peer not in there]:
        print(f"not here: {', '.join(missing)}")
    results: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in there}
    for number in range(rounds):
        for peer in there:
            results[peer.name].append(measure(peer, 50, idle=0 if number else 10.0))
    print(f"\n50 services, median of {rounds} rounds")
    columns = ("first", "all", "restart", "stop", "PSS", "RSS", "processes", "wake-ups/s")
    units = ("first ms", "all ms", "restart ms", "stop ms", "PSS MiB", "RSS MiB", "processes", "idle wake/s")
    row("", list(units))
    for name, rows in results.items():
        row(name, [f"{statistics.median(r[c] for r in rows if c in r):.1f}" for c in columns])


def linear(rounds: int) -> None:
    print("\nstack, by number of services")
    row("", ["first ms", "all ms", "ms/service", "PSS MiB", "stop ms"])
    for count in (1, 50, 500):
        rows = [measure(PEERS[0], count) for _ in range(rounds)]
        mid = {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        row(
            str(count),
            [
                f"{mid['first']:.1f}",
                f"{mid['all']:.1f}",
                f"{mid['all'] / count:.2f}",
                f"{mid['PSS']:.1f}",
                f"{mid['stop']:.1f}",
            ],
        )


def reaping() -> None:
    ours = orphans(*prepare(Peer("stack", "", stack_orphans), 0))
    theirs = orphans(*prepare(Peer("reaper", "", c_orphans), 0))
    print(f"\n1,000 orphans dying at once: {ours:.1f} ms until the last is reaped; in C {theirs:.1f} ms ({ours / theirs:.2f}x)")


def at_scale() -> None:
    def start(count: int) -> tuple[Run, Path]:
        argv, folder = prepare(PEERS[0], count)
        return Run(argv, folder), folder

    scale.many(start, switches)
    scale.again(start)
    scale.at_once(lambda profile, script, seconds: apps.board(BUILD, VENV, profile, seconds, script))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("compare", "linear", "reaping", "imports", "board", "scale"))
    parser.add_argument("--before", default=costs.BEFORE, help="the commit whose import is measured beside ours")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    for program in ("stamp", "orphans", "reaper"):
        subprocess.run(["cc", "-O2", "-o", BUILD / program, HERE / f"{program}.c"], check=True)
    parts: dict[str, Callable[[], None]] = {
        "imports": lambda: costs.imports(BUILD, 8 * options.rounds, options.before), "compare": lambda: compare(options.rounds),
        "linear": lambda: linear(max(1, options.rounds // 2)), "reaping": reaping,
        "board": lambda: apps.measure(BUILD, VENV), "scale": at_scale,
    }  # fmt: skip
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
