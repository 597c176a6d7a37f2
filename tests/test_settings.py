"""Settings: their names and types stand once, their values are what a system call takes, mistakes get a remedy."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_NAMESPACES, PYTHON, ROOT, Board, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

import settings as defaults
from base.near import distance, near
from base.stdlib import json
from base.syscalls import mount_options
from onboard import board_table
from onboard.to_pid1 import SVError
from tables import check, evaluate
from tables import load as tables
from tables.check_settings import CHECKS
from tables.plain import Foreign, pack, plain, unpack
from tables.rows import Device, Directory, Interface, Mount, Rule, Service, WifiNetwork
from tables.tables import Tables


def load(tmp_path: Path, text: str) -> Tables:
    (tmp_path / "profile.py").write_text(text)
    return tables.load({"stack.profile": str(tmp_path / "profile.py")})


# --- names and types ----------------------------------------------------------------------------------------------------
def typed_names(path: Path) -> dict[str, str]:
    """NAME: type of everything annotated at the top of a file, or of its only class."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            found[node.target.id] = ast.unparse(node.annotation)
    return found


def test_each_setting_has_a_value_a_type_and_a_check() -> None:
    names = {name for name in vars(defaults) if name.isupper() and name not in ("TYPE_CHECKING", "RIGHTS")}
    types = typed_names(ROOT / "tables/names.py")
    assert names == types.keys() == CHECKS.keys()
    for name, text in typed_names(ROOT / "settings.py").items():
        assert types[name] == text
    for name in names:
        value = getattr(defaults, name)
        kind = type(value).__name__ if type(value) is not tuple else f"tuple[{type(value[0]).__name__ if value else ''}"
        kind = "tuple[tuple[str, str]" if kind == "tuple[tuple" else kind
        assert types[name].startswith(kind), f"{name} is {value!r}, and tables/names.py says {types[name]}"


@pytest.mark.timeout(120)
def test_a_misspelt_setting_is_an_error_of_mypy(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from tables.tables import Tables\n\n\ndef f(tables: Tables) -> float:\n"
        "    good: float = tables.SHUTDOWN_TIMEOUT\n    wrong: str = tables.SHUTDOWN_TIMEOUT\n    print(tables.SHUTDOWN_TIMOUT)\n"
        "    return good + len(wrong)\n"
    )
    words = [PYTHON, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*words, str(snippet)], cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line.partition(": ")[2] for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2, done.stdout
    assert "Incompatible types" in errors[0]
    assert '"Tables" has no attribute "SHUTDOWN_TIMOUT"' in errors[1]


def test_a_misspelt_setting_of_running_code_names_the_near_one() -> None:
    with pytest.raises(AttributeError, match="settings have no SHUTDOWN_TIMOUT; did you mean SHUTDOWN_TIMEOUT"):
        getattr(tables.load({}), "SHUTDOWN_TIMOUT")  # noqa: B009


def test_without_settings_there_is_enough_for_a_rescue_prompt() -> None:
    board = Tables()
    assert (board.HOSTNAME, board.SHUTDOWN_TIMEOUT, board.SERVICES, board.WATCHDOG) == ("stack", 10.0, (), "")
    assert board.rescue.argv[-1] == "rescue"
    for name, check_one in CHECKS.items():
        assert check_one(board.values[name]) == "", name


