"""`make push`: a set of modules on a board with a read-only root and a data folder, over a real dropbear and ssh."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EMULATED, ROOT, Board, eventually
from test_ssh import SSHD, Clients

from laptop.namespaces import FOREIGN_ROOT
from laptop.send_push import archive
from onboard import boot_ends, pushed
from onboard.to_pid1 import SVError

Boot = Callable[..., Board]
INSTALLED = ROOT / "build/root/stack/lib/stack"
SETTINGS = "KEEP = '/data/stack'\nPATH = '/stack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'\n"
SERVICES = (
    SSHD
    + """
PUSHED, KEEPER._replace(after=()),
program("hello", "fakegps", restart="never"),
"""
)


class Pushing(Clients):
    """A board whose root cannot be written, and a tree of modules that may be edited and pushed to it."""

    def __init__(self, boot: Boot, folder: Path) -> None:
        self.boot, self.folder = boot, folder
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        self.tree = folder / "tree"
        shutil.copytree(INSTALLED, self.tree, ignore=shutil.ignore_patterns("__pycache__", "pid1.bundle"))
        self.data = folder / "data"
        self.data.mkdir()
        os.chown(self.data, FOREIGN_ROOT, FOREIGN_ROOT)
        self.start()

    def start(self) -> None:
        """Boot it: after a reset, with what is on the data folder."""
        board = self.boot(SERVICES, settings=SETTINGS, files=self.files(), data=self.data).up()
        super().__init__(board, self.folder)
        eventually(lambda: self.ssh("true").returncode == 0, 20)

    def files(self) -> dict[str, str]:
        return {
            "keys": (self.folder / "key.pub").read_text(), "shells": "/bin/sh\n/stack/bin/stack-shell\n",
            "shadow": "root:*:19700:0:99999:7:::\n", "passwd": "root:x:0:0:root:/root:/stack/bin/stack-shell\nnobody:x:65534:65534::/:/bin/false\n",
        }  # fmt: skip

    def reset(self) -> None:
        """The power goes: no orderly end."""
        os.kill(self.board.pid, signal.SIGKILL)
        self.board.launcher.wait(30)
        self.start()

    def append(self, name: str, text: str) -> None:
        with (self.tree / name).open("a") as file:
            file.write(text)

    def push(self) -> subprocess.CompletedProcess[str]:
        program = str(ROOT / "laptop/send_push.py")
        words = [sys.executable, program, "--ssh", self.rsh, "--sv", "/stack/bin/sv", "root@board", str(self.tree)]
        return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)

    def send(self, data: bytes) -> str:
        """What the board answers to an archive."""
        words = ["ssh", *map(str, self.options), "root@board", "/stack/bin/sv", "push", "-", "--json"]
        done = subprocess.run(words, input=data, capture_output=True, check=False, timeout=60)
        return (done.stdout + done.stderr).decode()

    def said(self) -> dict[str, Any]:
        """What board() says of pushed code; nothing where the root's runs."""
        found: dict[str, Any] = self.board.ask("board").get("pushed", {})
        return found

    def sv(self, *words: str) -> str:
        done = self.ssh("/stack/bin/sv", *words)
        return done.stdout + done.stderr


@pytest.fixture
def pushing(boot: Boot, tmp_path: Path) -> Pushing:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [one for one in ("dropbear", "dropbearkey", "ssh") if not shutil.which(one, path=path)]
    if missing or os.getuid() != 0 or EMULATED:
        pytest.skip(f"takes root, and {', '.join(missing) or 'a native processor'}")
    return Pushing(boot, tmp_path)


def test_an_app_is_restarted_and_the_next_boot_drops_it(pushing: Pushing) -> None:
    before = pushing.board.all_stats()
    pushing.append("fakegps.py", "\nprint('the pushed one')\n")
    (pushing.tree / "fakegps.py").write_text("print('the pushed one', flush=True)\nimport time\ntime.sleep(1000)\n")
    done = pushing.push()
    assert done.returncode == 0, done.stderr
    assert "1 files differ; restarted: hello" in done.stdout
    eventually(lambda: "the pushed one" in pushing.board.log("hello"))
    after = pushing.board.all_stats()
    assert after["dropbear"]["pid"] == before["dropbear"]["pid"], "nobody else was disturbed"
    said = pushing.said()
    assert (said["running"], said["kept"], said["changed"]) == (True, False, ["fakegps.py"])
    assert "nothing was changed: the board runs all of this already" in pushing.push().stderr
    pushing.reset()
    assert pushing.said() == {}
    assert "the pushed one" not in pushing.board.log("hello")


