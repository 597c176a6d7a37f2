"""The microVM's configuration: our document, cloud-init's files, the kernel command line; and its service as part of a board."""

from __future__ import annotations

import json
import os
import signal
import struct
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Board, eventually
from hypothesis import given
from hypothesis import strategies as st

from onboard.to_pid1 import SVError
from services import cloud_init, microvm_device, workload
from services.microvm_config import ConfigFault, File, Plan, endpoint, from_text, from_words, split
from services.yaml_subset import DEEPEST, LARGEST, YamlFault, parse
from tables.plain import pack
from tables.rows import Service

# --- the part of YAML that is read -----------------------------------------------------------------------------------------
CLOUD_CONFIG = """#cloud-config
hostname: vm1   # the name
runcmd:
- [echo, "a b", 'it''s']
- echo hello > /run/x
write_files:
  - path: /run/a
    permissions: '0600'
    content: |
      line 1
        line 2

      line 3
  -
    path: /run/b
    content: |-
      no newline
n: 12
negative: -3
octal: 0644
float: 1.5
empty:
yes: true
url: http://x/y
flow: {a: 1, b: [2, c d], "q": null}
nested:
  - - 1
    - 2
  - b
"""


def test_yaml_as_cloud_init_writes_it() -> None:
    assert parse(CLOUD_CONFIG) == {
        "hostname": "vm1",
        "runcmd": [["echo", "a b", "it's"], "echo hello > /run/x"],
        "write_files": [
            {"path": "/run/a", "permissions": "0600", "content": "line 1\n  line 2\n\nline 3\n"},
            {"path": "/run/b", "content": "no newline"},
        ],
        "n": 12,
        "negative": -3,
        "octal": "0644",
        "float": "1.5",
        "empty": None,
        "yes": True,
        "url": "http://x/y",
        "flow": {"a": 1, "b": [2, "c d"], "q": None},
        "nested": [[1, 2], "b"],
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_yaml(value: Any) -> None:
    text = json.dumps(value)
    try:
        assert parse(text) == value
    except YamlFault as fault:
        assert "more than" in str(fault)


def as_block(value: Any, indent: int = 0) -> str:
    """A value in the block style."""
    blank = "\n" + " " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{blank}{json.dumps(key)}:{as_block(one, indent + 2)}" for key, one in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{blank}-{as_block(one, indent + 2)}" for one in value)
    return f" {json.dumps(value)}"


@given(VALUES)
def test_the_block_style(value: Any) -> None:
    assert parse(as_block(value)) == value


@given(st.text(alphabet="ab:-#|>&*![]{},'\"\\ \n\t0", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except YamlFault as fault:
        assert str(fault)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1", "line 1: '&x 1': an anchor"),
        ("a: *x", "an alias"),
        ("a: !!str 1", "a tag"),
        ("a: >\n  b", "folded text"),
        ("a: |+\n  b", "only `|` and `|-`"),
        ("a: yes", "true or false in one YAML and a text in another"),
        ("a: 1\n\tb: 2", "a tab"),
        ("a: 1\na: 2", "line 2: 'a' stands here twice"),
        ("a: [1", "no ]"),
        ("a: 'x", "not closed"),
        ('a: "\\q"', "escape that JSON does not have"),
        ("- a\nb: 1", "line 2"),
        ("a:\n  b: 1\n c: 2", "line 3: this line is indented"),
        ("<<: 1", "'<<' as a key"),
        ("a: b: c", "has a colon in it: put it in quotes"),
        ("a: 'x' y", "something follows the value"),
        ("[" * 100_000, f"more than {DEEPEST}"),
        ("- " * 100, f"more than {DEEPEST}"),
        ("x" * (LARGEST + 1), f"more than {LARGEST} bytes"),
    ],
)
def test_other_yaml_is_refused_by_its_line(text: str, words: str) -> None:
    with pytest.raises(YamlFault) as fault:
        parse(text)
    assert words in str(fault.value)


# --- our document ------------------------------------------------------------------------------------------------------------
def plan(**document: Any) -> Plan:
    return from_text(json.dumps(document).encode(), "the document")


