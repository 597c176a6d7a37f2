"""Root's shell, which ssh asks for the prompt, for commands and for files: with a real dropbear and OpenSSH's clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import EMULATED, PYTHON, ROOT, Board, eventually
from test_board import Terminal, plain

from services import ssh_door

Boot = Callable[..., Board]
Done = subprocess.CompletedProcess[str]


# --- root's shell -------------------------------------------------------------------------------------------------------
@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Done]:
    """Root's shell as `make install` makes it, with this tree's modules; PID 1 is not there."""
    file = tmp_path / "stack-shell"
    file.write_text((ROOT / "prompt/shell.sh").read_text().replace("@PYTHON@", PYTHON).replace("@LIB@", str(ROOT)))
    file.chmod(0o755)

    def run(*words: str, text: str = "") -> Done:
        environment = {**os.environ, "STACK_CONTROL": "/nowhere"}
        return subprocess.run(
            [file, *words], input=text, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=30
        )

    return run


def test_a_line_is_for_the_shell(shell: Callable[..., Done], tmp_path: Path) -> None:
    assert shell("-c", "uname -s").stdout == "Linux\n"
    assert shell("-c", "echo a | tr a b > c; exit 7").returncode == 7
    assert (tmp_path / "c").read_text() == "b\n"
    assert shell("-c", "cat", text="through\n").stdout == "through\n"
    assert shell("-c", "kill -9 $$").returncode == -9
    assert shell("-c", "echo $0 $1", "name", "word").stdout == "name word\n"
    assert shell("-c", "top() { echo a function of the shell; }; top").stdout == "a function of the shell\n"
    assert shell("-c", "(echo sub)").stdout == "sub\n"
    wrong = shell("-c", "print(1)")
    assert (wrong.returncode, "yntax error" in wrong.stderr) == (2, True), "what is not of ours is not guessed at"
    (tmp_path / "script").write_text("echo script $1")
    assert shell(str(tmp_path / "script"), "x").stdout == "script x\n"


def test_a_line_of_ours_is_python(shell: Callable[..., Done]) -> None:
    unreachable = shell("-c", "stats_process()")
    assert (unreachable.returncode, unreachable.stdout) == (1, "")
    assert re.fullmatch(r"SVError: cannot reach PID 1 at /nowhere: .*\n", unreachable.stderr)
    assert shell("-c", "from sv import *; print(len('abc')); 'a' + 'b'").stdout == "3\n'ab'\n"
    assert shell("-c", "import sv; sv.__all__[0]").stdout == "'SVError'\n"
    assert shell("-c", "from sv import *; exit(5)").returncode == 5
    assert "(no lines)\n" in shell("-c", "from sv import *; logs.__name__; from prompt.shapes import Lines; Lines()").stdout


@pytest.mark.parametrize(
    "line",
    [
        "  stats_process()", "print(stats_process())", "len(stats_process('x'))", "x = stats_process('x'); x", "sorted(logs('x'))",
        "for row in stats_process(): print(row)", "for row in stats_process():\n    print(row)", "board() # what is it",
        "import json; json.dumps(board())" if False else "board()\nlogs()",
    ],
)  # fmt: skip
def test_a_line_that_calls_one_of_ours_is_python(shell: Callable[..., Done], line: str) -> None:
    done = shell("-c", line)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "SVError: " in done.stderr


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("  echo board", "board\n"), ("board() { echo mine; }; board", "mine\n"), ("echo 'logs()'", "logs()\n"),
        ("for x in a b; do echo $(echo $x); done", "a\nb\n"), ("test x = x && echo top", "top\n"), ("echo 1 # board()", "1\n"),
        ("for f in $(echo 'logs():'); do echo $f; done", "logs():\n"), ("awk 'BEGIN { printf(\"%d\", 3) }'", "3"),
        ("echo " + "x" * 100_000, "x" * 100_000 + "\n"), ("printf '\\377\\000' | od -An -tx1", " ff 00\n"), ("", ""),
    ],
)  # fmt: skip
def test_a_line_that_only_looks_like_ours_is_for_the_shell(shell: Callable[..., Done], line: str, printed: str) -> None:
    done = shell("-c", line)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_help_needs_no_import_and_a_pipe_may_end_early(shell: Callable[..., Done], tmp_path: Path) -> None:
    assert "stop_process(name: " in shell("-c", "help(stop_process)").stdout
    line = "from sv import *; [print('x' * 1000) for _ in range(1000)]; 5"
    done = shell("-c", f'"{tmp_path}/stack-shell" -c "{line}" | head -c 3')
    assert (done.returncode, done.stdout, done.stderr) == (0, "xxx", "")


def test_without_a_terminal_stdin_is_a_program(shell: Callable[..., Done]) -> None:
    done = shell(text="for name in 'ab':\n    print(name)\nprint(callable(stats_process))\n")
    assert (done.returncode, done.stdout) == (0, "a\nb\nTrue\n")
    assert shell(text="stop_process('x')").returncode == 1


def test_a_board_whose_python_is_gone_still_has_a_shell(tmp_path: Path) -> None:
    file = tmp_path / "stack-shell"
    file.write_text((ROOT / "prompt/shell.sh").read_text().replace("@PYTHON@", "/nowhere/python").replace("@LIB@", str(ROOT)))
    done = subprocess.run(["sh", file], input="echo in; exit 3", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "in\n")
    assert "there is no /nowhere/python" in done.stderr


# --- ssh ----------------------------------------------------------------------------------------------------------------
INTO_THE_BOARD = """
import os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from base.syscalls import check, libc
for name, flag in (("user", 0x10000000), ("net", 0x40000000)):
    check(libc.setns(os.open(f"/proc/{sys.argv[2]}/ns/{name}", os.O_RDONLY), flag))
