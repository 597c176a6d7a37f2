"""The profile of `make run`: the board in namespaces on a laptop, its Wi-Fi from a recording, its position from a route."""

from __future__ import annotations

import os

from settings import APPS, BROKER, LOGD, RIGHTS, ZYGOTE, program
from tables.rows import Directory, Mount

HOSTNAME = "laptop"
FAKE_GPS = "on"
# `make run MOTHERSHIP=HOST:PORT` sets UPLINK to a port of the board's loopback that leads there (laptop/forward.py).
WATCHDOG = ""
PATH = "/stack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON = "/python/bin/python"
ENVIRONMENT = (  # the launcher tells PID 1 which terminal its user sits at
    ("HOME", "/root"), ("TERM", os.environ.get("TERM", "linux")), ("LANG", "C.UTF-8"), ("BUS", "{BUS}"),
    ("PYTHONPATH", "{LIB}/names"),
)  # fmt: skip
WIFI_RECORDING = "{LIB}/data/wifi_recording.txt"

MOUNTS = (  # the launcher has made /, /dev, /proc and /sys
    Mount("devpts", "/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=666,mode=620"),
    Mount("shm", "/dev/shm", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=10%"),
    Mount("run", "/run", "tmpfs", "nosuid,nodev,mode=755,size=10%"),
    Mount("log", "/run/log", "tmpfs", "nosuid,nodev,noexec,mode=755,size=8%"),
    Mount("bus", "/run/bus", "tmpfs", "nosuid,nodev,noexec,mode=755,size=64k,nr_inodes=64"),
    Mount("tmp", "/tmp", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=10%"),
    Mount("var", "/var", "tmpfs", "nosuid,nodev,noexec,mode=755,size=10%"),
    Mount("/run", "/var/run", "", "bind,rec"),
    Mount("/tmp", "/var/tmp", "", "bind"),
)
DIRECTORIES = (Directory("/run/bus", 0o755, "broker"), Directory("/var/lib/outbox", 0o700, "uplink"))
DEVICES = ()
MODULES = ()
SYSCTLS = ()

if not any(os.access(f"{folder}/mosquitto", os.X_OK) for folder in PATH.split(":")):
    BUS = "127.0.0.1:1883"  # the embedded broker listens on TCP alone
    BROKER = program("broker", "laptop/broker", ready="notify", user="{APP_USER}", capabilities=(), no_new_privs=True)

SERVICES = (
    LOGD,
    ZYGOTE,
    RIGHTS,
    BROKER,
    *APPS,
    program(
        "observations", "bus", "wifi/#", after=("broker",), tty="{CONSOLE}", user="{APP_USER}", groups=("broker",),
        capabilities=(), no_new_privs=True,
    ),
    program("prompt", "prompt/console", "prompt", tty="{CONSOLE}"),
)  # fmt: skip