def test_a_document_with_everything() -> None:
    made = plan(
        main={"argv": ["/app"], "env": {"TZ": "UTC"}, "user": "nobody", "memory_max": "64M"},
        seconds=60, services=[{"name": "cache", "argv": ["/cache"], "rlimits": [["nofile", 64]]}], hostname="vm1",
        files=[{"path": "/run/a", "content": "eA==", "encoding": "b64", "permissions": "0600"}],
        addresses=[{"interface": "eth0", "address": "10.0.0.2/24"}], gateway="10.0.0.1", nameservers=["10.0.0.1"], report="vsock:1024",
    )  # fmt: skip
    main = Service(
        "main", ("/app",), restart="never", tty="/dev/console", env=(("TZ", "UTC"),), user="nobody", memory_max="64M"
    )
    assert made == Plan(
        main, 60.0, (Service("cache", ("/cache",), rlimits=(("nofile", 64),)),), "vm1", (File("/run/a", b"x", 0o600),),
        (("eth0", "10.0.0.2/24"),), "10.0.0.1", ("10.0.0.1",), (2, 1024),
    )  # fmt: skip


MAIN = {"argv": ["/bin/true"]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"mian": MAIN}, "has 'mian'; there are main,"),
        ({"main": []}, "main is not a mapping"),
        ({"main": {"argv": "/bin/true"}}, "main has no argv"),
        ({"main": {**MAIN, "module": "os"}}, "main has 'module'"),
        ({"main": {**MAIN, "critical": True}}, "main has 'critical'"),
        ({"services": [MAIN]}, "a service has no name"),
        ({"services": [{"name": "main", **MAIN}]}, "two services have one name"),
        ({"services": [{"name": "a", **MAIN}] * 2}, "two services have one name"),
        ({"services": [{"name": f"a{n}", **MAIN} for n in range(17)]}, "a list of at most 16"),
        ({"seconds": -1}, "seconds is not a number"),
        ({"seconds": True}, "seconds is not a number"),
        ({"hostname": "a b"}, "hostname is not a host's name"),
        ({"files": [{"path": "x"}]}, "path is not an absolute path"),
        ({"files": [{"path": "/run/stack/table.json"}]}, "PID 1's own files"),
        ({"files": [{"path": "/a", "permissions": "0999"}]}, "permissions are text"),
        ({"files": [{"path": "/a", "permissions": "4755"}]}, "permissions are text"),
        ({"files": [{"path": "/a", "content": "!", "encoding": "b64"}]}, "Incorrect|is not base64|"),
        ({"files": [{"path": "/a", "append": True}]}, "a file has 'append'"),
        ({"addresses": [{"interface": "eth0", "address": "10.0.0.2"}]}, "such as 10.0.0.2/24"),
        ({"addresses": [{"interface": "eth0", "address": "fe80::1/64"}]}, "IPv6"),
        ({"addresses": [{"interface": "../x", "address": "10.0.0.2/24"}]}, "an interface's name"),
        ({"gateway": "gw"}, "no IPv4 address"),
        ({"report": "vsock:"}, "vsock:1024"),
        ({"report": "tcp:1:2"}, "vsock:1024"),
        ([], "is not a mapping"),
    ],
)
def test_what_a_document_may_not_say(document: Any, words: str) -> None:
    if words.startswith("Incorrect"):
        document = {"files": [{"path": "/a", "content": "\u20ac", "encoding": "b64"}]}
        words = "is not base64"
    with pytest.raises(ConfigFault) as fault:
        from_text(json.dumps(document).encode(), "the document")
    assert words in str(fault.value)


@given(VALUES)
def test_any_document_is_taken_or_refused(value: Any) -> None:
    for document in (
        value,
        {"main": value},
        {"services": [value]},
        {"files": [value]},
        {"addresses": [value]},
        {"report": value},
    ):
        try:
            from_text(json.dumps(document).encode(), "it")
        except ConfigFault as fault:
            assert str(fault).startswith("it")


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigFault, match="is not UTF-8"):
        from_text(b"\xff", "it")


# --- cloud-init's files --------------------------------------------------------------------------------------------------------
def test_user_data_is_a_script() -> None:
    made = cloud_init.from_files({"user-data": b"#!/bin/sh\nexit 3\n", "meta-data": b"local-hostname: vm2\ninstance-id: i-1\n"})
    assert made.hostname == "vm2"
    assert made.files == (File(cloud_init.SCRIPT, b"#!/bin/sh\nexit 3\n", 0o700),)
    assert made.main == Service("main", (cloud_init.SCRIPT,), restart="never", tty="/dev/console")


def test_a_cloud_config() -> None:
    made = cloud_init.from_files({"user-data": CLOUD_CONFIG.encode()})
    assert made.hostname == "vm1"
    assert [one.path for one in made.files] == ["/run/a", "/run/b", cloud_init.SCRIPT]
    assert made.files[-1].content == b"#!/bin/sh\n'echo' 'a b' 'it'\\''s'\necho hello > /run/x\n"
    assert made.notes[0] == "user-data: 'n' is not known here, and left out"


