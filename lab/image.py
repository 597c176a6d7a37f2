"""Builds what QEMU boots: Debian's kernel and packages, our modules through `make install`, a small initramfs.

`python3 image.py MACHINE...` makes what does not change from boot to boot. What has been built is kept in build/lab and
built again when something that went into it has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

LAB = Path(__file__).resolve().parent
ROOT = LAB.parent
BUILD = ROOT / "build" / "lab"
PYTHON = "/usr/bin/python3"  # of the same Debian as the root's: it compiles the byte code
SHELL = "/usr/bin/stack-shell"  # of root
SUITE = "bookworm"
# Without wireless-regdb: the kernel complains once on the console, and scans its few channels in half of the time.
PACKAGES = (
    "base-files busybox-static chrony dropbear-bin e2fsprogs fdisk hostapd iproute2 iw kmod libc-bin libudev1 mosquitto "
    "openssh-client openssh-sftp-server procps python3 rsync systemd systemd-sysv util-linux wpasupplicant"
).split()
# Applets that take the place of programs we have no package for. `reboot`, `halt`, `poweroff` and `init` stay systemd's.
APPLETS = (
    "cat chmod cp dmesg echo env false free getty grep hostname kill klogd ln logger login ls mkdir mknod mount mv ping "
    "printf ps rm sed sh sleep stty sync syslogd tail test touch true udhcpc udhcpd umount uname vi"
).split()


class Kind(NamedTuple):
    """One sort of emulated machine."""

    arch: str  # Debian's name
    qemu: tuple[str, ...]  # the emulator and its machine
    console: str
    disk: str  # the root's device
    boot_modules: tuple[str, ...]  # in the initramfs
    modules: tuple[str, ...]  # in the root
    size: int  # MiB of the root's image
    profile: str = "qemu"


RADIO = ("mac80211_hwsim", "ccm", "ctr", "gcm", "cmac", "aes_generic", "michael_mic")
VIRTUAL = ("virtio_net", "virtio_console", "i6300esb", "softdog", "dummy", "veth", "tun", "fuse", "squashfs", "vfat",
           "usb-storage", "sd_mod", "xhci-pci", "ftdi_sio", "usbserial", "bridge", "loop", "nls_ascii", "nls_cp437",
           "ramoops", "overlay", "sch_netem")  # fmt: skip
ARM_QEMU = ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-device", "virtio-keyboard-pci")
VIRT_QEMU = ("-nodefaults", "-device", "virtio-rng-pci")
RASPI = ("bcm2835_wdt", "softdog", "ftdi_sio", "usbserial", "phy-generic", "dwc2", "cdc_ether", "rndis_host", "bcm2835-rng")
VIRTIO = ("virtio_pci", "virtio_blk", "ext4", "squashfs")
KINDS = {
    "x86_64": Kind("amd64", ("qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-device", "pvpanic-pci", *VIRT_QEMU),
                   "ttyS0", "/dev/vda", (*VIRTIO, "pvpanic-pci"), (*RADIO, *VIRTUAL), 320),
    "virt-arm64": Kind("arm64", (*ARM_QEMU, *VIRT_QEMU),
                       "ttyAMA0", "/dev/vda", (*VIRTIO, "virtio_input"), (*RADIO, *VIRTUAL), 320),
    "raspi3b": Kind("arm64", ("qemu-system-aarch64", "-M", "raspi3b"), "ttyS1", "/dev/mmcblk0", ("bcm2835", "ext4"),
                    (*RADIO, *RASPI), 512, "qemu,raspi3b"),
}  # fmt: skip


def step(text: str, work: Callable[[], object]) -> None:
    """Say what is done; and how long it took, where it took more than a second."""
    print(f"lab: {text} ...", file=sys.stderr, end="", flush=True)
    started = time.monotonic()
    work()
    print(f" {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def run(*command: str | os.PathLike[str], **options: object) -> str:
    """Run a command; its output is shown where it fails."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise SystemExit(f"\nlab: there is no {command[0]} here; as root, `make boot` installs what it needs") from None
    if done.returncode:
        raise SystemExit(f"\nlab: {' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def stamped(folder: Path, recipe: str, work: Callable[[], None], text: str) -> None:
    """Do the work if its recipe is another than last time, from an empty folder."""
    stamp = folder.with_suffix(".stamp")
    wanted = hashlib.sha256((recipe + inspect.getsource(work)).encode()).hexdigest()
    with locked(folder):
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        step(text, work)
        stamp.write_text(wanted)


def debian(arch: str) -> Path:
    """The root file system of Debian's packages with its kernel, unpacked and made to run without maintainer scripts."""
    folder = BUILD / f"debian-{arch}"
    packages = [*PACKAGES, f"linux-image-{arch}"]

    recipe = f"{SUITE} {packages} {APPLETS} {inspect.getsource(unpack)} {inspect.getsource(settle)}"
    stamped(folder, recipe, lambda: unpack(arch, packages, folder), f"Debian {SUITE} {arch} packages (mmdebstrap)")
    return folder


def unpack(arch: str, packages: list[str], folder: Path, *sources: str) -> None:
    """Debian packages with all that they depend on, from these lines of sources.list or else mmdebstrap's own."""
    run("mmdebstrap", f"--arch={arch}", "--variant=extract", "--skip=check/empty,chroot/mount", "--quiet",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={','.join(packages)}", SUITE, folder,
        *sources)  # fmt: skip
    settle(folder)
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt"):
        shutil.rmtree(folder / name, ignore_errors=True)


def settle(root: Path) -> None:
    """What maintainer scripts would have done: users, links, /etc/shells."""
    users = {"root": (0, 0, "/root", SHELL), "daemon": (1, 1, "/", "/bin/false"), "mosquitto": (101, 65534, "/", "/bin/false"),
             "_chrony": (102, 102, "/var/lib/chrony", "/bin/false"), "messagebus": (103, 103, "/", "/bin/false"),
             "nobody": (65534, 65534, "/", "/bin/false")}  # fmt: skip
    groups = {"root": 0, "daemon": 1, "tty": 5, "disk": 6, "adm": 4, "dialout": 20, "netdev": 104, "_chrony": 102,
              "messagebus": 103, "nogroup": 65534}  # fmt: skip
    etc = root / "etc"
    (etc / "passwd").write_text("".join(f"{n}:x:{u}:{g}:{n}:{home}:{shell}\n" for n, (u, g, home, shell) in users.items()))
    (etc / "group").write_text("".join(f"{name}:x:{number}:\n" for name, number in groups.items()))
    (etc / "shadow").write_text("".join(f"{name}:*:19700:0:99999:7:::\n" for name in users))
    (etc / "shadow").chmod(0o600)
    (etc / "shells").write_text(f"/bin/sh\n{SHELL}\n")
    (etc / "machine-id").write_text("")
    for name in APPLETS:
        if not any((root / folder / name).exists() for folder in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / name).symlink_to("busybox")
    shutil.rmtree(root / "var/run", ignore_errors=True)
    for path, target in (("var/run", "/run"), ("etc/resolv.conf", "/run/resolv.conf"), ("etc/dropbear", "/var/lib/dropbear")):
        shutil.rmtree(root / path, ignore_errors=True)
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)


