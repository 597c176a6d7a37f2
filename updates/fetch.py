"""A bundle comes to the data partition: from a URL over TLS, or from standard input. What a cut has left is continued."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import BinaryIO

from base.files import read_file
from updates.engine import Refused

PIECE = 64 * 1024  # bytes in memory
SPARE = 16 * 1024 * 1024  # bytes of the disk that stay free
LARGEST = 1 << 30  # bytes of a bundle
TRIES = 8  # without a byte in between
PAUSE = 1.0  # seconds before the second try; doubled
QUIET = 60.0  # seconds without a byte


class Cut(Refused):
    """A server that was not reached for long: what has come stays, and the same may go on later."""


Progress = Callable[[int, int], object]  # bytes that are here, of how many (0: not known)


def room(folder: str, size: int) -> None:
    """Refused where a folder's disk has no room for so many bytes more."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if size + SPARE > free:
        raise Refused(f"there is no room: it takes {size} bytes more in {folder}, and {max(0, free - SPARE)} may be used")


def forget_others(folder: str, keep: str = "") -> None:
    """Delete what other downloads have left."""
    for name in os.listdir(folder):
        if name.endswith((".part", ".etag", ".swu")) and not (keep and name.startswith(keep)):
            os.unlink(f"{folder}/{name}")


def trust(authority: str) -> ssl.SSLContext:
    """Who may vouch for a web server: the image's authorities, and the mothership's own in this file, where there is one.

    Strict checks, Python's default since 3.13, refuse an authority without the key usage that RFC 5280 demands of it, as
    `openssl req -x509` makes one. curl takes it, and so does the uplink.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if authority:
        with contextlib.suppress(OSError):  # it is not there, or no certificate: then only the image's
            context.load_verify_locations(authority)
    return context


def download(url: str, folder: str, progress: Progress, authority: str = "") -> str:
    """The path of a URL's content, from a server that `trust(authority)` knows. Refused, with a sentence.

    A download that was cut, by the network or by the power, goes on where it was, if the server says by its ETag or
    Last-Modified that the file is the same (RFC 9110, 13.1.5 If-Range).
    """
    if not url.startswith("https://"):
        raise Refused(f"{url[:100]!r} is not over TLS: https://... is")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = f"{folder}/{name}.part"
    forget_others(folder, name)
    context = trust(authority)
    tries, pause = 0, PAUSE
    while True:
        before = size_of(path)
        try:
            if receive(url, path, progress, context):
                os.replace(path, f"{folder}/{name}.swu")
                return f"{folder}/{name}.swu"
            why = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise Refused(f"{url[:200]}: the server answers {error.code} {error.reason}") from None
            why = f"the server answers {error.code}"
        except (OSError, HTTPException) as error:  # URLError is an OSError; a certificate that is not trusted is one
            why = str(getattr(error, "reason", error))
            if "CERTIFICATE_VERIFY_FAILED" in why:
                raise Refused(f"{url[:200]}: the server's certificate is not trusted: {why}") from None
        tries, pause = (0, PAUSE) if size_of(path) > before else (tries + 1, 2 * pause)
        if tries >= TRIES:
            raise Cut(f"{url[:200]}: {why}; what has come stays for the next try")
        time.sleep(pause)


def receive(url: str, path: str, progress: Progress, context: ssl.SSLContext) -> bool:
    """One connection: append to `path` what is missing. Whether it is whole now."""
    have, tag = size_of(path), read_file(f"{path[:-5]}.etag")
    request = urllib.request.Request(url)
    if have and tag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    else:
        have = 0
    try:
        answer = urllib.request.urlopen(request, timeout=QUIET, context=context)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # all of it was here
        raise
    with answer:
        if answer.status != 206:
            have = 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        if total > LARGEST:
            raise Refused(f"it has {total} bytes; a bundle has at most {LARGEST}")
        room(os.path.dirname(path), total - have)
        with open(f"{path[:-5]}.etag", "w", encoding="latin-1") as file:
            file.write(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        with open(path, "r+b" if have else "wb") as file:
            file.seek(have)
            copy(answer, file, have, total, progress)
            return file.tell() >= total > 0 or (total == have and not answer.headers.get("Content-Length"))


def copy(source: BinaryIO, file: BinaryIO, have: int, total: int, progress: Progress) -> None:
    """Copy to the end, or to `total`; bounded in memory, and on the disk at the end. Refused for more than LARGEST bytes."""
    try:
        while piece := source.read(PIECE):
            have += len(piece)
            if have > LARGEST:
                raise Refused(f"it has more than {LARGEST} bytes")
            if not total and have % (64 * PIECE) < len(piece):
                room(os.path.dirname(str(file.name)), 64 * PIECE)
            file.write(piece)
            progress(have, total)
    finally:
        file.flush()
        os.fsync(file.fileno())


def from_stdin(source: BinaryIO, folder: str, progress: Progress) -> str:
    """The path of what comes on standard input, `ssh root@board sv update - < bundle`."""
    forget_others(folder)
    path = f"{folder}/stdin.swu"
    with open(path, "wb") as file:
        copy(source, file, 0, 0, progress)
    return path


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