def test_our_document_within_user_data() -> None:
    made = cloud_init.from_files({"user-data": b'#cloud-config\nstack:\n  main: {argv: [/app, "1"]}\n  seconds: 5\n'})
    assert made.main
    assert made.main.argv == ("/app", "1")
    assert made.seconds == 5


NETWORKS = {
    "version 2": "version: 2\nethernets:\n  eth0:\n    addresses: [10.0.0.2/24]\n    routes:\n    - to: default\n      via: 10.0.0.1\n"
    "    nameservers:\n      addresses: [10.0.0.1]\n",
    "version 2 with gateway4": "network:\n  version: 2\n  ethernets:\n    eth0: {addresses: [10.0.0.2/24], gateway4: 10.0.0.1, "
    "nameservers: {addresses: [10.0.0.1]}}\n",
    "version 1": "version: 1\nconfig:\n- type: physical\n  name: eth0\n  subnets:\n  - type: static\n    address: 10.0.0.2\n"
    "    netmask: 255.255.255.0\n    gateway: 10.0.0.1\n- type: nameserver\n  address: 10.0.0.1\n",
}


@pytest.mark.parametrize("text", NETWORKS.values(), ids=NETWORKS)
def test_network_config(text: str) -> None:
    made = cloud_init.from_files({"network-config": text.encode()})
    assert (made.addresses, made.gateway, made.nameservers) == ((("eth0", "10.0.0.2/24"),), "10.0.0.1", ("10.0.0.1",))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"user-data": b"\x1f\x8b\x08"}, "user-data is gzip"),
        ({"user-data": b"Content-Type: multipart/mixed"}, "user-data is MIME"),
        ({"user-data": b"#include\nhttp://x"}, "user-data is #include"),
        ({"user-data": b"hostname: x"}, "neither with #! nor with #cloud-config"),
        ({"user-data": b"#cloud-config\nruncmd: x\n"}, "runcmd is not a list"),
        ({"user-data": b"#cloud-config\nruncmd:\n- {a: b}\n"}, "neither text nor a list of words"),
        (
            {"user-data": b"#cloud-config\nruncmd: [a]\nstack: {main: {argv: [/a]}}\n"},
            "one of them is the machine's main program",
        ),
        ({"user-data": b"#cloud-config\na: *b\n"}, "user-data: line 2"),
        ({"meta-data": b"local-hostname: 'a b'"}, "meta-data: hostname"),
        ({"network-config": b"version: 3"}, "of version 3"),
        ({"network-config": b"version: 2\nethernets: {eth0: {dhcp4: true}}"}, "ip=dhcp"),
        ({"network-config": b"version: 2\nbridges: {}"}, "only ethernets"),
        ({"network-config": b"version: 2\nethernets: {eth0: {vlan: 1}}"}, "eth0 has 'vlan'"),
        ({"network-config": b"version: 1\nconfig: [{type: bond}]"}, "'bond' is not configured"),
        ({"network-config": b"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: dhcp}]}]"}, "static is"),
    ],
)
def test_what_cloud_init_can_and_this_cannot(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ConfigFault) as fault:
        cloud_init.from_files(files)
    assert words in str(fault.value)


@given(st.sampled_from(cloud_init.NAMES), VALUES)
def test_any_file_of_cloud_init_is_taken_or_refused(name: str, value: Any) -> None:
    keys = ("hostname", "runcmd", "write_files", "stack", "version", "ethernets", "config")
    for document in (
        value,
        *({key: value} for key in keys),
        {"version": 2, "ethernets": value},
        {"version": 1, "config": [value]},
    ):
        text = b"#cloud-config\n" * (name == "user-data") + json.dumps(document).encode()
        try:
            cloud_init.from_files({name: text})
        except ConfigFault as fault:
            assert name in str(fault)


# --- the kernel command line, and which device -----------------------------------------------------------------------------------
def nobody(source: str) -> Plan:
    raise AssertionError(f"asked for {source!r}")


def test_the_command_line_alone() -> None:
    made = from_words({"stack.run": "/bin/echo 'a  b' c", "stack.seconds": "5", "stack.report": "vsock:1:9"}, nobody)
    assert made.main
    assert made.main.argv == ("/bin/echo", "a  b", "c")
    assert (made.seconds, made.report) == (5.0, (1, 9))