def version(root: Path) -> str:
    """The kernel's version, of which there is one."""
    return next((root / "usr/lib/modules").iterdir()).name


def needed(root: Path, modules: tuple[str, ...]) -> list[str]:
    """Paths of kernel modules below the root with all that they depend on, in the order of loading."""
    found: list[str] = []
    for name in modules:
        listing = run("modprobe", "-d", root, "-S", version(root), "--show-depends", name)
        found += re.findall(rf"^insmod {re.escape(str(root))}/(\S+)", listing, re.M)
    return list(dict.fromkeys(found))


def system(kind: Kind) -> Path:
    """The root of the board without our own files: kept modules, libraries from PyPI, byte code."""
    source, folder = debian(kind.arch), BUILD / f"system-{kind.arch}"
    kinds = [other for other in KINDS.values() if other.arch == kind.arch]
    wanted = tuple(dict.fromkeys(module for other in kinds for module in (*other.boot_modules, *other.modules)))
    libraries = (ROOT / "requirements.txt").read_text()

    def build() -> None:
        if not (source / "usr/lib/modules" / version(source) / "modules.dep").exists():
            run("depmod", "-b", source, version(source))
        run("cp", "-a", f"{source}/.", folder)
        kernel = folder / "usr/lib/modules" / version(source)
        shutil.rmtree(kernel / "kernel")
        shutil.rmtree(folder / "boot")
        for firmware in folder.glob("usr/lib/linux-image-*"):
            shutil.rmtree(firmware)
        for path in needed(source, wanted):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, folder / path)
        run("depmod", "-b", folder, version(source))
        packages = folder / "usr/local/lib/python3.11/dist-packages"
        run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--disable-pip-version-check",
            "--target", packages, "-r", ROOT / "requirements.txt")  # fmt: skip
        if not run(PYTHON, "-V").startswith("Python 3.11."):
            print(
                f"lab: {PYTHON} is not Python 3.11 as in the image: without byte code the board starts slowly", file=sys.stderr
            )
        run(PYTHON, "-m", "compileall", "-q", "-j2", "--invalidation-mode=unchecked-hash", "-s", folder,
            folder / "usr/lib/python3.11", folder / "usr/local/lib")  # fmt: skip
        foreign = [f"qemu-{'aarch64' if kind.arch == 'arm64' else 'x86_64'}-static"] if kind.arch != native() else []
        run(*foreign, folder / "sbin/ldconfig", "-r", folder)

    recipe = f"{wanted}{libraries}{source.with_suffix('.stamp').read_text()}"
    stamped(folder, recipe, build, f"kernel modules, libraries and byte code for {kind.arch}")
    return folder


