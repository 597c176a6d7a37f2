"""What the tests share: `eventually`, and boards in namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest

hypothesis.settings.register_profile("stack", deadline=None)  # on a busy machine an example may take longer than most
hypothesis.settings.load_profile("stack")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that runs us in the background says so, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from laptop import namespaces  # noqa: E402
from onboard import to_pid1  # noqa: E402
from prompt import functions as prompt  # noqa: E402

if TYPE_CHECKING:
    from servers import Postgres
    from test_board import Terminal

PYTHON = str(ROOT / ".venv" / "bin" / "python")
MOSQUITTO = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
PATIENCE = float(os.environ.get("STACK_PATIENCE", "1"))  # how many times longer things take here: an emulator is slow
EMULATED = bool(os.environ.get("STACK_ROOT"))  # boards run in another root, and on another processor's emulator
T = TypeVar("T")


def eventually(check: Callable[[], T], seconds: float = 10.0) -> T:
    """The first true value of `check`, tried until then; its last failure after so many seconds."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        try:
            value = check()
            if value:
                return value
            failure: Exception = AssertionError(f"still {value!r} after {seconds * PATIENCE:g} s")
        except Exception as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        time.sleep(0.01)


def why_no_namespaces() -> str:
    """Why this kernel does not let us make namespaces; empty where it does."""
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.enter_namespaces()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"the kernel refuses namespaces: {os.strerror(code)}" if code else ""


NO_NAMESPACES = "only pure tests are wanted (STACK_PURE)" if os.environ.get("STACK_PURE") else why_no_namespaces()