@given(st.text(max_size=8), st.text(max_size=8))
def test_the_distance_of_two_words_is_one(one: str, other: str) -> None:
    assert distance(one, other) == distance(other, one)
    assert (distance(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance(one, other) <= max(len(one), len(other))
    assert distance(one + "x", other + "x") <= distance(one, other)


def test_near_names_are_those_with_few_other_letters() -> None:
    assert (distance("kitten", "sitting"), distance("", "abc")) == (3, 3)
    assert near("HOSTNAM", CHECKS)[0] == "HOSTNAME"
    assert near("critcal", Service._fields) == ["critical"]
    assert near("FLUX", CHECKS) == []


# --- mistakes that people make ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("HOSTNAM = 'x'", "HOSTNAM is not a setting; did you mean HOSTNAME?; left out"),
        ("SERVICES = (Service('a', ('x',), critcal=True),)", "Service a: critcal is not a column; did you mean critical?"),
        ("SERVICES = changed(SERVICES, 'netwrk', nice=0)", "ValueError: there is no row 'netwrk'; did you mean network?"),
        ("SERVICES = changed(SERVICES, 'network', nic=0)", "Service network: nic is not a column; did you mean nice?"),
        ("SERVICES += Service('a', ('x',))", "are no rows; was one row added without its tuple? A comma makes one: SERVICES +="),
        ("SERVICES = Service('a', ('x',))", "SERVICES is one Service(...) row; a comma makes a table of it: (Service(...),)"),
        ("SERVICES = (Service('a', ('x',), after=('broker')),)", "after is text; a comma makes a tuple of it: ('broker',)"),
        ("SERVICES = (Service('a', ('x',), groups=('dialout')),)", "groups is text; a comma makes a tuple of it: ('dialout',)"),
        ("SERVICES = (Service('a', ('x',), capabilities=('net_admin')),)", "capabilities is text; a comma makes"),
        ("SERVICES = (Service('a', ('x',), rlimits=('nofile', '5')),)", 'is not a pair such as ("nofile", 1024)'),
        ("SERVICES = (Service('a', ('x',), env={'A': 'b'}),)", 'env is a dict; write a tuple: (("TZ", "UTC"),)'),
        ("SERVICES = (Service('a', ('x',), env=('A', 'b')),)", "env is one pair; a comma more makes a tuple of pairs of it"),
        ("SERVICES = (Service('a', ('x',), critical='no'),)", "critical is text; write True or False"),
        ("SERVICES = (Service('a', ('x',), user=0),)", "user is a number, not text"),
        ("SERVICES = (Service('a', ('x',), ready=True),)", "ready is True, not text"),
        ("SERVICES = (Service('a', ('{PYTHO}', 'a.py')),)", "has {PYTHO} in it, which is no setting; did you mean PYTHON"),
        ("SERVICES = (Service('a', ('x{MODULES}',)),)", "has {MODULES} in it, which is a tuple: it can only be a word of argv"),
        ("SERVICES += (Service('network', ('x',)),)", "the name is taken; SERVICES = replaced(SERVICES, Service(...)) puts"),
        ("SERVICES = (Service('a', ('x',), after=('brokr',)), Service('broker', ('x',)))", "did you mean broker"),
        ("SERVICES = (Service('a', ('x',), capabilities=('net_admn',)),)", "such as net_admin; did you mean net_admin"),
        ("ENVIRONMENT = {'TZ': 'UTC'}", 'ENVIRONMENT is a dict; write a tuple: (("name", "value"),); the default stays'),
        ("ENVIRONMENT = ('TZ', 'UTC')", 'ENVIRONMENT[0] is text, not a pair of texts; write (("TZ", "UTC"),) with both commas'),
        ("ENVIRONMENT += ('TZ', 'UTC')", "ENVIRONMENT[4] is text, not a pair of texts"),
        ("ENVIRONMENT += (('A=B', 'x'),)", "ENVIRONMENT[4] 'A=' is not a variable's name: it is empty or has a '=' in it"),
        ("ENVIRONMENT += (('DEBUG', 1),)", "ENVIRONMENT[4] is a tuple, not a pair of texts"),
        ("ENVIRONMENT += (('A', 'x' * 131072),)", "'A' has a value of more than 4096 bytes"),
        ("DATA = ('LABEL=data')", "DATA is text; a comma makes a tuple of it: ('LABEL=data',)"),
        ("DATA_GROW = 'no'", "DATA_GROW = 'no' is text; write True or False; True is used"),
        ("HOSTNAME = 'x' * 65", "is not a host's name: at most 64 letters, digits and -_."),
        ("HOSTNAME = '# our board\\nharbour'", "is not a host's name"),
        ("PATH = 'bin'", "is not a list of absolute folders"),
        ("LOG = '/run/../run/stack/x'", "is in /run/stack, where PID 1's own files are"),
        ("BUS = '/run/stack/control'", "is in /run/stack, where PID 1's own files are"),
        ("SERVICES = (Service('a', ('x',), ready='/var/run/stack/control'),)", "is in /run/stack, where PID 1's own files are"),
        ("SERVICES = (Service('stack', ('x',)),)", "the name is taken: it is PID 1's own"),
        ("DIRECTORIES = (Directory('/run/stack', 0o777, 'nobody'),)", "is PID 1's own folder; take another one"),
        ("MOUNTS += (Mount('x', '/run//stack', 'tmpfs'),)", "is PID 1's own folder; take another one"),
        ("DEVICES = (Device('/run/stack/control', 'c', 1, 3),)", "is PID 1's own folder; take another one"),
        ("SERVICES = (Service('a', ('x',), rlimits=(('nofile', 5))),)", 'rlimits is one pair; a comma more makes a tuple of pairs'),
        ("MODES = (Mode('m', ('a', 'b'), enter=('b', lambda b: b.online)),)", "enter is one pair; a comma more makes a tuple of pairs"),
        ("MODES = (Mode('m', ('a', 'b')), Mode('m', ('c', 'd')))", "MODES = replaced(MODES, Mode(...)) puts a row in the place"),
        ("INTERFACES += (Interface('eth0', metric=9),)", "INTERFACES = replaced(INTERFACES, Interface(...)) puts a row in"),
        ("INTERFACES = (Interface('{WIFI_INTERFAC}'),)", "name has {WIFI_INTERFAC} in it, which is no setting; did you mean WIFI_INTERF"),
        ("WIFI_NETWORKS = (WifiNetwork('a', frequencies=(2412)),)", "frequencies, a number, is not a tuple of MHz from 2000"),
        ("COMMANDS = (('restart', '*'), 'reload')", "COMMANDS[1] 'reload': is text, not a pair of texts; write (('restart'"),
        ("SYSCTLS = (('a', '1'), ('b', 1))", 'SYSCTLS[1] (\'b\', 1): is a tuple, not a pair of texts; write (("kernel.panic", "10"),)'),
        ("DIRECTORIES = (Directory('/run', 0o777),)", "has PID 1's own folder in it: it stays root's, and only root writes"),
        ("DIRECTORIES = (Directory('/var/run/', 0o755, 'nobody'),)", "has PID 1's own folder in it: it stays root's"),
        ("MOUNTS = changed(MOUNTS, '/run', options=5)", "MOUNTS[6] /run: source, target, fstype and options must be text; the usual"),
        ("SERVICES += (Service('a', ('x',), user='²'),)", "user '²' is not in /etc/passwd"),
        ("SERVICES += (Service('a', ('x',), user='nobody', hears='wifi/#'),)", "hears is text; a comma makes a tuple of it: ('wifi/#',)"),
        ("SERVICES += (Service('a', ('x',), publishes={'a': 1}),)", 'publishes is a dict; write a tuple: ("wifi/#",)'),
        ("SERVICES += (Service('a', ('x',), publishes=(1,)),)", "publishes 1 is not a pattern of topics, such as wifi/#"),
        ("SERVICES += (Service('a', ('x',), after=('no',) * 501),)", "after has 501 words; at most 500 are taken"),
        ("MODES = tuple(Mode(f'm{i}', ('a', 'b')) for i in range(4097))", "MODES has 4097 rows; at most 4096 are taken"),
        ("PYTHONPATH = '{PYTHONPAHT}/x'", "PYTHONPATH has {PYTHONPAHT} in it, which is no setting; did you mean PYTHONPATH"),
        ("PYTHONPATH = '{PYTHONPATH}{PYTHONPATH}'", "PYTHONPATH has {PYTHONPATH} in it again and again; the default stays"),
        ("RESCUE = RESCUE._replace(when=lambda b: b.online)", "RESCUE when cannot be set for it: it is the last resort; the built-in row"),
        ("RESCUE = RESCUE._replace(after=('network',))", "RESCUE after cannot be set for it: it is the last resort; the built-in"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence_with_the_remedy(tmp_path: Path, text: str, sentence: str) -> None:
    board = load(tmp_path, f"from tables.rows import *\n{text}")
    assert [line for line in board.rejected if sentence in line], board.rejected
    assert len(board.rejected) == 1 + text.startswith("ENVIRONMENT = ('TZ") + text.startswith("ENVIRONMENT += ('TZ")
    assert board.environment["PATH"] == defaults.PATH


def test_a_board_has_its_run_folder_whatever_a_row_of_it_says(tmp_path: Path) -> None:
    """Without /run on a root that is read-only there is no control socket, no log, and nothing to ask for help."""
    board = load(tmp_path, "MOUNTS = changed(changed(MOUNTS, '/run', options=5), '/tmp', required='no')")
    assert len(board.rejected) == 2
    assert board.MOUNTS == defaults.MOUNTS
    board = load(tmp_path, "MOUNTS = tuple(row for row in MOUNTS if row.target != '/run') + (Mount('x', '/run/log', 5),)")
    assert [row.target for row in board.MOUNTS].count("/run/log") == 2
    assert "/run" not in [row.target for row in board.MOUNTS], "a profile may leave it out"


def test_a_row_is_replaced_or_changed_in_its_place(tmp_path: Path) -> None:
    board = load(
        tmp_path,
        "SERVICES = replaced(SERVICES, Service('broker', ('mine',)))\nSERVICES = changed(SERVICES, 'network', nice=0)\n"
        "MOUNTS = changed(MOUNTS, '/tmp', options='ro')",
    )
    assert board.rejected == []
    assert (board.services["broker"].argv, board.services["network"].nice) == (("mine",), 0)
    assert {row.target: row.options for row in board.MOUNTS}["/tmp"] == "ro"
    assert [row.name for row in board.SERVICES] == [row.name for row in defaults.SERVICES]


@pytest.mark.parametrize(
    "text",
    [
        "WIFI_NETWORKS = {'harbour': 'my-secret-pass'}", "WIFI_NETWORKS = ('harbour', 'my-secret-pass')",
        "WIFI_NETWORKS = WifiNetwork('harbour', 'my-secret-pass')", "WIFI_NETWORKS += WifiNetwork('harbour', 'my-secret-pass')",
        "WIFI_NETWORKS = 'my-secret-pass'", "WIFI_NETWORKS = (WifiNetwork('a', 'my-secret-pass', 'wep'),)",
        "WIFI_NETWORKS = (WifiNetwork('a', ('my-secret-pass',)),)", "WIFI_NETWORKS = ('my-secret-pass',) * 5",
        "WIFI_NETWORKS = [['harbour', 'my-secret-pass']]", "WIFI_NETWORKS = (WifiNetwork(('harbour', 'my-secret-pass')),)",
        "WIFI_NETWORKS = (WifiNetwork('harbour', 'psk', 'my-secret-pass'),)", "ENVIRONMENT += (('KEY=my-secret-pass', ''),)",
        "WIFI_NETWORKS = (WifiNetwork('a', 'psk-psk-psk', priority='my-secret-pass'),)",
        "WIFI_NETWORKS = (WifiNetwork('a', 'psk-psk-psk', frequencies=('my-secret-pass')),)",
        "SERVICES = (Service('a', ('x',), env=(('KEY=my-secret-pass', ''),)),)",
        "UPLINK = 'me:my-secret-pass@host:1883'", "WIFI_NETWORKS = (WifiNetwork('a', 'my-secret-pass\\0'),)",
        "ENVIRONMENT = 'my-secret-pass'", "ENVIRONMENT += ('KEY', 'my-secret-pass')", "ENVIRONMENT += (('=', 'my-secret-pass'),)",
        "ENVIRONMENT += (('KEY', 'my-secret-pass' * 1000),)", "ENVIRONMENT += (('KEY', 'my-secret-pass', ''),)",
        "SERVICES = (Service('a', 'curl -u me:my-secret-pass'),)", "SERVICES = (Service('a', ('x', b'my-secret-pass')),)",
        "SERVICES = (Service('a', ('x',), env=(('KEY', 'my-secret-pass'))),)", "SERVICES = 'my-secret-pass'",
        "SERVICES = (Service('a', ('x',), env={'KEY': 'my-secret-pass'}),)", "SERVICES = ('my-secret-pass',)",
        "SERVICES = (Service('a', ('x', 'my-secret-pass' * 10000)),)",
        "SERVICES += Service('a', ('x', 'my-secret-pass'), env=(('KEY', 'my-secret-pass'),))",
    ],
)  # fmt: skip
def test_no_message_quotes_a_secret(tmp_path: Path, text: str) -> None:
    board = load(tmp_path, f"from tables.rows import WifiNetwork\n{text}")
    assert board.rejected
    assert "secret" not in str(board.rejected), "anyone may read what is rejected"
    assert board.WIFI_NETWORKS == ()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("SERVICES += tuple(Service(f's{i}', ('x',), after=('brokr',)) for i in range(1900))", 201),
        ("SERVICES += tuple(Service(f's{i}', ('x',), after=(f's{i ^ 1}',)) for i in range(1900))", 41),
        ("SERVICES += (Service('a', ('{PATH}{NOPE}' * 9000,)),)", 1),
        ("PYTHONPATH = '{PYTHONPATH}{PYTHONPATH}'\nSERVICES += tuple(Service(f's{i}', ('{PYTHONPATH}',)) for i in range(1900))", 1),
        ("globals().update({f'HOSTNAM{i}': 1 for i in range(20000)})", 201),
        ("def f(b):\n    while True: pass\nSERVICES += tuple(Service(f's{i}', ('x',), when=lambda b: f(b)) for i in range(300))", 41),
    ],
)  # fmt: skip
def test_many_mistakes_cost_pid_1_little_time_and_few_words(tmp_path: Path, text: str, sentences: int) -> None:
    """The first of these took a minute of PID 1's own time: a watchdog would have reset the board at each boot."""
    before = time.process_time()
    board = load(tmp_path, text)
    assert time.process_time() - before < 8
    assert len(board.rejected) == sentences
    assert {"dropbear", "network"} <= board.services.keys()
    assert sum(map(len, board.rejected)) < 100_000


def test_a_shell_may_have_its_own_braces(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES = (Service('a', ('sh', '-c', 'echo ${HOMES} {x} {} { {not_ours} }')),)")
    assert board.rejected == []


# --- any value in any place -----------------------------------------------------------------------------------------------
CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=6), st.binary(max_size=4),
    st.sampled_from(["a\0", "\ud800", "x" * 200_000, "{PATH}" * 900, "{NOPE}", "/run/stack/x", "{MODULES}", "²", -1, 1 << 63,
                     float("nan"), float("inf"), 1 << 200, object(), len, signal.SIGTERM]),
)  # fmt: skip
VALUES = st.recursive(
    CELLS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=6,
)
KINDS: list[Any] = [Mount, Directory, Device, Service, Interface, WifiNetwork, Rule]
ROWS = st.sampled_from(KINDS).flatmap(
    lambda row: st.dictionaries(st.sampled_from(row._fields), VALUES, min_size=1, max_size=3).map(
        lambda columns: row(**{**dict.fromkeys(row._fields[:3], "/x"), **columns})
    )
)
SERVICE = st.dictionaries(st.sampled_from(Service._fields), VALUES, max_size=3).map(
    lambda columns: Service(**{"name": "a", "argv": ("true",), **columns})
)


