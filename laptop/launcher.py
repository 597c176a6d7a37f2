"""The board on a laptop: boots stack.py as PID 1 of new namespaces, on a terminal or in the background.

The board has a root view of its own: a tmpfs with the host's /usr, /etc and the like bound read-only, its own /dev,
/proc, /run, /tmp and /var, and our modules under /stack. Nothing on the host changes, also as root: the board's root is
nobody outside (`man 7 user_namespaces`), so that not even a table that asks for it can load a module, set the clock or
write a sysctl of the kernel that it shares with the host.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable
from fcntl import ioctl

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = HERE  # and not this folder, from where Python runs us
from base.syscalls import MNT_DETACH, MOUNT_FLAGS, PR_SET_PDEATHSIG, check, libc, mount, prctl, umount  # noqa: E402

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 0x1  # the same number on every architecture

HOST_FOLDERS = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "gnu"]
NODES = ["null", "zero", "full", "random", "urandom", "tty"]
FOREIGN_ROOT, USERS = 1_900_000_000, 65536  # root of root's board, and how many users it has: ids that nobody else has
ESCAPE = b"\x1d"  # Ctrl-]: shuts the board down, whatever its console does
GRACE = 40.0  # seconds for a teardown that we asked for; its own deadlines are shorter


# --- before PID 1: namespaces and a root view ---------------------------------------------------------------------
def unshare(flags: int) -> None:
    """man 2 unshare."""
    check(libc.unshare(flags))


def map_ids(pid: int, uid: int, gid: int) -> None:
    """Say who the users of a new user namespace are.

    Root gives it a range of ids that own nothing on the host. Others are its root themselves; with /etc/subuid and
    newuidmap(1) it has other users too.
    """
    if uid == 0:
        for name in ("uid_map", "gid_map"):
            _write_map(pid, name, f"0 {FOREIGN_ROOT} {USERS}")
        return
    user = subprocess.run(["id", "-un", str(uid)], capture_output=True, text=True, check=False).stdout.strip()
    for tool, own, path in (("newuidmap", uid, "/etc/subuid"), ("newgidmap", gid, "/etc/subgid")):
        ranges = [line.split(":")[1:] for line in _lines(path) if line.split(":")[0] in (user, str(uid))]
        if not ranges or not shutil.which(tool):
            break
        first, count = ranges[0]
        subprocess.run([tool, str(pid), "0", str(own), "1", "1", first, count], check=True)
    else:
        return
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        _write_map(pid, name, text)


def _write_map(pid: int, name: str, text: str) -> None:
    with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
        file.write(text)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def enter_namespaces(map_users: Callable[[int, int, int], None] = map_ids) -> None:
    """New namespaces for this process and its next child; a helper outside writes the user namespace's maps."""
    uid, gid, me = os.getuid(), os.getgid(), os.getpid()
    go, ready = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready)
        os.read(go, 1)
        try:
            map_users(me, uid, gid)
            os._exit(0)
        finally:
            os._exit(1)
    unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    os.close(ready)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError(1, "cannot map this user into a user namespace (`man 7 user_namespaces`)")


def become_root() -> None:
    """The root of our user namespace. Until here we were the user who started us, and could open that user's files."""
    try:
        os.setgroups([])
    except OSError:
        pass  # an ordinary user's namespace may not
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


class Source:
    """A file or folder to bind into the board, opened while we still may: the board's root may not come that far."""

    def __init__(self, path: str) -> None:
        self.is_folder = os.path.isdir(path)
        self.fd = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def bind(self, target: str, *, read_only: bool = True) -> None:
        """Bind it with all that is mounted below it; nothing propagates back."""
        if self.is_folder:
            os.makedirs(target, exist_ok=True)
        elif not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{self.fd}", target, "", MOUNT_FLAGS["bind"] | MOUNT_FLAGS["rec"])
        if read_only:
            attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr
            path, flags = ctypes.c_char_p(os.fsencode(target)), ctypes.c_uint(AT_RECURSIVE)
            check(libc.syscall(ctypes.c_long(MOUNT_SETATTR), -100, path, flags, attributes, ctypes.c_size_t(32)), target)