class Board:
    """stack.py as a real PID 1, with services of the test's own."""

    def __init__(self, folder: Path, services: str, *, settings: str = "", words: tuple[str, ...] = (), init: str = "",
                 base: str = "(LOGD,)", devices: tuple[str, ...] = (), files: dict[str, str] | None = None, data: Path | None = None, installed: Path | None = None) -> None:  # fmt: skip
        self.folder = folder
        self.profile = folder / "profile.py"
        self.profile.write_text(f"{settings}\nSERVICES = {base} + ({services})\n")
        self.pid_file = folder / "pid"
        self.output = folder / "console"
        (folder / "files").mkdir(exist_ok=True)
        for name, text in (files or {}).items():
            (folder / "files" / name).write_text(text)
        command = [
            PYTHON, str(ROOT / "laptop" / "launcher.py"), "--once", "--profile", str(self.profile), "--pid-file", str(self.pid_file),
            "--files", str(folder / "files"),
        ]  # fmt: skip
        command += ["--init", init] if init else []
        command += ["--data", str(data)] if data else []
        command += ["--installed", str(installed)] if installed else []
        command += [word for path in devices for word in ("--device", path)]
        with self.output.open("wb") as file:
            self.launcher = subprocess.Popen([*command, "--", *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.pid = int(eventually(self.pid_file.read_text, 20))
        self.started = time.monotonic()

    @property
    def root(self) -> Path:
        """The board's file system, seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def up(self) -> Board:
        """Wait until PID 1 answers."""
        eventually(lambda: self.ask("board"), 20)
        return self

    def ask(self, op: str, **arguments: Any) -> Any:
        with self.as_its_root() as socket:
            return to_pid1.ask(socket, {"op": op, **arguments})

    @contextlib.contextmanager
    def as_its_root(self) -> Iterator[str]:
        """Be the board's root for the control socket, whose path this is: root outside is nobody there."""
        folder = os.open(self.root / to_pid1.SOCKET.strip("/").rpartition("/")[0], os.O_PATH)
        try:
            if os.getuid() == 0:
                os.seteuid(namespaces.FOREIGN_ROOT)
            yield f"/proc/self/fd/{folder}/control"
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            os.close(folder)

    def stats(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = self.ask("stats", name=name)[0]
        return row

    def all_stats(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.ask("stats")}

    def wait_state(self, name: str, *states: str, seconds: float = 10.0) -> dict[str, Any]:
        """Stats of a service once it is in one of these states."""

        def check() -> dict[str, Any]:
            row = self.stats(name)
            assert row["state"] in states, row
            return row

        return eventually(check, seconds)

    def processes(self) -> dict[int, str]:
        """Pid inside -> command line of everything on the board, zombies as "<name>"."""
        found = {}
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                status = Path(f"/proc/{entry}/status").read_text()
                if os.readlink(f"/proc/{entry}/ns/pid") == space:
                    words = command_line(int(entry))
                    inside = int(_field(status, "NSpid").split()[-1])
                    found[inside] = words or f"<{_field(status, 'Name')}>"
            except OSError:
                pass
        return found

    def outside(self, inside: int) -> int:
        """The pid that we see for one of the board's."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") == space:
                    status = Path(f"/proc/{entry}/status").read_text()
                    if int(_field(status, "NSpid").split()[-1]) == inside:
                        return int(entry)
            except OSError:
                pass
        raise ProcessLookupError(inside)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Signal a service's main process."""
        self.ask("signal", name=name, signal=int(number))

    def log(self, name: str = "stack") -> str:
        """What a service printed, PID 1 by default."""
        path = self.root / f"run/log/{name}.log"
        return path.read_text() if path.exists() else ""

    def console(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, number: int = signal.SIGUSR1) -> int:
        """Send PID 1 a signal and wait for the launcher's exit status."""
        os.kill(self.pid, number)
        return self.launcher.wait(30 * PATIENCE)

    def close(self) -> None:
        if self.launcher.poll() is None:
            self.launcher.terminate()
            try:
                self.launcher.wait(50 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.launcher.kill()
                self.launcher.wait()


def command_line(pid: int) -> str:
    """What /proc says, without the emulator: its path and its program's stand before the program's own words."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return " ".join(words[2:] if EMULATED and "/qemu-" in words[0] else words).strip()


def _field(status: str, name: str) -> str:
    return next(line.split(":", 1)[1].strip() for line in status.splitlines() if line.startswith(name + ":"))


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., Board]]:
    """Boot boards; whatever the test did with them, they are gone after it."""
    if NO_NAMESPACES:
        pytest.skip(NO_NAMESPACES)
    boards: list[Board] = []

    def start(services: str = "", **options: Any) -> Board:
        folder = tmp_path / f"board{len(boards)}"
        folder.mkdir()
        board = Board(folder, services, **options)
        boards.append(board)
        return board

    yield start
    for board in boards:
        board.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Boot emulated machines: `machine("x86_64", profile, words)`; whatever the test did with them, they are gone after it."""
    yield from machines(tmp_path)


def machines(folder: Path) -> Iterator[Callable[..., Any]]:
    """For fixtures of other scopes."""
    sys.path.insert(0, str(ROOT / "lab"))
    from image import KINDS, image
    from machine import Machine

    started: list[Machine] = []

    def start(
        kind: str, profile: str = "", words: str = "", files: dict[str, str] | None = None, extra: tuple[str, ...] = (),
        root: Path | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """A machine with this text as a profile on top of settings_qemu.py, and these words on its command line.

        `root` is a disk that an earlier call has made, instead of a new one; `options` are Machine's.
        """
        disk = root or image(
            kind, folder / f"root{len(started)}.img", {"usr/lib/stack/settings_test.py": profile, **(files or {})}
        )
        started.append(Machine(kind, disk, (f"stack.profile={KINDS[kind].profile},test", *words.split()), extra, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


class Broker:
    """A mosquitto on a Unix socket of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "mqtt.sock")
        self.config = folder / "mosquitto.conf"
        text = (ROOT / "data" / "mosquitto.conf").read_text().replace("/run/bus/mqtt.sock", self.path)
        text = "".join(line for line in text.splitlines(True) if not line.startswith(("password_file", "acl_file")))
        self.config.write_text(text.replace("user root", "") if os.getuid() else text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.process = subprocess.Popen([str(MOSQUITTO), "-c", str(self.config)], stderr=subprocess.DEVNULL)
        eventually(lambda: os.path.exists(self.path))

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        pytest.skip("no mosquitto here, and only root can install it")
    one = Broker(tmp_path)
    yield one
    one.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of the test module's own."""
    from servers import Postgres, why_no_postgres  # here: not each test needs one

    if why := why_no_postgres():
        pytest.skip(why)
    running = Postgres()
    yield running
    running.end()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What DATABASE may be."""
    if request.param == "sqlite":
        return str(tmp_path / "m.db")
    found: Postgres = request.getfixturevalue("server")
    return found.database()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Somebody at the prompt of a board of `make run`."""
    from test_board import Terminal  # here: it imports this file

    one = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py")])
    one.expect(">>> ", 30)
    yield one
    one.type("\x1d")
    one.wait()


PYTEST = os.getpid()
_exit = os._exit


def _no_quiet_end(code: int) -> None:
    """A child's way out, taken by mistake in pytest's own process, would end a failed run with 0 and no word."""
    if os.getpid() == PYTEST and not code:
        raise RuntimeError("os._exit(0) in pytest's own process: a child's code has run in its parent")
    _exit(code)


os._exit = _no_quiet_end  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Figures that tests have measured: `record_property("figure", text)`, of pytest's workers too; and what did not run."""
    if skipped := terminalreporter.getreports("skipped"):
        reasons = [str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "?" for report in skipped]
        terminalreporter.write_line(f"{len(skipped)} tests were skipped, so this run does not show all:")
        for reason in sorted(set(reasons)):
            terminalreporter.write_line(f"  {reasons.count(reason)}: {reason.removeprefix('Skipped: ')}")
        if NO_NAMESPACES:
            terminalreporter.write_line("  the ring of boards in namespaces was skipped as a whole")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(value)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: an archive holds the time of its making, and two workers must agree on a test's name."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where things take longer, tests may take longer too."""
    for item in items if PATIENCE != 1 else []:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else float(item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * PATIENCE), append=False)


@pytest.fixture(autouse=True)
def _own_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Records of PID 1's modules in pure tests go nowhere, and what they tell of is not told on this machine."""
    import _log
    from onboard import events

    monkeypatch.setattr(_log.sink, "console_level", -1)
    monkeypatch.setattr(events, "FILE", str(tmp_path / "events"))


__all__ = ["Board", "Broker", "eventually", "prompt"]
