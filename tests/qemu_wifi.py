"""Wi-Fi in the air of mac80211_hwsim: real hostapd, real wpa_supplicant, our scans and our network, on an arm64 kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import eventually, machines

from base.printable import printable

ODD = b'P"\xc3\xb6\\\x00\xff\n'
MANY = 26  # names as long as can be, escaped: more than the 4,096 bytes of SCAN_RESULTS
BASE = "driver=nl80211\nhw_mode=g\n"
PSK = "wpa=2\nwpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\n"
SAE = "wpa=2\nwpa_key_mgmt=SAE\nrsn_pairwise=CCMP\nieee80211w=2\nsae_password=odd-password\n"
RADIOS = {
    "wlan2": f"ssid2={ODD.hex()}\nchannel=6\n{SAE}",
    "wlan3": f"ssid=stack-hidden\nignore_broadcast_ssid=1\nchannel=11\n{PSK}wpa_passphrase=hidden-password\n",
    "wlan4": "utf8_ssid=1\nssid=Caf\u00e9 am See \u2693\nchannel=6\n",
}
COMING = ("wlan5", "wlan6", "wlan7")  # started by the tests
NAMES = [bytes([128 + number] * 32).hex() for number in range(MANY)]
LATER = {
    **{name: f"ssid=comes-{name}\nchannel=1\n{PSK}wpa_passphrase=does-not-matter\n" for name in COMING},
    "wlan8": f"channel=11\nssid2={NAMES[0]}\n" + "".join(f"bss=wlan8_{n}\nssid2={NAMES[n]}\n" for n in range(1, MANY)),
}
PROFILE = f"""
from tables.rows import WifiNetwork
ap = lambda name, *after: Service("ap_" + name, ("ip", "netns", "exec", "ap", "hostapd", f"/etc/hostapd/{{name}}.conf"), after=after)
SERVICES = tuple(row for row in SERVICES if row.name not in ("console", "ntpd", "klogd", "diagnostic"))
SERVICES += tuple(ap(name, "radios") for name in {tuple(RADIOS)})
SERVICES += (Service("recorder", ("{{PYTHON}}", "{{LIB}}/bus.py", "wifi/#"), after=("broker",)),)
WIFI_NETWORKS = (
    WifiNetwork("stack-lab", "stack-lab-psk", priority=3),
    WifiNetwork({ODD!r}, "odd-password", security="sae", priority=2),
    WifiNetwork("stack-hidden", "hidden-password", hidden=True, priority=1),
)
"""
Seen = tuple[float, dict[str, Any]]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for start in machines(tmp_path_factory.mktemp("wifi")):
        files = {f"etc/hostapd/{name}.conf": f"interface={name}\n{BASE}{text}" for name, text in (RADIOS | LATER).items()}
        files["etc/modprobe.d/lab.conf"] = "options mac80211_hwsim radios=9\n"
        yield start("virt-arm64", PROFILE, files=files).up(180)


def bssid(radio: str | int) -> str:
    return f"02:00:00:00:{int(str(radio)[-1]):02x}:00"


def observations(board: Any) -> list[Seen]:
    """Seconds since boot, and what was published under wifi/#."""
    lines = board.python("import sv; result = sv.logs('recorder', 5000)")
    found = [re.match(r"\S+\s+(\S+) recorder: wifi/\S+ (.*)", line) for line in lines]
    return [(float(match[1]), json.loads(match[2])) for match in found if match]


def wait_event(board: Any, of: str, event: str, since: float, seconds: float = 90) -> Seen:
    """The first such event of an access point."""

    def check() -> list[Seen]:
        return [seen for seen in observations(board) if seen[0] > since and (seen[1]["bssid"], seen[1]["event"]) == (of, event)]

    return eventually(check, seconds)[0]


def wait_source(board: Any, source: str) -> dict[str, tuple[Any, ...]]:
    """Records of one source, once the latest observation is from there and all fixed access points are among them."""
    since = board.python("result = time.monotonic()")

    def check() -> dict[str, tuple[Any, ...]]:
        told = {seen["bssid"]: (seen["frequency"], seen["security"], seen["ssid"]) for when, seen in observations(board)
                if when > since and seen["source"] == source and seen["event"] != "lost"}  # fmt: skip
        return told if {bssid(1), *map(bssid, RADIOS)} <= told.keys() else {}

    return eventually(check, 120)


def wait_log(board: Any, name: str, text: str, since: float) -> float:
    """When a service said something."""

    def check() -> list[float]:
        lines = board.python(f"import sv; result = sv.logs({name!r}, 200)")
        return [float(line.split()[1]) for line in lines if text in line and float(line.split()[1]) > since]

    return eventually(check, 150)[0]  # a scan that was under way has SCAN_LIMIT to end


def start_ap(board: Any, radio: str) -> tuple[str, float]:
    """Start a hostapd: the name of its service, and when it said that it is on the air."""
    now = board.python("result = time.monotonic()")
    command = f"ip netns exec ap hostapd /etc/hostapd/{radio}.conf"
    name = board.python(f"import sv; result = sv.start_process({command!r})['name']")
    return name, wait_log(board, name, "AP-ENABLED", now)


def ask(board: Any, command: str) -> str:
    """wpa_supplicant's own answer."""
    return str(
        board.python(f"""
import sys; sys.path.insert(0, "/usr/lib/stack")
from onboard import wpa_control
wire = wpa_control.connect("/run/wpa_supplicant", "wlan0", "/run/test.ctl")
wire.settimeout(5); wire.send({command.encode()!r}); result = wire.recv(65536).decode()
os.unlink("/run/test.ctl")""")
    )


