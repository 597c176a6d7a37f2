"""What the tables say of the file tree becomes system calls: mounts, nodes, folders, and small files of the kernel's."""

from __future__ import annotations

import os
from errno import EBUSY

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from base.syscalls import MOUNT_FLAGS, mount, mount_options

if TYPE_CHECKING:
    from tables.rows import Device, Directory, Mount
    from tables.tables import Tables


MOST_FILES = 1000  # of a folder that gets another owner: the outbox has three


def mount_row(row: Mount) -> None:
    """Mount one row. A bind takes its other flags only in a second step (`man 2 mount`). What is mounted gets the row's.

    The kernel has mounted /dev before us, with flags of its own; and it would mount a second /proc over one that is ours.
    """
    flags, data = mount_options(row.options)
    if row.fstype == "proc" and shows_us(row.target):
        return set_flags(row.target, flags, data)
    if not flags & MOUNT_FLAGS["remount"]:
        os.makedirs(row.target, exist_ok=True)
    try:
        mount(row.source, row.target, row.fstype, flags, data)
        if flags & MOUNT_FLAGS["bind"] and flags & ~(MOUNT_FLAGS["bind"] | MOUNT_FLAGS["rec"]):
            mount("", row.target, "", flags | MOUNT_FLAGS["remount"], "")
    except OSError as error:
        if error.errno != EBUSY or flags & MOUNT_FLAGS["remount"]:  # a remount's EBUSY says that it could not
            raise
        if not flags & MOUNT_FLAGS["bind"]:
            set_flags(row.target, flags, data)


def shows_us(proc: str) -> bool:
    """Whether a /proc is mounted that is our PID namespace's."""
    try:
        return os.readlink(f"{proc}/self") == str(os.getpid())
    except OSError:
        return False


def set_flags(target: str, flags: int, data: str) -> None:
    """The row's flags for what is mounted already; a kernel that refuses leaves it usable, as it was."""
    try:
        mount("", target, "", flags | MOUNT_FLAGS["remount"], data)
    except OSError:
        pass


def make_device(row: Device) -> None:
    if os.path.lexists(row.path):
        return
    os.makedirs(os.path.dirname(row.path), exist_ok=True)
    if row.kind == "link":
        os.symlink(row.target, row.path)
    else:
        kind = 0o020000 if row.kind == "c" else 0o060000  # S_IFCHR, S_IFBLK
        os.mknod(row.path, kind | row.mode, os.makedev(row.major, row.minor))
        os.chmod(row.path, row.mode)


def make_directory(row: Directory, tables: Tables) -> None:
    os.makedirs(row.path, exist_ok=True)
    account = tables.owner(row.user)
    group = tables.group_number(row.group) if row.group else account.gid
    if account.mapped:
        set_owner(row.path, row.mode, account.uid, group)
    else:
        set_owner(row.path, row.mode, -1, -1)


def set_owner(path: str, mode: int, uid: int, gid: int) -> None:
    """Mode and owner of a folder, through a descriptor: whoever owns the folder above may have put a link in its place.

    Where it was somebody else's, its files are given to the new owner before it is: a power cut in between does no harm.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.fstat(fd).st_uid
        if uid not in (-1, before) and before != 0:
            _hand_over(fd, before, uid, gid)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _hand_over(folder: int, before: int, uid: int, gid: int) -> None:
    """The files of a folder's old owner to the new one. Another name of the same file could be anywhere: such a one stays."""
    for name in os.listdir(folder)[:MOST_FILES]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:  # a link, or gone
            continue
        try:
            found = os.fstat(fd)
            if found.st_mode & 0o170000 == 0o100000 and found.st_nlink == 1 and found.st_uid == before:
                os.fchown(fd, uid, gid)
        finally:
            os.close(fd)


def write_sysctl(name: str, value: str) -> None:
    """One row of SYSCTLS. A name that begins with "-" may be missing, and its value refused, as in sysctl.d(5)."""
    path = f"/proc/sys/{name.removeprefix('-').replace('.', '/')}"
    try:
        write_file(path, value)
    except OSError:
        if not name.startswith("-"):
            raise


def write_file(path: str, text: str) -> None:
    """A line to a file of /proc: without its end, kernel.printk_devkmsg answers EINVAL.

    It answers EINVAL too where the kernel command line has set it: what is so already is no error.
    """
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError:
        if read_file(path).split() != text.split():
            raise


def mounted() -> list[tuple[str, str]]:
    """Source and mount point of all that is mounted, the oldest first; OSError where there is no /proc."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        return [(unescape(words[0]), unescape(words[1])) for words in map(str.split, file)]


def unescape(text: str) -> str:
    """White space in names is escaped in octal (`man 5 fstab`)."""
    for escaped, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, char)
    return text


def mounted_at(device: str) -> str:
    """Where somebody has mounted this device already; empty where nobody has."""
    wanted = os.path.realpath(device)
    there = (at for source, at in mounted() if source.startswith("/dev/") and os.path.realpath(source) == wanted)
    return next(there, "")
