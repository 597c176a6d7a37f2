"""network.py in network namespaces of the test's own: a real kernel, a real DHCP server (busybox), a real wpa_supplicant's protocol.

A veth pair is the cable: `eth0` on the board's side, `peer0` on the other. As an ordinary user all of it is in a user namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_NAMESPACES, PYTHON, ROOT, Board, Broker, eventually

from network import supplicant
from prompt import asking
from prompt import functions as prompt
from tables.rows import WifiNetwork

BUSYBOX = shutil.which("busybox")
UDHCPD = (
    BUSYBOX is not None
    and "udhcpd" in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=False).stdout.split()
)
WPA_SUPPLICANT = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
IP = shutil.which("ip", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
needs_dhcp = pytest.mark.skipif(not UDHCPD, reason="no busybox with udhcpd here")
pytestmark = [
    pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES),
    pytest.mark.skipif(IP is None or shutil.which("nsenter") is None, reason="no ip (iproute2) or nsenter (util-linux) here"),
    pytest.mark.timeout(120),
]
RUN = """
import sys; sys.path.insert(0, {root!r})
from tables import load as tables
chosen = tables.load({{"stack.profile": {profile!r}}})
assert not chosen.rejected, chosen.rejected
from network import radio
from network import service as network
network.board_table = lambda: chosen
radio.RUN = {run!r}
network.main()
"""


class Space:
    """A network namespace, kept by a process that sleeps; `parent` is the one whose root owns it."""

    def __init__(self, parent: Space | None = None) -> None:
        user = ["--user", "--map-root-user"] if os.getuid() and parent is None else []
        enter = [] if parent is None else parent.words("--user")
        before = os.readlink(f"/proc/{parent.pid if parent else 'self'}/ns/net")
        self._keeper = subprocess.Popen([*enter, "unshare", *user, "--net", "sleep", "infinity"])
        self.pid: int = self._keeper.pid
        eventually(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n")
        assert os.readlink(f"/proc/{self.pid}/ns/net") != before

    def words(self, *kinds: str) -> list[str]:
        """The words before a command that is to run in here."""
        kinds = kinds or ("--user", "--net")
        kept = [kind for kind in kinds if os.getuid() or kind != "--user"]
        return ["nsenter", f"--target={self.pid}", *kept, "--preserve-credentials"] if kept else []

    def run(self, command: str, text: str = "") -> str:
        done = subprocess.run([*self.words(), *command.split()], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.words(), *argv], **options)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()


class Lab:
    """A board's network and what is at the other end of its cables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = Space()
        self.other = Space(self.board)
        self.network: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []
        self.board.run("ip link set lo up")
        self.leases = folder / "leases"
        self.fake_bin = folder / "bin"
        self.fake_bin.mkdir()
        (folder / "run").mkdir()

    def cable(self, name: str = "eth0", peer: str = "peer0", address: str = "10.7.0.1/24") -> None:
        self.board.run(f"ip link add {name} type veth peer name {peer} netns {self.other.pid}")
        self.other.run(f"ip link set {peer} up")
        if address:
            self.other.run(f"ip addr add {address} dev {peer}")

    def start(self, interfaces: str, more: str = "", bus: str = "", **environment: str) -> None:
        """network.py with these rows."""
        profile = self.folder / "profile.py"
        places = {
            "NETWORK_STATE": "run/state.json",
            "RESOLV_CONF": "run/resolv.conf",
            "NETWORK_STAMP": "stamp",
            "WIFI_CONTROL": "wpa",
        }
        text = "".join(f"{name} = {str(self.folder / place)!r}\n" for name, place in places.items())
        profile.write_text(f"from tables.rows import *\n{text}INTERFACES = ({interfaces},)\n{more}\n")
        code = RUN.format(root=str(ROOT), profile=str(profile), run=str(self.folder / "run"))
        path = f"{self.fake_bin}:{os.environ['PATH']}"
        env = {
            **os.environ,
            "BUS": bus or str(self.folder / "nobody"),
            "PATH": path,
            "STACK_CONTROL": str(self.folder / "control"),
        }
        self.log_file = self.folder / "log"
        with self.log_file.open("ab") as file:
            self.network = self.board.start(PYTHON, "-c", code, stdout=file, stderr=file, env=env | environment)
        eventually(self.interfaces, 40)

    def dhcp_server(
        self, peer: str = "peer0", subnet: str = "10.7.0", lease: int = 600, mask: str = "255.255.255.0"
    ) -> subprocess.Popen[bytes]:
        config = self.folder / f"udhcpd.{peer}"
        config.write_text(
            textwrap.dedent(f"""
            start {subnet}.50
            end {subnet}.60
            interface {peer}
            max_leases 11
            min_lease 1
            lease_file {self.leases}
            pidfile {self.folder}/udhcpd.{peer}.pid
            option subnet {mask}
            option router {subnet}.1
            option dns {subnet}.1 {subnet}.9
            option domain example.org
            option lease {lease}
        """)
        )
        self.leases.touch()
        server = self.other.start(str(BUSYBOX), "udhcpd", "-f", str(config), stderr=subprocess.DEVNULL)
        self.started.append(server)
        return server

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run/state.json").read_text())
        return found

    def interfaces(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.facts()["interfaces"]}

    def wait(self, name: str, state: str, seconds: float = 15.0) -> dict[str, Any]:
        def check() -> dict[str, Any]:
            row = self.interfaces()[name]
            assert row["state"] == state, f"{row}\n{self.log()}"
            return row

        return eventually(check, seconds)

    def log(self) -> str:
        return self.log_file.read_text()

    def resolv_conf(self) -> list[str]:
        return (self.folder / "run/resolv.conf").read_text().splitlines()[1:]

    def client(self) -> int:
        """The DHCP client's pid."""
        assert self.network
        return int(
            Path(f"/proc/{self.network.pid}/task/{self.network.pid}/children").read_text().split()[-1]
        )  # a zombie comes before

    def close(self) -> None:
        for process in [*self.started, *([self.network] if self.network else [])]:
            process.kill()
            process.wait()
        self.other.close()
        self.board.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path)
    yield one
    one.close()


