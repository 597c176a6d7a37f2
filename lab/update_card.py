"""The card of `make image` with the lab's root on it, and update bundles for it, for a board in QEMU that updates itself.

The layout, the signature and the bundle are those of buildroot/ and laptop/update_bundle.py. Debian's kernel and packages take
the place of what Buildroot builds, which takes hours.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from firmware import PATHS, fat
from image import BUILD, KINDS, PYTHON, ROOT, SUITE, board, debian, initrd, kernel, run, stamped

from laptop import update_bundle

BOARD = "lab"  # the first word of /etc/stack-release
OLD = "1.0"  # the version of the card
# Packages of the lab that the card's root does without: it has 64 MiB.
LEFT_OUT = (
    "usr/lib/systemd usr/lib/udev usr/lib/python3.11/pydoc_data usr/lib/python3.11/lib2to3 "
    "usr/share/mime usr/share/zoneinfo usr/share/perl5 usr/share/bash-completion usr/bin/dpkg usr/bin/systemctl "
    "usr/bin/udevadm usr/bin/ssh-keyscan usr/bin/ssh-add usr/bin/ssh-agent usr/bin/rsync usr/bin/tar usr/sbin/hostapd "
    "usr/sbin/wpa_supplicant usr/sbin/chronyd usr/lib/modules/*/kernel/net/mac80211 "
    "usr/lib/modules/*/kernel/drivers/net/wireless var/lib/dpkg var/lib/apt"
).split()
CONFIG = "kernel=kernel.gz\ninitramfs initrd followkernel\n"
COMMAND_LINE = (
    "console={console},115200 panic=-1 quiet root=/dev/mmcblk0p5 rootfstype=squashfs init={init} stack.profile={profile}\n"
)
FOR_SLOT_B = "[boot_partition=3]\ncmdline=cmdline_b.txt\n[all]\n"  # as post-image.sh writes it
NO_FLAG = b"0\n"
CARD = 640  # MiB: larger than its image, so that the data partition grows and has room for a bundle


def engine(arch: str) -> Path:
    """SWUpdate of Debian, with the libraries that the lab's root lacks."""
    folder = BUILD / f"swupdate-{arch}"
    system = debian(arch)

    def build() -> None:
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            words = (f"--arch={arch}", "--variant=extract", "--skip=check/empty,chroot/mount", "--quiet")
            found = Path(scratch) / "root"
            merged = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
            run("mmdebstrap", *words, merged, "--include=swupdate", SUITE, found)
            libraries = {path.name: path for path in found.glob("usr/lib/*-linux-gnu*/*.so*")}
            todo, done = [found / "usr/bin/swupdate"], set()
            while todo:  # names of libraries in the file are those that it loads, and a few more
                path = todo.pop()
                done.add(path)
                for name in set(re.findall(rb"lib[\w+.-]+\.so[.\d]*", path.read_bytes())):
                    library = libraries.get(name.decode())
                    if library and library not in done:
                        todo.append(library)
            for path in done:
                relative = path.relative_to(found)
                if not (system / relative).exists():
                    (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                    data = bytearray(path.read_bytes())
                    if path.name.startswith("libicudata"):  # 30 MB of tables for libxml2, which SWUpdate never asks
                        data[1 << 16 : -(1 << 16)] = bytes(len(data) - (2 << 16))
                    (folder / relative).write_bytes(data)
                    (folder / relative).chmod(0o755)

    stamped(folder, f"{SUITE}{system.with_suffix('.stamp').read_text()}", build, f"SWUpdate for {arch}")
    return folder


def root(kind: str, target: Path, files: Mapping[str, str]) -> Path:
    """The root of a slot: a squashfs of the lab's board with SWUpdate, and these files."""
    arch = KINDS[kind].arch
    own = {"usr/lib/stack/settings_image.py": (ROOT / "buildroot/package/stack/settings_image.py").read_text(), **files}
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        tree = Path(scratch) / "root"
        with board(KINDS[kind], own) as folder:
            run("cp", "-al", folder, tree)
        run("cp", "-a", f"{engine(arch)}/.", tree)
        for path in [path for name in LEFT_OUT for path in tree.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        foreign = [] if arch == "amd64" else ["qemu-aarch64-static"]
        run(*foreign, tree / "sbin/ldconfig", "-r", tree)
        target.unlink(missing_ok=True)
        run("mksquashfs", tree, target, "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "6")
    return target


def boot_files(kind: str, *, profile: str, init: str = "/sbin/stack.py", config: str = CONFIG) -> dict[str, bytes]:
    """What a slot's FAT holds: config.txt, the command lines of both slots, kernel and initramfs."""
    line = COMMAND_LINE.format(console=KINDS[kind].console, init=init, profile=profile)
    packed = BUILD / f"kernel-{kind}.gz"
    source = kernel(kind) / "kernel"
    if not packed.exists() or packed.stat().st_mtime < source.stat().st_mtime:
        packed.with_suffix(".new").write_bytes(gzip.compress(source.read_bytes(), 1))
        packed.with_suffix(".new").rename(packed)
    archive = BUILD / f"initrd-{kind}-card"
    one = KINDS[kind]
    # Drivers of the watchdog and of ramoops are built into an image's kernel; Debian has modules. pvpanic would end QEMU.
    modules = (*(name for name in one.boot_modules if name != "pvpanic-pci"), "i6300esb")
    initrd(debian(one.arch), one._replace(boot_modules=modules), archive)
    return {
        "config.txt": (config + FOR_SLOT_B).encode(),
        "cmdline.txt": line.encode(),
        "cmdline_b.txt": line.replace("mmcblk0p5", "mmcblk0p6").encode(),
        "kernel.gz": packed.read_bytes(),
        "initrd": archive.read_bytes(),
    }  # fmt: skip


def card(images: Path, kind: str, profile: str, squashfs: Path) -> Path:
    """A card with the same root in both slots; slot A is started."""
    firmware = images / "rpi-firmware"
    firmware.mkdir(parents=True)
    for name, content in boot_files(kind, profile=profile).items():
        if name == "kernel.gz":
            (images / name).write_bytes(content)
        elif name not in ("cmdline_b.txt",):  # the script makes it
            (firmware / name).write_bytes(content)
    (firmware / "config.txt").write_text(CONFIG)
    (images / "tryboot.flg").write_bytes(NO_FLAG)
    (images / "rootfs.squashfs").symlink_to(squashfs)
    done = subprocess.run(
        [ROOT / "buildroot/board/post-image.sh", images], capture_output=True, text=True, check=False, env=PATHS
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    target = images / "sdcard.img"
    os.truncate(target, CARD << 20)
    return target


def bundle(folder: Path, version: str, squashfs: Path, boot: dict[str, bytes], keys: Path) -> Path:
    """A signed bundle of this root and a FAT with these files."""
    images = folder / f"images-{version}"
    images.mkdir()
    size = sum(map(len, boot.values()))
    fat(images / "boot.vfat", "SLOT", (size >> 20) + 4, boot)
    (images / "rootfs.squashfs").symlink_to(squashfs)
    out = folder / f"{BOARD}-{version}.swu"
    update_bundle.make_bundle(str(images), BOARD, version, str(keys), str(out))
    return out


__all__ = ["BOARD", "OLD", "PYTHON", "boot_files", "bundle", "card", "engine", "root"]