def is_usable(board: Tables) -> None:
    """What PID 1 does with a table, without doing it: each call that would raise TypeError or ValueError."""
    for text in board.rejected:
        text.encode()
    assert len(json.dumps({name: pack(value) for name, value in board.values.items()})) > 0
    os.fsencode(board.HOSTNAME)
    assert len(os.fsencode(board.HOSTNAME)) <= 64
    for mount in board.MOUNTS:
        mount_options(mount.options)
        assert b"\0" not in os.fsencode(mount.source + mount.target + mount.fstype + mount.options)
    for node in board.DEVICES:
        os.makedev(node.major, node.minor)
    for name, value in board.SYSCTLS:
        (name + value).encode()
    for directory in board.DIRECTORIES:
        assert board.expand(directory.user) in {"", *board.accounts} or int(board.expand(directory.user)) < 2**32 - 1
    board.delays()
    board.network_delays()
    for row in (*board.services.values(), *board.templates.values(), board.rescue):
        environment = {**board.environment, **dict(row.env)}
        sizes = [len(os.fsencode(word)) for word in (*row.argv, *(f"{a}={b}" for a, b in environment.items()))]
        assert max(sizes) < 128 * 1024
        assert sum(sizes) < 128 * 1024, "ARG_MAX of a kernel with a small stack"
        assert not any("=" in name or not name for name in environment)
        account = board.account(row)
        assert all(0 <= number < 2**32 - 1 for number in (account.uid, account.gid, *account.groups))
        json.dumps(row)
        assert isinstance(json.loads(json.dumps(list(row))), list)


