"""The board's daemons, console, network and ladder on an x86_64 kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import eventually, machines

from tables.accounts import own_number

UPLINK = """
from tables.rows import Interface
MODULES = (*MODULES, "dummy")
INTERFACES = (*INTERFACES, Interface("uplink0", addresses=("10.77.0.1/24",), gateways=("10.77.0.254",), metric=900))
NETLINK_BUFFER = 8192
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for start in machines(tmp_path_factory.mktemp("board")):
        yield start("x86_64", UPLINK).up(180)


def stats(board: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in board.python("import sv; result = sv.stats_process()")}


def network(board: Any, name: str) -> dict[str, Any]:
    return dict(next(row for row in board.python("import sv; result = sv.network()") if row["name"] == name))


def shell(board: Any, command: str) -> str:
    return str(board.python(f"result = subprocess.getoutput({command!r})"))


def test_the_table_runs(board: Any) -> None:
    """Everything of the Raspberry Pi's table, for real, at the first try."""
    rows = stats(board)
    once = {"modules", "radios", "bus_rights", "pushed"}
    assert {"logd", "klogd", "syslogd", "dropbear", "chronyd", "wpa_supplicant", "network", "console", "broker", "fakegps",
            "wifi_scan", "wifi_analyzer", "diagnostic", "access_point"} <= rows.keys()  # fmt: skip
    for name, row in rows.items():
        assert (row["state"], row["restart"]) == ("stopped" if name in once else "running", 0), row
        assert row["exit"] == ("exit 0" if name in once else None), row
    facts = board.python("import sv; result = sv.board()")
    assert (facts["faults"], facts["rejected"], facts["loop"]["errors"]) == ([], [], 0)


def test_the_apps_are_forks_of_the_zygote_each_in_a_group_and_with_a_user_of_its_own(board: Any) -> None:
    """And PID 1's children; the zygote's own group holds the zygote alone."""
    eventually(lambda: stats(board)["zygote"]["ready"], 60)
    board.python(
        "import sv\nfor name in ('fakegps', 'wifi_scan', 'wifi_analyzer', 'diagnostic'):\n    sv.restart_process(name)"
    )
    rows = stats(board)
    apps = ("fakegps", "wifi_scan", "wifi_analyzer", "diagnostic")
    for name in apps:
        pid = rows[name]["pid"]
        status = dict(line.split(":", 1) for line in shell(board, f"cat /proc/{pid}/status").splitlines())
        assert (status["Name"].strip(), status["PPid"].strip(), status["NoNewPrivs"].strip()) == (name, "1", "1"), board.python(
            "import sv; result = [str(sv.logs('stack')), str(sv.logs('zygote'))]"
        )
        assert status["Uid"].split() == [str(own_number(name))] * 4
        assert shell(board, f"cat /proc/{pid}/cgroup").endswith(f"/{name}")
        assert f"STACK_SERVICE={name}" in shell(board, f"tr '\\0' '\\n' </proc/{pid}/environ").splitlines()
        assert shell(board, f"cat /proc/{pid}/oom_score_adj") == "200"
    mother = rows["zygote"]["pid"]
    assert shell(board, f"cat {rows['zygote']['cgroup']}/cgroup.procs").split() == [str(mother)]
    shell(board, f"kill -9 {mother}")
    eventually(lambda: stats(board)["zygote"]["pid"] not in (None, mother))
    assert {name: stats(board)[name]["pid"] for name in apps} == {name: rows[name]["pid"] for name in apps}


def test_the_daemons_do_their_work(board: Any) -> None:
    shell(board, "logger through-syslogd; echo through-klogd >/dev/kmsg")
    eventually(lambda: all(text in shell(board, "logread") for text in ("through-syslogd", "through-klogd")))
    assert "Reference ID" in shell(board, "chronyc tracking")
    assert {"virtio_net", "mac80211_hwsim", "dummy"} <= {line.split()[0] for line in shell(board, "lsmod").splitlines()}
    assert eventually(lambda: board.python("import sv; result = sv.logs('diagnostic')") is not None)
    assert "stack: " in shell(board, "dmesg"), "PID 1 logs to the kernel's ring"


