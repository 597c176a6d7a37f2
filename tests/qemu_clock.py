"""A clock without a battery on an x86_64 kernel: build date, stamp, satellites, NTP; and a seed that the kernel credits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import eventually
from qemu_storage import FEW, make_disk, off, shell

NO_BATTERY = ("-rtc", "base=1999-12-31T00:00:00")
DAY = 86400
# /sbin/ip, because the `ip` of busybox's shell knows no namespaces.
SERVER = """
/sbin/ip netns add ap; /sbin/ip link add up0 type veth peer name up1; /sbin/ip link set up1 netns ap
/sbin/ip addr add 10.9.9.2/24 dev up0; /sbin/ip link set up0 up
/sbin/ip -n ap addr add 10.9.9.1/24 dev up1; /sbin/ip -n ap link set up1 up
/sbin/ip netns exec ap chronyd -x 'local stratum 3' allow 'bindcmdaddress /' 'cmdport 0' 'pidfile /run/server.pid' >/dev/null 2>&1
"""
NTP = (
    FEW.replace('("virtio_net",)', '("virtio_net", "veth")')
    + """
SERVICES += (Service("chronyd", ("chronyd", "-d", "-u", "_chrony", "server 10.9.9.1 iburst minpoll 0 maxpoll 1", "rtcsync")),)
"""
)


def clock(board: Any, what: str) -> Any:
    return board.python(
        f"import sys; sys.path.insert(0, '/usr/lib/stack'); from onboard import clock; import time; result = {what}"
    )


def test_a_clock_without_a_battery(machine: Callable[..., Any], tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "data.img")
    board = machine("x86_64", NTP, data=disk, extra=NO_BATTERY).up()
    built, now, state = clock(board, "[clock.build_date(), time.time(), clock.state()]")
    assert abs(built - time.time()) < 600, "make install has written the date"
    assert (built <= now < built + 300, state) == (True, "unset"), (built, now)
    assert "it is later than" in shell(board, "dmesg")
    assert not clock(board, f"clock.offer({built - DAY}, 'gps')")
    assert clock(board, f"[clock.offer({built + 30 * DAY}, 'gps'), clock.state()]") == [True, "plausible"]
    off(board)

    again = machine("x86_64", NTP, data=disk, extra=NO_BATTERY).up()
    now, state = clock(again, "[time.time(), clock.state()]")
    assert (now > built + 30 * DAY, state) == (True, "plausible"), (built, now)
    said = "\n".join(again.python("import sv; result = sv.logs('keeper')"))
    assert "when it was saved" in said
    assert "random seed: 256 bits, credited" in said
    shell(again, SERVER)
    eventually(lambda: clock(again, "clock.state()") == "synchronised", 60)
    assert not clock(again, f"clock.offer({built + 60 * DAY}, 'gps')"), "NTP knows better"
    again.python("import sv; sv.restart_process('keeper')")
    assert eventually(lambda: shell(again, "cat /var/lib/stack/clock").endswith(" synchronised"))