@given(st.dictionaries(st.sampled_from(sorted(CHECKS)), VALUES | ROWS | SERVICE | st.lists(ROWS, max_size=3), max_size=4))
@settings(max_examples=int(os.environ.get("STACK_EXAMPLES", "400")), deadline=None)
def test_any_value_of_any_setting_is_taken_or_named(values: dict[str, Any]) -> None:
    board = Tables()
    for name, value in values.items():
        check.take(board, name, plain(value))
    check.check_tables(board)
    is_usable(board)
    for name, value in values.items():
        taken = plain(value) == board.values[name] or (
            plain(value) == () == board.values[name]
        )  # RESCUE's row is called rescue
        assert taken or board.rejected or name in ("SERVICES", "INTERFACES", "RESCUE"), (
            f"{name} was left out, and nobody was told"
        )


@given(st.lists(SERVICE, max_size=3))
@settings(max_examples=int(os.environ.get("STACK_EXAMPLES", "400")), deadline=None)
def test_any_row_of_any_value_is_taken_or_named(rows: list[Service]) -> None:
    board = Tables()
    check.take(board, "SERVICES", plain((*rows, Service("good", ("true",)))))
    check.check_tables(board)
    is_usable(board)
    assert "good" in board.services
    left_out = len(rows) + 1 - len(board.services) - len(board.templates)
    empty = sum(row.argv == () or row.argv == [] for row in map(plain, rows))
    assert len(board.rejected) >= min(1, max(0, left_out - empty))


