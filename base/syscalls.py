"""The system calls that Python's `os` lacks, under the names of their man pages, and one place where errno becomes OSError.

`CDLL(None)` is whatever libc this Python is linked with: glibc, musl or uClibc.
"""

from __future__ import annotations

import os
import sys
from errno import ENOSYS
from fcntl import ioctl

from base.native import ctypes
from base.stdlib import NamedTuple, socket

# linux/mount.h; a name that is not here is data for the file system's driver
MOUNT_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32, "mand": 64, "dirsync": 128,
    "noatime": 1024, "nodiratime": 2048, "bind": 4096, "move": 8192, "rec": 16384, "silent": 32768,
    "unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20, "relatime": 1 << 21,
    "strictatime": 1 << 24, "lazytime": 1 << 25,
}  # fmt: skip
UNSET_FLAGS = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime", "async": "sync"}
MNT_DETACH = 2

# linux/capability.h
CAPABILITIES = tuple(
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore".split()
)

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 8, 23, 24, 38, 47
PR_SET_DUMPABLE = 4
PR_CAP_AMBIENT_RAISE = 2

IN_MODIFY, IN_CREATE, IN_MOVED_TO, IN_CLOSE_WRITE, IN_ONLYDIR = 0x2, 0x100, 0x80, 0x8, 0x01000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
TIOCSCTTY = 0x540E
LOOP_CLR_FD = 0x4C01  # linux/loop.h
WDIOC_SETTIMEOUT, WDIOC_GETTIMEOUT = 0xC0045706, 0x80045707  # linux/watchdog.h
SO_PASSRIGHTS = 83
RLIMIT_NOFILE, RLIMIT_AS = 7, 9  # on all machines but MIPS, Alpha and SPARC
SCM_CREDENTIALS = 2
EXEC_FAILED = 126  # exit status of a child that never came to its program, as shells have it
RIGHTS_SPACE = 4 * 253 + 64  # SCM_MAX_FD descriptors, a struct ucred, and their headers


class Reboot:
    """Commands of reboot(2), linux/reboot.h: the only place where these numbers stand."""

    RESTART = 0x01234567
    HALT = 0xCDEF0123
    POWER_OFF = 0x4321FEDC
    CAD_OFF = 0
    RESTART2 = 0xA1B2C3D4  # with words for the firmware
    MAGIC = (0xFEE1DEAD, 672274793)
    NAMES = {RESTART: "reboot", HALT: "halt", POWER_OFF: "poweroff"}


libc = ctypes.CDLL(None, use_errno=True)
_text, _int, _ulong = ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong
libc.mount.argtypes = (_text, _text, _text, _ulong, _text)
libc.umount2.argtypes = (_text, _int)
libc.swapoff.argtypes = (_text,)
libc.reboot.argtypes = (_int,)
libc.prctl.argtypes = (_int, _ulong, _ulong, _ulong, _ulong)
libc.inotify_init1.argtypes = (_int,)
libc.inotify_add_watch.argtypes = (_int, _text, ctypes.c_uint32)
libc.capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_prlimit = libc.prlimit64 if hasattr(libc, "prlimit64") else libc.prlimit  # musl's takes 64 bits under its plain name
_prlimit.argtypes = (_int, _int, ctypes.c_void_p, ctypes.c_void_p)


def check(result: int, path: str | None = None) -> int:
    """The result of a libc call, or its errno as the OSError subclass that Python has for it."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def mount_options(options: str) -> tuple[int, str]:
    """Flags and driver data of an fstab option string; a later word wins over an earlier one (`man 5 fstab`)."""
    flags, data = 0, []
    for word in filter(None, options.split(",")):
        if word in MOUNT_FLAGS:
            flags |= MOUNT_FLAGS[word]
        elif word in UNSET_FLAGS:
            flags &= ~MOUNT_FLAGS[UNSET_FLAGS[word]]
        elif word != "defaults":
            data.append(word)
    return flags, ",".join(data)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """man 2 mount."""
    encode = os.fsencode
    check(libc.mount(encode(source) or None, encode(target), encode(fstype) or None, flags, encode(data) or None), target)


def umount(target: str, flags: int = 0) -> None:
    """man 2 umount2."""
    check(libc.umount2(os.fsencode(target), flags), target)


def swapoff(path: str) -> None:
    """man 2 swapoff."""
    check(libc.swapoff(os.fsencode(path)), path)


def loop_detach(path: str) -> None:
    """man 4 loop: let go of the file; of one that is in use as soon as it is not."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ioctl(fd, LOOP_CLR_FD)
    finally:
        os.close(fd)