def routes(space: Space, version: int = 4) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(space.run(f"ip -{version} -json route show default") or "[]")
    return found


# --- DHCP -------------------------------------------------------------------------------------------------------------
@needs_dhcp
def test_a_lease_its_renewal_and_its_end(lab: Lab) -> None:
    lab.cable()
    server = lab.dhcp_server(lease=6)
    lab.start("Interface('eth0', metric=150)", "NETWORK_RETRY = 0.5")
    row = lab.wait("eth0", "local")
    address = row["addresses"][0]
    assert re.fullmatch(r"10\.7\.0\.(5\d|60)/24", address)
    eventually(lambda: lab.interfaces()["eth0"]["gateway"] == ["10.7.0.1"])
    (route,) = routes(lab.board)
    assert (route["gateway"], route["metric"], route["protocol"], route["prefsrc"]) == ("10.7.0.1", 150, "dhcp", address[:-3])
    eventually(lambda: lab.resolv_conf() == ["search example.org", "nameserver 10.7.0.1", "nameserver 10.7.0.9"])
    server.send_signal(signal.SIGUSR1)  # write the leases down
    eventually(lambda: socket.gethostname().encode()[:19] in lab.leases.read_bytes())
    until = time.monotonic() + 8
    while time.monotonic() < until:  # longer than the lease
        assert lab.interfaces()["eth0"]["addresses"] == [address], lab.log()
        time.sleep(0.1)
    assert lab.log().count("addressing -> local") == 1
    server.kill()
    lab.wait("eth0", "addressing", 8)
    assert routes(lab.board) == []
    assert address not in lab.board.run("ip addr show eth0")
    eventually(lambda: lab.resolv_conf() == [])


@needs_dhcp
def test_a_client_that_hangs_or_dies_is_replaced(lab: Lab) -> None:
    """Stopped without a lease: after DHCP_TIMEOUT. Killed with one: at once, and the lease lives on until it is renewed."""
    lab.cable()
    lab.start("Interface('eth0')", "NETWORK_RETRY = 0.3\nDHCP_TIMEOUT = 4.0")
    first = eventually(lab.client)
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: lab.client() != first)
    lab.dhcp_server(lease=120)
    lab.wait("eth0", "local", 30)

    def life() -> int:
        """Seconds that the kernel still gives the address."""
        found = json.loads(lab.board.run("ip -4 -json addr show eth0"))[0]["addr_info"]
        return int(found[0]["valid_life_time"])

    before, told = eventually(lambda: (life(), lab.log().count("-> local"))), lab.client()
    eventually(lambda: life() < before[0] - 2)
    os.kill(told, signal.SIGKILL)
    eventually(lambda: "the DHCP client ended" in lab.log())
    eventually(lambda: life() > before[0] - 2, 30)
    assert lab.log().count("-> local") == before[1], "and it has been local all the time"


