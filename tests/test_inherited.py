"""What PID 1 takes over from whoever started it, and what its children get of that: nothing. Floods, and the last descriptors."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Board, eventually
from test_control import Server
from test_init import is_sleeping, status_of

from onboard import to_pid1
from onboard.to_pid1 import SVError
from pid1 import control

Boot = Callable[..., Board]

LEFT_OVERS = """
import os, resource, signal, sys
os.dup2(os.open("/", os.O_RDONLY), 5)
os.dup2(5, 77)
for fd in (5, 77):
    os.set_inheritable(fd, True)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGTTOU, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
os.chdir("/tmp")
os.umask(0)
os.nice(5)
os.environ["LEFT"] = "over"
os.execv(sys.executable, [sys.executable, "-ESB", "/stack/sbin/stack.py", *sys.argv[1:]])
"""


def limits(pid: int) -> tuple[str, str]:
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max open files"))
    return line.split()[3], line.split()[4]


def test_nothing_is_inherited(boot: Boot) -> None:
    rows = "Service('plain', ('sleep', '1000')), Service('forked', ('sleep', '1000'), oom_score=1), "
    rows += "Service('own', ('sleep', '1000'), rlimits=(('nofile', 99),)),"
    board = boot(rows, files={"left.py": LEFT_OVERS}, init="/test/left.py").up()
    for name in ("plain", "forked", "own"):
        eventually(is_sleeping(board, name))
        status = status_of(board, name)
        ours = ~(3 << 31)  # glibc's own two signals
        assert {key: int(status[key], 16) & ours for key in ("SigBlk", "SigIgn")} == {"SigBlk": 0, "SigIgn": 0}, name
        pid = board.outside(board.stats(name)["pid"])
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"], name
        assert os.readlink(f"/proc/{pid}/cwd") == "/", name
        assert status["Umask"] == "0022", name
        assert b"LEFT" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert limits(pid) == (("99", "99") if name == "own" else ("256", "1024")), name
    targets = [os.readlink(f"/proc/{board.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{board.pid}/fd")]
    assert "/" not in targets
    assert limits(board.pid) == ("1024", "1024"), "PID 1 takes all that it may have"
    assert board.end() == 0, "a signal that was blocked works"


def test_pid_1_is_not_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace the kernel does not let it choose; so the call is looked at alone."""
    import stack

    called: list[object] = []
    for name in ("umask", "chdir", "setpriority"):
        monkeypatch.setattr(os, name, lambda *arguments, name=name: called.append((name, *arguments)))

    def limit_descriptors(*limits: object) -> tuple[int, int]:
        called.append(limits)
        return 256, 1024

    init = stack.Init([])
    monkeypatch.setattr(stack, "limit_descriptors", limit_descriptors)
    init.set_defaults()
    assert called == [("umask", 0o022), ("chdir", "/"), ("setpriority", os.PRIO_PROCESS, 0, 0), (), ((1024, 1024),)]
    assert init.sv.world.spawner.descriptors == (256, 1024)


def test_a_module_in_a_copy_of_pid_1_has_the_lower_limit_too(boot: Boot) -> None:
    code = (
        "import os, resource\ndef main(_):\n    print('limits', resource.getrlimit(7), sorted(os.listdir('/proc/self/fd')))\n"
    )
    init = "import sys\nsys.path[:0] = ['/stack/lib/stack', '/test']\nimport stack\nsys.exit(stack.main(sys.argv[1:]))\n"
    board = boot(
        "Service('copy', ('x',), module='copied', restart='never'),",
        files={"left.py": LEFT_OVERS.replace("/stack/sbin/stack.py", "/test/init.py"), "copied.py": code, "init.py": init},
        init="/test/left.py",
    ).up()
    eventually(lambda: "limits (256, 1024) ['0', '1', '2', '3']" in board.log("copy"))


def test_more_services_than_the_soft_limit_has_room_for(boot: Boot) -> None:
    """Each takes three descriptors of PID 1: 300 services, where the soft limit is 256 and the hard one 1,024."""
    rows = "*(Service(f's{i}', ('sleep', '1000'), ready='notify') for i in range(300)),"
    board = boot(rows, files={"left.py": LEFT_OVERS}, init="/test/left.py").up()
    names = [f"s{number}" for number in (0, 150, 299)]
    for name in names:
        board.wait_state(name, "starting", seconds=20)
    assert limits(board.outside(board.stats("s299")["pid"])) == ("256", "1024")
    assert board.ask("board")["loop"]["errors"] == 0


def test_root_is_answered_when_all_descriptors_are_used_up(boot: Boot) -> None:
    """400 services would need 1,200; the rest cannot start, and root can still stop some of them."""
    rows = "*(Service(f's{i:03}', ('sleep', '1000'), ready='notify') for i in range(400)),"
    board = boot(rows, files={"left.py": LEFT_OVERS}, init="/test/left.py", settings="BACKOFF_MAX = 1.0").up()
    eventually(lambda: any("EMFILE" in (row["exit"] or "") for row in map(board.stats, ("s397", "s398", "s399"))), 20)
    for _ in range(20):
        assert board.ask("stats", name="s000")[0]["state"] == "starting"
    assert board.ask("stop", name="s000")["wanted"] is False
    board.wait_state("s000", "stopped")
    assert board.ask("board")["services"] == 401