def wait_joined(board: Any, radio: int) -> dict[str, str]:
    """wpa_supplicant's status, once it has joined that access point."""

    def check() -> dict[str, str]:
        status = dict(line.split("=", 1) for line in ask(board, "STATUS").splitlines() if "=" in line)
        return status if (status.get("bssid"), status.get("wpa_state")) == (bssid(radio), "COMPLETED") else {}

    return eventually(check, 120)


def wait_network(board: Any, state: str) -> dict[str, Any]:
    def check() -> dict[str, Any]:
        row = next(row for row in board.python("import sv; result = sv.network()") if row["name"] == "wlan0")
        return dict(row) if row["state"] == state else {}

    return eventually(check, 90)


def test_the_board_joins_and_gets_an_address(board: Any) -> None:
    row = wait_network(board, "local")
    assert (row["ssid"], row["metric"]) == ("stack-lab", 600)
    assert row["addresses"][0].startswith("10.9.0.")
    assert wait_joined(board, 1)["key_mgmt"] == "WPA2-PSK"
    routes = board.python("result = subprocess.getoutput('ip route')")
    assert routes.index("dev eth0") < routes.index("dev wlan0"), "ethernet before Wi-Fi"
    assert "1 packets received" in board.python("result = subprocess.getoutput('ping -c 1 -W 5 -I wlan0 10.9.0.1')")


def test_every_kind_of_access_point_is_heard(board: Any) -> None:
    told = wait_source(board, "wpa_supplicant")
    hidden = told.pop(bssid(3))
    assert (
        told.items()
        >= {
            bssid(1): (2412, "WPA2", "stack-lab"),
            bssid(2): (2437, "WPA3", printable(ODD.decode(errors="replace"))),
            bssid(4): (2437, "open", "Café am See ⚓"),
        }.items()
    )
    assert hidden in ((2462, "WPA2", None), (2462, "WPA2", "stack-hidden")), "the supplicant asks for it by its name"


def test_one_comes_changes_and_goes(board: Any, record_property: Callable[[str, object], None]) -> None:
    """And how long it takes until an observation with a position is on the bus."""
    delays, names = [], []
    for radio in COMING:
        name, enabled = start_ap(board, radio)
        when, seen = wait_event(board, bssid(radio), "new", enabled)
        assert seen["latitude"]
        assert seen["age"] < 5
        delays.append(when - enabled)
        names.append(name)
    now = board.python("""
subprocess.check_call("ip netns exec ap iw dev wlan5 set txpower fixed 500".split()); result = time.monotonic()""")
    assert wait_event(board, bssid(COMING[0]), "changed", now)[1]["signal"] == -45, "hwsim: -50 dBm and the power"
    gone = board.python(f"import sv; [sv.stop_process(name) for name in {names}]; result = time.monotonic()")
    lost = wait_event(board, bssid(COMING[1]), "lost", gone)
    assert lost[0] - gone > 8, "not before it was missed three times"
    figures = ", ".join(f"{delay:.1f}" for delay in sorted(delays))
    record_property("figure", f"access point on the air -> observation on the bus: {figures} s")


def test_more_than_one_page(board: Any) -> None:
    """SCAN_RESULTS is cut; all are heard nevertheless."""
    name, enabled = start_ap(board, "wlan8")
    long_names = {bytes.fromhex(ssid).decode(errors="replace") for ssid in NAMES}

    def all_there() -> bool:
        macs = {seen["bssid"] for when, seen in observations(board) if when > enabled and seen["ssid"] in long_names}
        return len(macs) == MANY

    eventually(all_there, 120)
    assert len(ask(board, "SCAN_RESULTS").splitlines()) - 1 < MANY + 4
    board.python(f"import sv; sv.stop_process({name!r})")


def test_a_supplicant_that_hangs_or_dies_is_survived(board: Any) -> None:
    now = board.python("import sv; sv.signal_process('wpa_supplicant', 'STOP'); result = time.monotonic()")
    try:
        wait_log(board, "wifi_scan", "does not answer", now)
    finally:
        board.python("import sv; sv.signal_process('wpa_supplicant', 'CONT')")
    wait_source(board, "wpa_supplicant")
    now = board.python("import sv; sv.signal_process('wpa_supplicant', 'KILL'); result = time.monotonic()")
    wait_log(board, "wifi_scan", "wpa_supplicant answers", now)
    wait_source(board, "wpa_supplicant")
    assert board.python("import sv; result = sv.stats_process('wifi_scan')[0]['restart']") == 0


def test_when_an_access_point_dies_the_next_network_is_joined(board: Any) -> None:
    """WPA3-SAE with a name of odd bytes, then a hidden one, then back."""
    board.python("import sv; sv.stop_process('access_point')")
    assert wait_joined(board, 2)["key_mgmt"] == "SAE"
    board.python("import sv; sv.stop_process('ap_wlan2')")
    assert wait_joined(board, 3)["ssid"] == "stack-hidden"
    board.python("import sv; sv.stop_process('ap_wlan3')")
    wait_network(board, "associating")
    board.python("import sv; [sv.start_process(name) for name in ('access_point', 'ap_wlan2', 'ap_wlan3')]")
    wait_joined(board, 1)
    wait_network(board, "local")


def test_without_a_supplicant_the_kernel_gives_the_same_records(board: Any) -> None:
    before = wait_source(board, "wpa_supplicant")
    board.python("import sv; sv.stop_process('wpa_supplicant')")
    after = wait_source(board, "nl80211")
    hidden = bssid(3)  # the supplicant may know its name
    assert after.pop(hidden)[:2] == before.pop(hidden)[:2]
    assert {name: after[name] for name in (bssid(1), bssid(2), bssid(4))} == {
        name: before[name] for name in (bssid(1), bssid(2), bssid(4))
    }
    board.python("import sv; sv.start_process('wpa_supplicant')")
    wait_source(board, "wpa_supplicant")
