"""A host key for the board of `make boot`: made once, so that ssh knows the board at its second boot too."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

# Dropbear asks for a key file of its own (`man 8 dropbear`, -r), and the other kinds of keys are not made.
PATH = "etc/lab_host_key"
PROFILE = f"""
def _known(row):
    return row._replace(argv=(*(word for word in row.argv if word != "-R"), "-r", "/{PATH}"))


SERVICES = tuple(_known(row) if row.name == "dropbear" else row for row in SERVICES)
"""


def for_dropbear(openssh: Path) -> bytes:
    """An Ed25519 key of ssh-keygen's, without a passphrase, in dropbear's format: its name, its seed, its public half.

    OpenSSH's is described in its PROTOCOL.key: four fields of the file, then one key, of which the fields are these.
    """
    text = base64.b64decode("".join(line for line in openssh.read_text().splitlines() if not line.startswith("-")))
    fields, rest = [], text.removeprefix(b"openssh-key-v1\0")
    for _ in range(3):
        field, rest = _string(rest)
        fields.append(field)
    if fields[0] != b"none":
        raise ValueError(f"{openssh} has a passphrase")
    _, rest = _string(rest[4:])  # how many keys: one; and its public half
    secret, _ = _string(rest)
    kind, secret = _string(secret[8:])  # two check numbers
    public, secret = _string(secret)
    seed, _ = _string(secret)
    return struct.pack(">I", len(kind)) + kind + struct.pack(">I", 64) + seed[:32] + public


def _string(text: bytes) -> tuple[bytes, bytes]:
    """A field with its length before it, and what comes after it."""
    (length,) = struct.unpack(">I", text[:4])
    return text[4 : 4 + length], text[4 + length :]