FLOOD = """
import os, socket, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
for _ in range(3):
    if os.fork() == 0:
        break
os.write(1, b"at it\\n")
end, held = time.monotonic() + seconds, []
while time.monotonic() < end:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setblocking(False)
    try:
        client.connect(path)
        client.send(b'{"op": "stats"}')
    except OSError:
        pass
    held.append(client)
    if len(held) > 200:
        held.pop(0).close()
os.write(1, b"done\\n")
time.sleep(1000)
"""


@pytest.mark.timeout(120)
def test_a_flood_of_one_users_requests_does_not_keep_root_out(boot: Boot) -> None:
    """Four processes connect as fast as they can and never read; root is answered each time."""
    rows = f"Service('flood', ('python3', '/test/flood.py', '{to_pid1.SOCKET}', '{8 * PATIENCE}'), user='nobody'), *(Service(f's{{i}}', ('sleep', '1000')) for i in range(60)),"
    board = boot(rows, files={"flood.py": FLOOD}).up()
    if board.stats("flood")["user"] != "nobody":
        pytest.skip("a user namespace with one user has no other to flood as")
    eventually(lambda: board.log("flood").count("at it") == 4)
    worst, answered = 0.0, 0
    while "done" not in board.log("flood"):
        started = time.monotonic()
        assert board.ask("stats", name="s1")[0]["state"] == "running"
        worst, answered = max(worst, time.monotonic() - started), answered + 1
    assert answered > 10
    assert worst < 3 * PATIENCE
    assert board.ask("board")["loop"]["errors"] == 0


# --- without a board --------------------------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Every other connection is of another user, by what the peer's number says."""
    users = iter(range(10_000))
    monkeypatch.setattr(control, "peer", lambda client: (7, USERS[next(users) % len(USERS)] if USERS else 0))
    USERS.clear()
    return Server(str(tmp_path / "s"))


USERS: list[int] = []


def users_of(server: Server) -> list[int]:
    return [client.uid for client in server.control._clients.values()]


def test_a_silent_user_drops_its_own_connections(server: Server) -> None:
    USERS[:] = [0, 1000]
    clients = [server.client() for _ in range(60)]
    server.turns()
    assert (users_of(server).count(1000), users_of(server).count(0)) == (control.A_STRANGER, 30)
    for client in clients:
        client.close()


def test_many_users_together_have_a_bound_too(server: Server) -> None:
    USERS[:] = list(range(1, 11))
    clients = [server.client() for _ in range(120)]
    server.turns()
    assert len(users_of(server)) == control.MAX_STRANGERS
    assert max(map(users_of(server).count, range(1, 11))) <= 8
    for client in clients:
        client.close()


def test_others_are_answered_a_few_in_a_turn_and_root_at_once(server: Server) -> None:
    asked: list[int] = []

    def handle(request: dict[str, Any], uid: int, now: float) -> int:
        asked.append(uid)
        return uid

    server.control._handler = handle
    USERS[:] = [1, 2, 3, 0]
    clients = [server.client() for _ in range(80)]
    for client in clients:
        client.send(b'{"op": "who"}')
    server.turns(1)
    assert asked == [0] * 20
    server.turns(1)
    assert asked.count(0) == 20
    assert len(asked) == 20 + control.ANSWERS
    server.turns(8)
    assert len(asked) == 20 + 3 * control.A_STRANGER
    for client in clients:
        client.close()


def test_the_last_descriptors_are_for_root(server: Server) -> None:
    """A stranger is dropped where it would get one of them."""
    USERS[:] = [1, 0]
    waiting = [server.client(), server.client()]
    for client in waiting:
        client.settimeout(0)
        client.send(b'{"op": "who"}')
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + control.RESERVE, old[1]))
    filler: list[int] = []
    try:
        while not filler or filler[-1] < used - 1:  # all but the reserve
            filler.append(os.dup(0))
        server.turns(4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
        for fd in filler:
            os.close(fd)
    assert waiting[1].recv(1000) == b'{"ok": {"uid": 0}}'
    with pytest.raises(ConnectionResetError):  # the stranger may try again: nobody has read what it asked
        waiting[0].recv(1000)
    for client in waiting:
        client.close()


def test_the_client_waits_for_room_and_says_so_in_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(0)
    first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first.connect(path)
    started = time.monotonic()
    with pytest.raises(SVError, match=r"did not answer within 0\.3 s"):
        to_pid1.ask(path, {"op": "board"}, timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    pid = os.fork()
    if pid == 0:
        try:
            time.sleep(0.2)
            listener.accept()
            one, _ = listener.accept()
            one.send(b'{"ok": ' + str(len(one.recv(1000))).encode() + b"}")
            time.sleep(0.5)
        finally:
            os._exit(0)
    assert to_pid1.ask(path, {"op": "board"}) == len('{"op": "board"}')
    os.waitpid(pid, 0)