link = socket.create_connection(("127.0.0.1", 22))
def send():
    while data := os.read(0, 65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := link.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""
SSHD = """
Service("keys", ("sh", "-c", "for name in passwd shells shadow; do mount --bind /test/$name /etc/$name || exit; done; "
        "mkdir -m 700 -p /root/.ssh && cp /test/keys /root/.ssh/authorized_keys && "
        "dropbearkey -t ed25519 -f /run/hostkey"), ready="exit", restart="never"),
Service("dropbear", ("ssh_door", "22", "dropbear", "-i", "-s", "-r", "/run/hostkey"), after=("keys",), kill="main",
        module="services.ssh_door"),
"""


class Clients:
    """OpenSSH's clients and rsync, for a board with a real dropbear in namespaces, with a key of the test's own."""

    def __init__(self, board: Board, folder: Path) -> None:
        self.board = board
        relay = folder / "relay.py"
        relay.write_text(INTO_THE_BOARD)
        options = {
            "ProxyCommand": f"{sys.executable} {relay} {ROOT} {board.pid}", "StrictHostKeyChecking": "no", "LogLevel": "ERROR",
            "UserKnownHostsFile": "/dev/null", "IdentityFile": folder / "key", "IdentitiesOnly": "yes", "BatchMode": "yes",
        }  # fmt: skip
        self.options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self.rsh = "ssh " + " ".join(f"'{word}'" for word in self.options)

    def run(self, *command: str | Path, text: str = "") -> Done:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=40, check=False)

    def ssh(self, *words: str, text: str = "") -> Done:
        return self.run("ssh", *self.options, "root@board", *words, text=text)


@pytest.fixture
def clients(boot: Boot, tmp_path: Path) -> Clients:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [one for one in ("dropbear", "dropbearkey", "ssh", "scp", "sftp", "rsync") if not shutil.which(one, path=path)]
    if missing or os.getuid() != 0 or EMULATED:
        pytest.skip(f"takes root, and {', '.join(missing) or 'a native processor'}")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    files = {
        "keys": (tmp_path / "key.pub").read_text(), "shells": "/bin/sh\n/stack/bin/stack-shell\n", "shadow": "root:*:19700:0:99999:7:::\n",
        "passwd": "root:x:0:0:root:/root:/stack/bin/stack-shell\nnobody:x:65534:65534::/:/bin/false\n",
    }  # fmt: skip
    board = boot(SSHD, files=files).up()
    found = Clients(board, tmp_path)
    eventually(lambda: found.ssh("true").returncode == 0, 20)
    return found