@given(VALUES | ROWS | SERVICE)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    flat = plain(value)
    assert repr(unpack(json.loads(json.dumps(pack(flat))))) == repr(flat)


def test_of_a_class_of_somebodys_own_nothing_is_called() -> None:
    class Liar(str):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __eq__ = __hash__ = __len__ = __str__  # type: ignore[assignment]

    class Nothing:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError

    loop: list[Any] = []
    loop.append(loop)
    assert plain(Liar("x")) == "x"
    assert type(plain(signal.SIGTERM)) is int
    assert plain(Nothing()) == Foreign("a Nothing")
    assert plain(10**5000) == Foreign("a number of more than 64 bits")
    assert "a table in a table" in repr(plain(loop))


# --- a profile is somebody's program ------------------------------------------------------------------------------------
HANG = "import time\nwhile True:\n    try:\n        time.sleep(0.01)\n    except BaseException:\n        pass\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HANG, "took more than 0.5 s"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "took more than 0.5 s"),
        ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nraise SystemExit", "line 5: SystemExit"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        ("import os\nos._exit(0)", "it ends the process that reads it (status 0)"),
        ("import os\nos.execv('/bin/true', ['true'])", "it ends the process that reads it (status 0)"),
        ("raise BaseException('no')", "line 1: BaseException: no"),
        ("raise GeneratorExit", "line 1: GeneratorExit"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "it raises an exception that cannot be shown"),
        ("def f(): f()\nf()", "Error"),
        ("x = []\nwhile True: x.append(' ' * (1 << 20))", "MemoryError"),
        ("SERVICES = tuple(Service(f's{i}', ('x' * 1000,)) for i in range(2000))", "it makes more than 1048576 bytes"),
        ("import os\nos.closerange(0, 100)", "it ends the process that reads it"),
        ("import os\nos._exit = print\n1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("raise ValueError('a\\0b\\nc\\x1b[31m\\ud800' * 1000)", "line 1: ValueError: a?b?c?[31m?a?b"),
        ("import os\nos.kill(0, 9)\nos.kill(os.getppid(), 9)\nraise KeyError(5)", "line 4: KeyError: 5"),
        ("import ctypes\nctypes.string_at(0)", "it ends the process that reads it (signal 11)"),
        ("import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass", "took more than 0.5 s"),
    ],
)  # fmt: skip
def test_a_profile_cannot_hold_or_end_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    monkeypatch.setattr(tables, "PROFILE_SECONDS", 0.5 if "0.5" in fault else 10.0)
    before, meals, others = time.monotonic(), [], children()
    (tmp_path / "profile.py").write_text(text)
    board = tables.load({"stack.profile": str(tmp_path / "profile.py")}, meanwhile=lambda: meals.append(1))
    assert [line for line in board.rejected if fault in line and line.endswith("left out")], board.rejected
    assert board.broken
    assert "dropbear" in board.services
    if "0.5" in fault:
        assert meals, "PID 1 has a watchdog to feed"
        assert time.monotonic() - before < 0.5 + evaluate.REAP + 1.0
    for pid in map(int, set(children()) - set(others)):  # killed: PID 1's loop reaps it in its own time
        eventually(lambda pid=pid: os.waitpid(pid, os.WNOHANG)[0] == pid)  # type: ignore[misc]


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_profile_whose_process_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_fork)
    board = load(tmp_path, "HOSTNAME = 'x'")
    assert "no process could be made to read it: Resource temporarily unavailable; left out" in board.rejected[0]
    assert (board.broken, board.HOSTNAME) == (True, "stack")


