"""How long a board takes to boot, beside its peers: `make bench-boot`.

The same kernel, root and services under stack.py, busybox init and systemd, on emulated machines; each boots several times,
in turn, so that a busy machine hurts all alike. The services are listed once, below, and written down for each init as its
own users would write them. A probe, the same for all, says when everything is ready.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from image import BUILD, LAB, image, step
from machine import KINDS, Machine, until

BOUND = 300.0  # seconds for one boot
# The guest's clock counts instructions, 2 ns each, instead of following the host's: the same boot takes the same time on a
# busy machine, and translating the guest's code costs it nothing. That is the pace of a small board: 500 million a second.
CLOCK = ("-icount", "shift=1")
BUS = "/run/bus/mqtt.sock"
LIB = "/usr/lib/stack"
MODULES = ("virtio_net",)  # the simulated radio takes 2 s to load, whoever loads it: it would hide what is measured
SYSCTLS = {"kernel.printk": "4 4 1 7", "kernel.panic": "10", "kernel.panic_on_oops": "1", "net.ipv4.conf.all.rp_filter": "1"}


class Daemon(NamedTuple):
    """One service: what it is, after which others it starts, and whose rights it has."""

    name: str
    command: str
    after: tuple[str, ...] = ()
    user: str = ""
    apps: bool = False  # only of the larger set
    log: bool = False  # journald's work where systemd is


DAEMONS = (
    Daemon("syslogd", "/usr/bin/syslogd -n -C64", log=True),
    Daemon("klogd", "/usr/bin/klogd -n", log=True),
    Daemon("dropbear", "/usr/sbin/dropbear -F -E -s -R", ("syslogd",)),
    Daemon("chronyd", '/usr/sbin/chronyd -d -u _chrony "server 10.0.2.2 iburst"'),
    Daemon("mosquitto", "/usr/sbin/mosquitto -c /etc/bench-mosquitto.conf", (), "nobody"),
    Daemon("udhcpc", "/usr/bin/udhcpc -f -i eth0 -s /usr/lib/bench/lease", ("modules",)),
    Daemon("wpa_supplicant", "/usr/sbin/wpa_supplicant -g /run/wpa_global"),  # no radio yet: it waits for one
    Daemon("fakegps", f"/usr/bin/python3 {LIB}/fakegps.py", ("mosquitto",), "nobody", apps=True),
    Daemon("wifi_scan", f"/usr/bin/python3 {LIB}/wifi_scan.py wlan0 /run/wpa_supplicant {LIB}/data/wifi_recording.txt",
           ("mosquitto",), "nobody", apps=True),
    Daemon("wifi_analyzer", f"/usr/bin/python3 {LIB}/wifi_analyzer.py", ("mosquitto",), "nobody", apps=True),
)  # fmt: skip
SETS = {"system": tuple(daemon for daemon in DAEMONS if not daemon.apps), "board": DAEMONS}
LEASE = """#!/bin/busybox sh
case $1 in
    deconfig) busybox ip link set "$interface" up ;;
    bound)
        busybox ip address add "$ip/$mask" dev "$interface"
        busybox ip route add default via "$router"
        echo "$ip" >/run/lease
        ;;
