"""Code that was pushed to the board (`make push`): a set of our modules in memory, in the place of the root's, until the reset.

`/run/stack/pushed/NUMBER` (root's alone) has the archive as it came, what is known of it (about.json), and the whole set as it
will stand at LIB: what the archive lacks is taken from the set that runs. It is bound over LIB. /run is memory: a reset has the
root's code, whatever the pushed set has done. Only keep() puts the archive on the data partition.
"""

from __future__ import annotations

import os

from base.files import open_folder, read_file, write_atomically
from base.stdlib import TYPE_CHECKING
from base.syscalls import MNT_DETACH, MOUNT_FLAGS, mount, umount
from onboard import boot_ends
from onboard.mounts import mounted
from onboard.to_pid1 import SVError
from tables.tables import LIB

if TYPE_CHECKING:
    from typing import Any

FOLDER = "/run/stack/pushed"
ARCHIVE, ABOUT = "set.tar.gz", "about.json"
LARGEST_ARCHIVE = 8 * 1024 * 1024  # bytes
LARGEST_SET = 16 * 1024 * 1024  # bytes of all files, the root's and their byte code with them
MOST_FILES = 2000
LONGEST_NAME = 200
NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
PATIENCE = 120.0  # seconds for the trial import, on a slow board


# --- what PID 1 and a push share ------------------------------------------------------------------------------------------
def modules(folder: str) -> str:
    """Where the set in this folder has its modules."""
    return f"{folder}{LIB}"


def fault(folder: str) -> str:
    """Why this is no pushed set, as a sentence; empty where it is one. It must be root's, with a PID 1 in it."""
    number = folder.removeprefix(f"{FOLDER}/")
    if not folder.startswith(f"{FOLDER}/") or not (number.isascii() and number.isdigit()):
        return f"{folder[:200]!r} is not a folder of {FOLDER}"
    try:
        for path in (FOLDER, folder, modules(folder), f"{modules(folder)}/stack.py"):
            status = os.lstat(path)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return f"{path} can be written by others than root"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def bind(folder: str) -> None:
    """Put the set in the place of LIB, for every process that opens a file there from now on; OSError where it cannot be."""
    if boot_ends.read(boot_ends.PUSHED).get("running") and LIB in {target for _, target in mounted()}:
        umount(LIB, MNT_DETACH)
    mount(modules(folder), LIB, "", MOUNT_FLAGS["bind"])
    about = boot_ends.read(f"{folder}/{ABOUT}")
    boot_ends.tell(boot_ends.PUSHED, {**about, "running": True, "folder": folder})


# --- the set --------------------------------------------------------------------------------------------------------------
def unpack(archive: bytes, what: str) -> str:
    """Make the folder of a set from an archive, a tar.gz of files whose names count from LIB; SVError says what is wrong."""
    if len(archive) > LARGEST_ARCHIVE:
        raise SVError(f"the archive has more than {LARGEST_ARCHIVE} bytes")
    files = _members(archive)
    umask = os.umask(0o022)  # whoever pushes may have another
    try:
        return _make(archive, files, what)
    finally:
        os.umask(umask)


def _make(archive: bytes, files: dict[str, bytes], what: str) -> str:
    import hashlib

    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    os.chmod(FOLDER, 0o700)
    number = max([0, *(int(name) for name in os.listdir(FOLDER) if name.isdigit())]) + 1
    folder = f"{FOLDER}/{number}"
    os.makedirs(modules(folder))
    try:
        left = LARGEST_SET - sum(map(len, files.values()))
        for name, data in files.items():
            _write(f"{modules(folder)}/{name}", data)
        changed = sorted(name for name, data in files.items() if _content(f"{LIB}/{name}") != data)
        _complete(folder, files, left)
        _write(f"{folder}/{ARCHIVE}", archive)
        before = boot_ends.read(boot_ends.PUSHED)
        base = before.get("base") if before.get("running") else read_file(f"{LIB}/build_date")
        about = {
            "id": hashlib.sha256(archive).hexdigest()[:12], "what": "".join(c for c in what if c.isprintable())[:200],
            "changed": changed, "base": base, "kept": False,
        }  # fmt: skip
        boot_ends.tell(f"{folder}/{ABOUT}", about)
    except OSError as error:
        remove(folder)
        raise SVError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def _members(archive: bytes) -> dict[str, bytes]:
    """Name -> content of an archive's files, everything about it checked."""
    import io
    import tarfile
    import zlib

    files: dict[str, bytes] = {}
    size = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as tar:
            for count, member in enumerate(tar):
                name = member.name.removeprefix("./")
                size += member.size
                if count >= MOST_FILES or size > LARGEST_SET:
                    raise SVError(f"the archive has more than {MOST_FILES} files or {LARGEST_SET} bytes")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise SVError(f"the archive's {name[:LONGEST_NAME]!r} is neither a file nor a folder")
                if why := _bad_name(name):
                    raise SVError(f"the archive's {name[:LONGEST_NAME]!r} {why}")
                file = tar.extractfile(member)
                files[name] = file.read() if file else b""
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise SVError(f"this is not an archive of make push: {error}") from None
    if "stack.py" not in files:
        raise SVError("the archive has no stack.py: make push sends a whole set")
    return files