def test_the_default_table_forks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a fork"))
    assert tables.load({}).rejected == []


def test_what_a_profile_leaves_behind_in_python_stays_with_it(tmp_path: Path) -> None:
    board = load(tmp_path, "import sys, settings\nsettings.HOSTNAME = 'no'\nsys.modules['os'] = None\nHOSTNAME = 'yes'")
    assert (board.HOSTNAME, board.rejected) == ("yes", [])
    assert sys.modules["os"] is os


def test_a_comment_in_etc_hostname_is_not_the_name(tmp_path: Path) -> None:
    from profiles import debian

    (tmp_path / "hostname").write_text("# our board\n\nharbour\n")
    assert debian.first_line(str(tmp_path / "hostname")) == "harbour"
    assert debian.first_line("/nowhere") == ""


# --- one truth for all ----------------------------------------------------------------------------------------------------
def test_what_pid_1_writes_is_what_its_services_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = load(
        tmp_path,
        "HOSTNAME = 'harbour'\nWIFI_NETWORKS = (WifiNetwork(b'\\x00caf\\xe9', 'my-secret-pass'),)\nDATA_WAIT = 0.5\n"
        "ENVIRONMENT += (('KEY', 'my-secret-too'),)\nINTERFACES = (Interface('eth7', addresses=('192.0.2.5/24',)),)\n"
        "SERVICES = (*SERVICES, Service('mine', ('x', 'my-secret-word'), rlimits=(('nofile', 64),), memory_max='64M'))",
    )
    assert board.rejected == []
    board_table.write(board, str(tmp_path))
    monkeypatch.setenv("STACK_CONTROL", str(tmp_path / "control"))
    read = board_table.board_table()
    assert read.values == {name: value for name, value in board.values.items() if name != "BUS_RIGHTS"}, "which is PID 1's"
    assert (read.services, read.templates, read.order) == (board.services, board.templates, board.order)
    assert (read.options, read.profiles, read.rejected) == (board.options, board.profiles, board.rejected)
    assert all(type(row) is Service for row in read.SERVICES)
    assert ((tmp_path / "secrets.json").stat().st_mode & 0o777, (tmp_path / "table.json").stat().st_mode & 0o777) == (
        0o600,
        0o644,
    )
    assert "secret" not in (tmp_path / "table.json").read_text(), "everybody reads it"
    (tmp_path / "secrets.json").unlink()  # as for a user who may not read it
    read = board_table.board_table()
    assert (read.HOSTNAME, read.INTERFACES, read.COMMANDS) == ("harbour", board.INTERFACES, board.COMMANDS)
    with pytest.raises(AttributeError, match="settings have no WIFI_NETWORKS"):
        _ = read.WIFI_NETWORKS
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(SVError, match=r"table\.json cannot be read"):
        board_table.board_table()


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board_table.write(load(tmp_path, "HOSTNAME = 'old'"), str(tmp_path))
    before = (tmp_path / "table.json").read_text()
    monkeypatch.setattr(board_table, "LARGEST", 1000)
    with pytest.raises(ValueError, match="the limit is 1000"):
        board_table.write(load(tmp_path, "HOSTNAME = 'new'"), str(tmp_path))
    assert (tmp_path / "table.json").read_text() == before


