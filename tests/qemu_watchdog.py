"""Boards that hang, panic, fail, and are cut off; and what the next boot knows of it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, machines
from qemu_exits import HUNG

Start = Callable[..., Any]
TIMEOUT = 6.0  # the dog's
MARGIN = 4.0  # for an emulator on a busy machine
ESB = ("-device", "i6300esb")
RAMOOPS = "memmap=1M$0x1e000000 ramoops.mem_address=0x1e000000 ramoops.mem_size=0x100000 ramoops.record_size=0x10000"

PROFILE = f"""
WATCHDOG_TIMEOUT = {TIMEOUT}
MODULES = ("i6300esb", "ramoops", "fuse")
SYSCTLS = (*SYSCTLS, ("kernel.panic", "1"))
away = ("/var", "/var/run", "/var/tmp", "/tmp", "/run/log", "/run/bus", "/run/wifi_scan")  # each adds to a shutdown's budget
MOUNTS = tuple(row for row in MOUNTS if row.target not in away)
MOUNTS += (Mount("/dev/vdb", "/var", "ext4", "nosuid,nodev,noatime"),)  # the data partition
SHUTDOWN_TIMEOUT, KILL_TIMEOUT, SYNC_TIMEOUT = 3.0, 0.5, 2.0
CRITICAL_FAILURES, CRITICAL_WINDOW = 3, 200.0
SERVICES = (
    *(row for row in SERVICES if row.name in ("modules", "logd", "keeper")),
    Service("frail", ("sh", "-c", "[ -e /run/frail ] && exit 1; exec sleep 1000"), critical=True),
    Service("life", ("/sbin/life",), after=("keeper",), tty="{{CONSOLE}}"),
)
"""
# Says what is known of the last life, and does what the test types.
LIFE = """#!/usr/bin/python3
import json, os, sys, time
sys.path.insert(0, "/usr/lib/stack")
from onboard import to_pid1
from sv import *
print("life", json.dumps(json.load(open("/run/stack/boot.json"))), flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
# PID 1 with a few more operations, by which it hangs.
HANGING = """#!/usr/bin/python3 -ESB
import gc, os, sys, time
gc.disable()
sys.path.insert(0, "/usr/lib/stack")
import stack
from pid1.requests import Requests
def turn_for_ever():
    while True: pass
def wait_for_a_dead_disk(): os.stat("/run/hung/another")
def end_never(*_): time.sleep(1000)
def handle(self, request, uid, now, handle=Requests.handle):
    if request["op"] == "turn": turn_for_ever()
    if request["op"] == "wait": wait_for_a_dead_disk()
    if request["op"] == "hang at the end":
        stack.tear_down = end_never
        return self.life.shut_down(stack.Reboot.RESTART, "to hang", now)
    return handle(self, request, uid, now)
Requests.handle = handle
sys.exit(stack.main(sys.argv[1:]))
"""
FILES = {"sbin/life": LIFE, "sbin/hanging": HANGING, "sbin/hung": HUNG}


class Lives:
    """A machine that is reset again and again, and its data partition, which outlives even its power supply."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.start = start
        self.data = folder / "data.img"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "data", self.data, "32M"], check=True)
        self.plug_in()

    def plug_in(self) -> None:
        words = f"init=/sbin/hanging {RAMOOPS}"
        self.machine = self.start("x86_64", PROFILE, words, FILES, ESB, data=self.data, reboots=True)

    def record(self, number: int) -> dict[str, Any]:
        """What this life says of the one before."""

        def said() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(re.findall(r"^life (\{.*\})$", self.machine.console(), re.M)[-1])
            assert found["number"] == number, found
            return found

        try:
            return eventually(said, 60)
        except Exception as error:
            raise AssertionError(f"{error}; the console says:\n{self.machine.console()[-5000:]}") from None

    def act(self, line: str) -> float:
        """Type; the time."""
        self.machine.type(f"{line}\n")
        return time.monotonic()

    def ask(self, op: str) -> float:
        return self.act(f"to_pid1.ask(to_pid1.SOCKET, {{'op': {op!r}}})")


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    folder = tmp_path_factory.mktemp("lives")
    for start in machines(folder):
        yield Lives(start, folder)


def test_the_first_life_knows_of_none_before(lives: Lives) -> None:
    record = lives.record(1)
    assert record["last_end"] is None
    assert set(record["counts"].values()) == {0}
    lives.act("reboot()")
    lives.machine.reset()


def test_a_reboot_that_was_asked_for(lives: Lives) -> None:
    record = lives.record(2)
    assert (record["last_end"]["cause"], record["last_end"]["reason"]) == ("reboot", "asked by uid 0")
    assert record["counts"]["reboot"] == 1


def test_pid_1_that_hangs_is_reset_and_its_stack_survives(lives: Lives, record_property: Callable[[str, object], None]) -> None:
    lives.act(f"time.sleep({2 * TIMEOUT}); print('fed for', board()['watchdog']['timeout'])")
    lives.machine.wait_console(f"fed for {TIMEOUT}\n", 3 * TIMEOUT + MARGIN)
    began = lives.ask("turn")
    assert lives.machine.event("WATCHDOG", "RESET", seconds=3 * TIMEOUT)["event"] == "WATCHDOG"
    took = time.monotonic() - began
    lives.machine.reset()
    assert TIMEOUT / 2 < took < TIMEOUT + MARGIN
    record_property("figure", f"PID 1 in an endless loop: reset after {took:.1f} s, with a watchdog of {TIMEOUT:g} s")
    record = lives.record(3)
    assert record["last_end"]["cause"] == "watchdog"
    assert "in turn_for_ever" in record["last_end"]["stack"]
    assert record["counts"]["watchdog"] == 1


def test_pid_1_that_waits_in_the_kernel_leaves_its_stack_too(lives: Lives) -> None:
    """No signal handler of its own would run there."""
    lives.act("start_process('/sbin/hung')")
    lives.machine.wait_console("hung\n")
    lives.ask("wait")
    lives.machine.reset(TIMEOUT + MARGIN)
    stack = lives.record(4)["last_end"]["stack"]
    assert "in wait_for_a_dead_disk" in stack
    assert "fuse_" in stack.partition("In the kernel")[2]


def test_a_shutdown_that_hangs_is_reset_within_its_budget(lives: Lives) -> None:
    lives.act(
        "from pid1.teardown import budget; from onboard.board_table import board_table; print('at most', budget(board_table()))"
    )
    budget = float(eventually(lambda: re.findall(r"^at most (\S+)$", lives.machine.console(), re.M)[-1], 30))
    began = lives.ask("hang at the end")
    lives.machine.reset(budget + 3 * MARGIN)
    assert TIMEOUT + MARGIN < time.monotonic() - began < budget + MARGIN + 1
    record = lives.record(5)
    assert record["last_end"]["cause"] == "watchdog"
    assert record["last_end"]["reason"] == "the shutdown hung; reboot: to hang"


def test_a_panic(lives: Lives) -> None:
    lives.act("open('/proc/sysrq-trigger', 'w').write('c')")
    lives.machine.reset()
    record = lives.record(6)
    assert record["last_end"]["cause"] == "panic"
    assert record["last_end"]["reason"].startswith("Kernel panic - not syncing: sysrq triggered crash")
    assert "sysrq_handle_crash" in record["last_end"]["panic"]
    lives.act("print(os.listdir('/sys/fs/pstore'), os.listdir('/var/lib/stack/pstore'))")
    lives.machine.wait_console("[] ['000005-dmesg-ramoops-0']")


def test_a_critical_service_that_fails_reboots_once_and_not_again_within_the_hour(lives: Lives) -> None:
    fail = "open('/run/frail', 'w'); signal_process('frail', 'KILL')"
    assert lives.record(6)["may_escalate"]
    began = lives.act(fail)
    lives.machine.reset(30)
    assert time.monotonic() - began < 10
    record = lives.record(7)
    assert record["last_end"]["cause"] == "critical"
    assert record["last_end"]["reason"] == "frail is critical and has failed 3 times in 200 s"
    assert not record["may_escalate"]
    lives.act(fail)
    lives.machine.wait_console("no reboot for that before the board is up for 3600 s")
    lives.act(f"time.sleep({2 * TIMEOUT}); print(board()['watchdog']['unhealthy'][:5], 'and alive')")
    lives.machine.wait_console("frail and alive", 3 * TIMEOUT + MARGIN)  # the dog does not do what the record forbids


def test_a_reboot_does_not_forget_that(lives: Lives) -> None:
    lives.act("reboot()")
    lives.machine.reset()
    assert not lives.record(8)["may_escalate"]


def test_a_power_cut(lives: Lives) -> None:
    lives.machine.process.kill()
    lives.machine.process.wait()
    lives.plug_in()
    record = lives.record(9)
    assert record["last_end"]["cause"] == "unknown"
    assert record["counts"] == {
        "reboot": 2, "halt": 0, "poweroff": 0, "critical": 1, "watchdog": 3, "panic": 1, "unknown": 1
    }  # fmt: skip


def test_a_board_that_was_halted_stays_so(lives: Lives) -> None:
    """The dog is told: a Raspberry Pi that is switched off only halts, and would be started again."""
    lives.act("halt()")
    lives.machine.wait_console("reboot: System halted")
    with pytest.raises(TimeoutError):
        lives.machine.event("WATCHDOG", "RESET", seconds=2 * TIMEOUT)


# --- other machines ---------------------------------------------------------------------------------------------------
ALONE = PROFILE.replace('"/dev/vdb", "/var", "ext4"', '"var", "/var", "tmpfs"')  # no data partition


def test_snooze_keeps_a_board_alive_that_is_not_healthy_and_ends_by_itself(machine: Start) -> None:
    profile = ALONE + "CRITICAL_INTERVAL = 0.0\n"
    board = machine("virt-arm64", profile, "init=/sbin/hanging", FILES, ESB)
    board.wait_console("life ")
    board.type("snooze(0.3); open('/run/frail', 'w'); signal_process('frail', 'KILL')\n")
    board.wait_console("done\n")
    began = time.monotonic()
    board.type("time.sleep(10); print(board()['watchdog']['unhealthy'], 'and alive')\n")
    board.wait_console("times in 200 s and alive", 30)
    assert board.event("SHUTDOWN", "WATCHDOG", seconds=30)["event"] == "SHUTDOWN"
    assert 15 < time.monotonic() - began < 18 + 8
    assert "reboot: Restarting system" in board.console(), "in order, before the dog would have bitten"


def test_softdog_on_the_emulated_raspberry_pi(machine: Start) -> None:
    profile = ALONE.replace('("i6300esb", "ramoops", "fuse")', '("softdog", "bcm2835_wdt")')
    board = machine("raspi3b", profile, "init=/sbin/hanging", FILES)
    board.wait_console("life ", 90)
    board.type(f"time.sleep({2 * TIMEOUT}); print('fed for', board()['watchdog']['timeout'])\n")
    board.wait_console(f"fed for {TIMEOUT}\n", 60)
    began = time.monotonic()
    board.type("to_pid1.ask(to_pid1.SOCKET, {'op': 'turn'})\n")
    assert board.event("SHUTDOWN", seconds=3 * TIMEOUT)["data"] == {"guest": True, "reason": "guest-reset"}
    assert time.monotonic() - began < TIMEOUT + MARGIN
    assert "softdog: Initiating system reboot" in board.console()