def make_root(folders: dict[str, str], python: str, files: dict[str, bytes], devices: dict[str, str], system: str = "") -> None:
    """Become the root of a new root file system, on a tmpfs that only our mount namespace sees.

    `folders` (target: source) are bound read-only, those called "+target" writable; `files` are written; `devices`
    (name: source) are further ones for /dev. `system` is where the programs come from: empty is this machine; another
    root brings its own interpreter as /python.
    """
    mount("", "/", "", MOUNT_FLAGS["private"] | MOUNT_FLAGS["rec"])
    names = [*HOST_FOLDERS, "python"] if system else HOST_FOLDERS
    links = {name: os.readlink(f"{system}/{name}") for name in names if os.path.islink(f"{system}/{name}")}
    host = {name: f"{system}/{name}" for name in names if name not in links and os.path.isdir(f"{system}/{name}")}
    sources = {target: Source(source) for target, source in (host | folders).items()}
    sources |= {} if system else python_folders(python)
    nodes = {name: Source(path) for name, path in ({name: f"/dev/{name}" for name in NODES} | devices).items()}
    base, host_sys = os.path.realpath(python), Source("/sys")
    become_root()
    mount("board", "/tmp", "tmpfs", 0, "mode=755,size=64m")
    os.chdir("/tmp")
    for name, target in links.items():
        os.symlink(target, name)
    for name, source in sources.items():
        source.bind(name.lstrip("+"), read_only=not name.startswith("+"))
    if "python" not in sources:
        os.makedirs("python/bin")
        os.symlink(base, "python/bin/python")
    for name in ("proc", "sys", "run", "tmp", "var", "root"):
        os.makedirs(name, exist_ok=True)
    for name, text in files.items():
        with open(name, "wb") as file:
            file.write(text)
    make_dev(nodes)
    # Both must be mounted while the host's are still in sight (`man 7 mount_namespaces`, "fully visible").
    safe = MOUNT_FLAGS["nosuid"] | MOUNT_FLAGS["nodev"] | MOUNT_FLAGS["noexec"]
    mount("proc", "proc", "proc", safe)
    try:
        mount("sysfs", "sys", "sysfs", safe | MOUNT_FLAGS["ro"])
    except OSError:
        host_sys.bind("sys")
    check(libc.pivot_root(b".", b"."), "/tmp")  # the old root ends up on top of the new one...
    umount(".", MNT_DETACH)  # ...and goes
    os.chdir("/")


def python_folders(python: str) -> dict[str, Source]:
    """/python, where it is a virtual environment, and the installation that it stands on."""
    found = {}
    folder = os.path.dirname(os.path.dirname(python))
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(python)))
    if prefix != "/usr" and not prefix.startswith("/usr/"):
        found[prefix.lstrip("/")] = Source(prefix)
    if os.path.exists(f"{folder}/pyvenv.cfg"):
        found["python"] = Source(folder)
    return found


def make_dev(nodes: dict[str, Source]) -> None:
    """A /dev with nothing that reaches the host's hardware: no kmsg, no watchdog, no disks."""
    os.mkdir("dev")
    mount("dev", "dev", "tmpfs", MOUNT_FLAGS["nosuid"] | MOUNT_FLAGS["noexec"], "mode=755,size=1m")
    for name, source in nodes.items():
        source.bind(f"dev/{name}", read_only=False)
    os.mkdir("dev/pts")
    os.mkdir("dev/shm")
    os.symlink("pts/ptmx", "dev/ptmx")