def _bad_name(name: str) -> str:
    parts = name.split("/")
    if len(name) > LONGEST_NAME or len(parts) > 8:
        return "has too long a name"
    if any(part in ("", ".", "..") or not NAME.issuperset(part) for part in parts):
        return "is not a name below LIB"
    return ""


def _complete(folder: str, files: dict[str, bytes], left: int) -> None:
    """What the archive lacks, from what runs: a profile that the image has made, byte code."""
    target = modules(folder)
    for where, folders, names in os.walk(LIB):
        below = os.path.relpath(where, LIB)
        folders[:] = [name for name in folders if not os.path.islink(f"{where}/{name}")]
        for name in names:
            path = os.path.normpath(f"{below}/{name}")
            if path in files or path == "pid1.bundle" or os.path.islink(f"{where}/{name}"):
                continue
            data = _content(f"{where}/{name}") or b""
            left -= len(data)
            if left < 0:
                raise SVError(f"the set would have more than {LARGEST_SET} bytes")
            _write(f"{target}/{path}", data)


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST_SET)
    except OSError:
        return None


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, 0o644)


def remove(folder: str) -> None:
    """A set that is not used, or not any more."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def remove_others(folder: str) -> None:
    """Every set but this one."""
    for name in os.listdir(FOLDER) if os.path.isdir(FOLDER) else ():
        if f"{FOLDER}/{name}" != folder:
            remove(f"{FOLDER}/{name}")


def check(folder: str, changed: list[str], options: dict[str, str]) -> list[str]:
    """Compile what is new, import PID 1's modules and check the tables, without a change of anything that runs.

    The rejected rows, of which a board may have some; SVError where the set cannot run.
    """
    import py_compile
    import subprocess
    import sys

    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    for name in changed:
        if name.endswith(".py"):
            try:
                path = f"{modules(folder)}/{name}"
                py_compile.compile(path, dfile=f"{LIB}/{name}", doraise=True, invalidation_mode=mode)
            except py_compile.PyCompileError as error:
                raise SVError(f"nothing was changed: {_last_line(error.msg)} ({name})") from None
    python = [sys.executable, "-ESB"]
    bundle = [*python, f"{modules(folder)}/base/bundle.py", LIB, folder]
    words = [f"{name}={value}" for name, value in options.items()]
    plan = [*python, f"{modules(folder)}/stack.py", "--plan", *words]
    rejected: list[str] = []
    for command in (bundle, plan):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, errors="replace")
        except subprocess.TimeoutExpired:
            raise SVError(f"nothing was changed: stack.py is not imported in {PATIENCE:g} s") from None
        rejected = [line.removeprefix("rejected").strip() for line in done.stderr.splitlines() if line.startswith("rejected")]
        if done.returncode and not (command is plan and rejected):
            raise SVError(f"nothing was changed: PID 1 of the pushed set does not start: {_last_line(done.stderr)}")
    if broken := [text for text in rejected if text.endswith("left out") and text.startswith(("settings.py", "profile "))]:
        raise SVError(f"nothing was changed: {broken[0]}")
    return rejected


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["it says nothing"]
    return lines[-1].strip()[-300:]


# --- what is kept ---------------------------------------------------------------------------------------------------------
def kept(keep: str) -> dict[str, Any]:
    """What is known of the set that is kept on the data partition; {} where there is none."""
    return boot_ends.read(f"{keep}/pushed/kept.json")


def write_kept(keep: str, facts: dict[str, Any], archive: bytes | None = None) -> None:
    """On the disk when it returns: first the archive, then what makes it count. OSError where it cannot be."""
    os.close(open_folder(f"{keep}/pushed", 0o700))
    if archive is not None:
        write_atomically(f"{keep}/pushed/{ARCHIVE}", archive, 0o600)
    write_atomically(f"{keep}/pushed/kept.json", _json(facts), 0o600)


def _json(facts: dict[str, Any]) -> str:
    from base.stdlib import json

    return json.dumps(facts) + "\n"


def forget(keep: str) -> bool:
    """Keep nothing any more; whether there was something."""
    try:
        os.unlink(f"{keep}/pushed/kept.json")
    except FileNotFoundError:
        return False
    return True
