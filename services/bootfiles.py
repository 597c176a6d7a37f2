"""The owner's files on the boot partition, which any computer can write: ssh keys, settings, Wi-Fi networks, certificates.

A service that runs once in each boot, after storage.py. A valid file is copied to /run/stack/boot, where it is used, and to
the data partition, as the last good copy. An invalid file is listed in /run/stack/bootfiles.json and ignored: the last good
copy is used, also if the partition cannot be read. Delete a file and the board stops using it: an old ssh key must not
open the board. A partition whose list of files is empty or garbled counts as damaged: the last good copies stay.

Every wait has a limit. A missing partition is waited for at most BOOT_WAIT, and not at all if storage.py has waited
before.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from base.files import write_atomically
from base.stdlib import TYPE_CHECKING, json
from base.syscalls import MNT_DETACH, mount, mount_options, umount
from onboard import boot_ends
from onboard.board_table import board_table
from onboard.mounts import mounted_at
from onboard.to_pid1 import SOCKET, SVError, ask
from services import file_checks, storage
from tables import load as tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tables.tables import Tables

FORCE = os.path.dirname(tables.OWNERS)  # the image links /root/.ssh to it, and /etc/wpa_supplicant.conf to the one in it
RECORD = "/run/stack/bootfiles.json"
PLACE = "/run/stack/fat"  # the partition, while it is read
PROFILE = os.path.basename(tables.OWNERS)
LARGEST = 256 * 1024  # bytes of a file
PROFILE_SECONDS = 12.0  # settings.py and this file, each with its own limit in tables/load.py, and what this takes a slow board
PROFILE_MEMORY = 512 * 1024 * 1024  # bytes of address space, of which PID 1's copy has some 50 MiB
READER, ITS = "uplink", ("ca.pem", "board.pem", "board.key")  # a service, and what it reads; the rest is root's alone
READERS = ("hotplug", "network", "uplink", "wpa_supplicant")  # read the tables by themselves, when they start
BEFORE_US = ("storage", "bootfiles")  # rows that have done their work when a profile is read here
AT_BOOT = ("MOUNTS", "CONSOLE", "WATCHDOG")  # what PID 1 takes from its tables once


class BootFiles:
    """One look at the boot partition, and the record of it."""

    def __init__(self, before: Tables, sources: list[str]) -> None:
        self.before = before  # the table before this look
        self.options = before.options
        self.sources = sources
        self.kept = f"{self.before.KEEP}/boot"
        self.began = time.monotonic()
        self.device = self.source = ""
        self.found: dict[str, bytes] | None = None  # None: the partition could not be read
        self.faults: dict[str, str] = {}  # of single files
        self.whole = True  # the list of files is sound: a missing file was deleted by the owner
        self.files: dict[str, str] = {}  # name: "taken" from the partition, "kept", "removed"
        self.changed: set[str] = set()  # names of files in use that differ from before
        self.notes: list[str] = []  # sentences, for people
        self.groups: tuple[tuple[tuple[str, ...], Callable[..., str]], ...] = (
            (("authorized_keys",), file_checks.authorized_keys), ((PROFILE,), self.profile_fault),
            (("wpa_supplicant.conf",), self.supplicant_fault), (("ca.pem",), file_checks.authority),
            (("board.pem", "board.key"), file_checks.pair),
        )  # fmt: skip

    # --- the way ----------------------------------------------------------------------------------------------------
    def bring_up(self) -> None:
        """All steps, in order: read, check, copy, and restart the services that have read the old files."""
        self.read()
        for names, check in self.groups:
            self.attempt(", ".join(names), self.settle, names, check)
        self.attempt("who reads what", self.hand_out)
        self.attempt("reload", self.apply)

    def read(self) -> None:
        """The files that we know by name, if the partition is there."""
        wait = 0.0 if os.path.exists(storage.RECORD) else self.before.BOOT_WAIT
        self.device, self.source = storage.find(self.sources, wait, anywhere=self.before.DATA_ANYWHERE)
        if not self.device:
            self.note(f"no boot partition: there is none of {', '.join(self.sources)}")
            return
        where = mounted_at(self.device)
        try:
            if not where:
                os.makedirs(PLACE, 0o700, exist_ok=True)
                flags, data = mount_options("ro,nosuid,nodev,noexec")
                mount(self.device, PLACE, "vfat", flags, data)
        except OSError as error:
            self.note(f"{self.device} cannot be read as FAT: {error.strerror}")
            return
        try:
            self.read_files(where or PLACE)
        except OSError as error:
            self.note(f"{self.device} cannot be read: {error.strerror}")
        finally:
            if not where:
                umount(PLACE, MNT_DETACH)

    def read_files(self, folder: str) -> None:
        listed = os.listdir(folder)
        if not listed or not all(name.isprintable() for name in listed):
            self.whole = False
            self.note(f"{self.device} has lost its list of files: what is missing there is not taken away here")
        found: dict[str, bytes] = {}
        for name in (name for names, _ in self.groups for name in names):
            try:
                found[name] = file_checks.normalised(read_limited(f"{folder}/{name}"))
            except FileNotFoundError:
                if f"{name}.txt" in listed:
                    self.note(f"{name}.txt is not {name}: an editor has put .txt behind its name")
            except OSError as error:
                self.faults[name] = error.strerror or str(error)
        self.found = found

    def settle(self, names: tuple[str, ...], check: Callable[..., str]) -> None:
        """What is in force of files that belong together: the partition's, or the last good ones, or none."""
        if self.found is not None:
            fault = next((f"{name}: {self.faults[name]}" for name in names if name in self.faults), "")
            there = {name: self.found[name] for name in names if name in self.found}
            if there and not fault:
                fault = self.fault(names, there, check)
                if not fault:
                    for name, data in there.items():
                        self.attempt(f"{self.kept}/{name}", self.keep, name, data)
                    return self.put(there, "taken")
            if fault:
                self.note(f"{fault}; it is not taken")
            elif self.whole:
                return self.remove(names)
        last = {name: kept for name in names if (kept := read_kept(f"{self.kept}/{name}")) is not None}
        if last and (fault := self.fault(names, last, check)):
            self.note(f"the last good one: {fault}; it is not used")
        elif last:
            return self.put(last, "kept")
        return self.withdraw(names)

    def fault(self, names: tuple[str, ...], there: dict[str, bytes], check: Callable[..., str]) -> str:
        """Why these cannot be used; empty where they can."""
        if missing := [name for name in names if name not in there]:
            return f"{' and '.join(names)} belong together, and {', '.join(missing)} is missing"
        for name, data in there.items():
            if fault := file_checks.text_fault(data):
                return f"{name}: {fault}"
        fault = check(*there.values())
        return f"{' and '.join(names)}: {fault}" if fault else ""

    # --- taking -------------------------------------------------------------------------------------------------------
    def put(self, there: dict[str, bytes], how: str) -> None:
        """Copy files to FORCE, readable by root; hand_out() lets others read. Raises OSError."""
        os.makedirs(FORCE, exist_ok=True)
        for name, data in there.items():
            if read_kept(f"{FORCE}/{name}") != data:
                write_atomically(f"{FORCE}/{name}", data, 0o600)
                self.changed.add(name)
            self.files[name] = how

    def hand_out(self) -> None:
        """The uplink reads its key, and no other app does. Who it is may be what the new settings say."""
        there = [f"{FORCE}/{name}" for name in ITS if os.path.exists(f"{FORCE}/{name}")]
        account = tables.load(self.options).owners.get(READER) if there else None
        if account and account.mapped:
            for path in there:
                os.chown(path, 0, account.gid)
                os.chmod(path, 0o640)

    def keep(self, name: str, data: bytes) -> None:
        """Save the last good copy on the data partition, if it has changed. Raises OSError."""
        if read_kept(f"{self.kept}/{name}") != data:
            os.makedirs(self.kept, 0o700, exist_ok=True)
            write_atomically(f"{self.kept}/{name}", data, 0o600)

    def remove(self, names: tuple[str, ...]) -> None:
        """The owner has deleted the files: delete our copies and stop using them."""
        for name in names:
            if os.path.exists(f"{self.kept}/{name}"):
                os.unlink(f"{self.kept}/{name}")
                self.files[name] = "removed"
        self.withdraw(names)

    def withdraw(self, names: tuple[str, ...]) -> None:
        for name in names:
            if os.path.exists(f"{FORCE}/{name}"):
                os.unlink(f"{FORCE}/{name}")
                self.changed.add(name)

    def apply(self) -> None:
        """Let PID 1 read its tables again, and restart the services that have read the old files."""
        stale = {"wpa_supplicant"} if "wpa_supplicant.conf" in self.changed else set()
        if {"ca.pem", "board.pem", "board.key"} & self.changed:
            stale.add("uplink")
        done: set[str] = set()
        if PROFILE in self.changed:
            try:
                answer = told("reload")
                done = {*answer.get("started", ()), *answer.get("restarted", ())}
            except SVError as error:
                self.note(f"{PROFILE}: {error}")
                self.withdraw((PROFILE,))
            now, then = board_table().values, self.before.values
            differs = [name for name in now if name.isupper() and name != "SERVICES" and now[name] != then.get(name)]
            stale |= set(READERS if differs else ())
            if idle := [name for name in differs if name in AT_BOOT]:
                self.note(f"{PROFILE}: {', '.join(idle)} can only be set in the image: the board is up when this is read")
        for name in sorted(stale - done):  # what has just been started has read all of it
            self.restart(name)
        self.say_what_is_not_linked()

    def restart(self, name: str) -> None:
        """Restart a service if it runs; one that starts later reads the new files anyway."""
        try:
            if told("stats", name=name)[0]["alive"]:
                told("restart", name=name)
        except SVError:
            pass  # this board has no such service, or is shutting down

    def say_what_is_not_linked(self) -> None:
        """Note each file that has no effect because the image reads it from another path."""
        keys = f"{os.environ.get('HOME', '/root')}/.ssh/authorized_keys"
        for name, path in (("authorized_keys", keys), ("wpa_supplicant.conf", self.before.WIFI_CONFIG)):
            if name in self.files and os.path.realpath(path) != os.path.realpath(f"{FORCE}/{name}"):
                self.note(f"{name} has no effect: in this image {path} is no link to {FORCE}/{name}")

    # --- judging --------------------------------------------------------------------------------------------------------
    def profile_fault(self, data: bytes) -> str:
        """Evaluate it in a process of its own, with limits: it is a program, and PID 1 will run it."""
        path = f"{FORCE}/candidate.py"
        write_atomically(path, data, 0o600)
        result = os.memfd_create("tables")
        try:
            pid = os.fork()
            if pid == 0:
                try_profile(self.options, path, result)
            seconds = PROFILE_SECONDS + tables.PROFILE_SECONDS * len(
                [name for name in self.before.profiles if name != tables.OWNERS]
            )
            status = storage.wait(pid, seconds)
            written = os.pread(result, 1 << 20, 0)
        finally:
            os.close(result)
            os.unlink(path)
        if status != 0 or not written:
            took = f"it does not end within {seconds:g} s" if status in (-15, -9) else "it ends the process that reads it"
            return f"{took} (status {status})"
        facts = json.loads(written)
        new = [text.replace(path, PROFILE) for text in facts["rejected"] if text not in self.before.rejected]
        if broken := [text for text in new if text.startswith(f"profile {PROFILE}")]:
            return str(broken[0]).removeprefix(f"profile {PROFILE}").removesuffix("; left out").strip(" :")
        if other := [name for name in BEFORE_US if facts["rows"][name] != repr(self.before.services.get(name))]:
            return f"it changes {' and '.join(other)}, without which it would not be read: that is for the image to say"
        for text in new:
            self.note(f"{PROFILE}: {text}")
        return ""

    def supplicant_fault(self, data: bytes) -> str:
        """wpa_supplicant's verdict in our own words: it reads its file before it finds that there is no such interface."""
        ours = file_checks.wpa_supplicant(data)
        from onboard.wpa_control import RESERVED  # its libraries are for boards that have such a file

        lines = data.decode("utf-8", "surrogateescape").split("\n")
        text = "\n".join("" if RESERVED.match(line) else line for line in lines)  # as supplicant.py, and no line moves
        file = os.memfd_create("wpa")
        try:
            os.pwrite(file, text.encode("utf-8", "surrogateescape"), 0)
            path = f"/proc/{os.getpid()}/fd/{file}"
            status, said = storage.run("wpa_supplicant", "-i", "no-such-link", "-D", "wired", "-c", path, seconds=5.0)
        finally:
            os.close(file)
        if status == 127:  # there is none: who has no wpa_supplicant has no use for the file either
            return ours
        return (ours or supplicant_words(said)) if "Failed to read or parse configuration" in said else ""

    # --- small ----------------------------------------------------------------------------------------------------------
    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"<4>{text}", file=sys.stderr)

    def attempt(self, what: str, step: Callable[..., object], *arguments: object) -> None:
        """Run one step. Its exception becomes a note, and the next step runs."""
        try:
            step(*arguments)
        except Exception as error:
            self.note(f"{what}: {error.strerror if isinstance(error, OSError) else f'{type(error).__name__}: {error}'}")

    def record(self) -> dict[str, Any]:
        """What happened, for board() and diagnostic.py."""
        return {
            "device": self.device, "source": self.source, "read": self.found is not None, "files": self.files,
            "notes": self.notes, "seconds": round(time.monotonic() - self.began, 3),
        }  # fmt: skip