def test_ssh_runs_commands(clients: Clients) -> None:
    assert clients.ssh("uname -s").stdout == "Linux\n"
    assert (
        clients.ssh("echo a | tr a b; echo c >&2; exit 7").__dict__.items()
        >= {"returncode": 7, "stdout": "b\n", "stderr": "c\n"}.items()
    )
    assert clients.ssh("cat", text="through").stdout == "through"
    assert "dropbear" in clients.ssh("/stack/bin/sv stats").stdout
    assert json.loads(clients.ssh("/stack/bin/sv", "stats", "keys", "--json").stdout)[0]["exit"] == "exit 0"
    assert clients.ssh("/stack/bin/sv", "stop", "nobody").returncode == 1


def test_ssh_runs_our_python(clients: Clients) -> None:
    assert "dropbear" in clients.ssh("stats_process()").stdout
    assert clients.ssh("stats_process('dropbear')['state']").stdout == "'running'\n"
    wrong = clients.ssh("stop_process('dropber')")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.strip().endswith("did you mean dropbear?")
    assert clients.ssh("python3 -c 'import sys; print(sys.stdin.read())'", text="mine").stdout == "mine\n"
    assert clients.ssh(text="print(len(stats_process()))\n").stdout == "3\n", "without a terminal a program comes on stdin"


def test_ssh_lands_in_the_prompt(clients: Clients) -> None:
    terminal = Terminal(["/usr/bin/env", "TERM=vt220", "ssh", "-tt", *clients.options, "root@board"])
    terminal.expect(">>> ")
    assert "functions: board" in plain(terminal.seen)
    assert "Ctrl-D leaves; for a shell: ssh -t " in plain(terminal.seen)
    terminal.type("stats_process('keys')['exit']\n")
    terminal.expect("'exit 0'\n>>> ")
    terminal.type("import os; os.environ['TERM']\n")
    terminal.expect("'vt220'\n>>> ")
    terminal.type("from sv import *; board()['hostname'] + '!'\n")
    terminal.expect("'laptop!'\n>>> ")
    terminal.type("import time; time.sleep(100)\n")
    terminal.settle()
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt\n>>> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    again = Terminal(["/usr/bin/env", "TERM=xterm", "ssh", "-tt", *clients.options, "root@board"])
    again.expect(">>> ")
    again.type("\x1b[A\x1b[A")  # the arrow up: lines of the session before
    again.expect("board()['hostname'] + '!'")
    again.type("\x03")
    again.type("exit(3)\n")
    assert again.wait() == 3


def test_ssh_with_a_terminal_runs_a_command(clients: Clients) -> None:
    terminal = Terminal(["/usr/bin/ssh", "-tt", *clients.options, "root@board", "test -t 0 && test -t 1 && echo a terminal"])
    terminal.expect("a terminal\n")
    assert terminal.wait() == 0


@pytest.mark.parametrize("protocol", ["-O", "-s"], ids=["scp", "sftp"])
def test_scp(clients: Clients, tmp_path: Path, protocol: str) -> None:
    """The old protocol, which asks the shell for `scp -t`, and today's, which asks for the sftp subsystem."""
    (tmp_path / "some file").write_bytes(os.urandom(300_000))
    sent = clients.run("scp", protocol, "-p", *clients.options, tmp_path / "some file", "root@board:/run/copy")
    assert (sent.returncode, sent.stderr) == (0, "")
    got = clients.run("scp", protocol, *clients.options, "root@board:/run/copy", tmp_path / "back")
    assert (got.returncode, (tmp_path / "back").read_bytes()) == (0, (tmp_path / "some file").read_bytes())
    assert clients.run("scp", protocol, *clients.options, "root@board:/run/nowhere", tmp_path / "x").returncode == 1