def native() -> str:
    """Debian's name of this machine's architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def kernel(name: str) -> Path:
    """The folder with `kernel`, `initrd` and, for a Raspberry Pi, `dtb`."""
    kind, folder = KINDS[name], BUILD / f"kernel-{name}"
    source = debian(kind.arch)

    def build() -> None:
        image = (source / "boot" / f"vmlinuz-{version(source)}").read_bytes()
        if kind.arch == "amd64":  # the ELF inside, started by PVH: decompressing it in the guest takes 3 s
            image = lzma.LZMADecompressor().decompress(image[image.find(b"\xfd7zXZ\0") :])
        (folder / "kernel").write_bytes(image)
        if name == "raspi3b":
            shutil.copy(next(source.glob("usr/lib/linux-image-*/broadcom/bcm2837-rpi-3-b.dtb")), folder / "dtb")
        initrd(source, kind, folder / "initrd")

    recipe = f"{kind}{(LAB / 'init.sh').read_text()}{source.with_suffix('.stamp').read_text()}"
    system(kind)  # it runs depmod
    stamped(folder, recipe, build, f"kernel and initramfs for {name}")
    return folder


def initrd(source: Path, kind: Kind, target: Path) -> None:
    """A cpio archive: busybox, the modules that lead to the root's device, and init.sh."""
    tree = target.with_suffix(".tree")
    for name in ("bin", "dev", "proc", "newroot", "usr/lib/modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(source / "usr/bin/busybox", tree / "bin/busybox")
    shutil.copy(LAB / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    paths = needed(source, kind.boot_modules)
    for path in paths:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, tree / path)
    (tree / "modules").write_text("".join(f"{path}\n" for path in paths))
    run("sh", "-c", f"cd '{tree}' && find . | cpio -o -H newc --quiet --owner=0:0 | gzip -1 >'{target}'")
    shutil.rmtree(tree)


def image(name: str, target: Path, files: Mapping[str, str | bytes] | None = None) -> Path:
    """An ext4 image of the whole board in `target`, with files (path to content) of the caller's own in it.

    Bytes are for root alone to read. A content that begins with "-> " makes a symbolic link; one in the place of root's
    .ssh leaves the lab's key out.
    """
    with board(KINDS[name], files or {}) as folder:
        target.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", folder, target, f"{KINDS[name].size}M")
    return target


def squashed(name: str, target: Path, files: dict[str, str] | None = None) -> Path:
    """The whole board as a squashfs, which nothing can write to."""
    with board(KINDS[name], files or {}) as folder:
        target.unlink(missing_ok=True)
        run("mksquashfs", folder, target, "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "3")
    return target


def archive(name: str, target: Path, files: dict[str, str] | None = None) -> Path:
    """The whole board as an initramfs: a cpio archive, not compressed."""
    with board(KINDS[name], files or {}) as folder:
        run("sh", "-c", f"cd '{folder}' && find . | cpio -o -H newc --quiet --owner=0:0 >'{target}'")
    return target


@contextlib.contextmanager
def board(kind: Kind, files: Mapping[str, str | bytes]) -> Iterator[Path]:
    """The tree of a board, for as long as nobody else wants another one."""
    folder = system(kind)
    own: dict[str, str | bytes] = {
        **{f"usr/lib/stack/{file.name}": file.read_text() for file in LAB.glob("settings_*.py")},
        "usr/sbin/lab-radios": (LAB / "radios.sh").read_text(),
        "etc/hostapd/wlan1.conf": (LAB / "hostapd.conf").read_text(),
        "etc/udhcpd.conf": (LAB / "udhcpd.conf").read_text(),
        "root/.ssh/authorized_keys": ssh_key().with_suffix(".pub").read_text(),
        **files,
    }
    if "root/.ssh" in files:
        del own["root/.ssh/authorized_keys"]
    with locked(folder):
        shutil.rmtree(folder / "root/.ssh", ignore_errors=True)
        run("make", "-s", "-C", ROOT, "install", f"DESTDIR={folder}", "PREFIX=/usr", f"TARGET_PYTHON={PYTHON}",
            "SITEDIR=/usr/lib/python3/dist-packages")  # fmt: skip
        for path, content in own.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).unlink(missing_ok=True)
            if isinstance(content, bytes):
                (folder / path).write_bytes(content)
                (folder / path).chmod(0o600)
            elif content.startswith("-> "):
                (folder / path).symlink_to(content[3:])
            else:
                (folder / path).write_text(content)
                (folder / path).chmod(0o755 if content.startswith("#!") else 0o644)
        if "root/.ssh" not in files:
            (folder / "root/.ssh").chmod(0o700)
        profiles = sorted(folder.glob("usr/lib/stack/settings_*.py"))  # they have come after `make install`
        subprocess.run(
            [PYTHON, "-m", "compileall", "-q", "-s", folder, "--invalidation-mode", "checked-hash", *profiles],
            stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        try:
            yield folder
        finally:
            for path in files:
                (folder / path).unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with a folder: two machines of one architecture may be wanted at once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ssh_key() -> Path:
    """The private key that logs in to the boards of this lab, made here."""
    return made_key("id_ed25519")


def made_key(name: str) -> Path:
    """A pair of keys in build/lab/ssh, which stays the same from boot to boot."""
    key = BUILD / "ssh" / name
    with locked(key.parent):  # the first two tests of a new machine want it at once
        if not key.exists():
            key.parent.mkdir(parents=True, exist_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key)
    return key


def main(arguments: list[str]) -> None:
    for name in arguments or ["x86_64"]:
        if name not in KINDS:
            raise SystemExit(f"lab: no machine {name!r}; there are {', '.join(KINDS)}")
        kernel(name)


if __name__ == "__main__":
    main(sys.argv[1:])
