"""wpa_supplicant's configuration: what the rows become, and what a real wpa_supplicant makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import NO_NAMESPACES, PYTHON, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from base import files
from network import supplicant
from onboard import wpa_control
from tables.rows import WifiNetwork

WPA_SUPPLICANT = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
ROWS = (
    WifiNetwork("harbour café", 'a"b#c dé', "psk+sae", priority=3, frequencies=(2412, 2437)),
    WifiNetwork(b"\x00\xff#\"'\n", "f" * 64, hidden=True),
    WifiNetwork("tomorrow", "pässword", "sae"),
    WifiNetwork("network={"),
)


def blocks(text: str) -> list[dict[str, str]]:
    return [
        dict(line.strip().split("=", 1) for line in block.split("}")[0].strip().splitlines())
        for block in text.split("network={\n")[1:]
    ]


def test_every_kind_of_network() -> None:
    transition, hidden, wpa3, plain = blocks(supplicant.configuration(ROWS, "/run/wpa", "netdev"))
    assert (transition["key_mgmt"], transition["ieee80211w"]) == ("WPA-PSK SAE", "1")
    assert (transition["priority"], transition["scan_freq"]) == ("3", "2412 2437")
    assert bytes.fromhex(transition["ssid"]).decode() == "harbour café"
    assert bytes.fromhex(transition["sae_password"]).decode() == 'a"b#c dé'
    assert hidden == {"ssid": "00ff2322270a", "key_mgmt": "WPA-PSK", "psk": "f" * 64, "scan_ssid": "1"}
    assert (wpa3["key_mgmt"], wpa3["ieee80211w"]) == ("SAE", "2")
    assert "psk" not in wpa3
    assert plain == {"ssid": b"network={".hex(), "key_mgmt": "NONE"}


def test_a_passphrase_becomes_the_key_that_wpa_passphrase_prints() -> None:
    """IEEE 802.11i, H.4.3, the first test vector."""
    assert supplicant.pairwise_key("password", b"IEEE") == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"


def test_the_owners_file_is_taken_but_for_what_the_board_decides() -> None:
    owners = 'ctrl_interface=/elsewhere\n update_config=1\nap_scan=1\nnetwork={\n  ssid="home"\n}\n'
    text = supplicant.configuration(ROWS[3:], "/run/wpa", "netdev", "DE", owners)
    assert text.startswith("ctrl_interface=DIR=/run/wpa GROUP=netdev\nupdate_config=0\ncountry=DE\nap_scan=1\nnetwork={\n")
    assert text.count("network={\n") == 2
    assert "/elsewhere" not in text
    assert "update_config=1" not in text


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ('country=DE\n# network={\n#   ssid="x"\n# }\n', False),
        ("  #network={\n", False),
        ('# "quoted\n"# network={\n', False),
        ("network={ # at home\n", True),
        ("\t network={\n", True),
        ("network={#\n", True),
        ("network = {\n", False),  # wpa_supplicant knows no such line
        ("", False),
    ],
)
def test_a_network_in_a_comment_is_none(tmp_path: Path, text: str, there: bool) -> None:
    """A board without a network to join must not climb the ladder to its reboot."""
    path = tmp_path / "wpa.conf"
    path.write_text(text)
    assert supplicant.has_networks(SimpleNamespace(WIFI_NETWORKS=(), WIFI_CONFIG=str(path))) == there
    if WPA_SUPPLICANT is not None:
        words = [WPA_SUPPLICANT, "-dd", "-i", "nowhere0", "-D", "wired", "-c", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        assert ("start of a new network block" in done.stdout) == there


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_a_file_is_the_old_one_or_the_new_one_and_a_secret_stays_one(first: str, second: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deep", "x.conf")
        for text in (first, second):
            files.write_atomically(str(path), text.encode("utf-8", "replace").decode(), 0o600)
            assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(path.parent) == ["x.conf"]


def test_the_service_becomes_wpa_supplicant_with_the_newest_rows(tmp_path: Path) -> None:
    """Without PID 1, with the default tables; wpa_supplicant is a script that tells what it was given."""
    fake = tmp_path / "wpa_supplicant"
    fake.write_text('#!/bin/sh\necho "$@"\ncat "$6"\nstat -c %a "$6"\n')
    fake.chmod(0o755)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from network import supplicant; supplicant.RUN = sys.argv[1]; supplicant.main(['lo'])"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STACK_CONTROL": str(tmp_path / "nobody")}
    done = subprocess.run([PYTHON, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"-i lo -D nl80211 -c {tmp_path}/lo.conf"
    assert lines[1] == "ctrl_interface=DIR=/run/wpa_supplicant GROUP=50819", "scan_proxy's"
    assert lines[-1] == "600"


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
def test_a_radio_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    """wpa_supplicant without its interface dies at once: it was started for ever, and a Python each time. A veth is the radio."""
    code = f"""
import subprocess, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from network import supplicant
def plug():
    sys.stdin.readline()
    subprocess.run("ip link add wlan9 type veth peer name other".split(), check=True)
threading.Thread(target=plug).start()
supplicant.wait_for("wlan9")
print("there")
"""
    words = ["unshare", "--user", "--map-root-user", "--net", PYTHON, "-c", code]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "<5>there is no wlan9: waiting for it\n"
        assert process.poll() is None
        said = process.communicate("\n", timeout=20)
        assert (process.returncode, *said) == (0, "there\n", "")


@pytest.mark.skipif(WPA_SUPPLICANT is None, reason="no wpa_supplicant here")
def test_a_real_wpa_supplicant_reads_it(tmp_path: Path) -> None:
    """An interface that is not there ends it after it has read its file. 2.10 refuses the whole file for one bad line."""
    path = tmp_path / "wpa.conf"
    path.write_text(supplicant.configuration(ROWS, str(tmp_path / "control"), "root"))
    words = [str(WPA_SUPPLICANT), "-dd", "-K", "-i", "nowhere0", "-D", "wired", "-c", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert "id=0 ssid='harbour caf\\xc3\\xa9'" in done.stdout
    assert "id=1 ssid='\\x00\\xff#\\\"'\\n'" in done.stdout
    assert done.stdout.count("sae_password - hexdump") == 2
    assert "Line" not in "".join(line for line in done.stdout.splitlines() if "failed" in line or "Invalid" in line)


@pytest.mark.parametrize(
    ("owners", "there"),
    [
        ("", False), ("country=DE\n# network={\n", False), ("#network={\n#ssid=61\n#}\n", False), ('x="network={"\n', False),
        ("country=DE # network={\n", False), ("network={\nssid=61\n}\n", True), ("  network={ # at home\nssid=61\n}\n", True),
        ("network = {\n}\n", False),
    ],
)  # fmt: skip
def test_a_commented_network_is_none_as_wpa_supplicant_reads_it(tmp_path: Path, owners: str, there: bool) -> None:
    """A board that believes it has one climbs its ladder to the reboot, every hour."""
    file = tmp_path / "wpa_supplicant.conf"
    file.write_text(owners)
    chosen = type("Chosen", (), {"WIFI_NETWORKS": (), "WIFI_CONFIG": str(file)})
    assert supplicant.has_networks(chosen) is there


def test_lines_as_wpa_supplicant_reads_them() -> None:
    text = '\n # all\nssid="a#b" # c\npsk="x"#y"\n\tcountry=DE#z\r\n"#\n'
    assert list(wpa_control.config_lines(text)) == [(3, 'ssid="a#b"'), (4, 'psk="x"#y"'), (5, "country=DE"), (6, '"')]