def test_a_new_pid_1_is_tried_and_kept_and_dropped(pushing: Pushing) -> None:
    boot_id = pushing.board.ask("board")["boot_id"]
    pushing.append("pid1/timeline.py", "\nA_REPLY = 3  # pushed\n")
    pushing.append("settings.py", "\nHOSTNAME = 'pushed'\n")
    done = pushing.push()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 files differ; restarted: everything" in done.stdout
    facts = pushing.board.ask("board")
    assert (facts["boot_id"], facts["faults"], facts["loop"]["errors"]) == (boot_id, [], 0)
    assert facts["pushed"]["changed"] == ["pid1/timeline.py", "settings.py"]
    assert len(pushing.board.ask("stats")) == 3, "the pushed PID 1 answers"
    mounts = Path(f"/proc/{pushing.board.pid}/mounts").read_text().splitlines()
    targets = [line.split()[1] for line in mounts]
    assert targets.count("/run") == targets.count("/tmp") == targets.count("/stack/lib/stack") == 1
    assert "the board runs pushed code" in eventually(lambda: pushing.board.log("pushed"))
    record = json.loads((pushing.data / "stack/boot.json").read_text())
    assert (record["number"], record["pushed"]["id"]) == (1, facts["pushed"]["id"])

    assert "kept: " in pushing.sv("keep")
    assert pushing.said()["kept"]
    pushing.reset()
    eventually(lambda: pushing.said().get("running"), 30)
    eventually(lambda: len(pushing.board.ask("stats")) == 3)
    assert pushing.said()["id"] == facts["pushed"]["id"]
    eventually(lambda: pushing.ssh("true").returncode == 0, 20)
    assert "dropped" in pushing.sv("drop")
    pushing.reset()
    assert pushing.board.wait_state("pushed", "stopped")["exit"] == "exit 0"
    assert pushing.said() == {}
    assert "pushed" not in pushing.board.ask("board")


@pytest.mark.parametrize("kept", [False, True])
def test_a_pid_1_that_does_not_come_up_is_gone_after_the_reset(pushing: Pushing, kept: bool) -> None:
    """It hangs before its watchdog is open: the hardware's, which goes on, resets the board, as the test does here."""
    pushing.append("pid1/life.py", "\nif os.getpid() == 1 and os.path.exists('/data/hang'):\n    time.sleep(1e6)\n")
    (pushing.tree / "pid1/life.py").write_text(
        (pushing.tree / "pid1/life.py").read_text().replace("import time\n", "import os\nimport time\n", 1)
    )
    hang = pushing.data / "hang"
    if kept:
        assert pushing.push().returncode == 0
        assert "kept" in pushing.sv("keep")
        hang.touch()
        os.kill(pushing.board.pid, signal.SIGKILL)
        pushing.board.launcher.wait(30)
        board = pushing.boot(SERVICES, settings=SETTINGS, data=pushing.data, files=pushing.files())
        pushing.board = board
        eventually(lambda: json.loads((pushing.data / "stack/pushed/kept.json").read_text())["trying"], 20)
    else:
        hang.touch()
        assert '"restarted": "PID 1"' in pushing.send(archive(str(pushing.tree)))
    eventually(lambda: os.readlink(f"/proc/{pushing.board.pid}/exe"), 5)
    eventually(lambda: len(pushing.board.processes()) == 1, 20)
    pushing.reset()
    pushing.board.wait_state("pushed", "stopped")
    said = pushing.said()
    assert (said.get("running", False), "did not come up" in said.get("why", "")) == (False, kept)
    assert not (pushing.data / "stack/pushed/kept.json").exists()


# --- what a board refuses -----------------------------------------------------------------------------------------------
def packed(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = {"stack.py": b"pass\n"}


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board's LIB, and its folder of sets."""
    monkeypatch.setattr(pushed, "FOLDER", str(tmp_path / "pushed"))
    monkeypatch.setattr(pushed, "LIB", str(tmp_path / "lib"))
    monkeypatch.setattr(boot_ends, "PUSHED", str(tmp_path / "pushed.json"))
    (tmp_path / "lib/profiles/__pycache__").mkdir(parents=True)
    for name in ("stack.py", "app.py", "profiles/image.py", "profiles/__pycache__/image.pyc", "pid1.bundle", "build_date"):
        (tmp_path / "lib" / name).write_text(name)
    (tmp_path / "lib/link.py").symlink_to("/etc/shadow")
    return tmp_path / "pushed"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an archive"),
        (b"x" * 1000, "not an archive"),
        (packed(GOOD)[:-20], "not an archive"),
        (packed({"sv.py": b""}), "has no stack.py"),
        (packed({**GOOD, "../x.py": b""}), "is not a name below LIB"),
        (packed({**GOOD, "/etc/passwd": b""}), "is not a name below LIB"),
        (packed({**GOOD, "base/../../x": b""}), "is not a name below LIB"),
        (packed({**GOOD, "a\nb.py": b""}), "is not a name below LIB"),
        (packed({**GOOD, "a" * 201: b""}), "too long a name"),
        (packed({**GOOD, "/".join("a" * 9): b""}), "too long a name"),
        (packed(GOOD, member("x.py", tarfile.SYMTYPE, "/etc/shadow")), "neither a file nor a folder"),
        (packed(GOOD, member("x.py", tarfile.LNKTYPE, "stack.py")), "neither a file nor a folder"),
        (packed(GOOD, member("x.py", tarfile.CHRTYPE)), "neither a file nor a folder"),
        (packed({**GOOD, "big": bytes(16 * 1024 * 1024)}), "or 16777216 bytes"),
        (packed({**GOOD, **{f"f{number}": b"" for number in range(2000)}}), "more than 2000 files"),
        (bytes(8 * 1024 * 1024 + 1), "more than 8388608 bytes"),
    ],
)  # fmt: skip
def test_an_archive_that_is_none_changes_nothing(sets: Path, data: bytes, why: str) -> None:
    with pytest.raises(SVError, match=why):
        pushed.unpack(data, "test")
    assert not sets.exists() or list(sets.iterdir()) == []


