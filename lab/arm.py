"""The tests on ARM: Debian's arm64 or armhf, run by qemu-user; `python3 arm.py ARCH [[emulated] ARGUMENTS OF PYTEST]`.

The pure tests run in a chroot, pytest and all. In the namespace ring pytest and the launcher are this machine's, and
the boards that they boot are ARM's from PID 1 on: under qemu-user, which has a thread of its own, nobody can make a user
namespace (`man 2 unshare`, EINVAL).

binfmt_misc is mounted and the emulator registered in a user namespace of our own (Linux 6.7): no other process of the
machine sees them, and an ordinary user may do it. Root is nobody outside, as on the board of `make run`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import inspect
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from image import BUILD, PYTHON, ROOT, SUITE, run, stamped, unpack

sys.path.insert(0, str(ROOT))

from base.syscalls import MNT_DETACH, MOUNT_FLAGS, PR_SET_PDEATHSIG, check, interface_up, libc, mount, prctl, umount
from laptop.namespaces import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    FOREIGN_ROOT,
    USERS,
    become_root,
    enter_namespaces,
    unshare,
)
from laptop.root import NODES, Source

PACKAGES = (
    "base-files busybox-static coreutils dash kmod libc-bin libfuse3-3 make mosquitto procps util-linux python3 "
    "python3-argon2 python3-hypothesis python3-psutil python3-yaml"
).split()
# Pure Python, in the versions of .venv; what is compiled there comes from Debian.
WHEELS = (
    "amqtt annotated-doc dacite iniconfig markdown-it-py mdurl mfusepy packaging paho-mqtt pluggy pwdlib pygments pytest "
    "pytest-timeout rich shellingham six transitions typer typing_extensions websockets"
).split()
# What qemu-binfmt-conf.sh registers: the first 20 bytes of an ELF executable of e_machine 183 and 40, and their mask.
ELF = {"arm64": ("aarch64", rb"\x7fELF\x02\x01\x01" + rb"\x00" * 9 + rb"\x02\x00\xb7\x00"),
       "armhf": ("arm", rb"\x7fELF\x01\x01\x01" + rb"\x00" * 9 + rb"\x02\x00\x28\x00")}  # fmt: skip
MASK = rb"\xff" * 7 + rb"\x00" + rb"\xff" * 8 + rb"\xfe\xff\xff\xff"
SESSIONS = {  # side by side: boards mostly wait
    "pure tests": ("emulated", *(f"tests/test_{name}.py" for name in "apps control stdlib logd process stack tables".split())),
    "boards' parts": ("tests/test_init.py",),
    "whole boards": ("tests/test_board.py", "tests/test_hardware.py"),
}
SOURCES = os.environ.get("LAB_SOURCES", "").splitlines()  # of sources.list, in place of mmdebstrap's own
BOARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUR_ROOT = 1_800_000_000  # the ids outside of the tests' users: nobody has them, and laptop/namespaces.py uses others
PATIENCE = "4"  # the factor of all time limits


def debian(arch: str) -> Path:
    """The root file system, without kernel and without maintainer scripts."""
    folder = BUILD / f"debian-{arch}-ring"

    def build() -> None:
        if os.getuid() != 0:
            raise SystemExit("\nlab: only root can unpack Debian's packages; what is unpacked, everybody can run")
        try:
            unpack(arch, PACKAGES, folder, *SOURCES)
        except SystemExit as error:
            print(f"{error}\nlab: once more, from this machine's main archive alone", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
            unpack(arch, PACKAGES, folder, *main_archive())
        (folder / "src").mkdir()
        run(PYTHON, "-m", "compileall", "-q", "-j2", "-s", folder, folder / "usr/lib")
        run(emulator(arch), folder / "sbin/ldconfig", "-r", folder)

    stamped(folder, f"{SUITE} {PACKAGES} {inspect.getsource(unpack)}", build, f"Debian {SUITE} {arch} packages (mmdebstrap)")
    return folder


def main_archive() -> list[str]:
    """The archive that this machine's packages come from: a security archive may lag behind for a rare architecture."""
    known = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
    return [f"deb {line.split()[0]} {SUITE} main" for line in known.splitlines() if line.split()[-1] == SUITE][:1]


