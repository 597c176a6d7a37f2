"""`make boot`: a real kernel under QEMU with `init=/sbin/stack.py`; this terminal is its serial console."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import host_key
from image import BUILD, KINDS, ROOT, image, kernel, made_key, ssh_key, step
from machine import command, free_port, network


def ssh_port(wanted: int) -> int:
    """The wanted port of loopback, or another one where it is taken."""
    try:
        with socket.create_server(("127.0.0.1", wanted)):
            return wanted
    except OSError:
        return free_port()


def keys() -> str:
    """Who may log in: the key made for this, and whatever keys the caller has."""
    files = [ssh_key().with_suffix(".pub"), *sorted(Path.home().glob(".ssh/*.pub"))]
    return "".join(file.read_text() for file in files)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make boot", description=__doc__)
    parser.add_argument("machine", nargs="?", default="x86_64", choices=list(KINDS))
    parser.add_argument("words", nargs="*", help="more of the kernel command line: stack.debug, stack.rescue, ...")
    parser.add_argument("--port", type=int, default=2222, help="of loopback, for ssh")
    parser.add_argument("--profile", type=Path, help="a profile on top of settings_qemu.py")
    options = parser.parse_args(arguments)
    if options.profile and not options.profile.is_file():
        parser.error(f"there is no profile {options.profile}")
    return options


def own_files(profile: Path | None) -> dict[str, str | bytes]:
    """What this board has beside the lab's others: who may log in, its host key, and the profile that was asked for."""
    files: dict[str, str | bytes] = {
        "root/.ssh/authorized_keys": keys(),
        host_key.PATH: host_key.for_dropbear(made_key("host_ed25519")),
        "usr/lib/stack/settings_boot.py": host_key.PROFILE,
    }
    return files | ({"usr/lib/stack/settings_mine.py": profile.read_text()} if profile else {})


def main() -> None:
    options = parse(sys.argv[1:])
    name = options.machine
    profile = f"stack.profile={KINDS[name].profile},boot" + (",mine" if options.profile else "")
    words = [profile, *options.words]
    files = own_files(options.profile)
    kernel(name)
    disk = BUILD / f"{name}.img"
    step("the root's image", lambda: image(name, disk, files))
    port = ssh_port(options.port)  # not earlier: building takes its time
    key = os.path.relpath(ssh_key(), ROOT)
    print(f"lab: {name} boots; in another terminal: ssh -i {key} -p {port} root@localhost", file=sys.stderr)
    print("lab: Ctrl-A x ends the emulator, poweroff() the board", file=sys.stderr)
    serial = ["-chardev", "stdio,id=con,mux=on,signal=off", "-mon", "chardev=con"]
    argv = [*command(name, disk, tuple(words)), *network(name, port), *serial, "-serial", "chardev:con"]
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
