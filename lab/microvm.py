"""`make microvm`: a minimal Debian without an init of its own, in QEMU's microvm machine, with stack.py as PID 1.

The machine has no PCI and none of a PC's old devices: a serial line and virtio-mmio. Its root has python3.11-minimal, busybox,
and what PID 1 takes from libpython3.11-stdlib. The program's exit status is this command's.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from image import APPLETS, BUILD, LAB, PYTHON, ROOT, SUITE, Kind, debian, initrd, locked, needed, run, stamped, step, version

# Debian's kernel has no PIT to calibrate the processor's clock with on this machine and waits for one for ever: it is told the
# rate. QEMU's instruction counter makes that 1 GHz on whatever machine this runs.
RATE = "tsc_early_khz=1000000 tsc=reliable"
CLOCK = ("-icount", "shift=1")
QEMU = ("qemu-system-x86_64", "-M", "microvm,acpi=on,pit=off,pic=off,rtc=on", "-cpu", "max", "-nodefaults", "-no-user-config")
MODULES = ("vsock_loopback", "vmw_vsock_virtio_transport", "vfat", "isofs", "nls_cp437", "nls_ascii", "nls_utf8", "virtio_net",
           "virtio_console", "dummy")  # fmt: skip
KIND = Kind("amd64", QEMU, "ttyS0", "/dev/vda", ("virtio_mmio", "virtio_blk", "ext4"), MODULES, 96, "microvm")
# Of libpython3.11-stdlib: what PID 1 imports and python3.11-minimal has not. ctypes makes the system calls that `os` lacks.
NATIVE = ("_ctypes", "_json", "resource")
STDLIB = ("ctypes/__init__.py", "ctypes/_endian.py", "graphlib.py",
          *(f"lib-dynload/{name}.cpython-311-x86_64-linux-gnu.so" for name in NATIVE))  # fmt: skip
PACKAGES = ("python3.11-minimal", "libffi8", "busybox-static")
USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
END = re.compile(r"stack: microvm: exit status (\d+): (.*)")


def root() -> Path:
    """The root's tree with everything but our own files."""
    source, folder = debian("amd64"), BUILD / "microvm-root"

    def build() -> None:
        run("mmdebstrap", "--arch=amd64", "--variant=extract", "--skip=check/empty,chroot/mount", "--quiet",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={','.join(PACKAGES)}", SUITE, folder)  # fmt: skip
        for name in ("usr/share", "var/cache", "var/lib/apt", "var/lib/dpkg", "usr/lib/python3.11/test"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in STDLIB:
            (folder / "usr/lib/python3.11" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / "usr/lib/python3.11" / name, folder / "usr/lib/python3.11" / name)
        for name in (*APPLETS, "modprobe", "insmod", "ip", "reboot", "poweroff", "halt", "ash"):
            if not any((folder / place / name).exists() for place in ("usr/bin", "usr/sbin")):
                (folder / ("usr/sbin" if name == "modprobe" else "usr/bin") / name).symlink_to("/usr/bin/busybox")
        (folder / "usr/bin/python3").symlink_to("python3.11")
        for name in ("proc", "sys", "dev", "run", "tmp", "root", "etc"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "etc/passwd").write_text(USERS)
        (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        for path in (
            *needed(source, KIND.modules),
            f"usr/lib/modules/{version(source)}/modules.order",
            f"usr/lib/modules/{version(source)}/modules.builtin",
        ):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, folder / path)
        run("depmod", "-b", folder, version(source))
        run(
            PYTHON,
            "-m",
            "compileall",
            "-q",
            "-j2",
            "--invalidation-mode=unchecked-hash",
            "-s",
            folder,
            folder / "usr/lib/python3.11",
        )
        run(folder / "sbin/ldconfig" if (folder / "sbin/ldconfig").exists() else "ldconfig", "-r", folder)

    modules(source)
    recipe = f"{PACKAGES}{STDLIB}{KIND.modules}{USERS}{APPLETS}{source.with_suffix('.stamp').read_text()}"
    stamped(folder, recipe, build, "a root of python3.11-minimal")
    return folder


def modules(source: Path) -> None:
    """Let modprobe know which modules there are."""
    if not (source / "usr/lib/modules" / version(source) / "modules.dep").exists():
        run("depmod", "-b", source, version(source))


def kernel() -> Path:
    """The folder with `kernel` and `initrd`."""
    source, folder = debian("amd64"), BUILD / "microvm-kernel"

    def build() -> None:
        packed = (source / "boot" / f"vmlinuz-{version(source)}").read_bytes()
        (folder / "kernel").write_bytes(lzma.LZMADecompressor().decompress(packed[packed.find(b"\xfd7zXZ\0") :]))
        initrd(source, KIND, folder / "initrd")

    modules(source)
    stamped(
        folder, f"{KIND}{(LAB / 'init.sh').read_text()}{source.with_suffix('.stamp').read_text()}", build, "a kernel for it"
    )
    return folder


def disk(target: Path, files: Mapping[str, str] | None = None) -> Path:
    """The root's image in `target`, with our modules and these files (a content that begins with "-> " is a link)."""
    tree = root()
    with locked(tree), tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        folder = Path(scratch) / "root"
        run("cp", "-a", "--reflink=auto", f"{tree}/.", folder)
        run("make", "-s", "-C", ROOT, "install", f"DESTDIR={folder}", "PREFIX=/usr", f"TARGET_PYTHON={PYTHON}", "SITEDIR=")
        # The board's byte code is compared with its source at each import, for whoever edits on the board; here nobody does.
        run(
            PYTHON, "-m", "compileall", "-q", "-f", "--invalidation-mode=unchecked-hash", "-s", folder, folder / "usr/lib/stack"
        )
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content.startswith("-> "):
                path.symlink_to(content[3:])
            else:
                path.write_text(content)
                path.chmod(0o755 if content.startswith("#!") else 0o644)
        target.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", folder, target, f"{KIND.size}M")
    return target


def command(
    image: Path, words: tuple[str, ...], extra: tuple[str, ...] = (), memory: int = 128, clock: tuple[str, ...] = CLOCK
) -> list[str]:
    """QEMU's command line, its serial line at our stdout. Of words that say the same the later one counts."""
    files = kernel()
    append = f"console=ttyS0 panic=-1 quiet pci=off {RATE} root=/dev/vda init=/sbin/stack.py stack.profile=microvm"
    return [
        *KIND.qemu, "-accel", "tcg", *clock, "-m", str(memory), "-display", "none", "-no-reboot", "-serial", "stdio",
        "-kernel", str(files / "kernel"), "-initrd", str(files / "initrd"),
        "-drive", f"if=none,id=root,file={image},format=raw,snapshot=on", "-device", "virtio-blk-device,drive=root",
        *extra, "-append", " ".join([append, *words]),
    ]  # fmt: skip


def boot(argv: list[str], seconds: float = 120.0, *, shown: bool = False) -> tuple[str, int | None]:
    """Run the machine to its end: its console, and the status in the last line that says one; TimeoutError after so long."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: list[str] = []
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        for line in process.stdout or ():
            lines.append(line.decode(errors="replace").replace("\r", ""))
            if shown:
                print(lines[-1], end="", flush=True)
    finally:
        late = not timer.is_alive()
        timer.cancel()
        process.kill()
        process.wait()
    console = "".join(lines)
    if late:
        raise TimeoutError(f"still running after {seconds:g} s; the console says:\n{console[-3000:]}")
    found = END.findall(console)
    return console, int(found[-1][0]) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="make microvm", description=__doc__)
    parser.add_argument("--run", default="/bin/echo hello", help="the program, as stack.run has it")
    parser.add_argument("--config", type=Path, help="a document (JSON) instead, on a small device of its own")
    parser.add_argument("--memory", type=int, default=128, help="MiB")
    parser.add_argument("words", nargs="*", help="more of the kernel command line")
    options = parser.parse_args()
    image, extra, words = BUILD / "microvm.img", [], list(options.words)
    step("the root's image", lambda: disk(image))
    if options.config:
        device = BUILD / "microvm-config.img"
        device.write_bytes((b"#stack-config\n" + options.config.read_bytes()).ljust(64 * 1024, b"\0"))
        extra = [
            "-drive",
            f"if=none,id=config,file={device},format=raw,readonly=on",
            "-device",
            "virtio-blk-device,drive=config",
        ]
    elif not any(word.startswith(("stack.run", "stack.config", '"stack.run')) for word in words):
        words.append('"stack.run=' + options.run.replace('"', "\\x22") + '"')
    started = time.monotonic()
    _, status = boot(command(image, tuple(words), tuple(extra), options.memory), 3600, shown=True)
    print(
        f"lab: the machine has ended after {time.monotonic() - started:.1f} s; the program's status: {status}", file=sys.stderr
    )
    sys.exit(255 if status is None else status)


if __name__ == "__main__":
    main()