def become_init(options: argparse.Namespace, console: str, words: list[str]) -> None:
    """In the first process of the new PID namespace: make the root view and become stack.py."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folders = {"stack": options.installed} | ({"test": options.files} if options.files else {})
    files = {}
    if options.profile:
        with open(options.profile, "rb") as file:
            files["profile.py"] = file.read()
    devices = {os.path.basename(path): path for path in options.device} | {"console": console}
    make_root(folders, options.python, files, devices, options.root)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # becoming another user has cleared it
    fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for target in (0, 1, 2):
        os.dup2(fd, target)
    os.closerange(3, 1024)
    base = os.path.realpath("/python/bin/python")
    os.execve(base, [base, *options.flags, *options.init, *words], {"PATH": os.defpath})


# --- around PID 1: a console, signals, an end -----------------------------------------------------------------------
class Board:
    """One boot: the process between us and PID 1, and the board's console."""

    def __init__(self, options: argparse.Namespace, words: list[str], *, interactive: bool) -> None:
        self.master, slave = pty.openpty()
        console = os.ttyname(slave)
        if os.getuid() == 0:
            os.fchown(slave, FOREIGN_ROOT, FOREIGN_ROOT)
        if interactive:
            _copy_size(self.master)
        else:
            attributes = termios.tcgetattr(slave)
            attributes[1] &= ~termios.OPOST
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
        reader, writer = os.pipe()
        self.keeper = os.fork()
        if self.keeper == 0:
            os.close(reader)
            self._keep(options, console, words, writer)
        os.close(writer)
        os.close(slave)
        self.status: int | None = None
        self.asked: float | None = None  # when somebody wanted the board to shut down
        self._reader = reader
        first = os.read(reader, 4096).decode()
        if not first.startswith("pid "):
            os.waitpid(self.keeper, 0)
            raise SystemExit(f"the board does not start: {first or 'no reason given'}")
        self.pid = int(first.split()[1])

    def _keep(self, options: argparse.Namespace, console: str, words: list[str], writer: int) -> None:
        """The parent of PID 1: tells its pid, waits for it, tells its wait status."""
        try:
            os.setsid()  # ^C on the terminal is for the board's prompt, not for us
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            enter_namespaces()
            pid = os.fork()
            if pid == 0:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                try:
                    become_init(options, console, words)
                except BaseException as error:
                    os.write(2, f"cannot make the board's root view: {error}\n".encode())
                finally:
                    os._exit(1)
            os.write(writer, f"pid {pid}\n".encode())
            os.write(writer, f"status {os.waitpid(pid, 0)[1]}\n".encode())
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)

    def ended(self) -> None:
        """The keeper has spoken: PID 1's wait status."""
        last = os.read(self._reader, 64).decode()
        self.status = int(last.split()[1]) if last.startswith("status ") else 256
        os.waitpid(self.keeper, 0)

    def signal(self, number: int) -> None:
        """Send PID 1 a signal, as the parent of its namespace."""
        os.kill(self.pid, number)

    def attend(self, *, interactive: bool, deadline: float | None, wakeup: int) -> None:
        """Carry bytes between console and terminal until the board has ended."""
        poller = select.poll()
        for fd in [self.master, self._reader, wakeup] + ([0] if interactive else []):
            poller.register(fd, select.POLLIN)
        while self.status is None:
            now = time.monotonic()
            if self.asked is None and deadline is not None and now >= deadline:
                self.asked = now
            if self.asked is not None:
                self._ask_again(now)
            due = deadline if self.asked is None else now + 1.0
            for fd, _ in poller.poll(None if due is None else max(0.0, due - now) * 1000):
                if fd == self.master:
                    _copy(self.master, 1)
                elif fd == 0 and not self._keys():
                    poller.unregister(0)
                elif fd == wakeup:
                    self._on_signals(os.read(wakeup, 64))
                elif fd == self._reader:
                    self.ended()
        while select.select([self.master], [], [], 0)[0] and _copy(self.master, 1):
            pass
        os.close(self.master)
        os.close(self._reader)

    def _ask_again(self, now: float) -> None:
        """Every second: before PID 1 has its handlers, the kernel drops what we send."""
        if self.asked is not None and now >= self.asked + GRACE:
            print(f"the board did not shut down within {GRACE:g} s; killed", file=sys.stderr)
            self.signal(signal.SIGKILL)
        else:
            self.signal(signal.SIGUSR2)

    def _keys(self) -> bool:
        """What was typed is for the console; false at its end."""
        keys = os.read(0, 65536)
        os.write(self.master, keys)
        if ESCAPE in keys:
            self.asked = self.asked or time.monotonic()
        return bool(keys)

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGWINCH in numbers:
            _copy_size(self.master)
        if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(numbers):
            self.asked = self.asked or time.monotonic()


