"""Lets a board reach a mothership: a port of its loopback is forwarded to an address outside.

A board in namespaces has no network but its own loopback. A socket belongs to the network namespace in which it was made: the
keeper makes one that listens inside the board, and hands it to a process outside, which accepts there and connects here.
"""

from __future__ import annotations

import os
import signal
import socket
import threading

from base.syscalls import PR_SET_PDEATHSIG, prctl

PORT = 1884  # on the board's loopback; 1883 is its own broker's where there is no mosquitto
IP_FREEBIND = 15  # man 7 ip: PID 1 has not brought "lo" up yet
PATIENCE = 10.0  # seconds for a connection to the mothership


def profile(name: str) -> str:
    """The settings of a board of this name whose mothership is behind the forwarded port."""
    return f'"""The mothership of the launcher."""\n\nUPLINK = ("127.0.0.1:{PORT}",)\n' + (
        f"HOSTNAME = {name!r}\n" if name else ""
    )


def listen(channel: socket.socket) -> None:
    """In the board's network namespace: make a listening socket, and send it through the channel."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind(("127.0.0.1", PORT))
        listener.listen(16)
        socket.send_fds(channel, [b"l"], [listener.fileno()])


def start(channel: socket.socket, target: tuple[str, int]) -> int:
    """Receive the socket from the channel, and forward its connections in a process that ends with us; returns its pid."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    if not fds:
        raise OSError("the board has no socket for its mothership")
    listener = socket.socket(fileno=fds[0])
    pid = os.fork()
    if pid == 0:
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()  # ^C is for the board, whose last messages pass through this process
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            forward(listener, target)
        finally:
            os._exit(1)
    listener.close()
    return pid


def forward(listener: socket.socket, target: tuple[str, int]) -> None:
    """Forward connections for ever, each in two threads, one for each direction."""
    while True:
        client = listener.accept()[0]
        threading.Thread(target=_join, args=(client, target), daemon=True).start()


def _join(client: socket.socket, target: tuple[str, int]) -> None:
    with client:
        try:
            server = socket.create_connection(target, PATIENCE)
        except OSError:
            return  # the board sees its connection end, and tries again
        with server:
            server.settimeout(None)
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(65536):
            target.sendall(block)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)  # MQTT has no half-open connections
        except OSError:
            pass
