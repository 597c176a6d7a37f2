"""How a child starts: what its row asks for, each column alone, looked at from inside and from outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually

from pid1 import spawn
from pid1.spawn import Spawner, find, is_plain, of_user
from tables.accounts import ROOT, Account, read_accounts
from tables.rows import Service

Boot = Callable[..., Board]
ME = Account(os.getuid(), os.getgid())


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_program_is_looked_for_from_its_folder(tmp_path: Path) -> None:
    tool = program(tmp_path / "bin/tool")
    there = str(tmp_path)
    assert find("bin/tool", "/usr/bin", there) == str(tool)
    assert os.path.samefile(find("./bin/tool", "/usr/bin", there), tool)
    assert find("tool", f"/nowhere:{there}/bin") == str(tool)
    assert find("tool", "/nowhere:bin", there) == str(tool), "a folder of PATH may be relative, too"
    assert find(str(tool), "") == str(tool)
    for words in (("bin/tool", "/bin", "/"), ("tool", "/nowhere", there)):
        with pytest.raises(FileNotFoundError, match="no such program"):
            find(*words)
    (tmp_path / "bin/text").write_text("")
    with pytest.raises(PermissionError, match="not an executable file"):
        find("bin", "", there)
    with pytest.raises(PermissionError, match="not an executable file"):
        find("bin/text", "", there)


def test_the_environment_follows_the_user(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nann:x:0:0:,,,:/home/ann:/bin/ash\nbare:x:0:0\nempty:x:0:0:::\n"
    )
    users, _ = read_accounts(str(tmp_path))
    row = Service("one", ("true",), user="ann")
    assert of_user(row, users["ann"]) == {"HOME": "/home/ann", "USER": "ann", "LOGNAME": "ann", "SHELL": "/bin/ash"}
    for name in ("bare", "empty"):
        assert of_user(row._replace(user=name), users[name])["HOME"] == "/"
        assert of_user(row._replace(user=name), users[name])["SHELL"] == "/bin/sh"
    assert of_user(row._replace(user=""), ROOT) == {}, "settings.ENVIRONMENT says it for root"


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """What a child with these columns prints."""
    spawner = Spawner({"PATH": "/usr/bin:/bin", "HOME": "/root"})

    def run(script: str, account: Account = ME, **columns: Any) -> str:
        row = Service("one", ("sh", "-c", script), **columns)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = spawner.spawn(row, account, {}, writer)
        os.close(writer)
        os.waitpid(pid, 0)
        with open(reader, encoding="utf-8") as file:
            return file.read().strip()

    yield run


def test_a_row_says_which_path_its_program_is_found_by(tmp_path: Path, spawned: Callable[..., str]) -> None:
    program(tmp_path / "sh", "#!/bin/sh\necho mine\n")
    assert spawned("echo theirs") == "theirs"
    assert spawned("echo theirs", env=(("PATH", f"{tmp_path}:/bin"),)) == "mine"
    assert spawned("echo theirs", env=(("PATH", f"{tmp_path}:/bin"),), nice=1) == "mine"


def test_what_a_row_sets_wins_over_what_its_user_has(spawned: Callable[..., str]) -> None:
    account = ME._replace(home="/somewhere", shell="/bin/ash")
    say = "echo $HOME $USER $LOGNAME $SHELL"
    assert spawned(say, account, user="me") == "/somewhere me me /bin/ash"
    assert spawned(say, account, user="me", env=(("HOME", "/tmp"),)) == "/tmp me me /bin/ash"
    assert spawned("echo $HOME", account) == "/root"


@pytest.mark.parametrize(
    "columns",
    [
        {"module": "x"}, {"user": "x"}, {"groups": ("x",)}, {"rlimits": (("core", 0),)}, {"tty": "/dev/null"}, {"nice": 1}, {"oom_score": 1},
        {"no_new_privs": True}, {"capabilities": ()}, {"umask": 0o077}, {"cwd": "/tmp"},
    ],
    ids=lambda columns: next(iter(columns)),
)  # fmt: skip
def test_each_column_that_posix_spawn_cannot_give_alone_makes_a_row_forked(columns: dict[str, Any]) -> None:
    assert is_plain(Service("one", ("true",)))
    assert not is_plain(Service("one", ("true",), **columns))


@pytest.mark.skipif(os.getuid() != 0, reason="only root has powers to lose")
def test_capabilities_alone_take_the_powers_of_root(spawned: Callable[..., str]) -> None:
    assert set(spawned("grep -h Cap /proc/self/status", ROOT, capabilities=()).split()[1::2]) == {"0000000000000000"}
    assert int(spawned("grep CapEff /proc/self/status", ROOT, capabilities=("chown",)).split()[1], 16) == 1


def test_umask_alone_is_given(spawned: Callable[..., str]) -> None:
    assert spawned("umask", umask=0o027) == "0027"


def test_the_reason_of_a_child_that_never_came_to_its_exec() -> None:
    spawner = Spawner({"PATH": "/usr/bin:/bin"})
    pid = spawner.spawn(Service("one", ("true",), cwd="/no/where", nice=1)._replace(argv=("/bin/true",)), ME, {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == spawn.EXEC_FAILED
    failure = spawner.failure(pid)
    assert failure is not None
    assert (failure.errno, failure.strerror) == (2, "No such file or directory: /no/where")
    assert spawner.failure(pid) is None, "told once"


def test_a_terminal_belongs_to_the_user_of_its_row(boot: Boot) -> None:
    script = "echo here >/proc/self/fd/1 && echo there >/proc/self/fd/2; stat -c 'is %U %a' /dev/console >/dev/tty; sleep 1000"
    board = boot(f"Service('s', ('sh', '-c', {script!r}), tty='/dev/console', user='nobody'),").up()
    board.wait_state("s", "running")
    if board.stats("s")["user"] != "nobody":
        pytest.skip("a user namespace with one user has no other to give a terminal to")
    eventually(lambda: "there" in board.console())
    assert "Permission denied" not in board.console()
    eventually(lambda: "is nobody 600" in board.console())