def root(arch: str) -> Path:
    """Debian's root with a Python for the board as /python: pytest's and the apps' libraries in it."""
    source, folder = debian(arch), BUILD / f"arm-{arch}"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]

    def install() -> None:
        run("cp", "-a", f"{source}/.", folder)
        packages = folder / "python/lib/python3.11/site-packages"
        run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--disable-pip-version-check",
            "--only-binary=:all:", "--platform=any", "--python-version=3.11", "--target", packages, *wanted)  # fmt: skip
        run(PYTHON, "-m", "compileall", "-q", "-j2", "-s", folder, packages)
        (folder / "python/pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
        (folder / "python/bin").mkdir()
        (folder / "python/bin/python").symlink_to(PYTHON)

    stamped(folder, f"{wanted}{source.with_suffix('.stamp').read_text()}", install, f"the apps' libraries for {arch}")
    return folder


def emulator(arch: str) -> str:
    """The path of qemu-user, which must be one file that needs no other."""
    name = f"qemu-{ELF[arch][0]}-static"
    if found := shutil.which(name):
        return found
    raise SystemExit(f"lab: there is no {name} (Debian: apt-get install qemu-user-static)")


# --- a session of its own -------------------------------------------------------------------------------------------
def write_maps(pid: int, uid: int, gid: int) -> None:
    """Root gets foreign ids, and those that laptop.py gives to boards as they are; others are themselves."""
    foreign = f"0 {OUR_ROOT} {USERS}\n{FOREIGN_ROOT} {FOREIGN_ROOT} {USERS}\n"
    texts = [("uid_map", foreign), ("gid_map", foreign)]
    if uid != 0:
        texts = [("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")]
    for name, text in texts:
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")


def register(arch: str, folder: str) -> None:
    """binfmt_misc of this user namespace with one handler; F: the emulator is opened now and needs no path later."""
    name, magic = ELF[arch]
    try:
        mount("binfmt_misc", folder, "binfmt_misc")
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV):
            raise SystemExit("lab: this kernel gives user namespaces no binfmt_misc of their own: that takes Linux 6.7 "
                             f"or newer with CONFIG_BINFMT_MISC (mount: {error.strerror})") from None  # fmt: skip
        raise
    rule = b":%s:M::%s:%s:%s:PF" % (name.encode(), magic, MASK, os.fsencode(emulator(arch)))
    with open(f"{folder}/register", "wb", buffering=0) as file:
        file.write(rule)


def fuse_node(folder: Path) -> str:
    """A /dev/fuse that the session may open: only root's devices are not everybody's, so root makes one of its own."""
    node = "/dev/fuse"
    if os.path.exists(node) and os.getuid() == 0:
        unshare(CLONE_NEWNS)
        mount("", "/", "", MOUNT_FLAGS["private"] | MOUNT_FLAGS["rec"])
        folder.mkdir(exist_ok=True)
        mount("nodes", str(folder), "tmpfs", 0, "mode=755,size=64k")
        mask = os.umask(0)
        os.mknod(folder / "fuse", 0o666 | stat.S_IFCHR, os.stat(node).st_rdev)
        os.umask(mask)
        return str(folder / "fuse")
    return node if os.access(node, os.R_OK | os.W_OK) else ""