def test_a_document_on_the_command_line_and_what_counts_before_it() -> None:
    text = b64encode(json.dumps({"main": MAIN, "seconds": 9}).encode()).decode().rstrip("=")
    made = from_words({"stack.config": f"base64:{text}", "stack.run": "/a"}, nobody)
    assert made.main
    assert made.main.argv == ("/a",)
    assert made.seconds == 9


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"stack.run": " "}, "names no program"),
        ({"stack.run": "a 'b"}, "not closed"),
        ({"stack.run": "a", "stack.seconds": "x"}, "seconds"),
        ({"stack.run": "a", "stack.report": "x"}, "vsock:1024"),
        ({"stack.config": "base64:e"}, "stack.config"),
    ],
)
def test_faults_of_the_command_line(words: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigFault, match=fault):
        from_words(words, nobody)


@given(st.text(alphabet="ab '\t", max_size=20))
def test_words_are_split_as_quoted(text: str) -> None:
    try:
        words = split(text)
    except ConfigFault:
        assert text.count("'") % 2 == 1
    else:
        assert not any("'" in word for word in words)


def test_numbers_of_an_endpoint() -> None:
    assert endpoint("vsock:1024", "x") == (2, 1024)
    for bad in ("vsock:0", "vsock:4294967296", "vsock:1:2:3", "vsock:-1", 7, None):
        with pytest.raises(ConfigFault):
            endpoint(bad, "x")


def iso(label: bytes) -> bytes:
    return bytes(32768) + b"\x01CD001\x01\x00" + bytes(32) + label.ljust(32) + bytes(4000)


def ext4(label: bytes) -> bytes:
    return bytes(1080) + b"\x53\xef" + bytes(62) + label.ljust(16, b"\0") + bytes(1000)


def fat(label: bytes) -> bytes:
    head = bytes(43) + label.ljust(11) + b"FAT16   "
    return head + bytes(510 - len(head)) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (iso(b"cidata"), ("cidata", "iso9660")), (iso(b"CIDATA"), ("cidata", "iso9660")), (ext4(b"stack"), ("stack", "ext4")),
        (fat(b"STACK"), ("stack", "vfat")), (b"#stack-config\n{}", ("stack", "")), (ext4(b"data"), None), (b"", None),
        (struct.pack("<I", 7) * 9000, None),
    ],
)  # fmt: skip
def test_labels(tmp_path: Path, head: bytes, found: tuple[str, str] | None) -> None:
    (tmp_path / "vdb").write_bytes(head)
    (tmp_path / "block").mkdir()
    (tmp_path / "block/vdb").touch()
    (tmp_path / "block/loop0").touch()
    one = microvm_device.find("", 0.0, str(tmp_path / "block"), str(tmp_path))
    assert (one and (one.label, one.fstype)) == found
    if found:
        assert (
            microvm_device.find("cidata" if found[0] == "stack" else "stack", 0.0, str(tmp_path / "block"), str(tmp_path))
            is None
        )