esac
"""


# --- the same board for three inits -----------------------------------------------------------------------------------
def for_stack(daemons: tuple[Daemon, ...], probe: str) -> dict[str, str]:
    """A profile on top of settings_qemu.py: its mounts, devices and directories, other services."""
    text = "import settings\nfrom tables.rows import Service\n\nCONSOLE_LOGIN = 'off'\n"
    text += f"MODULES = {MODULES!r}\nSYSCTLS = {(*SYSCTLS.items(),)!r}\n"
    text += "SERVICES = (\n    *settings.SERVICES[:2],  # modules, logd\n"
    for one in daemons:
        columns = f", user={one.user!r}, capabilities=(), no_new_privs=True" if one.user else ""
        columns += f", ready={BUS!r}" if one.name == "mosquitto" else ""
        text += f"    Service({one.name!r}, {tuple(shlex.split(one.command))!r}, {one.after!r}{columns}),\n"
    text += f"    Service('probe', {tuple(probe.split())!r}, restart='never'),\n)\n"
    return {"usr/lib/stack/settings_bench.py": text}


def for_busybox(daemons: tuple[Daemon, ...], probe: str) -> dict[str, str]:
    """An inittab: one script that mounts and loads what our table does, and then everything at once, respawned.

    It knows no order and no users: su does that, and the apps look for their broker until it is there.
    """
    lines = ["#!/bin/busybox sh", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "mount -t proc -o nosuid,nodev,noexec proc /proc",
             "mount -t sysfs -o nosuid,nodev,noexec sysfs /sys", "mount -t devtmpfs -o nosuid,mode=755 dev /dev",
             "mkdir -p /dev/pts /dev/shm", "mount -t devpts -o nosuid,noexec,ptmxmode=666,mode=620,gid=5 devpts /dev/pts",
             "mount -t tmpfs -o nosuid,nodev,mode=1777,size=10% shm /dev/shm"]  # fmt: skip
    for target, mode, size in (("/run", 755, 10), ("/tmp", 1777, 20), ("/var", 755, 20)):
        lines.append(f"mount -t tmpfs -o nosuid,nodev,mode={mode},size={size}% tmpfs {target}")
    lines += ["mkdir -p /run/bus /var/lib/dropbear /var/run /var/tmp",
              "mount --bind /run /var/run", "mount --bind /tmp /var/tmp",
              "chown nobody /run/bus", "hostname qemu", "ip link set lo up"]  # fmt: skip
    lines += [f"echo '{value}' >/proc/sys/{name.replace('.', '/')}" for name, value in SYSCTLS.items()]
    lines.append(f"modprobe -a {' '.join(MODULES)}")
    table = ["::sysinit:/usr/lib/bench/rcS"]
    for one in daemons:
        command = f"busybox su -s /bin/sh {one.user} -c 'BUS={BUS} exec {one.command}'" if one.user else one.command
        table.append(f"null::respawn:{command}")
    table.append(f"null::once:{probe}")
    return {
        "usr/lib/bench/init": "-> /usr/bin/busybox",
        "usr/lib/bench/rcS": "\n".join(lines) + "\n",
        "etc/inittab": "\n".join(table) + "\n",
    }


# What Debian's package starts and a small board has no use for; logind would want D-Bus, and udev is not part of this board.
MASKED = """
systemd-logind.service getty.target systemd-user-sessions.service systemd-ask-password-console.path
systemd-ask-password-wall.path systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-initctl.socket
dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount
sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount systemd-binfmt.service systemd-firstboot.service
systemd-machine-id-commit.service systemd-repart.service systemd-pcrphase.service systemd-pcrphase-sysinit.service
systemd-random-seed.service systemd-sysusers.service systemd-udevd.service systemd-udev-trigger.service
systemd-udevd-control.socket systemd-udevd-kernel.socket kmod-static-nodes.service systemd-tmpfiles-setup-dev.service
systemd-tmpfiles-clean.timer
""".split()


def for_systemd(daemons: tuple[Daemon, ...], probe: str) -> dict[str, str]:
    """A unit each, wanted by multi-user.target; mounts, modules and sysctls the way of systemd; journald as it comes.

    journald takes the place of syslogd and klogd, so those two do not run here.
    """
    units = "etc/systemd/system"
    wants = f"{units}/multi-user.target.wants"
    mounts = {"tmp": "What=tmpfs\nWhere=/tmp\nType=tmpfs\nOptions=nosuid,nodev,mode=1777,size=20%",
              "var": "What=tmpfs\nWhere=/var\nType=tmpfs\nOptions=nosuid,nodev,mode=755,size=20%"}  # fmt: skip
    files = {
        "etc/modules-load.d/bench.conf": "".join(f"{name}\n" for name in MODULES),
        "etc/sysctl.d/bench.conf": "".join(f"{name} = {value}\n" for name, value in SYSCTLS.items()),
        "etc/tmpfiles.d/bench.conf": "d /var/lib/dropbear 0700\n",
        f"{units}/default.target": "-> /usr/lib/systemd/system/multi-user.target",
        **{f"{units}/{name}": "-> /dev/null" for name in MASKED},
    }
    for name, text in mounts.items():
        files[f"{units}/{name}.mount"] = f"[Unit]\nDefaultDependencies=no\nBefore=local-fs.target\n[Mount]\n{text}\n"
        files[f"{units}/local-fs.target.wants/{name}.mount"] = f"-> ../{name}.mount"
    log = {daemon.name for daemon in daemons if daemon.log} | {"modules"}  # both are there before any service starts
    for one in (*(daemon for daemon in daemons if not daemon.log), Daemon("probe", probe)):
        after = " ".join(f"{name}.service" for name in one.after if name not in log)
        text = "[Unit]\n" + (f"After={after}\nWants={after}\n" if after else "")
        text += f"[Service]\nExecStart={one.command}\n" + ("Restart=always\n" if one.name != "probe" else "")
        if one.name == "mosquitto":
            text += "Type=notify\nRuntimeDirectory=bus\n"
        if one.user:
            text += f"User={one.user}\nNoNewPrivileges=yes\nCapabilityBoundingSet=\nEnvironment=BUS={BUS}\n"
        files[f"{units}/{one.name}.service"] = text
        files[f"{wants}/{one.name}.service"] = f"-> ../{one.name}.service"
    return files


PEERS = {
    "stack": ("init=/sbin/stack.py", for_stack),
    "busybox init": ("init=/usr/lib/bench/init", for_busybox),
    "systemd": ("init=/usr/lib/systemd/systemd systemd.getty_auto=no", for_systemd),
}


def root(machine: str, daemons: tuple[Daemon, ...], target: Path) -> Path:
    """The image with the configurations of all three in it."""
    conf = (LAB.parent / "data" / "mosquitto.conf").read_text().splitlines(True)  # the peers have no access list
    probe = f"/usr/lib/bench/probe {sum(daemon.apps for daemon in daemons)}"
    files = {
        "etc/bench-mosquitto.conf": "".join(line for line in conf if not line.startswith(("password_file", "acl_file"))),
        "usr/lib/bench/probe": (LAB / "probe.sh").read_text(), "usr/lib/bench/lease": LEASE,
    }  # fmt: skip
    for _, write in PEERS.values():
        files |= write(daemons, probe)
    return image(machine, target, files)


# --- a boot -----------------------------------------------------------------------------------------------------------
class Boot(NamedTuple):
    """Seconds since the kernel's start, and MiB."""

    handover: float  # the initramfs starts init
    ready: float
    ssh: float
    memory: float
    seen: str  # what was ready when


