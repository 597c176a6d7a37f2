"""`make update-key` and `make bundle`: the key that signs updates, and a bundle of what an image build has made."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile

KEY, CERTIFICATE = "update.key", "update.pem"
YEARS = 20  # a board on a mast outlives a shorter one, and then takes no update
PARTS = (("boot", "boot.vfat"), ("root", "rootfs.squashfs"))
PLACE = "/run/stack/slot"  # as updates/engine.py has it


def openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"openssl {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def make_key(folder: str, days: int = YEARS * 365) -> None:
    """A key and its certificate. It replaces none: boards that know the old one would take no update any more."""
    os.makedirs(folder, 0o700, exist_ok=True)
    key, certificate = f"{folder}/{KEY}", f"{folder}/{CERTIFICATE}"
    if os.path.exists(key) or os.path.exists(certificate):
        raise SystemExit(f"update-key: there is one in {folder}; boards in the field know it")
    os.close(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    uses = ("-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=emailProtection")
    openssl("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=stack updates",
            "-days", str(days), *uses)  # fmt: skip


def description(images: str, board: str, version: str, place: str) -> str:
    """sw-description (SWUpdate's documentation, sw-description.rst): what is written where, and what it must be."""
    rows = []
    for part, name in PARTS:
        with open(f"{images}/{name}", "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append(
            f'\t\t{{ filename = "{name}"; device = "{place}/{part}"; type = "raw"; installed-directly = true; '
            f'sha256 = "{digest}"; }}'
        )
    images_text = ",\n".join(rows)
    return (
        f'software = {{\n\tversion = "{version}";\n\thardware-compatibility: [ "{board}" ];\n'
        f"\timages: (\n{images_text}\n\t);\n}};\n"
    )


def make_bundle(images: str, board: str, version: str, keys: str, out: str, place: str = PLACE) -> None:
    """Write a signed bundle. SystemExit, a sentence, where something is missing."""
    if not re.fullmatch(r"\d{1,5}(\.\d{1,5}){0,3}", version) or any(int(part) > 65535 for part in version.split(".")):
        raise SystemExit(f"bundle: {version!r} is no version: up to four numbers below 65536 with points, such as 2026.1125.1")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", board):
        raise SystemExit(f"bundle: {board!r} is no board's name")
    for path in (f"{keys}/{KEY}", f"{keys}/{CERTIFICATE}", *(f"{images}/{name}" for _, name in PARTS)):
        if not os.path.exists(path):
            raise SystemExit(f"bundle: there is no {path}; `make update-key` makes the key, `make image` the rest")
    with tempfile.TemporaryDirectory() as work:
        with open(f"{work}/sw-description", "w", encoding="ascii") as file:
            file.write(description(images, board, version, place))
        openssl("cms", "-sign", "-in", f"{work}/sw-description", "-out", f"{work}/sw-description.sig", "-signer",
                f"{keys}/{CERTIFICATE}", "-inkey", f"{keys}/{KEY}", "-outform", "DER", "-nosmimecap", "-binary")  # fmt: skip
        names = ["sw-description", "sw-description.sig"]
        for _, name in PARTS:
            os.symlink(os.path.abspath(f"{images}/{name}"), f"{work}/{name}")
            names.append(name)
        with open(f"{out}.new", "wb") as target:
            subprocess.run(["cpio", "--quiet", "-o", "-L", "-H", "crc"], cwd=work, input="\n".join(names).encode() + b"\n",
                           stdout=target, check=True)  # fmt: skip
    os.rename(f"{out}.new", out)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("key")
    one.add_argument("keys")
    one = commands.add_parser("bundle")
    for name in ("images", "board", "version", "keys", "out"):
        one.add_argument(name)
    options = parser.parse_args(arguments)
    if options.command == "key":
        make_key(options.keys)
        print(f"update-key: {options.keys}/{KEY} signs updates: keep it secret, and a copy of it elsewhere.")
        print(
            f"update-key: boards know its owner by {options.keys}/{CERTIFICATE}; the next `make image` puts it into the image"
        )
    else:
        make_bundle(options.images, options.board, options.version, options.keys, options.out)
        print(f"bundle: {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
