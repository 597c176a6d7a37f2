"""Boot and teardown as transcripts of system calls, recorded; the real ones are in test_init.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import _log
import stack
from base import stdlib, syscalls
from base.syscalls import Reboot
from onboard import clock, mounts
from pid1 import rescue, teardown
from pid1.options import kernel_words, parse_options
from tables.load import load
from tables.rows import Mount
from tables.tables import Tables

TABLE = """
MOUNTS = (
    Mount("proc", "/proc", "proc", "nosuid,nodev,noexec"),
    Mount("run", "/run", "tmpfs", "nosuid,nodev,mode=755,size=10%"),
    Mount("", "/", "", "remount,ro", required=False),
    Mount("/dev/mmcblk0p3", "/var", "ext4", "nosuid,noatime", required=False),
    Mount("/run", "/var/run", "", "bind,ro", required=False),
)
DIRECTORIES = (Directory("/run/bus", 0o750, "nobody"),)
DEVICES = (Device("/dev/fd7", "link", target="/proc/self/fd"), Device("/dev/null7", "c", 1, 3, 0o666))
SYSCTLS = (("kernel.panic", "10"),)
HOSTNAME = "golden"
WATCHDOG = ""
SERVICES = ()
"""

BOOT = """\
reboot CAD_OFF
mount proc /proc proc nosuid,nodev,noexec
mount run /run tmpfs nosuid,nodev mode=755,size=10%
mount - / - ro,remount
mount /dev/mmcblk0p3 /var ext4 nosuid,noatime
mount /run /var/run - ro,bind
mount - /var/run - ro,remount,bind
mkdir /dev
symlink /proc/self/fd /dev/fd7
mkdir /dev
mknod /dev/null7 020666 1:3
chmod /dev/null7 666
mkdir /run/log
own /run/log 755 0 0
mkdir /run/bus
own /run/bus 750 65534 65534
write /proc/sys/kernel/panic 10
sethostname golden
up lo
"""

TEARDOWN = """\
kill -1 SIGTERM
kill -1 SIGCONT
kill -1 SIGKILL
kill -1 SIGCONT
sync
umount /var/run
umount /var
umount /run
mount - / - ro,remount
sync
reboot poweroff
"""


class Recorder:
    """Takes the place of the calls that would change this machine, and writes them down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.fail: dict[str, OSError] = {}
        self.mounts = ["/", "/proc", "/run", "/var", "/var/run"]
        self.in_memory = False
        self.swaps: list[str] = []
        self.loops: list[str] = []
        monkeypatch.setattr(stack, "interface_up", self.note("up"))
        monkeypatch.setattr(clock, "boot", lambda: "")
        monkeypatch.setattr(teardown, "umount", self.umount)
        monkeypatch.setattr(teardown, "swapoff", self.note("swapoff"))
        monkeypatch.setattr(teardown, "loop_detach", self.loop_detach)
        monkeypatch.setattr(teardown, "swaps", lambda: self.swaps)
        monkeypatch.setattr(teardown, "loops", lambda: self.loops)
        for module in (stack, mounts, teardown):
            monkeypatch.setattr(module, "mount", self.mount)
        for ends in (stack, teardown):
            monkeypatch.setattr(ends, "reboot", self.reboot)
        monkeypatch.setattr(teardown, "mounted", lambda: [("x", at) for at in self.mounts])
        monkeypatch.setattr(teardown, "nothing_to_write", lambda: self.in_memory)
        monkeypatch.setattr(mounts, "write_file", self.note("write"))
        monkeypatch.setattr(stdlib.socket, "sethostname", self.note("sethostname"))
        for name in ("symlink", "sync"):
            monkeypatch.setattr(os, name, self.note(name))
        monkeypatch.setattr(mounts, "shows_us", lambda _: False)
        monkeypatch.setattr(mounts, "set_owner", lambda path, mode, uid, gid: self.note("own")(path, f"{mode:o}", uid, gid))
        monkeypatch.setattr(teardown, "bounded", self.bounded)
        monkeypatch.setattr(os, "makedirs", lambda path, exist_ok=False: path in self.mounts or self.note("mkdir")(path))
        monkeypatch.setattr(os, "chmod", lambda path, mode: self.note("chmod")(path, f"{mode:o}"))
        monkeypatch.setattr(os, "mknod", lambda p, m, d: self.note("mknod")(p, f"0{m:o}", f"{os.major(d)}:{os.minor(d)}"))

    def note(self, what: str) -> Callable[..., None]:
        return lambda *arguments: self.lines.append(" ".join([what, *map(str, arguments)]))

    def mount(self, source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
        names = ",".join(name for name, bit in syscalls.MOUNT_FLAGS.items() if flags & bit)
        self.lines.append(f"mount {source or '-'} {target} {fstype or '-'} {names} {data}".strip())
        if target in self.fail:
            raise self.fail[target]

    def umount(self, target: str, flags: int = 0) -> None:
        self.lines.append(f"umount {target}{' lazily' if flags == syscalls.MNT_DETACH else ''}")
        if target in self.fail and not flags:
            raise self.fail[target]
        self.mounts.remove(target)

    def loop_detach(self, path: str) -> None:
        """A file on /var."""
        self.lines.append(f"detach {path}")
        self.loops.clear()
        self.fail.pop("/var", None)

    def reboot(self, command: int) -> None:
        self.lines.append(f"reboot {Reboot.NAMES.get(command, 'CAD_OFF')}")

    def bounded(self, deadline: float, what: str, step: Callable[..., object], *arguments: object, **_: object) -> int:
        """Without the child that takes the risk."""
        return teardown.attempt(step, *arguments)

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stack.Init:
    profile = tmp_path / "golden.py"
    profile.write_text(TABLE)
    monkeypatch.setattr(stack.Init, "open_log", lambda self: None)
    monkeypatch.setattr(stack.Init, "open_kmsg", lambda self: None)
    monkeypatch.setattr(stack.Init, "set_defaults", lambda self: None)
    monkeypatch.setattr(stack.Init, "catch_signals", lambda self: None)
    monkeypatch.setattr(stack.Init, "open_control", lambda self: None)
    monkeypatch.setattr(stack.Init, "write_table", lambda self: None)
    monkeypatch.setattr(rescue.Rescue, "open", lambda self, reason, now: None)
    return stack.Init([f"stack.profile={profile}"])


def test_boot(init: stack.Init, recorder: Recorder) -> None:
    init.boot()
    assert init.faults == []
    assert recorder.text == BOOT


def test_what_is_mounted_already_is_fine_and_what_fails_is_named(init: stack.Init, recorder: Recorder) -> None:
    recorder.fail = {"/proc": OSError(16, "Device or resource busy"), "/run": OSError(19, "No such device"),
                     "/var": OSError(6, "No such device or address")}  # fmt: skip
    init.boot()
    assert init.faults == ["mount run on /run: No such device"], "best effort ones are warnings"
    assert init.incomplete
    again = "mount - /proc - nosuid,nodev,noexec,remount\n"
    assert again in recorder.text, "what is there gets the flags of its row"
    assert recorder.text.replace(again, "") == BOOT, "and everything else is done all the same"


def test_teardown(init: stack.Init, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    init.boot()
    recorder.lines.clear()
    monkeypatch.setattr(os, "kill", lambda pid, number: recorder.lines.append(f"kill {pid} {signal.Signals(number).name}"))
    monkeypatch.setattr(teardown, "wait_for_children", lambda seconds, meanwhile=None: False)
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    teardown.tear_down(Reboot.POWER_OFF, init.tables)
    assert recorder.text == TEARDOWN


def test_in_a_namespace_the_super_blocks_are_left_alone(
    init: stack.Init, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    init.boot()
    recorder.lines.clear()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    teardown.close_disks(10.0)
    assert recorder.text == "umount /var/run\numount /var\numount /run\n"


def test_where_all_is_in_memory_or_read_only_a_sync_is_enough(
    init: stack.Init, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    init.boot()
    recorder.lines.clear()
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.in_memory = True
    teardown.close_disks(10.0)
    assert recorder.text == "sync\n", "a device may have been written without a file system"


@pytest.mark.parametrize(
    ("row", "nothing"),
    [
        ("30 1 0:26 / /run rw,nosuid shared:5 - tmpfs run rw,size=1k", True),
        ("31 1 254:1 / /mnt ro - ext4 /dev/vdb ro", True),
        ("32 1 254:1 / /mnt ro - ext4 /dev/vdb rw,errors=ro", False),  # a read-only bind of what is writable elsewhere
        ("33 1 254:2 / /var rw - vfat /dev/vdc rw", False),
        ("34 1 0:40 / /mnt rw - fuse.x x rw", False),
        ("garbage", False),
    ],
)
def test_which_file_systems_have_nothing_to_write(tmp_path: Path, row: str, nothing: bool) -> None:
    root = "1 0 254:0 / / ro,relatime - ext4 /dev/vda ro"
    (tmp_path / "mountinfo").write_text(f"{root}\n{row}\n")
    assert teardown.nothing_to_write(str(tmp_path / "mountinfo")) is nothing
    assert not teardown.nothing_to_write(str(tmp_path / "none"))


def test_a_busy_mount_that_was_covered_and_a_busy_loop_device_end_the_unmounting(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An initramfs has mounted /run before us: of two mounts of one name one goes and one stays, once and not for ever."""
    recorder.mounts = ["/", "/run", "/run", "/var"]
    answers = {"/run": [0, 16, 16], "/var": [16, 16, 16]}

    def do(what: str, step: object, path: str) -> int:
        recorder.lines.append(what)
        assert len(recorder.lines) < 20, "it does not end"
        return answers[path].pop(0) if path in answers else 0

    monkeypatch.setattr(teardown, "loops", lambda: ["loop0"])  # LOOP_CLR_FD of one in use: 0, and it is still there
    teardown.unmount_all(do, True)
    first = ["umount /var", "umount /run", "umount /run", "detach /dev/loop0"]
    assert recorder.lines == [*first, "umount /var", "umount /run"]


def test_a_file_system_that_stays_busy_ends_read_only(
    init: stack.Init, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    init.boot()
    recorder.lines.clear()
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.fail = {"/var": OSError(16, "busy")}
    monkeypatch.setattr(teardown, "mount", lambda *a: recorder.note("mount")(a[1], a[3]))
    teardown.close_disks(10.0)
    flags = syscalls.MOUNT_FLAGS["remount"] | syscalls.MOUNT_FLAGS["ro"]
    assert recorder.lines[-3:] == [f"mount /var {flags}", f"mount / {flags}", "sync"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of PID 1."""
    lines: list[str] = []
    monkeypatch.setattr(_log, "warning", lines.append)
    return lines


def test_what_stays_writable_is_said_and_unmounted_lazily(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """A stick that somebody has mounted by hand too: it is in no table."""
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.mounts = ["/", "/stick"]
    recorder.fail = {"/stick": OSError(16, "busy")}
    teardown.close_disks(10.0)
    assert recorder.text == (
        "sync\numount /stick\nmount - /stick - ro,remount\numount /stick lazily\nmount - / - ro,remount\nsync\n"
    )
    assert [line.partition(" ")[0] for line in said] == ["/stick"]
    assert said[0].endswith(f"remount read-only: {os.strerror(16)}")


def test_swap_and_loop_devices_are_let_go_and_what_they_held_is_unmounted(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """/var holds the file of a loop device, on which /mnt is; the first umount of /var is busy, the second one is not."""
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.mounts, recorder.swaps, recorder.loops = ["/", "/var", "/mnt"], ["/var/swap"], ["loop0"]
    recorder.fail = {"/var": OSError(16, "busy")}
    teardown.close_disks(10.0)
    assert recorder.text == (
        "sync\nswapoff /var/swap\numount /mnt\numount /var\ndetach /dev/loop0\numount /var\nmount - / - ro,remount\nsync\n"
    )
    assert said == []


def test_what_the_kernel_swaps_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "swaps").write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t1024\t\t0\t\t100\n"
        "/var/swap\\040file                      file\t\t65532\t\t0\t\t-2\n"
    )
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: real(tmp_path / "swaps", *a, **k))
    assert teardown.swaps() == ["/var/swap file", "/dev/zram0"]


def no_fork() -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def no_memory() -> int:
    raise MemoryError


@pytest.mark.parametrize("fork", [no_fork, no_memory])
def test_the_disks_are_closed_without_a_new_process(
    monkeypatch: pytest.MonkeyPatch, said: list[str], fork: Callable[[], int]
) -> None:
    bounded = teardown.bounded
    recorder = Recorder(monkeypatch)
    monkeypatch.setattr(teardown, "bounded", bounded)
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.mounts = ["/", "/var"]
    teardown.close_disks(10.0)
    assert recorder.text == "sync\numount /var\nmount - / - ro,remount\nsync\n"
    assert said[0].startswith("sync: by PID 1 itself, for there is no new process: ")


def test_a_child_that_the_kernel_kills_has_not_done_it() -> None:
    """Out of memory: PID 1, which the kernel spares, does it then."""
    parent, done = os.getpid(), []

    def step() -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)

    assert teardown.bounded(time.monotonic() + 5, "remount", step) == 0
    assert done == [1]


def test_a_child_says_what_the_kernel_refused() -> None:
    assert teardown.bounded(time.monotonic() + 5, "rmdir", os.rmdir, "/proc") in (16, 30)  # 30: the root is read-only


def test_the_least_that_is_done_at_an_end(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """tear_down itself has failed. In a namespace the disks are somebody else's."""
    monkeypatch.setattr(os, "readlink", lambda path: teardown.INITIAL_PID_NAMESPACE)
    recorder.fail = {"/": OSError(16, "busy")}
    teardown.at_least(Reboot.HALT)
    assert recorder.text == "sync\nmount - / - ro,remount\nreboot halt\n"
    recorder.lines.clear()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    teardown.at_least(Reboot.RESTART)
    assert recorder.text == "reboot reboot\n"


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ("", 0, ""), ("defaults", 0, ""), ("ro,nosuid,nodev,noexec", 1 | 2 | 4 | 8, ""), ("ro,rw", 0, ""),
        ("nosuid,rw,mode=755", 2, "mode=755"), ("bind,ro", 4097, ""), ("noatime,errors=remount-ro,commit=5", 1024, "errors=remount-ro,commit=5"),
    ],
)  # fmt: skip
def test_mount_options(options: str, flags: int, data: str) -> None:
    """ "rw" must clear ro alone: a peer's did `flags &= MS_RDONLY` and so lost noexec and nosuid."""
    assert syscalls.mount_options(options) == (flags, data)


def test_options_of_the_kernel_command_line() -> None:
    words = [
        "root=/dev/mmcblk0p2",
        "stack.debug",
        "stack.profile=prod",
        "quiet",
        "stack.skip=a,b",
        "stack.profile=lab",
        "stack.skip=c",
    ]
    assert parse_options(words) == {"stack.debug": "1", "stack.profile": "lab", "stack.skip": "a,b,c"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quiet stack.debug\n", ["quiet", "stack.debug"]), ('stack.skip="klogd,syslogd" ro', ["stack.skip=klogd,syslogd", "ro"]),
        ('"stack.skip=a, b" ro', ["stack.skip=a, b", "ro"]), ('stack.profile="a b', ["stack.profile=a b"]),
        ('dyndbg="func f +p; single 1" x', ["dyndbg=func f +p; single 1", "x"]), ('"single"', ["single"]), ('a=b"c d"', ['a=b"c d"']),
        ("ro -- single stack.debug", ["ro"]), ('ro "--" x', ["ro"]), ("a--b --c", ["a--b", "--c"]), ("\t ro \n", ["ro"]), ("", []), ('""', [""]),
    ],
)  # fmt: skip
def test_words_as_the_kernel_reads_them(text: str, words: list[str]) -> None:
    """lib/cmdline.c, next_arg(), and parse_args(), which gives what follows `--` to init."""
    assert kernel_words(text) == words


@pytest.mark.parametrize("word", ["single", "rescue", "emergency", "1", "S", "s", "stack.rescue"])
def test_the_usual_words_for_a_rescue(word: str) -> None:
    assert parse_options(["ro", word]) == {"stack.rescue": "1"}
    assert parse_options([f"x{word}", f"{word.partition('.')[0]}=1"]) == {}


def test_an_unknown_name_in_stack_skip_is_said(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text("SERVICES = (Service('one', ('true',)), Service('two@', ('true',)), Service('bad', 'x'))")
    tables = load({"stack.profile": str(profile), "stack.skip": "one,two@,bad,klogd,ome"})
    assert [text for text in tables.rejected if "skip" in text] == [
        "stack.skip names 'ome', which is no service; did you mean one?"
    ], "klogd is one of settings.py's, which this profile leaves out"
    assert list(tables.services) == []


def test_reboot_commands_and_signals_come_from_one_table() -> None:
    """linux/reboot.h and busybox; a predecessor had halt and reboot swapped."""
    assert (Reboot.RESTART, Reboot.HALT, Reboot.POWER_OFF) == (0x01234567, 0xCDEF0123, 0x4321FEDC)
    assert stack.ON_SIGNAL == {
        signal.SIGTERM: Reboot.RESTART, signal.SIGINT: Reboot.RESTART, signal.SIGUSR1: Reboot.HALT, signal.SIGUSR2: Reboot.POWER_OFF,
    }  # fmt: skip


def test_mount_points_with_white_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("a / x rw 0 0\nb /with\\040space x rw 0 0\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: real(tmp_path / "mounts", *a, **k))
    assert teardown.mount_points() == ["/with space", "/"]
    assert mounts.mounted() == [("a", "/"), ("b", "/with space")]
    (tmp_path / "mounts").write_text("/dev/null /media/my\\040stick vfat rw 0 0\n")
    assert mounts.mounted_at("/dev/null") == "/media/my stick", "bootfiles reads what is there already"


def run(*arguments: str) -> Any:
    command = [sys.executable, "-ESB", str(ROOT / "stack.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_anything_but_pid_1_is_refused() -> None:
    done = run()
    assert done.returncode == 2
    assert "runs only as PID 1" in done.stderr


def test_plan(tmp_path: Path) -> None:
    done = run("--plan")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("mount     /proc ") for line in lines)
    assert any(line.startswith("service   diagnostic ") for line in lines)
    assert not any(line.startswith("service   fakegps ") for line in lines), "an invented position is not for a mast"
    assert "after broker (/run/bus/mqtt.sock)" in done.stdout
    bad = tmp_path / "bad.py"
    bad.write_text("SERVICES = (Service('a', 'x y'), Service('b', ('true',), ('zz',)), Service('c', ('true',)))")
    done = run("--plan", f"stack.profile={bad}")
    assert done.returncode == 1
    assert done.stderr.count("rejected  SERVICES") == 2
    assert "service   c" in done.stdout


def test_the_plan_is_in_start_order(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text("SERVICES = (Service('late', ('true',), ('early',)), Service('early', ('true',)))")
    lines = [
        line.split()[1] for line in run("--plan", f"stack.profile={profile}").stdout.splitlines() if line.startswith("service")
    ]
    assert lines == ["early", "late"]


def test_tables_of_the_fallback_are_enough_for_a_rescue_prompt() -> None:
    board = Tables()
    row = board.rescue
    assert row.argv[2].endswith("/prompt/console.py")
    assert all(isinstance(mount, Mount) for mount in board.MOUNTS)


def test_a_system_call_that_hangs_at_the_end_does_not_stop_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "PATIENCE", 0.2)
    started = time.monotonic()
    assert teardown.bounded(started + 0.1, "umount /mnt/dead", time.sleep, 3) == teardown.HANGS
    assert 0.2 <= time.monotonic() - started < 2
    started = time.monotonic()
    teardown.bounded(started + 10, "quick", time.sleep, 0)
    assert time.monotonic() - started < 2


def test_an_owner_is_not_set_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(OSError, match="Not a directory"):
        mounts.set_owner(str(tmp_path / "link"), 0o777, -1, -1)


def test_a_remount_that_is_busy_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(mounts, "mount", busy)
    mounts.mount_row(Mount("dev", "/dev", "devtmpfs"))
    with pytest.raises(OSError, match="busy"):
        mounts.mount_row(Mount("", "/", "", "remount,ro"))


def test_what_is_mounted_already_gets_the_flags_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel mounts /dev before PID 1, with flags of its own; a second /proc would be mounted over ours."""
    calls: list[tuple[object, ...]] = []

    def mount(*arguments: object) -> None:
        calls.append(arguments)
        if arguments[0] == "dev":
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(mounts, "mount", mount)
    mounts.mount_row(Mount("dev", "/dev", "devtmpfs", "nosuid,mode=755"))
    assert calls == [("dev", "/dev", "devtmpfs", 2, "mode=755"), ("", "/dev", "", 2 | 32, "mode=755")]
    calls.clear()
    mounts.mount_row(Mount("proc", "/proc", "proc", "nosuid,nodev,noexec"))
    assert calls == [("", "/proc", "", 2 | 4 | 8 | 32, "")], "it is there: one mount, with our flags"
    monkeypatch.setattr(os, "getpid", lambda: 1)
    calls.clear()
    mounts.mount_row(Mount("proc", "/proc", "proc"))
    assert calls == [("proc", "/proc", "proc", 0, "")], "another PID namespace's is none"


def test_a_sysctl_that_is_so_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kernel.printk_devkmsg, where the command line has set it, takes no word any more."""
    locked = tmp_path / "printk"
    locked.write_text("4\t4\t1\t7\n")
    real = open

    def refuse(path: str, mode: str = "r", **options: object) -> object:
        if "w" in mode:
            raise OSError(22, "Invalid argument")
        return real(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    mounts.write_file(str(locked), "4 4 1 7")
    with pytest.raises(OSError, match="Invalid"):
        mounts.write_file(str(locked), "4 4 1 8")


def test_a_sysctl_is_a_whole_line(tmp_path: Path) -> None:
    """kernel.printk_devkmsg answers EINVAL to "on" without the end of its line."""
    mounts.write_file(str(tmp_path / "printk_devkmsg"), "on")
    assert (tmp_path / "printk_devkmsg").read_bytes() == b"on\n"


def test_the_budget_of_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s for services, twice 2 s for what is left, 10 s to sync, three times 2 s for each mount, 12 s for the rest."""
    tables = Tables()
    tables.values |= {"SHUTDOWN_TIMEOUT": 20.0, "KILL_TIMEOUT": 2.0, "SYNC_TIMEOUT": 10.0}
    for count, seconds in ((0, 46.0), (1, 52.0), (3, 64.0)):
        monkeypatch.setattr(teardown, "file_systems", lambda count=count: ["/"] * count)
        assert teardown.budget(tables) == seconds
