"""A web server over TLS for update bundles, with Range, If-Range and ETag, as slow as is wanted."""

from __future__ import annotations

import contextlib
import http.server
import os
import ssl
import threading
import time
from pathlib import Path

from image import run

PIECE = 64 * 1024  # bytes


class Server:
    """Serves the files of a folder on all of this machine's addresses: QEMU's guests reach it at 10.0.2.2.

    Its certificate, `trusted`, is for localhost and 10.0.2.2. `rate` is in bytes a second for each connection; 0: no limit.
    """

    def __init__(self, folder: Path, keys: Path, rate: int = 0) -> None:
        self.folder, self.rate = folder, rate
        self.sent = 0  # bytes
        self.resumed = 0  # answers with a part
        keys.mkdir(exist_ok=True)
        self.trusted = keys / "server.pem"
        words = (
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            keys / "server.key",
            "-out",
            self.trusted,
            "-days",
            "30",
        )
        run("openssl", *words, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.0.2.2")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.trusted, keys / "server.key")
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """One connection."""

            timeout = 60

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *words: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            """One that does not print who went away."""

            daemon_threads = True

            def handle_error(self, *words: object) -> None:
                """Power cuts end connections in any state."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self.http.server_address[1])
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = self.folder / os.path.basename(request.path)
        if not path.is_file():
            request.send_error(404)
            return
        size, tag = path.stat().st_size, f'"{path.stat().st_mtime_ns}-{path.stat().st_size}"'
        ranged = request.headers["Range"] or ""
        start = int(ranged[6:-1]) if ranged.startswith("bytes=") and request.headers["If-Range"] == tag else 0
        if start >= size > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        self.resumed += start > 0
        request.send_response(206 if start else 200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        with path.open("rb") as file, contextlib.suppress(OSError):
            file.seek(start)
            while piece := file.read(PIECE):
                request.wfile.write(piece)
                self.sent += len(piece)
                if self.rate:
                    time.sleep(len(piece) / self.rate)

    def url(self, name: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/{name}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
