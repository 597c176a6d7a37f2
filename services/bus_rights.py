"""Writes the local bus's access list from the table: in each boot, and after each reload that changes it.

mosquitto does not ask the kernel who is at the other end of a Unix socket: it knows clients by name and password. Each
service that is not root gets a password of this boot, in a file that its user alone can read and where bus.py finds it. The
broker gets their hashes and what each may publish and hear. Root has a password too, and may publish and hear everything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from typing import Any

from base.files import read_file, write_atomically
from onboard.to_pid1 import SOCKET, SVError, ask

FOLDER = "/run/bus-rights"
PASSWORDS, ACCESS = "+passwd", "+acl"  # the broker's two files; a service's name has no "+" in it
ROOT = ("root", 0, ["#"], ["#"])
Row = tuple[str, int, list[str], list[str]]  # name, uid, what it publishes, what it hears


def hashed(password: str, salt: bytes) -> str:
    """A password's line as mosquitto_passwd(1) writes it: PBKDF2-HMAC-SHA512. One round is enough for 128 random bits."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 1)
    return f"$7$1${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def access_list(rows: list[Row]) -> str:
    """The text of mosquitto's `acl_file` (`man 5 mosquitto.conf`). Lines before the first `user`: clients without one."""
    lines = ["topic read #"]
    for name, _, publishes, hears in rows:
        lines += [f"user {name}", *(f"topic write {topic}" for topic in publishes), *(f"topic read {topic}" for topic in hears)]
    return "\n".join(lines) + "\n"


def password_of(name: str, folder: str) -> str:
    """The password that a service has in this boot, or a new one. It is kept so that connected clients stay connected."""
    try:
        return str(json.loads(read_file(f"{folder}/{name}"))["password"])
    except (ValueError, KeyError, TypeError):
        return os.urandom(16).hex()


def write(path: str, text: str, uid: int) -> bool:
    """Write a file that only one user can read (mode 0400). Returns whether it has changed; raises OSError."""
    if os.path.exists(path) and os.stat(path).st_uid == uid and read_file(path) == text.strip():
        return False
    write_atomically(path, text, 0o400)
    os.chown(path, uid, uid)
    return True


def make(rows: list[Row], broker: str, folder: str = FOLDER) -> bool:
    """Write all files. Returns whether the broker's have changed; raises OSError."""
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o711)
    rows = [ROOT, *(row for row in rows if row[0] != "root")]
    rows = [(name, uid, [*publishes, f"log/{name}"], hears) for name, uid, publishes, hears in rows]
    its = next((uid for name, uid, *_ in rows if name == broker), 0)
    old = dict(line.split(":", 1) for line in read_file(f"{folder}/{PASSWORDS}").splitlines())
    lines = []
    for name, uid, publishes, _ in rows:
        password = password_of(name, folder)
        facts: dict[str, Any] = {"user": name, "password": password, "publishes": publishes}
        write(f"{folder}/{name}", json.dumps(facts), uid)
        parts = old.get(name, "").split("$")
        same = len(parts) == 5 and hashed(password, base64.b64decode(parts[3])) == old[name]
        lines.append(f"{name}:{old[name] if same else hashed(password, os.urandom(12))}")
    for name in set(os.listdir(folder)) - {name for name, *_ in rows} - {PASSWORDS, ACCESS}:
        os.unlink(f"{folder}/{name}")
    changed = write(f"{folder}/{PASSWORDS}", "\n".join(lines) + "\n", its)
    return write(f"{folder}/{ACCESS}", access_list(rows), its) or changed


def tell(broker: str) -> None:
    """Send SIGHUP to a running broker: it reads both files again (`man 8 mosquitto`)."""
    control = os.environ.get("STACK_CONTROL", SOCKET)
    try:
        if ask(control, {"op": "stats", "name": broker})[0]["ready"]:
            ask(control, {"op": "signal", "name": broker, "signal": "HUP"})
    except SVError as error:
        print(f"<6>{error}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """`bus_rights BROKER ROWS`: the name of the broker's service, and BUS_RIGHTS of the tables."""
    broker, rows = arguments
    if make(json.loads(rows), broker):
        tell(broker)
