"""The board's own root file system: this machine's programs bound read-only, our modules, and folders of its own."""

from __future__ import annotations

import ctypes
import os

from base.syscalls import MNT_DETACH, MOUNT_FLAGS, check, libc, mount, umount
from laptop.namespaces import become_root

MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 0x1  # the same number on every architecture
HOST_FOLDERS = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "gnu"]
NODES = ["null", "zero", "full", "random", "urandom", "tty"]


class Source:
    """A file or folder to bind into the board, opened while we still may: the board's root may not come that far."""

    def __init__(self, path: str) -> None:
        self.is_folder = os.path.isdir(path)
        self.fd = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def bind(self, target: str, *, read_only: bool = True) -> None:
        """Bind a source with all mounts below it; no mount propagates back (`man 7 mount_namespaces`)."""
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
    """The folders of the Python: /python, and if it is a virtual environment also the installation below it."""
    found = {}
    folder = os.path.dirname(os.path.dirname(python))
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(python)))
    if prefix != "/usr" and not prefix.startswith("/usr/"):
        found[prefix.lstrip("/")] = Source(prefix)
    if os.path.exists(f"{folder}/pyvenv.cfg"):
        found["python"] = Source(folder)
    return found


def make_dev(nodes: dict[str, Source]) -> None:
    """Make a /dev without any of the host's hardware: no kmsg, no watchdog, no disks."""
    os.mkdir("dev")
    mount("dev", "dev", "tmpfs", MOUNT_FLAGS["nosuid"] | MOUNT_FLAGS["noexec"], "mode=755,size=1m")
    for name, source in nodes.items():
        source.bind(f"dev/{name}", read_only=False)
    os.mkdir("dev/pts")
    os.mkdir("dev/shm")
    os.symlink("pts/ptmx", "dev/ptmx")