def enter(arch: str, folder: Path, fuse: str, *, emulated: bool) -> None:
    """Become root of the session's view: with this machine's root or, emulated, with ARM's and the project in /src."""
    mount("", "/", "", MOUNT_FLAGS["private"] | MOUNT_FLAGS["rec"])
    os.chdir("/")
    nodes = {name: Source(f"/dev/{name}") for name in NODES} | ({"fuse": Source(fuse)} if fuse else {})
    system, project = Source(str(folder)), Source(str(ROOT))
    become_root()
    if emulated:
        system.bind(str(folder))
        os.chdir(folder)
        project.bind("src")
        Source("python").bind("src/.venv")
        for name in ("run", "tmp", "var", "root"):
            mount(name, name, "tmpfs", MOUNT_FLAGS["nosuid"], f"mode={'1777' if name == 'tmp' else '755'}")
    else:
        mount("tmp", "tmp", "tmpfs", MOUNT_FLAGS["nosuid"], "mode=1777")
        if ROOT.is_relative_to("/tmp"):
            project.bind(str(ROOT))
    mount("dev", "dev", "tmpfs", MOUNT_FLAGS["nosuid"], "mode=755")
    for name, source in nodes.items():
        source.bind(f"dev/{name}", read_only=False)
    for name in ("dev/pts", "dev/shm"):
        os.mkdir(name)
    mount("devpts", "dev/pts", "devpts", MOUNT_FLAGS["nosuid"] | MOUNT_FLAGS["noexec"], "newinstance,ptmxmode=666,mode=620")
    os.symlink("pts/ptmx", "dev/ptmx")
    os.symlink("/proc/self/fd", "dev/fd")
    safe = MOUNT_FLAGS["nosuid"] | MOUNT_FLAGS["nodev"] | MOUNT_FLAGS["noexec"]
    mount("proc", "proc", "proc", safe)
    mount("sysfs", "sys", "sysfs", safe | MOUNT_FLAGS["ro"])
    register(arch, "proc/sys/fs/binfmt_misc")
    if emulated:
        check(libc.pivot_root(b".", b"."), str(folder))
        umount(".", MNT_DETACH)


def become_pytest(arguments: list[str], environment: dict[str, str], uid: int, gid: int) -> None:
    """Become pytest as the user who called, in a child of the first process; if not root, in one more user namespace."""
    if uid != 0:
        unshare(CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    python = ".venv/bin/python"
    command = [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--disable-warnings", *arguments]
    os.execve(python, command, environment)


def session(arch: str, folder: Path, arguments: list[str]) -> int:
    """Run pytest in namespaces, and return its exit status. Either all of it is emulated, or the boards that it boots."""
    emulated = arguments[:1] == ["emulated"]
    environment = {"PATH": BOARD_PATH if emulated else os.environ.get("PATH", os.defpath), "HOME": "/tmp", "LANG": "C.UTF-8",
                   "PYTHONDONTWRITEBYTECODE": "1", "STACK_PATIENCE": os.environ.get("STACK_PATIENCE", PATIENCE)}  # fmt: skip
    environment |= {} if emulated else {"STACK_ROOT": str(folder)}
    keeper = os.fork()
    if keeper == 0:
        try:
            os._exit(keep(arch, folder, arguments[emulated:], environment, emulated=emulated))
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])


def keep(arch: str, folder: Path, arguments: list[str], environment: dict[str, str], *, emulated: bool) -> int:
    """Wait for the session's first process, and return its exit status."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    uid, gid = os.getuid(), os.getgid()
    fuse = fuse_node(BUILD / "nodes")
    enter_namespaces(write_maps)
    first = os.fork()
    if first == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        enter(arch, folder, fuse, emulated=emulated)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # becoming another user has cleared it
        interface_up("lo")
        child = os.fork()
        if child == 0:
            os.chdir("/src" if emulated else ROOT)
            become_pytest(arguments, environment, uid, gid)
        while True:  # and bury whoever is left to PID 1
            pid, status = os.wait()
            if pid == child:
                return os.waitstatus_to_exitcode(status) & 0xFF
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])


def main(arguments: list[str]) -> int:
    arch, *more = arguments or ["arm64"]
    if arch not in ELF:
        raise SystemExit(f"lab: no architecture {arch!r}; there are {', '.join(ELF)}")
    folder = root(arch)
    if more:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return session(arch, folder, more)
    started, running = time.monotonic(), {}
    for name, words in SESSIONS.items():
        output = tempfile.TemporaryFile("w+")
        command = [sys.executable, __file__, arch, *words]
        running[name] = (subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output)
    worst = 0
    for name, (process, output) in running.items():
        code = process.wait()
        worst = max(worst, abs(code))
        output.seek(0)
        print(f"{arch}, {name}:\n{output.read()}", flush=True)
    print(f"{arch}: {'passed' if not worst else 'failed'} after {time.monotonic() - started:.0f} s", flush=True)
    return min(worst, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