def test_without_a_board_the_defaults_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_CONTROL", str(tmp_path / "nobody/control"))
    assert board_table.board_table().values["NETWORK_STATE"] == defaults.NETWORK_STATE


# --- the command line -------------------------------------------------------------------------------------------------------
def test_a_plan_is_printed_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("SERVICES += (Service('a', ('caf\xe9', '\U0001f600')),)", "utf-8")
    words = [PYTHON, "-ESB", "-X", "utf8=0", str(ROOT / "stack.py"), "--plan"]
    for profile, said in ((f"{tmp_path}/p.py", b"caf\\xe9 \\U0001f600"), ("\udcff", b"profile   \\udcff")):
        done = subprocess.run([*words, f"stack.profile={profile}"], capture_output=True, check=False, env={"LC_ALL": "C"})
        assert b"Traceback" not in done.stderr
        assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--help"], 0, "print what a boot would do"), (["--plan"], 0, "service   network"), ([], 2, "runs only as PID 1"),
        (["--pln"], 2, "there is no argument '--pln'; did you mean --plan?; see stack.py --help"),
        (["harbour"], 2, "there is no argument 'harbour'; see stack.py --help"), (["--plan", "stack.profle=x"], 1, "is not an option"),
    ],
)  # fmt: skip
def test_the_command_line_is_explained(words: list[str], status: int, text: str) -> None:
    done = subprocess.run([PYTHON, "-ESB", str(ROOT / "stack.py"), *words], capture_output=True, text=True, check=False)
    assert (done.returncode, text in done.stdout + done.stderr) == (status, True), done.stdout + done.stderr


# --- on a board -------------------------------------------------------------------------------------------------------------
READ = """import os, sys, time
sys.path.insert(0, "/stack/lib/stack")
from onboard.board_table import board_table
chosen = board_table()
print("table", os.getuid(), chosen.NETWORK_RETRY, len(chosen.values.get("WIFI_NETWORKS", ())), flush=True)
time.sleep(1e6)
"""
SERVICES = """
    Service("reader", ("{PYTHON}", "/test/read.py")), Service("app", ("{PYTHON}", "/test/read.py"), user="nobody"),
"""
PROFILE = "NETWORK_RETRY = 7.5\nNETWORK_STATE = '/run/elsewhere.json'\nWIFI_NETWORKS = (WifiNetwork('a', 'my-secret-pass'),)\n"