@needs_dhcp
def test_a_cable_that_is_out_takes_address_and_route_and_brings_them_back(lab: Lab) -> None:
    lab.cable()
    lab.dhcp_server()
    lab.start("Interface('eth0')")
    lab.wait("eth0", "local")
    lab.other.run("ip link set peer0 down")
    lab.wait("eth0", "no carrier")
    assert routes(lab.board) == []
    eventually(lambda: lab.resolv_conf() == [])
    lab.other.run("ip link set peer0 up")
    lab.wait("eth0", "local")
    eventually(lambda: routes(lab.board))


@needs_dhcp
def test_an_interface_that_vanishes_and_comes_back_and_a_restart_of_ours(lab: Lab) -> None:
    lab.start("Interface('eth0')")
    lab.wait("eth0", "absent")
    lab.cable()
    lab.dhcp_server()
    address = lab.wait("eth0", "local")["addresses"]
    assert lab.network
    lab.network.terminate()
    assert lab.network.wait(5) == 0
    assert routes(lab.board), "ending it leaves the network alone"
    before, servers = len(lab.log()), lab.resolv_conf()
    lab.start("Interface('eth0')")
    assert lab.wait("eth0", "local")["addresses"] == address
    assert lab.resolv_conf() == servers
    eventually(lambda: "DHCP: " in lab.log()[before:])
    assert "addressing" not in lab.log()[before:], "and its successor finds it local"
    lab.board.run("ip link del eth0")
    lab.wait("eth0", "absent")


# --- fixed addresses, metrics, failover -----------------------------------------------------------------------------
def test_fixed_addresses_of_both_families_and_the_lower_metric_wins(lab: Lab) -> None:
    lab.cable("eth0", "peer0")
    lab.cable("wlan0", "peer1", "10.8.0.1/24")
    fixed = "addresses=('10.{n}.0.5/24', '2001:db8:{n}::5/64'), gateways=('10.{n}.0.1', '2001:db8:{n}::1'), nameservers=('10.{n}.0.53',)"
    rows = f"Interface('wlan0', metric=600, {fixed.format(n=8)}), Interface('eth0', metric=100, {fixed.format(n=7)})"
    lab.start(rows)
    for name, number in (("eth0", 7), ("wlan0", 8)):
        eventually(lambda: len(lab.interfaces()[name]["gateway"]) == 2)  # noqa: B023
        row = lab.wait(name, "local")
        assert set(row["addresses"]) == {f"10.{number}.0.5/24", f"2001:db8:{number}::5/64"}
    for version in (4, 6):
        assert {route["dev"]: route["metric"] for route in routes(lab.board, version)} == {"eth0": 100, "wlan0": 600}
    assert "dev eth0 " in lab.board.run("ip route get 198.51.100.1")
    eventually(lambda: lab.resolv_conf() == ["nameserver 10.7.0.53", "nameserver 10.8.0.53"])
    lab.other.run("ip link set peer0 down")
    lab.wait("eth0", "no carrier")
    assert "dev wlan0 " in lab.board.run("ip route get 198.51.100.1")
    assert "dev wlan0 " in lab.board.run("ip -6 route get 2001:db8:ffff::1")
    eventually(lambda: lab.resolv_conf() == ["nameserver 10.8.0.53"])
    lab.board.run("ip addr flush dev wlan0")
    eventually(lambda: "10.8.0.5" in lab.board.run("ip addr show wlan0"), 15)  # somebody's mistake is mended


# --- IPv6 -------------------------------------------------------------------------------------------------------------
ROUTER = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.settimeout(0.2)
index = socket.if_nametoindex("peer0")
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::2") + struct.pack("i", index))
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + socket.inet_pton(socket.AF_INET6, "2001:db8:77::")
rdnss = struct.pack("!BBHI", 25, 5, 0, 600) + b"".join(socket.inet_pton(socket.AF_INET6, a) for a in ("2001:db8:77::53", "fe80::53"))
advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix + rdnss
unasked = "unasked" in sys.argv
while True:
    try:
        packet, sender = s.recvfrom(2000)
        asked = packet[0] == 133
    except TimeoutError:
        asked = unasked
    try:
        if asked:
            s.sendto(advertisement, ("ff02::1", 0, 0, index))
    except OSError:
        pass  # the link-local address is not confirmed yet
