"""The microVM's service: finds out what the machine is to run, has PID 1 run it, and tells the host how it ended.

It runs in a copy of PID 1. PID 1 starts and supervises the main program and those beside it, as it does all services; this
one waits for the main program's end (pidfd) or its time limit, writes its exit status on the console, reports it over vsock
where the host has asked for it, and has PID 1 power the machine off. If it is killed itself, PID 1 restarts it, and it goes
on waiting.
"""

from __future__ import annotations

import os
import select
import time

from base.files import read_file
from base.printable import printable
from base.stdlib import TYPE_CHECKING, json, signal, socket
from onboard.to_pid1 import SOCKET, SVError, Unreachable, ask
from services.microvm_config import MAIN, ConfigFault, Plan, endpoint, from_text, from_words
from services.yaml_subset import LARGEST
from tables.plain import pack
from tables.values import signal_number

if TYPE_CHECKING:
    from typing import Any

    from tables.rows import Service

FOLDER = "/run/microvm"
STATE = f"{FOLDER}/state.json"  # what another one of us needs that takes over
EXIT = f"{FOLDER}/exit.json"
DEVICE_WAIT = 2.0  # seconds for a device that `stack.config=LABEL=...` names; without a name what is there at once counts
FETCH = 5.0  # seconds for the host to send a configuration
REPORT = 1.0  # seconds for the host to take a report
# Exit statuses, as `man 1 timeout` and shells have them, and sysexits.h.
TIMED_OUT, CANNOT_RUN, NOT_FOUND, BAD_CONFIG, SIGNALLED = 124, 126, 127, 78, 128
ENDS = ("poweroff", "reboot")


def fetch(source: str) -> Plan:
    """The plan that is at `stack.config`'s value: the host's vsock port, a device's label, or whichever device there is."""
    if source.startswith("vsock:"):
        return from_text(from_vsock(endpoint(source, "stack.config")), "the host's configuration")
    from services import cloud_init, microvm_device

    label = source.removeprefix("LABEL=")
    if label.lower() not in ("", microvm_device.OURS, microvm_device.CLOUD) or source == "LABEL=":
        raise ConfigFault(f"stack.config is {source[:40]!r}; it may be vsock:PORT, LABEL=stack, LABEL=cidata or base64:...")
    found = microvm_device.find(label, DEVICE_WAIT if label else 0.0)
    if found is None:
        raise ConfigFault(
            f"there is no device of the label {label or 'stack or cidata'}, nor stack.run on the kernel command line"
        )
    if found.label == microvm_device.CLOUD:
        return cloud_init.from_files(microvm_device.read(found, cloud_init.NAMES))
    files = microvm_device.read(found, ("stack.json", "stack.yaml"))
    if not files:
        raise ConfigFault(f"{found.device} has neither stack.json nor stack.yaml")
    return from_text(*next((text, name) for name, text in files.items()))


def from_vsock(address: tuple[int, int]) -> bytes:
    """What the host sends up to the end of the connection, in at most FETCH seconds."""
    deadline = time.monotonic() + FETCH
    received = b""
    try:
        link = connect(address, FETCH)
        try:
            while len(received) <= LARGEST:
                link.settimeout(max(0.001, deadline - time.monotonic()))
                block = link.recv(65536)
                if not block:
                    return received
                received += block
        finally:
            link.close()
    except OSError as error:
        why = error.strerror or "it did not send all of it in time"
        raise ConfigFault(f"no configuration from vsock {address[0]}:{address[1]}: {why}") from None
    raise ConfigFault(f"the host's configuration has more than {LARGEST} bytes")


def connect(address: tuple[int, int], seconds: float) -> socket.socket:
    """A connection over AF_VSOCK (`man 7 vsock`)."""
    link = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    try:
        link.settimeout(seconds)
        link.connect(address)
    except OSError:
        link.close()
        raise
    return link


def status_of(how: str, *, timed_out: bool = False) -> int:
    """A shell's exit status for what PID 1 says of an end: "exit 3", "signal KILL (...)", "ENOENT no such program: x"."""
    if timed_out:
        return TIMED_OUT
    first, _, rest = how.partition(" ")
    word = rest.split(" ")[0].rstrip(",")
    if first == "exit" and word.isdigit():
        return int(word)
    if first == "signal":
        try:
            return SIGNALLED + signal_number(word)
        except ValueError:
            return SIGNALLED
    return NOT_FOUND if first == "ENOENT" else CANNOT_RUN


def default_end(firmware: str = "/sys/firmware/acpi", machine: str = "") -> str:
    """How this machine is ended: a PC without ACPI cannot switch itself off, but its monitor ends with a reset."""
    pc = (machine or os.uname().machine) in ("x86_64", "i686", "i386")
    return "reboot" if pc and not os.path.isdir(firmware) else "poweroff"