def test_a_real_ext4_is_known_by_its_label(tmp_path: Path) -> None:
    import shutil
    import subprocess

    if (mke2fs := shutil.which("mke2fs", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")) is None:
        pytest.skip("no mke2fs here")
    file = tmp_path / "disk"
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-L", "stack", file, "1M"], check=True, capture_output=True)
    assert microvm_device.identify(str(file)) == microvm_device.Found(str(file), "stack", "ext4")


def test_a_document_on_a_bare_device(tmp_path: Path) -> None:
    (tmp_path / "vdb").write_bytes(b'#stack-config\n{"seconds": 1}' + bytes(1000))
    found = microvm_device.identify(str(tmp_path / "vdb"))
    assert found is not None
    assert microvm_device.read(found, ("stack.json",)) == {"stack.json": b'{"seconds": 1}'}


@pytest.mark.parametrize(
    ("how", "status"),
    [("exit 0", 0), ("exit 3", 3), ("signal KILL", 137), ("signal TERM", 143), ("signal KILL, out of memory (memory_max 32M)", 137),
     ("ENOENT no such program: x", 127), ("EACCES not an executable file: x", 126), ("None", 126)],
)  # fmt: skip
def test_statuses_are_a_shells(how: str, status: int) -> None:
    assert workload.status_of(how) == status
    assert workload.status_of(how, timed_out=True) == 124


def test_how_a_machine_is_ended(tmp_path: Path) -> None:
    assert workload.default_end(str(tmp_path), "x86_64") == "poweroff"
    assert workload.default_end(str(tmp_path / "none"), "x86_64") == "reboot"
    assert workload.default_end(str(tmp_path / "none"), "aarch64") == "poweroff"


# --- a board that is a microVM -------------------------------------------------------------------------------------------------
ROW = 'Service("microvm", ("microvm", "{CONSOLE}"), module="services.workload", oom_score=-900, log="none", critical=True),'
Boot = Callable[..., Board]


def ended(board: Board) -> str:
    """Its console, once the board has ended by itself."""
    board.launcher.wait(30)
    return board.console()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("stack.run=/bin/sh -c 'echo hello; exit 3'",), "hello\r?\n.*exit status 3: exit 3"),
        (("stack.run=/bin/sh -c 'kill -9 $$'",), "exit status 137: signal KILL"),
        (("stack.run=/bin/sh -c 'trap : TERM; while :; do sleep 0.1; done'", "stack.seconds=1"), "exit status 124: .*, time limit"),
        (("stack.run=/nothing",), "exit status 127: .*no such program"),
        (("stack.run=/etc/passwd",), "exit status 126: .*not an executable file"),
        (("stack.config=base64:e30",), "exit status 78: bad configuration: it says nothing to run"),
        (("stack.config=base64:eyJhIjoxfQ",), "exit status 78: bad configuration: stack.config has 'a'"),
        (("stack.config=LABEL=other",), "exit status 78: bad configuration: stack.config is 'LABEL=other'"),
    ],
    ids=["exit", "crash", "hang", "missing", "not-executable", "nothing", "unknown-key", "label"],
)  # fmt: skip
def test_the_end_of_the_main_program_is_the_boards(boot: Boot, words: tuple[str, ...], text: str) -> None:
    import re

    board = boot(ROW, words=(*words, "stack.end=poweroff"), base="()")
    assert re.search(f"stack: microvm: {text}|{text}", ended(board), re.S), board.console()


def test_services_beside_it_and_files(boot: Boot) -> None:
    document = {
        "main": {"argv": ["/bin/sh", "-c", 'until [ -e /run/beside ]; do sleep 0.1; done; cat /run/vm/a; echo "$X"; exit 4'], "env": {"X": "y"}},
        "services": [{"name": "beside", "argv": ["/bin/sh", "-c", "touch /run/beside; sleep 100"]}],
        "files": [{"path": "/run/vm/a", "content": "of the file\n"}],
    }  # fmt: skip
    text = b64encode(json.dumps(document).encode()).decode()
    console = ended(boot(ROW, words=(f"stack.config=base64:{text}", "stack.end=poweroff"), base="()"))
    assert "of the file" in console
    assert "exit status 4: exit 4" in console


def test_the_service_is_killed_and_goes_on_waiting(boot: Boot) -> None:
    board = boot(
        ROW, words=("stack.run=/bin/sh -c 'trap \"exit 6\" USR1; while :; do sleep 0.1; done'", "stack.end=poweroff"), base="()"
    ).up()
    board.wait_state("main", "running")
    eventually(lambda: (board.root / "run/microvm/state.json").exists())
    pid = board.stats("main")["pid"]
    board.kill("microvm", signal.SIGKILL)
    eventually(lambda: board.stats("microvm")["restart"] == 1)
    board.wait_state("microvm", "running")
    assert board.stats("main")["pid"] == pid
    board.kill("main", signal.SIGUSR1)
    assert "exit status 6: exit 6" in ended(board)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Service("a", ("/bin/true",), module="os"), "are the table's alone"),
        (Service("a@", ("/bin/true",)), "are the table's alone"),
        (Service("a", ()), "are the table's alone"),
        (Service("microvm", ("/bin/true",)), "the name is taken|is there already"),
        (Service("a", ("/bin/true",), memory_max="x"), "memory_max"),
        (Service("a", ("/bin/true",), user="nobody-here"), "is not in /etc/passwd"),
        (Service("a", ("nothing",)), "no such program"),
    ],
)
def test_a_row_to_run_is_checked_as_the_tables_are(boot: Boot, row: Service, words: str) -> None:
    board = boot('Service("microvm", ("sleep", "100")),').up()
    with pytest.raises(SVError, match=words):
        board.ask("run", row=pack(row))
    wrong: tuple[Any, ...] = ({"Service": {"nme": 1}}, {"Service": {"name": {"x": 1}}}, {"Mount": {}}, {}, "x")
    for bad in wrong:
        with pytest.raises(SVError):
            board.ask("run", row=bad)
    assert board.ask("run", row=pack(Service("b", ("sleep", "100"), nice=1)))["state"] == "running"
    assert (ROOT / "profiles/microvm.py").exists()