def said(board: Board, name: str) -> str:
    lines = [line for line in board.log(name).splitlines() if "table " in line]
    assert lines, board.log(name)
    return lines[-1].split("table ")[1]


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.timeout(120)
def test_a_profile_that_reload_refuses_changes_nothing_for_who_restarts_later(boot: Callable[..., Board]) -> None:
    board = boot(SERVICES, settings=PROFILE, files={"read.py": READ}).up()
    eventually(lambda: said(board, "reader") == "0 7.5 1")
    eventually(lambda: said(board, "app").split()[1:] == ["7.5", "0"], 10)
    good = board.profile.read_text()
    for text in ("NETWORK_RETRY = 1.0\nthis is no Python\n" + good, good.replace("7.5", "8.5") + HANG, "import os, signal\n"
                 "os.kill(1, signal.SIGKILL)\nos.kill(1, signal.SIGTERM)\nraise ValueError"):  # fmt: skip
        (board.root / "profile.py").write_text(text)
        restarts = board.stats("reader")["restart"]
        with pytest.raises(SVError, match="nothing was changed: profile"):
            board.ask("reload")
        board.kill("reader")
        eventually(lambda least=restarts + 1: board.stats("reader")["restart"] >= least)  # type: ignore[misc]
        eventually(
            lambda: (
                len([line for line in board.log("reader").splitlines() if "table" in line])
                == board.stats("reader")["restart"] + 1
            )
        )
        assert said(board, "reader") == "0 7.5 1"
    facts = board.ask("board")
    assert (facts["state"], facts["loop"]["errors"]) == ("running", 0)
    (board.root / "profile.py").write_text(good.replace("7.5", "8.5"))
    board.ask("reload")
    board.kill("reader")
    eventually(lambda: said(board, "reader") == "0 8.5 1")


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.timeout(120)
def test_the_prompt_follows_a_profile_and_a_full_run_refuses_a_reload(boot: Callable[..., Board]) -> None:
    ask = "import sys; sys.path.insert(0, '/stack/lib/stack')\\nfrom sv import *\\ntry: network()\\nexcept SVError as e: print('table', e)"
    board = boot(
        f"""Service("ask", ("{{PYTHON}}", "-c", "{ask}"), restart="never"), Service("network", ("sleep", "1000")),""",
        settings=PROFILE,
    ).up()
    eventually(lambda: "/run/elsewhere.json" in said(board, "ask"))
    board.ask("run", argv=["mkdir", "/run/stack/table.json.new"])
    eventually((board.root / "run/stack/table.json.new").is_dir)
    (board.root / "profile.py").write_text(board.profile.read_text() + "HOSTNAME = 'other'\n")
    with pytest.raises(SVError, match="nothing was changed: the services' copy of the table cannot be written"):
        board.ask("reload")
    assert board.ask("board")["hostname"] != "other"


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.timeout(120)
def test_a_board_boots_with_a_profile_that_hangs_and_with_one_that_kills(boot: Callable[..., Board]) -> None:
    board = boot("", settings="import os, signal\nos.kill(1, signal.SIGKILL)\nos.kill(1, signal.SIGTERM)").up()
    assert (board.ask("board")["state"], board.ask("board")["rejected"]) == ("running", [])
    board = boot("", settings=HANG, base="()").up()
    facts = board.ask("board")
    assert "took more than 4 s; left out" in facts["rejected"][0]
    assert facts["boot_ms"]["load_tables"] < 6000
    assert "logd" in board.all_stats()


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.timeout(120)
def test_a_command_takes_no_name_of_pid_1_and_is_what_execve_takes(boot: Callable[..., Board]) -> None:
    board = boot("", files={"stack": "#!/bin/sh\necho I am a command\n", "rescue": "#!/bin/sh\n"}).up()
    for name in ("stack", "rescue"):
        (board.folder / "files" / name).chmod(0o755)
    names = [board.ask("run", argv=[f"/test/{name}"])["name"] for name in ("stack", "rescue")]
    assert names == ["stack-2", "rescue-2"]
    for word, fault in (("a\0b", "a NUL"), ("\ud800", "half a character")):
        with pytest.raises(SVError, match=f"this cannot be run: .*{fault}"):
            board.ask("run", argv=["true", word])
    assert board.ask("board")["loop"]["errors"] == 0
    assert "I am a command" not in board.log("stack")


SWALLOWS = "\nimport time\nwhile True:\n    try:\n        time.sleep(100)\n    except BaseException:\n        pass\n"


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.timeout(120)
def test_a_settings_py_that_swallows_every_exception_neither_keeps_a_board_from_booting_nor_from_running(
    boot: Callable[..., Board], tmp_path: Path
) -> None:
    """At boot PID 1 executes itself anew without it; a reload tries it in a process of its own first."""
    installed = tmp_path / "stack"
    shutil.copytree(ROOT / "build/root/stack", installed)
    file = installed / "lib/stack/settings.py"
    good = file.read_text()
    file.write_text(good + SWALLOWS)
    board = boot("", base="()", installed=installed).up()
    facts = board.ask("board")
    assert facts["rejected"][0].startswith("settings.py: it took more than 4 s")
    assert facts["options"]["stack.skip"].endswith("settings.py")
    assert [row["name"] for row in board.ask("stats")] == ["rescue"]
    board.close()
    file.write_text(good)
    board = boot("Service('a', ('sleep', '1000')),", installed=installed).up()
    before = board.stats("a")["pid"]
    file.write_text(good + SWALLOWS)
    with pytest.raises(SVError, match=r"nothing was changed: settings\.py: took more than 4 s; left out"):
        board.ask("reload")
    assert (board.stats("a")["pid"], board.ask("board")["loop"]["errors"]) == (before, 0)
    file.write_text(good)
    board.ask("reload")