class Microvm:
    """One machine's way from its configuration to its end."""

    def __init__(self, options: dict[str, str], console: str) -> None:
        self.options = options
        self.console = console
        self.report: tuple[int, int] = (0, 0)
        self.link: socket.socket | None = None

    def run(self) -> None:
        """All of it. Whatever goes wrong ends the machine, with a status that says so."""
        try:
            state = self.taken_over() or self.begin()
            self.report = (state["report"][0], state["report"][1])
            how, timed_out = self.wait(state["deadline"])
        except ConfigFault as fault:
            self.end(BAD_CONFIG, f"bad configuration: {fault}")
        except Unreachable:
            raise  # PID 1 is busy: it starts us again
        except SVError as error:
            self.end(NOT_FOUND if "no such program" in str(error) else CANNOT_RUN, str(error))
        else:
            self.end(status_of(how, timed_out=timed_out), f"{how}, time limit" if timed_out else how)

    def taken_over(self) -> dict[str, Any] | None:
        """The state that one before us has left, where it has started the main program."""
        text = read_file(STATE)
        return dict(json.loads(text)) if text else None

    def begin(self) -> dict[str, Any]:
        """Carry out the plan as far as the start of the main program."""
        plan = from_words(self.options, fetch)
        if plan.main is None:
            raise ConfigFault("it says nothing to run: there is no main, no runcmd and no script")
        self.report = plan.report
        for note in plan.notes:
            self.say(note)
        if plan.hostname or plan.files or plan.addresses or plan.nameservers:
            from services.microvm_apply import apply

            for note in apply(plan):
                self.say(note)
        for one in (*plan.services, plan.main):
            start(one)
        now = time.monotonic()
        state = {"deadline": now + plan.seconds if plan.seconds else None, "report": list(plan.report)}
        os.makedirs(FOLDER, exist_ok=True)
        with open(STATE, "w", encoding="ascii") as file:
            file.write(json.dumps(state))
        self.tell("started", {"argv0": plan.main.argv[0], "uptime": round(now, 3)})
        return state

    def wait(self, deadline: float | None) -> tuple[str, bool]:
        """How the main program ended, and whether its time was over."""
        timed_out = False
        while True:
            row = ask(SOCKET, {"op": "stats", "name": MAIN})[0]
            if row["state"] == "stopped" and not row["wanted"]:
                return str(row["exit"]), timed_out
            left = None if deadline is None or timed_out else max(0.0, deadline - time.monotonic())
            if left == 0.0:
                timed_out = True
                self.say(f"{MAIN}: its time is over, it is stopped")
                ask(SOCKET, {"op": "stop", "name": MAIN})
            elif row["state"] in ("running", "starting"):
                wait_for(row["pid"], left)
            else:  # it has just died, is being stopped, or waits for its restart
                time.sleep(0.001 if row["state"] == "stopping" else 0.02)

    # --- the host -------------------------------------------------------------------------------------------------------
    def end(self, status: int, why: str) -> None:
        """Tell the host, and have PID 1 end the machine."""
        self.say(f"exit status {status}: {why}")
        facts = {"status": status, "why": printable(why)}
        write_exit(facts)
        self.tell("exit", facts)
        how = self.options.get("stack.end", "")
        ask(SOCKET, {"op": how if how in ENDS else default_end()})

    def say(self, text: str) -> None:
        """A line on the console, which the host reads."""
        line = f"stack: microvm: {printable(text)[:500]}\n".encode("utf-8", "replace")
        try:
            fd = os.open(self.console, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return
        try:
            os.write(fd, line)
        except OSError:
            pass
        finally:
            os.close(fd)

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """A line of JSON to the host's vsock port, where it listens at one."""
        if self.report == (0, 0):
            return
        try:
            self.link = self.link or connect(self.report, REPORT)
            self.link.sendall(json.dumps({"kind": kind, **data}).encode() + b"\n")
        except OSError as error:
            self.say(f"the host takes no report at vsock {self.report[0]}:{self.report[1]}: {error.strerror or 'time out'}")
            self.link = None  # it may listen by the next one


def write_exit(facts: dict[str, Any]) -> None:
    """For the event stream of services/vsock_door.py; the rename makes it whole at once."""
    os.makedirs(FOLDER, exist_ok=True)
    with open(f"{EXIT}.new", "w", encoding="ascii") as file:
        file.write(json.dumps({"from": "microvm", "kind": "exit", "data": facts}))
    os.rename(f"{EXIT}.new", EXIT)


def start(row: Service) -> None:
    """Have PID 1 run this row. One that is there already was started by one of us before."""
    try:
        ask(SOCKET, {"op": "run", "row": pack(row)})
    except SVError as error:
        if "is there already" not in str(error):
            raise


def wait_for(pid: int, seconds: float | None) -> None:
    """Sleep until this process has ended, at most so long."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], seconds)
    finally:
        os.close(handle)


def main(arguments: list[str]) -> None:
    """`microvm CONSOLE`. It ends with the machine: PID 1 sends it TERM."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    document = json.loads(read_file(f"{os.path.dirname(SOCKET)}/table.json"))
    Microvm(document["facts"]["options"], *arguments).run()
    while True:
        time.sleep(3600)