def boot(machine: str, disk: Path, words: str, clock: tuple[str, ...], *, chart: bool = False) -> tuple[Boot, str]:
    """Boot once; with `chart`, bootchart() of it too."""
    words = f"{words} lab.meminfo stack.profile={KINDS[machine].profile},bench"
    one = Machine(machine, disk, tuple(words.split()), clock)
    try:
        one.wait_console("bench: ssh", BOUND)
        one.wait_console("bench: ready", BOUND)
        ready = until(lambda: re.search(r"bench: ready (\S+) (\d+)(.*)\n", one.console()), 1, "the end of that line")
        text = one.console()
        handover = re.search(r"bench: handover (\S+) (\d+)", text)
        ssh = re.search(r"bench: ssh (\S+)", text)
        if handover is None or ssh is None:
            raise SystemExit(f"the console of {machine} says:\n{text}")
        seen = dict(word.split("=") for word in ready[3].split())
        figures = Boot(float(handover[1]), float(ready[1]), max(float(ssh[1]), float(seen["udhcpc"])),
                       (int(handover[2]) - int(ready[2])) / 1024, ready[3].strip())  # fmt: skip
        return figures, one.up().python("import sv\nresult = repr(sv.bootchart())") if chart else ""
    finally:
        one.close()


def compare(machine: str, name: str, rounds: int, peers: list[str], clock: tuple[str, ...]) -> None:
    """All inits in turn, `rounds` times, and the table."""
    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Boot]] = {peer: [] for peer in peers}
    chart = ""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".img") as disk:
        step(f"the root's image for {machine}, {name}", lambda: root(machine, SETS[name], Path(disk.name)))
        for number in range(rounds):
            for peer in peers:
                last = peer == "stack" and number == rounds - 1
                figures, drawn = boot(machine, Path(disk.name), PEERS[peer][0], clock, chart=last)
                chart = drawn or chart
                results[peer].append(figures)
                print(f"lab: {peer}: {json.dumps(figures._asdict())}", file=sys.stderr, flush=True)
    show(f"{machine}, {name}: {', '.join(daemon.name for daemon in SETS[name])}", rounds, results)
    if chart:
        print(f"\n{chart}")


def show(title: str, rounds: int, results: dict[str, list[Boot]]) -> None:
    """Medians, and how many times as long as ours the others take."""
    print(f"\n{title}; median of {rounds}")
    print(f"{'':<14}{'ready s':>10}{'of stack':>10}{'from init s':>13}{'of stack':>10}{'ssh s':>8}{'memory MiB':>12}")
    ours = results.get("stack") or next(iter(results.values()))
    ready, own = (statistics.median(row.ready for row in ours), statistics.median(row.ready - row.handover for row in ours))
    for peer, rows in results.items():
        middle = statistics.median(row.ready for row in rows)
        since = statistics.median(row.ready - row.handover for row in rows)
        print(
            f"{peer:<14}{middle:>10.2f}{middle / ready:>9.2f}x{since:>13.2f}{since / own:>9.2f}x"
            f"{statistics.median(row.ssh for row in rows):>8.2f}{statistics.median(row.memory for row in rows):>12.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-boot", description=__doc__)
    parser.add_argument("machine", nargs="*", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--host-clock", action="store_true", help="the guest's time is this machine's, whatever else it does")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the machine that runs is ended too
    for machine in options.machine or ("x86_64", "virt-arm64"):
        for name in options.sets.split(","):
            compare(machine, name, options.rounds, options.peers.split(","), () if options.host_clock else CLOCK)


if __name__ == "__main__":
    main()