def test_sftp_and_rsync(clients: Clients, tmp_path: Path) -> None:
    batch = clients.run("sftp", "-b", "-", *clients.options, "root@board", text="ls /run\n")
    assert (batch.returncode, "/run/hostkey" in batch.stdout) == (0, True), batch.stderr
    source = tmp_path / "tree"
    (source / "inner").mkdir(parents=True)
    (source / "inner/a").write_text("a" * 10_000)
    for _ in range(2):
        done = clients.run("rsync", "-a", "-e", clients.rsh, f"{source}/", "root@board:/run/tree/")
        assert (done.returncode, done.stderr) == (0, "")
    (clients.board.root / "run/tree/inner/a").read_text()
    back = clients.run("rsync", "-a", "-e", clients.rsh, "root@board:/run/tree/", f"{tmp_path}/back/")
    assert (back.returncode, (tmp_path / "back/inner/a").read_text()) == (0, "a" * 10_000)


def test_what_ansible_asks_for(clients: Clients) -> None:
    """Its raw and ping run commands of this shape, and put a module through `dd` or sftp."""
    line = "/bin/sh -c 'echo ~root && sleep 0'"
    assert clients.ssh("-tt", line).stdout.strip() == "/root"
    put = clients.ssh("dd of=/run/module.py bs=65536", text="import json; print(json.dumps({'ping': 'pong'}))")
    assert put.returncode == 0
    ran = clients.ssh("/bin/sh -c '/usr/bin/env python3 /run/module.py && sleep 0'")
    assert json.loads(ran.stdout) == {"ping": "pong"}


def test_port_forwarding(clients: Clients, tmp_path: Path) -> None:
    """`ssh -W`, which is what -J and -L come to."""
    command = ["ssh", *clients.options, "-W", "127.0.0.1:22", "root@board"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=40, check=False)
    assert done.stdout.startswith(b"SSH-2.0-dropbear")


# --- make boot ----------------------------------------------------------------------------------------------------------
def test_a_host_key_for_dropbear(tmp_path: Path) -> None:
    """The same board at each `make boot`: its key is made by ssh-keygen, once, and dropbear has a format of its own."""
    sys.path.insert(0, str(ROOT / "lab"))
    import host_key

    if not (shutil.which("ssh-keygen") and shutil.which("dropbearconvert")):
        pytest.skip("takes ssh-keygen and dropbearconvert")
    for turn in range(4):
        key, converted = tmp_path / f"key{turn}", tmp_path / f"converted{turn}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x" * turn * 7, "-f", key], check=True)
        subprocess.run(["dropbearconvert", "openssh", "dropbear", key, converted], check=True, capture_output=True)
        assert host_key.for_dropbear(key) == converted.read_bytes()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "locked"], check=True)
    with pytest.raises(ValueError, match="has a passphrase"):
        host_key.for_dropbear(tmp_path / "locked")


def test_the_board_of_make_boot_has_that_key_and_the_profile_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.path.insert(0, str(ROOT / "lab"))
    pytest.importorskip("qemu.qmp")
    import boot
    import image

    from tables.load import load

    monkeypatch.setattr(image, "BUILD", tmp_path / "lab")
    (tmp_path / "my profile.py").write_text("HOSTNAME = 'mine'\nSERVICES = SERVICES[:-1]\n")
    done = subprocess.run(
        ["make", "-n", "boot", f"PROFILE={tmp_path}/my profile.py", "OPTIONS=stack.debug stack.rescue"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if "lab/boot.py" in line]
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line.partition('lab/boot.py')[2]}"], capture_output=True, text=True, check=True
    )
    options = boot.parse(words.stdout.splitlines())
    assert (options.machine, options.words) == ("x86_64", ["stack.debug", "stack.rescue"])
    files = boot.own_files(options.profile)
    key = files["etc/lab_host_key"]
    assert boot.own_files(None)["etc/lab_host_key"] == key, "at the second boot too"
    assert "usr/lib/stack/settings_mine.py" not in boot.own_files(None)
    for name in ("boot", "mine"):
        (tmp_path / f"{name}.py").write_text(str(files[f"usr/lib/stack/settings_{name}.py"]))
    tables = load({"stack.profile": f"{ROOT}/lab/settings_qemu.py,{tmp_path}/boot.py,{tmp_path}/mine.py"})
    assert tables.rejected == []
    assert tables.HOSTNAME == "mine"
    argv = tables.services["dropbear"].argv
    assert argv[-2:] == ("-r", "/etc/lab_host_key")
    assert "-R" not in argv
    with pytest.raises(SystemExit):
        boot.parse(["--profile", "/nowhere", "x86_64"])