def reboot(command: int) -> None:
    """man 2 reboot. In a PID namespace RESTART ends it with SIGHUP, HALT and POWER_OFF with SIGINT."""
    check(libc.reboot(ctypes.c_int(command).value))


def restart_with(argument: str) -> None:
    """reboot(2) with LINUX_REBOOT_CMD_RESTART2: restart, with words for the firmware. libc's reboot() takes none. OSError, and
    nothing has happened, on a machine whose number of the call is not here."""
    wide = (
        {"x86_64": 169, "aarch64": 142, "riscv64": 142}.get(os.uname().machine) if sys.maxsize > 1 << 32 else 88
    )  # 88: arm, i386
    if wide is None:
        raise OSError(ENOSYS, os.strerror(ENOSYS))
    words = (ctypes.c_long(wide), *(ctypes.c_ulong(one) for one in (*Reboot.MAGIC, Reboot.RESTART2)))
    check(libc.syscall(*words, ctypes.c_char_p(argument.encode("ascii"))))


def prctl(option: int, *arguments: int) -> int:
    """man 2 prctl."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return check(libc.prctl(option, *padded))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """man 2 capset, version 3: sets of 64 bits in two halves."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (effective, permitted, inheritable)
    values = [one >> shift & 0xFFFFFFFF for shift in (0, 32) for one in sets]
    check(libc.capset(header, (ctypes.c_uint32 * 6)(*values)))


def limit_descriptors(limits: tuple[int, int] | None = None) -> tuple[int, int]:
    """RLIMIT_NOFILE of this process, soft and hard (`man 2 prlimit`), and another one from now on where it is given."""
    pair = ctypes.c_uint64 * 2
    old = pair()
    check(_prlimit(0, RLIMIT_NOFILE, pair(*limits) if limits else None, old))
    return old[0], old[1]


def limit_memory(limits: tuple[int, int] | None = None) -> tuple[int, int]:
    """RLIMIT_AS of this process, soft and hard in bytes (`man 2 prlimit`), and another one from now on where it is given."""
    pair = ctypes.c_uint64 * 2
    old = pair()
    check(_prlimit(0, RLIMIT_AS, pair(*limits) if limits else None, old))
    return old[0], old[1]


def inotify_init() -> int:
    """man 2 inotify_init1: a non-blocking descriptor that children do not inherit."""
    return check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """man 2 inotify_add_watch."""
    return check(libc.inotify_add_watch(fd, os.fsencode(path), mask), path)


def inotify_rm_watch(fd: int, number: int) -> None:
    """man 2 inotify_rm_watch."""
    check(libc.inotify_rm_watch(fd, number))


def refuse_rights(listener: socket.socket) -> bool:
    """Take no descriptors over this Unix socket, nor over what it accepts (SO_PASSRIGHTS). False before Linux 6.16."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


class Message(NamedTuple):
    """What came over a Unix socket with SO_PASSCRED, and who sent it (0 and 65534, where the kernel cannot say)."""

    data: bytes
    fds: list[int]
    pid: int
    uid: int


def receive(source: socket.socket, size: int) -> Message:
    """One message. The descriptors that came with it are the caller's, which must not make the last close of any."""
    data, about, _, _ = source.recvmsg(size, RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    pid, uid = 0, 65534
    for _, kind, value in about:
        numbers = [int.from_bytes(value[at : at + 4], sys.byteorder) for at in range(0, len(value) - 3, 4)]
        if kind == socket.SCM_RIGHTS:
            fds += numbers
        elif kind == SCM_CREDENTIALS:
            pid, uid = numbers[:2]
    return Message(data, fds, pid, uid)


def interface_up(name: str) -> None:
    """Raise a network interface (`man 7 netdevice`), without netlink and without forking ip(8)."""
    request = bytearray(40)  # struct ifreq
    request[: len(name)] = name.encode()
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    try:
        ioctl(raw.fileno(), SIOCGIFFLAGS, request)
        request[16] |= IFF_UP  # ifr_flags is a short in the machine's order: the low byte comes first on all our boards
        ioctl(raw.fileno(), SIOCSIFFLAGS, request)
    finally:
        raw.close()