"""


def test_router_advertisements_give_address_route_and_nameservers(lab: Lab) -> None:
    lab.cable(address="2001:db8:77::1/64")
    lab.started.append(lab.other.start(PYTHON, "-c", ROUTER))
    lab.start("Interface('eth0', metric=150, addresses=('ra',))")
    address = lab.wait("eth0", "local")["addresses"][0]
    assert address.startswith("2001:db8:77:")
    (route,) = routes(lab.board, 6)
    assert (route["metric"], route["protocol"]) == (150, "ra")
    eventually(lambda: lab.resolv_conf() == ["nameserver 2001:db8:77::53", "nameserver fe80::53%eth0"])


def test_what_a_router_said_before_us_is_asked_for_again(lab: Lab) -> None:
    """The kernel keeps address and route of an advertisement, but not the nameservers in it."""
    lab.cable(address="2001:db8:77::1/64")
    lab.board.run("ip link set eth0 up")
    lab.started.append(lab.other.start(PYTHON, "-c", ROUTER, "unasked"))
    eventually(lambda: "2001:db8:77:" in lab.board.run("ip -6 addr show eth0 scope global -tentative"))
    lab.started.pop().kill()
    lab.started.append(lab.other.start(PYTHON, "-c", ROUTER))
    time.sleep(0.5)
    lab.start("Interface('eth0', metric=150, addresses=('ra',))")
    lab.wait("eth0", "local")
    eventually(lambda: "nameserver 2001:db8:77::53" in lab.resolv_conf())
    assert routes(lab.board, 6)[0]["metric"] == 150, "the metric is ours from the next advertisement on"


FLOOD = """
import os, socket, struct, sys, time
index, servers, seconds = socket.if_nametoindex("peer0"), int(sys.argv[1]), float(sys.argv[2])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("peer0", 0))
to, number, until = socket.inet_pton(socket.AF_INET6, "ff02::1"), 0, time.monotonic() + seconds
while time.monotonic() < until:
    number += 1
    source = bytes.fromhex("fe80000000000000") + struct.pack("!II", 0x0200, number)
    option = struct.pack("!BBHI", 25, 1 + 2 * servers, 0, 600)
    option += b"".join(bytes.fromhex("20010db8") + bytes(4) + struct.pack("!II", number, one + 1) for one in range(servers))
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + bytes.fromhex("20010db9") + struct.pack("!I", number) + bytes(8)
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix + option
    text = source + to + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    head = bytes.fromhex("333300000001") + b"\\x02\\0" + struct.pack("!I", number) + b"\\x86\\xdd"
    wire.send(head + struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + to + body)
    time.sleep(0.001)
print(number)
"""


def test_a_flood_of_routers_costs_neither_memory_nor_the_network(lab: Lab, broker: Broker) -> None:
    """Each packet another router with another prefix and forty other nameservers: a few are kept, IPv6 is deaf for a while."""
    broker.start()
    lab.cable()
    lab.start("Interface('eth0', metric=150, addresses=('10.7.0.5/24', 'ra'), gateways=('10.7.0.1',))", bus=broker.path)
    lab.wait("eth0", "local")
    assert lab.network
    pid = lab.network.pid

    def memory() -> int:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])

    before = memory()
    flood = lab.other.start(PYTHON, "-c", FLOOD, "40", "8", stdout=subprocess.PIPE)
    lab.started.append(flood)
    eventually(lambda: "a flood of router advertisements" in lab.log(), 15)
    sent = int(flood.communicate(timeout=30)[0])
    assert sent > 1000, "a flood is many packets"
    row = lab.wait("eth0", "local")
    assert "10.7.0.5/24" in row["addresses"]
    assert routes(lab.board)[0]["gateway"] == "10.7.0.1", "IPv4 goes on"
    eventually(lambda: len(lab.board.run("ip -6 route show").splitlines()) < 20)
    assert memory() - before < 4096, f"kB: {before} before the flood, {memory()} after it"
    assert (lab.folder / "run/state.json").stat().st_size < 8192
    eventually(lambda: lab.facts()["dropped"] > 1000, 15)
    assert lab.log().count("nameservers") == 1, "said once"
    assert len(lab.resolv_conf()) == 3


def test_routes_are_read_as_far_as_anybody_can_use_them(lab: Lab) -> None:
    """Three thousand routes on the interface: a few are shown, the rest is not gathered."""
    lab.cable()
    lab.start("Interface('eth0', metric=150, addresses=('10.7.0.5/24',), gateways=('10.7.0.1',))")
    lab.wait("eth0", "local")
    text = "".join(f"route add default via 10.7.0.{n % 200 + 6} dev eth0 metric {n + 1000} onlink\n" for n in range(3_000))
    lab.board.run("ip -batch -", text)
    eventually(lambda: len(lab.interfaces()["eth0"]["gateway"]) == 16, 20)
    assert lab.interfaces()["eth0"]["gateway"][0] == "10.7.0.1"
    assert (lab.folder / "run/state.json").stat().st_size < 4096


def test_a_lease_that_cannot_be_is_not_taken(lab: Lab) -> None:
    """A server whose mask is 0.0.0.0 would have the whole Internet behind its cable; the next one's lease is taken."""
    if not UDHCPD:
        pytest.skip("no busybox with udhcpd here")
    lab.cable()
    server = lab.dhcp_server(mask="0.0.0.0")
    lab.start("Interface('eth0')", "NETWORK_RETRY = 0.5")
    eventually(lambda: "a lease is not taken: its subnet mask 0.0.0.0 would take 0 bits" in lab.log(), 30)
    assert lab.interfaces()["eth0"]["addresses"] == []
    assert lab.log().count("a lease is not taken") == 1, "said once"
    server.kill()
    server.wait()
    lab.dhcp_server()
    assert lab.wait("eth0", "local", 40)["addresses"][0].startswith("10.7.0.")