# Silent connections from eight addresses, half of them with the first line of ssh's protocol, and new ones for those that end.
NEIGHBOUR = """
import os, select, socket, sys
sys.path.insert(0, sys.argv[1])
from base.syscalls import check, libc
for name, flag in (("user", 0x10000000), ("net", 0x40000000)):
    check(libc.setns(os.open(f"/proc/{sys.argv[2]}/ns/{name}", os.O_RDONLY), flag))
def connect(number):
    link = socket.create_connection(("127.0.0.1", 22), timeout=5, source_address=(f"127.0.0.{2 + number % 8}", 0))
    if number % 2:
        link.sendall(b"SSH-2.0-neighbour\\r\\n")
    links[link] = number
links = {}
for number in range(80):
    connect(number)
print("all are there", flush=True)
while True:
    for link in select.select(list(links), [], [])[0]:
        try:
            if link.recv(65536):
                continue
        except OSError:
            pass
        link.close()
        number = links.pop(link)
        try:
            connect(number)
        except OSError:
            pass
"""


def test_silent_connections_of_a_neighbour_do_not_keep_the_owner_out(clients: Clients, tmp_path: Path) -> None:
    """Eighty from eight addresses, again and again: plain dropbear takes 30 in all and waits 300 s for each."""
    session = subprocess.Popen(
        ["ssh", *map(str, clients.options), "root@board", "echo in; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert session.stdout
    assert session.stdin
    assert session.stdout.readline() == "in\n"
    program = tmp_path / "neighbour.py"
    program.write_text(NEIGHBOUR)
    words = [sys.executable, str(program), str(ROOT), str(clients.board.pid)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdout
        try:
            assert neighbour.stdout.readline() == "all are there\n"
            for _ in range(3):
                assert clients.ssh("echo me").stdout == "me\n"
            assert session.communicate("still here\n", timeout=20)[0] == "still here\n", "who is in stays in"
            rows = json.loads(clients.ssh("/stack/bin/sv", "stats", "dropbear", "--json").stdout)
            assert (rows[0]["state"], rows[0]["restart"]) == ("running", 0)
        finally:
            neighbour.kill()
            session.kill()
            session.wait()


@pytest.mark.parametrize(
    ("addresses", "goes"),
    [
        (["10.0.0.1"] * 3 + ["10.0.0.2"], 0),
        (["10.0.0.9", *["10.0.0.1"] * 3], 1),
        (["192.168.1.2", "10.0.0.1", "10.0.0.2", "10.0.0.3"], 1),
        (["2001:db8::1", "2001:db8:1::1", "2001:db8:1::2", "fe80::1%eth0"], 1),
        (["10.0.0.1", "10.0.1.1"], 0),
    ],
)
def test_who_has_the_most_connections_loses_the_oldest_of_them(addresses: list[str], goes: int) -> None:
    strangers = []
    for since, address in enumerate(addresses):
        one = ssh_door.Connection.__new__(ssh_door.Connection)
        one.address, one.network, one.since = address, ssh_door.network(address), float(since)
        strangers.append(one)
    assert strangers.index(ssh_door.unwelcome(strangers)) == goes