def _copy(source: int, target: int) -> bool:
    try:
        block = os.read(source, 65536)
    except OSError:  # EIO: the last process has closed the console
        time.sleep(0.01)
        return False
    while block:
        block = block[os.write(target, block) :]
        if not block:
            return True
    return False


def _copy_size(master: int) -> None:
    if sys.stdout.isatty():
        size = ioctl(1, termios.TIOCGWINSZ, b"\0" * 8)
        ioctl(master, termios.TIOCSWINSZ, size)


def explain(status: int) -> str:
    """How a board ended that was not a clean shutdown, for people; empty for a clean one."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGINT, signal.SIGHUP):
        return ""
    return f"PID 1 ended with {'signal' if os.WIFSIGNALED(status) else 'exit status'} {os.waitstatus_to_exitcode(status)}: " \
        "a real board would have panicked"  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Boot stack.py as PID 1 of new namespaces.")
    parser.add_argument("--seconds", type=float, help="shut down after so long")
    parser.add_argument("--profile", default="", help="a file with names of settings.py, on top of the laptop's")
    parser.add_argument("--python", default=f"{HERE}/.venv/bin/python", help="the board's interpreter")
    parser.add_argument("--root", default=os.environ.get("STACK_ROOT", ""), help="a root file system to take the place of ours")
    parser.add_argument("--device", action="append", default=[], help="a device of this machine that the board may have too")
    parser.add_argument("--installed", default=f"{HERE}/build/root/stack", help="where `make install` has put the modules")
    parser.add_argument("--once", action="store_true", help="end when the board reboots; exit status 3")
    parser.add_argument("--init", nargs="+", default=["/stack/sbin/stack.py"], help="what to run as PID 1, for tests")
    parser.add_argument("--files", help="a folder that the board sees as /test")
    parser.add_argument("--pid-file", help="where to write PID 1's pid")
    parser.add_argument("--flags", default="-ESB", help="Python's flags for PID 1")
    parser.add_argument("option", nargs="*", help="words of the kernel command line: stack.debug, stack.skip=NAME")
    options = parser.parse_args(arguments)
    options.flags = options.flags.split()
    if options.seconds is not None and not 0 < options.seconds < 1e9:
        parser.error("--seconds takes a number greater than 0")
    if options.profile and not os.path.isfile(options.profile):
        parser.error(f"there is no profile {options.profile}")
    return options


def main(arguments: list[str]) -> int:
    """Boot, attend, and boot again after a reboot; exit status 0 for a clean shutdown."""
    options = parse(arguments)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and options.seconds is None
    profile = "laptop,/profile.py" if options.profile else "laptop"
    words = [f"stack.profile={profile}", f"stack.skip={'observations' if interactive else 'prompt'}", *options.option]
    wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    saved = termios.tcgetattr(0) if interactive else None
    try:
        if interactive:
            tty.setraw(0)
        while True:
            board = Board(options, words, interactive=interactive)
            if options.pid_file:
                with open(options.pid_file + ".new", "w", encoding="ascii") as file:
                    file.write(str(board.pid))
                os.rename(options.pid_file + ".new", options.pid_file)
            board.attend(interactive=interactive, deadline=deadline, wakeup=wakeup)
            status = board.status or 0
            rebooted = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGHUP
            if options.once or not rebooted:
                break
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    if complaint := explain(status):
        print(complaint, file=sys.stderr)
        return 1
    return 3 if rebooted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