def test_what_is_no_acknowledgement_is_not_taken_for_one(lab: Lab, broker: Broker) -> None:
    broker.start()
    lab.cable()
    lab.start(FIXED, bus=broker.path)
    lab.wait("eth0", "local")
    for text in ("[1, 2]", "null", '{"boot": 7}', '{"mono": "x"}', '"text"'):
        raw = f"bus._client.publish('ack', {text!r}, 0, True)\n"
        on_the_bus(broker, f"for n, _ in enumerate(bus.every(0.1)):\n if n == 2: {raw} if n > 3: break")
    assert lab.interfaces()["eth0"]["state"] == "local"
    assert "Traceback" not in lab.log()


def test_nothing_to_do_wakes_nobody(lab: Lab) -> None:
    """Six seconds with an address and nothing due: no wake-up a second, by the kernel's own count of switches."""
    lab.cable()
    lab.start(FIXED, bus="")
    lab.wait("eth0", "local")
    assert lab.network
    pid = lab.network.pid

    def switches() -> int:
        return int(re.findall(r"voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])

    def quiet() -> bool:
        before = switches()
        time.sleep(3.0)
        return switches() - before <= 2  # the broker that is not there is tried every 2.5 to 5 s

    eventually(quiet, 30)


# --- overruns and fleets ----------------------------------------------------------------------------------------------
FIXED = "Interface('eth0', addresses=('10.7.0.5/24',), gateways=('10.7.0.1',))"


def make_fleet(lab: Lab, links: int) -> None:
    lab.board.run(
        "ip -batch -", "".join(f"link add fleet{n} group 7 type veth peer name pair{n} group 7\n" for n in range(links // 2))
    )


def test_lost_events_end_in_asking_for_everything(lab: Lab) -> None:
    """Stopped while its cable goes and a thousand links come and go: the kernel's buffer for it overruns."""
    lab.cable()
    lab.start(FIXED, "NETLINK_BUFFER = 4096")
    lab.wait("eth0", "local")
    assert lab.network
    lab.network.send_signal(signal.SIGSTOP)
    make_fleet(lab, 1000)
    lab.other.run("ip link set peer0 down")
    lab.board.run("ip link del group 7")
    lab.network.send_signal(signal.SIGCONT)
    lab.wait("eth0", "no carrier", 5)
    eventually(lambda: "events were lost" in lab.log())
    eventually(lambda: lab.facts()["overruns"] >= 1, 15)  # counters alone are written down every ten seconds
    lab.network.send_signal(signal.SIGSTOP)
    make_fleet(lab, 1000)
    lab.other.run("ip link set peer0 up")
    lab.network.send_signal(signal.SIGCONT)
    lab.wait("eth0", "local", 5)
    eventually(lambda: routes(lab.board))


def test_a_fleet_of_others_does_not_disturb(lab: Lab) -> None:
    """A thousand links appear and vanish, three times, while we run: no state is lost, and next to no time spent."""
    lab.cable()
    lab.start(FIXED)
    since = lab.wait("eth0", "local")["since"]
    assert lab.network

    def ticks() -> int:
        assert lab.network
        fields = Path(f"/proc/{lab.network.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    for _ in range(3):
        make_fleet(lab, 1000)
        lab.board.run("ip link del group 7")
    lab.other.run("ip link set peer0 down")
    assert lab.wait("eth0", "no carrier", 5)["since"] != since
    assert lab.log().count("eth0: ") - lab.log().count("bus: ") <= 6, lab.log()
    assert ticks() - before < 200, "hundredths of a second"
    lab.other.run("ip link set peer0 up")
    lab.wait("eth0", "local", 5)


# --- Wi-Fi and the ladder ---------------------------------------------------------------------------------------------
class Recorder:
    """A mock of wpa_supplicant's control socket, or of PID 1's: no radio in a namespace, and no board to reboot."""

    def __init__(self, path: Path, kind: int, answer: Callable[[bytes], bytes]) -> None:
        path.parent.mkdir(exist_ok=True)
        self.heard: list[str] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind(str(path))
        path.chmod(0o666)
        if kind == socket.SOCK_SEQPACKET:
            self._socket.listen()
        threading.Thread(target=self._serve_stream if kind == socket.SOCK_SEQPACKET else self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                message, sender = self._socket.recvfrom(4096)
                self.heard.append(message.decode())
                self._socket.sendto(self._answer(message), sender)

    def _serve_stream(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._socket.accept()[0] as client:
                    message = client.recv(4096)
                    self.heard.append(message.decode())
                    client.send(self._answer(message))

    def close(self) -> None:
        self._socket.close()


LADDER = (
    "LADDER_REASSOCIATE, LADDER_SUPPLICANT, LADDER_MODULE, LADDER_REBOOT = 1.0, 2.0, 3.0, 5.0\nREBOOT_INTERVAL = 1.0\n"
    "WIFI_NETWORKS = (WifiNetwork('harbour'),)"
)
RADIO = "Interface('wlan0', wifi=True, metric=600, addresses=('10.7.0.5/24',), module='brcm_wcc brcm')"


@pytest.mark.parametrize("stamp", ["writable", "not writable"])
def test_every_rung_of_the_ladder(lab: Lab, stamp: str) -> None:
    """A veth without a carrier stands for a radio; modprobe is a script that hangs a while."""
    (lab.fake_bin / "modprobe").write_text(f"#!/bin/sh\necho modprobe $@ >>{lab.folder}/modprobe\nsleep 1.5\n")
    (lab.fake_bin / "modprobe").chmod(0o755)
    if stamp == "not writable":
        (lab.folder / "stamp.new").mkdir()  # nothing can be written there, by root neither
    radio = Recorder(lab.folder / "wpa/wlan0", socket.SOCK_DGRAM, lambda _: b"OK\n")
    init = Recorder(lab.folder / "control", socket.SOCK_SEQPACKET, lambda _: b'{"ok": {}}')
    try:
        lab.cable("wlan0")
        lab.other.run("ip link set peer0 down")
        lab.start(RADIO, LADDER)
        lab.wait("wlan0", "associating")
        eventually(lambda: radio.heard == ["REASSOCIATE"])
        restart = '{"op": "restart", "name": "wpa_supplicant"}'
        eventually(lambda: [text for text in init.heard if '"fact"' not in text] == [restart])
        told = eventually((lab.folder / "modprobe").read_text)
        assert told == "modprobe -r brcm_wcc brcm\n"
        lab.other.run("ip link set peer0 up")
        lab.wait("wlan0", "local", 1.0)  # while modprobe hangs
        lab.other.run("ip link set peer0 down")
        eventually(lambda: (lab.folder / "modprobe").read_text().splitlines()[1:2] == ["modprobe -a brcm_wcc brcm"])
        if stamp == "writable":
            eventually(lambda: '{"op": "reboot"}' in init.heard)
            assert json.loads((lab.folder / "stamp").read_text())["interface"] == "wlan0"
        else:
            eventually(lambda: f"Reboot : {os.strerror(21)}" in lab.log() or "Reboot :" in lab.log())
            assert '{"op": "reboot"}' not in init.heard
        for words in ("shall reassociate", "wpa_supplicant is restarted", "module brcm_wcc brcm is reloaded"):
            assert words in lab.log()
    finally:
        radio.close()
        init.close()


def test_an_associated_radio_tells_its_network_and_signal(lab: Lab) -> None:
    answers = {
        b"STATUS": b"bssid=02:00:00:00:00:01\nssid=caf\\xc3\\xa9\nwpa_state=COMPLETED\n",
        b"SIGNAL_POLL": b"RSSI=-61\nLINKSPEED=72\n",
    }
    radio = Recorder(lab.folder / "wpa/wlan0", socket.SOCK_DGRAM, lambda command: answers.get(command, b"OK\n"))
    try:
        lab.cable("wlan0")
        lab.start(RADIO)
        lab.wait("wlan0", "local")
        eventually(lambda: lab.interfaces()["wlan0"]["ssid"] == "café")
        eventually(lambda: lab.interfaces()["wlan0"]["signal"] == -61)  # an answer of its own
    finally:
        radio.close()


@pytest.mark.skipif(WPA_SUPPLICANT is None, reason="no wpa_supplicant here")
def test_a_real_wpa_supplicant_tells_its_network(lab: Lab) -> None:
    """Over a cable (its driver `wired`): the file and the control socket are what they are with a radio."""
    config = lab.folder / "wlan0.conf"
    config.write_text(supplicant.configuration((WifiNetwork("café", "passphrase"),), str(lab.folder / "wpa"), "root"))
    lab.cable("wlan0")
    words = [str(WPA_SUPPLICANT), "-i", "wlan0", "-D", "wired", "-c", str(config)]
    lab.started.append(lab.board.start(*words, stdout=subprocess.DEVNULL))
    lab.start(RADIO)
    eventually(lambda: lab.interfaces()["wlan0"]["ssid"] == "café", 20)


def test_a_radio_that_is_missing_is_waited_for(lab: Lab) -> None:
    """wpa_supplicant is not started again and again, with a Python each time: one process sleeps until the interface comes."""
    fake = lab.fake_bin / "wpa_supplicant"
    fake.write_text("#!/bin/sh\necho started $@\n")
    fake.chmod(0o755)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from network import supplicant; supplicant.RUN = {str(lab.folder)!r};"
        "from tables.load import load; table = load({}); supplicant.board_table = lambda: table;"
        f"table.values['WIFI_CONTROL'] = {str(lab.folder / 'control')!r}; supplicant.main(['wlan7'])"
    )
    log = lab.folder / "supplicant.log"
    with log.open("wb") as file:
        env = {**os.environ, "PATH": f"{lab.fake_bin}:{os.environ['PATH']}", "STACK_CONTROL": str(lab.folder / "nobody")}
        waiting = lab.board.start(PYTHON, "-c", code, stdout=file, stderr=file, env=env)
    lab.started.append(waiting)
    eventually(lambda: "there is no wlan7: waiting for it" in log.read_text(), 20)
    lab.board.run("ip link add other0 type veth peer name other1")
    assert waiting.poll() is None
    assert "started" not in log.read_text()
    lab.board.run("ip link add wlan7 type veth peer name wlan8")
    assert waiting.wait(20) == 0, log.read_text()
    assert "started -i wlan7 -D nl80211" in log.read_text()
    assert log.read_text().count("waiting") == 1


# --- the bus ----------------------------------------------------------------------------------------------------------
def on_the_bus(broker: Broker, code: str) -> str:
    """Run code with a `bus` of its own."""
    text = f"import sys, json; sys.path.insert(0, {str(ROOT)!r})\nfrom bus import Bus\nbus = Bus('test')\n{code}"
    env = {**os.environ, "BUS": broker.path}
    return subprocess.run([PYTHON, "-c", text], env=env, capture_output=True, text=True, timeout=20, check=True).stdout


def test_online_is_what_the_mothership_acknowledges(lab: Lab, broker: Broker) -> None:
    broker.start()
    ack = "bus.publish('ack', {'seq': 1}, retain=True)\nfor n, _ in enumerate(bus.every(0.1)):\n if n > 5: break"
    on_the_bus(broker, f"bus.boot_id = 'another boot'\n{ack}")
    lab.cable()
    lab.start(FIXED, "ONLINE_TIMEOUT = 4.0", broker.path)
    lab.wait("eth0", "local")
    time.sleep(1.0)
    assert lab.interfaces()["eth0"]["state"] == "local", "what another boot has left on the broker proves nothing"
    on_the_bus(broker, ack)
    lab.wait("eth0", "online")
    listen = "bus.subscribe('network/+', lambda t, m: (print(t, json.dumps(m['data'])), sys.exit()))\nbus.run()"
    topic, _, data = on_the_bus(broker, listen).partition(" ")
    assert topic == "network/eth0"
    assert json.loads(data)["state"] == "online", "retained: who comes later knows it too"
    lab.wait("eth0", "local", 8)


# --- on a board -------------------------------------------------------------------------------------------------------
def test_a_board_shows_its_network_in_the_prompt(boot: Callable[..., Board]) -> None:
    """stack.py as PID 1, network.py its service, without any broker."""
    row = "Service('network', ('{PYTHON}', '-P', '{LIB}/network/service.py'), env=(('PYTHONPATH', '{PYTHONPATH}'),)),"
    settings = "from rows import *\nINTERFACES = (Interface('eth0', addresses=('10.7.0.5/24',), gateways=('10.7.0.1',)), Interface('usb0', metric=7))"
    board = boot(row, settings=settings).up()
    enter = ["nsenter", f"--target={board.pid}", "--net", *(["--user", "--preserve-credentials"] if os.getuid() else [])]
    subprocess.run([*enter, str(IP), "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"], check=True)
    subprocess.run([*enter, str(IP), "link", "set", "peer0", "up"], check=True)
    file = board.root / "run/network/state.json"

    def states() -> dict[str, str]:
        assert file.exists(), board.log("network") + str(board.stats("network"))
        return {row["name"]: row["state"] for row in json.loads(file.read_text())["interfaces"]}

    eventually(lambda: states() == {"eth0": "local", "usb0": "absent"}, 20)
    assert (board.root / "run/resolv.conf").read_text() == "# by network.py\n"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from prompt import asking; asking.tables().values['NETWORK_STATE'] = {str(file)!r}\nfrom sv import *; print(network())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].split() == ["NAME", "STATE", "SINCE", "ADDRESSES", "GATEWAY", "METRIC", "SSID", "SIGNAL", "RUNG"]
    assert shown[1].split()[0] == "eth0"
    assert shown[1].split()[1].startswith("local")
    assert "10.7.0.5/24" in shown[1]
    board.kill("network")
    eventually(lambda: board.stats("network")["restart"] >= 1)
    eventually(lambda: states() == {"eth0": "local", "usb0": "absent"}, 20)


def test_a_service_runs_while_the_board_is_online(boot: Callable[..., Board]) -> None:
    """network.py tells PID 1; what it has told holds for FACT_GRACE after its end, and a restart of it stops nobody."""
    row = "Service('network', ('{PYTHON}', '-P', '{LIB}/network/service.py'), env=(('PYTHONPATH', '{PYTHONPATH}'),)),"
    row += "Service('uses_it', ('sleep', '1000'), when=lambda b: b.online),"
    settings = "from rows import *\nINTERFACES = (Interface('eth0', addresses=('10.7.0.5/24',), gateways=('10.7.0.1',)),)\n"
    board = boot(row, settings=settings + "FACT_GRACE = 4.0\nSV_COOLDOWN = 0.1\nNETWORK_RETRY = 0.5").up()
    enter = [
        "nsenter",
        f"--target={board.pid}",
        "--net",
        *(["--user", "--preserve-credentials"] if os.getuid() else []),
        str(IP),
    ]

    def cable(words: str) -> None:
        subprocess.run([*enter, *words.split()], check=True)

    def condition() -> dict[str, Any]:
        found: dict[str, Any] = board.ask("explain", name="uses_it")["condition"]
        return found

    board.wait_state("uses_it", "unmet")
    cable("link add eth0 type veth peer name peer0")
    cable("link set peer0 up")
    board.wait_state("uses_it", "running", seconds=20)
    (online,) = condition()["uses"]
    assert (online["name"], online["value"], online["by"], online["note"]) == ("online", True, "network", "")
    cable("link set peer0 down")
    board.wait_state("uses_it", "unmet", seconds=20)
    assert condition()["uses"][0]["value"] is False
    cable("link set peer0 up")
    pid = board.wait_state("uses_it", "running", seconds=20)["pid"]
    board.kill("network")
    eventually(lambda: "network has ended: believed for" in condition()["uses"][0]["note"], 5)
    eventually(lambda: condition()["uses"][0]["note"] == "", 20)  # it is back, and has told it again
    assert board.stats("network")["restart"] >= 1
    assert board.stats("uses_it")["pid"] == pid
    board.ask("stop", name="network")
    board.wait_state("uses_it", "unmet", seconds=20)
    (online,) = condition()["uses"]
    assert (online["value"], online["note"]) == (None, "network has ended, which told it")
    board.ask("start", name="network")
    board.wait_state("uses_it", "running", seconds=20)


def test_what_the_prompt_shows_of_a_network_that_nobody_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    monkeypatch.setitem(asking.tables().values, "NETWORK_STATE", str(file))
    row = {"name": "eth0", "state": "local", "since": time.monotonic() - 5, "addresses": ["192.0.2.5/24"], "gateway": [], "metric": 100,
           "ssid": None, "signal": None, "rung": 0}  # fmt: skip
    file.write_text(json.dumps({"pid": os.getpid(), "interfaces": [row]}))
    assert prompt.network()[0] == {**row, "since": 5.0}
    file.write_text(json.dumps({"pid": 2**30, "interfaces": [row]}))
    assert prompt.network()[0]["state"] == "local?"
    assert repr(prompt.network()).splitlines()[1].split() == [
        "eth0",
        "local?",
        "5.0s",
        "192.0.2.5/24",
        "-",
        "100",
        "-",
        "-",
        "0",
    ]