def told(op: str, **words: str) -> Any:
    """Ask PID 1."""
    return ask(os.environ.get("STACK_CONTROL", SOCKET), {"op": op, **words})


def try_profile(options: dict[str, str], path: str, result: int) -> None:
    """In a child: load the tables with it, and write down what became of them. Never returns."""
    try:
        import resource

        sys.dont_write_bytecode = True  # the next candidate may have this one's size and second, and be taken for it
        resource.setrlimit(resource.RLIMIT_AS, (PROFILE_MEMORY, PROFILE_MEMORY))
        chosen = tables.load(options, path)
        rows = {name: repr(chosen.services.get(name)) for name in BEFORE_US}
        os.pwrite(result, json.dumps({"rejected": chosen.rejected, "rows": rows}).encode(), 0)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"<4>{PROFILE}: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def supplicant_words(said: str) -> str:
    """The first complaint of wpa_supplicant, without what it quotes: it may be a passphrase."""
    for line in said.splitlines():
        if line.startswith("Line "):
            number, _, text = line.removeprefix("Line ").partition(":")
            if number.isdigit():
                return f"line {number}: {text.split(chr(39))[0].split(chr(34))[0].strip(' .')}"
    return "wpa_supplicant does not read it"


def read_limited(path: str) -> bytes:
    """A file of a sane size; OSError says why not."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "it is not a file")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(27, f"it has more than {LARGEST} bytes")
    return data


def read_kept(path: str) -> bytes | None:
    """One of our own copies; None where there is none."""
    try:
        return read_limited(path)
    except OSError:
        return None


def main(arguments: list[str]) -> None:
    """`bootfiles SOURCE...`: LABEL=, UUID= or PARTUUID= of the partition, or its device; tried in this order."""
    one = BootFiles(board_table(), arguments)
    one.attempt("the boot partition", one.bring_up)
    record = one.record()
    one.attempt(RECORD, boot_ends.tell, RECORD, record)
    files = ", ".join(f"{name} {how}" for name, how in record["files"].items()) or "nothing"
    print(f"<5>{record['device'] or 'no boot partition'}: {files} in {record['seconds']:g} s", file=sys.stderr)