def test_a_set_is_an_overlay_of_what_runs_and_root_s_alone(sets: Path) -> None:
    os.umask(0)
    try:
        folder = Path(
            pushed.unpack(packed({"stack.py": b"new\n", "./app.py": b"app.py", "base/x.py": b""}), "who\x1b[31m at\n")
        )
    finally:
        os.umask(0o022)
    lib = Path(pushed.modules(str(folder)))
    found = {str(path.relative_to(lib)): path for path in lib.rglob("*") if path.is_file()}
    image = {"profiles/image.py", "profiles/__pycache__/image.pyc"}
    assert set(found) == {"stack.py", "app.py", "base/x.py", "build_date"} | image, "neither a link nor the root's bundle"
    assert (found["stack.py"].read_text(), found["profiles/image.py"].read_text()) == ("new\n", "profiles/image.py")
    about = json.loads((folder / "about.json").read_text())
    assert (about["changed"], about["what"], about["base"]) == (["base/x.py", "stack.py"], "who[31m at", "build_date")
    assert sets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o644}
    assert pushed.fault(str(folder)) == ""
    second = pushed.unpack(packed(GOOD), "")
    assert (folder.name, Path(second).name) == ("1", "2")
    pushed.remove_others(second)
    assert not folder.exists()


@pytest.mark.parametrize(
    "folder", ["", "/", "/etc", "{sets}", "{sets}/", "{sets}/x", "{sets}/../../etc", "{sets}/7", "{sets}/٣"]
)
def test_pid_1_takes_only_a_set_that_was_unpacked(sets: Path, folder: str) -> None:
    pushed.unpack(packed(GOOD), "")
    assert pushed.fault(folder.format(sets=sets))


def test_pid_1_takes_no_set_that_others_may_write(sets: Path) -> None:
    folder = pushed.unpack(packed(GOOD), "")
    for path in (f"{pushed.modules(folder)}/stack.py", pushed.modules(folder), folder, str(sets)):
        mode = os.stat(path).st_mode & 0o777
        os.chmod(path, mode | 0o002)
        assert pushed.fault(folder).endswith("can be written by others than root"), path
        os.chmod(path, mode)
    assert pushed.fault(folder) == ""


def test_what_cannot_run_is_refused_before_anything_changes(pushing: Pushing) -> None:
    before = pushing.board.all_stats()
    good = {name: (pushing.tree / name).read_text() for name in ("fakegps.py", "sv.py", "settings.py")}
    for name, text, why in (
        ("fakegps.py", "def (:\n", "SyntaxError"),
        ("sv.py", "raise ValueError('not today')\n", "PID 1 of the pushed set does not start: ValueError: not today"),
        ("settings.py", "import nonesuch\n", "nothing was changed: settings.py line 1: ModuleNotFoundError"),
    ):
        (pushing.tree / name).write_text(text)
        done = pushing.push()
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
        (pushing.tree / name).write_text(good[name])
    assert {name: row["pid"] for name, row in pushing.board.all_stats().items()} == {
        name: row["pid"] for name, row in before.items()
    }
    assert pushing.said() == {}
    assert list((pushing.board.root / "run/stack/pushed").iterdir()) == []
    assert "there is nothing to keep" in pushing.sv("keep")
    assert "no pushed code is kept, and none runs" in pushing.sv("drop")
    with pytest.raises(SVError, match="is not a folder of /run/stack/pushed"):
        pushing.board.ask("push", folder="/stack")
    done = pushing.run(
        "ssh", *map(str, pushing.options), "root@board", "setpriv --reuid=1 /stack/bin/sv push /stack/lib/stack/sv.py"
    )
    assert done.returncode != 0


def test_an_archive_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "__pycache__/x.pyc").write_text(name)
        (tmp_path / name / "stack.py").write_text("x")
        (tmp_path / name / "build_date").write_text(name)
    os.utime(tmp_path / "two/stack.py", (1, 1))
    assert archive(str(tmp_path / "one")) == archive(str(tmp_path / "two"))