def test_mounts_and_the_root_is_read_only(board: Any) -> None:
    mounts = {line.split()[1]: line.split() for line in shell(board, "cat /proc/mounts").splitlines()}
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/var"} <= mounts.keys()
    assert mounts["/"][3].startswith("ro")
    assert "gid=5" in mounts["/dev/pts"][3]
    assert shell(board, "cat /proc/sys/kernel/printk_devkmsg") == "on"


def test_ssh_lands_in_the_prompt_and_takes_no_password(board: Any) -> None:
    answer = board.ssh("-tt", seconds=60, text="from sv import *\nboard()['hostname'] + '!'\nexit()\n")
    assert ">>> " in answer
    assert "'qemu!'" in answer
    refused = subprocess.run(
        ["ssh", "-v", "-p", str(board.port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
         "-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=0", "root@127.0.0.1", "1"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 255
    assert "Authentications that can continue: publickey\n" in refused.stderr.replace("\r", ""), refused.stderr


def test_the_console_is_the_prompt(board: Any) -> None:
    board.wait_console(">>> ")
    board.type("stats_process('dropbear')[0]['state'] + '-indeed'\n")
    board.wait_console("'running-indeed'")
    board.type("exit()\n")  # who leaves it finds a new one
    eventually(lambda: stats(board)["console"]["restart"] == 1 and board.console().count("functions: ") == 2, 90)


def test_the_network_of_the_emulator(board: Any) -> None:
    row = eventually(lambda: [row for row in [network(board, "eth0")] if row["state"] == "local"], 60)[0]
    assert "10.0.2.15/24" in row["addresses"]
    assert "10.0.2.2" in row["gateway"]
    assert "nameserver 10.0.2.3" in shell(board, "cat /etc/resolv.conf")
    routes = shell(board, "ip -6 route")
    assert "metric 100" in next(line for line in routes.splitlines() if line.startswith("default via fe80::2")), routes


def test_an_acknowledgement_of_the_mothership_makes_it_online(board: Any) -> None:
    """No uplink yet: the test says on the local bus what it will say."""
    code = """
import sys; sys.path.insert(0, "/usr/lib/stack"); os.environ["BUS"] = "/run/bus/mqtt.sock"
import bus
one = bus.Bus("uplink")
for turn, now in enumerate(one.every(0.3)):
    one.publish("ack", {"seq": turn})
    if turn == 5: break
"""
    board.python(code)
    eventually(lambda: network(board, "eth0")["state"] == "online", 30)
    assert network(board, "wlan0")["state"] in ("local", "associating", "addressing"), (
        "it is proven for the preferred route alone"
    )
    retained = board.python("""
import sys; sys.path.insert(0, "/usr/lib/stack"); os.environ["BUS"] = "/run/bus/mqtt.sock"
import bus
one, got = bus.Bus("test"), []
one.subscribe("network/eth0", lambda topic, message: got.append(message["data"]["state"]))
for now in one.every(0.2):
    if got: break
result = got""")
    assert retained == ["online"]


def test_a_thousand_links_come_and_go(board: Any) -> None:
    """While network.py cannot look: events are lost, and the state of the real link is right all the same."""
    shell(board, "ip link add uplink0 type dummy")
    eventually(lambda: network(board, "uplink0")["state"] == "local", 60)
    batch = "".join(f"link add d{n} type dummy\\n" for n in range(1000)) + "".join(f"link del d{n}\\n" for n in range(1000))
    code = f"""
import sv
sv.signal_process("network", "STOP")
ip = lambda *words, **more: subprocess.run(["/sbin/ip", *words], check=True, text=True, **more)
ip("-batch", "-", input="{batch}")
ip("link", "set", "uplink0", "down")
ip("addr", "flush", "dev", "uplink0")
result = time.monotonic()
sv.signal_process("network", "CONT")
"""
    board.python(code, seconds=300)

    def restored() -> bool:
        return "10.77.0.1/24" in shell(board, "ip addr show uplink0") and "via 10.77.0.254 dev uplink0" in shell(
            board, "ip route"
        )

    eventually(restored, 60)
    eventually(lambda: network(board, "uplink0")["state"] == "local", 60)
    assert any("events were lost" in line for line in board.python("import sv; result = sv.logs('network', 200)"))
    assert network(board, "eth0")["state"] in ("local", "online")
    shell(board, "ip link del uplink0")
    eventually(lambda: network(board, "uplink0")["state"] == "absent", 30)


def test_the_end(board: Any) -> None:
    board.python("import sv; sv.poweroff()")
    assert board.event("SHUTDOWN")["data"]["reason"] == "guest-shutdown"


# --- boards of their own ----------------------------------------------------------------------------------------------
FEW = "SERVICES = tuple(row for row in SERVICES if row.name in ('logd', 'syslogd', 'dropbear', 'console'))\n"


def test_a_console_that_asks_for_a_password(machine: Callable[..., Any]) -> None:
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", "lab", "aye-aye"], capture_output=True, text=True, check=True
    ).stdout
    board = machine(
        "x86_64", FEW + "CONSOLE_LOGIN = 'password'", files={"etc/shadow": f"root:{hashed.strip()}:19700:0:99999:7:::\n"}
    )
    board.wait_console("login: ")
    board.type("root\n")
    board.wait_console("Password: ")
    board.type("wrong\n")
    board.wait_console("Login incorrect")
    eventually(lambda: board.console().count("login: ") == 2, 20)
    board.type("root\n")
    eventually(lambda: board.console().count("Password: ") == 2)
    board.type("aye-aye\n")
    board.wait_console(">>> ")
    board.type("from sv import *; board()['hostname'] + '!'\n")
    board.wait_console("'qemu!'")


def test_a_console_that_is_off(machine: Callable[..., Any]) -> None:
    state = "import sv; print(sv.stats_process(\\'console\\')[0][\\'exit\\'])"
    profile = (
        FEW
        + f"CONSOLE_LOGIN = 'off'\nSERVICES += (Service('say', ('sh', '-c', 'sleep 5; python3 -c \"{state}\" >/dev/console')),)"
    )
    board = machine("x86_64", profile.replace("\\\\", "\\"))
    board.wait_console("exit 125")
    assert ">>>" not in board.console()


def test_the_ladder_ends_in_a_reboot(machine: Callable[..., Any]) -> None:
    """No access point: each rung is climbed and logged, the driver really reloaded."""
    board = machine("x86_64", """
INTERFACES = INTERFACES[2:]  # while another one has an address, nothing is rebooted
LADDER_REASSOCIATE, LADDER_SUPPLICANT, LADDER_MODULE, LADDER_REBOOT, REBOOT_INTERVAL = 10.0, 20.0, 30.0, 50.0, 60.0
SERVICES = tuple(row._replace(tty="{CONSOLE}" if row.name == "network" else "") for row in SERVICES
                 if row.name in ("logd", "broker", "modules", "wpa_supplicant", "network"))
DIRECTORIES = (*DIRECTORIES, Directory("/var/lib"))
""")  # fmt: skip
    event = board.event("SHUTDOWN", "GUEST_PANICKED", seconds=200)
    assert event["data"] == {"guest": True, "reason": "guest-reset"}, board.console()
    rungs = ("shall reassociate", "wpa_supplicant is restarted", "module mac80211_hwsim is reloaded", "the board reboots")
    places = [board.console().find(text) for text in rungs]
    assert -1 not in places, board.console()
    assert places == sorted(places)
