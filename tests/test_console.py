"""The console inside PID 1: what a line may do, how it is ended, and what PID 1 is afterwards; pure, and on real boards."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_NAMESPACES, PATIENCE, PYTHON, ROOT, Board, eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_board import Terminal

from onboard.to_pid1 import SVError
from pid1 import tracebacks
from pid1.crashes import note, secret_words
from pid1.interrupt import Interrupted, TimeLimit
from pid1.typed import acting, completions
from tables.rows import Service, WifiNetwork
from tables.tables import Tables

SERVICE = 'Service("sleeper", ("sleep", "1000"), after=("logd",)),'


# --- pure -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("init.shut_down(1, 'x', 0.0)", ["shut_down"]),
        ("services['gps'].stop(now())", ["stop"]),
        ("def f():\n  sv.hurry(0)\n", ["hurry"]),
        ("getattr(init, 'shut_' 'down')", ["shut_down"]),
        ("exec('import os; os.kill(1, 9)')", ["kill"]),
        ("print('please stop')", []),
        ("len(services)", []),
        ("loop.turns", []),
    ],
)
def test_a_statement_that_acts_is_known_by_its_names(text: str, words: list[str]) -> None:
    assert acting(compile(text, "a", "single")) == words


def test_completion_calls_nothing_but_attributes() -> None:
    names: dict[str, Any] = {"text": "a", "services": {"gps": 1, "gpsd": 2, "logd": 3}}
    assert completions("te", names) == ["text"]
    assert completions("text.upp", names) == ["text.upper"]
    assert completions('services["gp', names) == ['services["gps"]', 'services["gpsd"]']
    assert completions("services['l", names) == ["services['logd']"]
    assert "len" in completions("le", names)
    assert completions("text.upper().lo", names) == []
    assert completions("nobody.x", names) == []
    assert not [name for name in completions("text.", names) if "__" in name]


def test_values_are_bounded_and_secrets_are_left_out() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError("its own code has been called")

    assert tracebacks.brief(Loud()) == "<Loud>"
    assert tracebacks.brief(Service("gps", ("cat",), env=(("KEY", "hunter22"),))) == "<Service 'gps'>"
    assert tracebacks.brief({"password": "hunter22", "a": 1}) == "{'password': (left out), 'a': 1}"
    assert len(tracebacks.brief(["x" * 1000] * 1000)) <= 2 * tracebacks.VALUE
    assert len(tracebacks.brief(10**5000)) < 40
    loop: list[Any] = []
    loop.append(loop)
    assert tracebacks.brief(loop) == "[[[...]]]"


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it did not raise")


def test_an_exception_is_kept_once_with_its_values_and_without_secrets() -> None:
    tables = Tables()
    tables.values["WIFI_NETWORKS"] = (WifiNetwork("harbour", "the passphrase"),)
    tables.services["gps"] = Service("gps", ("cat",), env=(("KEY", "hunter22"), ("PATH", "/usr/bin:/bin")))
    assert secret_words(tables) == ("the passphrase", "hunter22")

    def fail() -> None:
        line, passphrase, number = "psk is the passphrase, hunter22", "short", 7
        raise ValueError(f"{line} {passphrase} {number}")

    crashes: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    data = note(crashes, "timer", raised(fail), tables, 1.0)
    assert data is not None
    text = json.dumps([data, list(crashes.values())])
    assert "the passphrase" not in text
    assert "hunter22" not in text
    assert data["locals"]["passphrase"] == "(left out)"
    assert data["locals"]["number"] == "7"
    assert note(crashes, "timer", raised(fail), tables, 2.0) is None
    (row,) = crashes.values()
    assert (row["count"], row["first"], row["last"]) == (2, 1.0, 2.0)
    for number in range(50):
        note(crashes, f"timer {number}", raised(fail), tables, 3.0)
    assert len(crashes) == 20


def test_a_traceback_is_as_python_shows_it() -> None:
    def inner() -> None:
        raise KeyError("gone") from ValueError("first")

    text = tracebacks.text(raised(inner))
    assert text.startswith("ValueError: first\n\nwhich led to:\n\nTraceback (most recent call last):\n")
    assert f'  File "{__file__}", line ' in text
    assert 'raise KeyError("gone") from ValueError("first")' in text
    assert text.endswith("KeyError: 'gone'\n")
    syntax = tracebacks.text(raised(lambda: compile("1 +", "<console>", "single")))
    assert syntax.endswith("SyntaxError: invalid syntax\n")
    assert "    1 +\n" in syntax


# --- the time limit, in a process of its own -------------------------------------------------------------------------------
ENDLESS = {
    "a loop": "while True: pass",
    "one that catches everything": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "three of them": "while True:\n try:\n  while True:\n   try:\n    while True:\n     try:\n      while True: pass\n"
    "     except BaseException: pass\n   except BaseException: pass\n except BaseException: pass",
    "finally": "def g():\n while True:\n  try:\n   while True: pass\n  finally: continue\ng()",
    "with": "class C:\n def __enter__(s): return s\n def __exit__(s, *a): return True\nwhile True:\n with C():\n  while True: pass",
    "a generator": "def g():\n while True:\n  try: yield 1\n  except BaseException: pass\n"
    "while True:\n try:\n  for x in g(): pass\n except BaseException: pass",
    "sleep": "import time; time.sleep(100)",
    "sleep that catches": "import time\nwhile True:\n try: time.sleep(100)\n except BaseException: pass",
    "read": "import os; r, w = os.pipe(); os.read(r, 1)",
    "calls without end": "def f():\n while True:\n  try: f()\n  except BaseException: pass\nf()",
    "calls without end, otherwise": "def f():\n try: f()\n except BaseException: f()\nf()",
    "memory": "x = []\nwhile True:\n try: x.append('a' * 10 ** 6)\n except BaseException: pass",
}
LIMITED = """
import sys, time
sys.path.insert(0, {root!r})
from pid1.interrupt import Interrupted, TimeLimit
limit, began = TimeLimit(), time.monotonic()
try:
    limit.run(lambda: exec(compile({code!r}, "<c>", "exec"), {{}}), 0.2)
except Interrupted as error:
    print("interrupted", round(time.monotonic() - began, 3))
limit.run(lambda: print("and PID 1 goes on"), 5.0)
try:
    raise ValueError
except ValueError:
    print("exceptions are caught as ever")
time.sleep(0.2)
"""


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_does_not_end_is_ended(code: str) -> None:
    program = LIMITED.format(root=str(ROOT), code=code)
    done = subprocess.run([PYTHON, "-ESB", "-c", program], capture_output=True, text=True, timeout=20 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:] == ["and PID 1 goes on", "exceptions are caught as ever"], done.stdout + done.stderr
    assert 0.04 < float(lines[0].removeprefix("interrupted ")) < 5 * PATIENCE


def test_what_a_statement_closes_is_open_again() -> None:
    code = "import os; os.closerange(3, 1000)"
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport os, select\nfrom pid1.interrupt import TimeLimit\n"
        "r, w = os.pipe(); p = select.epoll(); p.register(r, 1)\n"
        f"mended = TimeLimit().run(lambda: exec({code!r}), 5.0)\n"
        "os.write(w, b'x'); print(len(mended), p.poll(1) == [(r, 1)], os.read(r, 1), os.get_inheritable(r))\n"
    )
    done = subprocess.run([PYTHON, "-ESB", "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.strip().endswith("True b'x' False"), done.stdout + done.stderr


def test_one_statement_at_a_time() -> None:
    limit = TimeLimit()
    kept = signal.getsignal(signal.SIGALRM)
    try:
        limit.busy = True
        with pytest.raises(RuntimeError):
            limit.run(lambda: None, 1.0)
    finally:
        signal.signal(signal.SIGALRM, kept)
    assert issubclass(Interrupted, BaseException)
    assert not issubclass(Interrupted, Exception)


# --- on a board ----------------------------------------------------------------------------------------------------------
class Console:
    """A session, by the control socket."""

    def __init__(self, board: Board, limit: float = 5.0) -> None:
        self.board = board
        self.opened = board.ask("console", do="open", limit=limit)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.board.ask("console", do=do, session=self.opened["session"], **words)
        return answer

    def __call__(self, *lines: str) -> str:
        for line in lines:
            answer = self.ask("line", line=line)
        assert "ask" not in answer, answer
        return str(answer["output"])


@pytest.fixture
def board(boot: Callable[..., Board]) -> Board:
    one = boot(SERVICE, settings="WATCHDOG = ''").up()
    one.wait_state("sleeper", "running")
    return one


def alive(board: Board) -> None:
    """It supervises: a service that dies is started again, and PID 1 answers."""
    pid = board.stats("sleeper")["pid"]
    board.kill("sleeper")
    eventually(lambda: board.stats("sleeper")["pid"] not in (None, pid), 20)


def test_lines_run_on_pid_1s_own_objects(board: Board) -> None:
    console = Console(board)
    assert set("init sv services loop settings crashes memory debug".split()) <= set(console.opened["names"])
    assert console("import os; os.getpid()") == "1\n"
    assert console('services["sleeper"].pid') == f"{board.stats('sleeper')['pid']}\n"
    assert console("_ + 1") == f"{board.stats('sleeper')['pid'] + 1}\n"
    assert console("settings.HOSTNAME, sv is init.sv, loop is init.loop").endswith("True, True)\n")
    assert console("print('a'); print('b', end='')") == "a\nb"
    assert console("x = 5") == ""
    assert console("x") == "5\n"
    assert Console(board)("x").endswith("NameError: name 'x' is not defined\n"), "another session has names of its own"


def test_statements_of_several_lines(board: Board) -> None:
    console = Console(board)
    assert console.ask("line", line="for n in range(2):")["prompt"] == "... "
    assert console.ask("line", line="    print(n)") == {"output": "", "prompt": "... "}
    assert console.ask("line", line="") == {"output": "0\n1\n", "prompt": ">>> "}
    assert console.ask("line", line="1 +* 2")["output"].endswith("SyntaxError: invalid syntax\n")
    console.ask("line", line="(1 +")
    assert console.ask("drop")["prompt"] == ">>> "
    assert console("2") == "2\n"


def test_errors_are_tracebacks_with_the_typed_lines(board: Board) -> None:
    console = Console(board)
    text = console("def f(): return 1 / 0", "", "f()")
    assert text.startswith("Traceback (most recent call last):\n")
    assert "    f()\n" in text
    assert "def f(): return 1 / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert "inside.py" not in text
    assert "SystemExit" in console("raise SystemExit(3)")
    assert "KeyboardInterrupt" in console("raise KeyboardInterrupt")
    alive(board)


def test_only_root_may_and_each_line_is_in_the_log_and_an_event(board: Board) -> None:
    Console(board)("'a line ' + 'of mine'")
    eventually(lambda: "console" in board.log() and "'a line ' + 'of mine'" in board.log())
    events = [json.loads(line) for line in (board.root / "run/stack/events").read_text().splitlines() if line]
    assert [one["data"]["line"] for one in events if one["kind"] == "console"] == ["'a line ' + 'of mine'"]
    from pid1.life import Life, Supervisor
    from pid1.requests import Requests
    from pid1.watchdog import Watchdog

    life = Life([])
    life.sv = Supervisor()
    for op in ("console", "crashes", "memory"):
        with pytest.raises(SVError, match="only root may look into PID 1; you are uid 1000"):
            Requests(life, Watchdog(life)).handle({"op": op, "do": "open"}, 1000, 0.0)


def test_what_acts_is_asked_about(board: Board) -> None:
    console = Console(board)
    answer = console.ask("line", line='stop("sleeper")')
    assert "stop: this may end" in answer["ask"]
    assert board.stats("sleeper")["state"] == "running"
    console.ask("answer", yes=False)
    assert board.stats("sleeper")["state"] == "running"
    assert console.ask("answer", yes=True)["output"] == "", "an answer without a question"
    console.ask("line", line='stop("sleeper")')
    assert "'state': 'stop" in console.ask("answer", yes=True)["output"]
    board.wait_state("sleeper", "stopped")
    console.ask("line", line='services["sleeper"].start(now())')
    console.ask("answer", yes=True)
    row = board.wait_state("sleeper", "running")
    limits = (Path("/proc") / str(board.outside(row["pid"])) / "limits").read_text()
    ours = (Path("/proc") / str(board.pid) / "limits").read_text()
    space = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert space == [line for line in ours.splitlines() if line.startswith("Max address space")]


def test_a_statement_that_does_not_end_is_ended_and_the_loop_goes_on(board: Board) -> None:
    console = Console(board, limit=0.3)
    began = time.monotonic()
    assert "Interrupted: its time is over" in console("while True: pass", "")
    console("while True:", " try:", "  while True: pass", " except BaseException: pass")
    assert "Interrupted" in console("")
    assert "Interrupted" in console("import time; time.sleep(100)")
    assert time.monotonic() - began < 10 * PATIENCE
    assert console("try: 1/0", "except ZeroDivisionError: print('caught')", "") == "caught\n"
    alive(board)
    assert board.ask("board")["state"] == "running"
    assert board.ask("board")["loop"]["longest_turn_ms"] < 250 * PATIENCE, "its time is not the loop's"


def test_three_long_statements_are_no_bad_health(boot: Callable[..., Board]) -> None:
    board = boot(SERVICE, settings="WATCHDOG = ''\nLOOP_TURN_MAX = 0.2").up()
    console = Console(board, limit=0.5)
    for _ in range(4):
        assert "Interrupted" in console("while True: pass", "")
    assert board.ask("board")["watchdog"]["unhealthy"] == ""


def test_the_watchdog_is_fed_for_the_time_of_a_statement_and_no_longer(board: Board) -> None:
    """A device made of a list stands for the hardware; the real one is in the emulated machines."""
    console = Console(board, limit=1.5)
    console("fed = []")
    console("class Dog:", " def feed(self): fed.append(now())", " def set_timeout(self, s): return 0.6", "")
    console.ask("line", line="from pid1 import watchdog; dog = [f.__self__ for f, _ in loop.timers if 'Watchdog' in str(f)][0]")
    console("dog.device = Dog(); dog.timeout = 0.6; dog.asked = settings.WATCHDOG_TIMEOUT; dog.due = now(); dog.report = 2")
    console("began = now()")
    assert "Interrupted" in console("while True: pass", "")
    times = console("[at - began for at in fed if at >= began and at < began + 1.5]")
    found = json.loads(times)
    assert len(found) >= 4, found
    assert max(b - a for a, b in itertools.pairwise(found)) < 0.6, found
    console("dog.device = dog.due = None")


def raw(board: Board, request: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody waits for yet."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with board.as_its_root() as path:
        client.connect(path)
    client.send(json.dumps(request).encode())
    return client


def test_ctrl_c_and_a_client_that_vanishes_end_a_statement(board: Board) -> None:
    console = Console(board, limit=60.0)
    session = console.opened["session"]
    began = time.monotonic()
    console.ask("line", line="while True: pass")
    client = raw(board, {"op": "console", "do": "line", "session": session, "line": ""})
    time.sleep(0.3)
    client.send(b"interrupt")
    client.settimeout(20)
    assert "Interrupted: Ctrl-C" in json.loads(client.recv(1_000_000))["ok"]["output"]
    client.close()
    raw(board, {"op": "console", "do": "line", "session": session, "line": "import time; time.sleep(50)"}).close()
    assert console("'here'") == "'here'\n"
    assert time.monotonic() - began < 20 * PATIENCE
    alive(board)


def test_output_and_lines_are_bounded(board: Board) -> None:
    console = Console(board)
    text = console("print('x' * 10**6)")
    assert len(text) < 70_000
    assert "934465 characters more" in text
    assert "\\ud800" in json.dumps(console("print('\\ud800')"))
    with pytest.raises(SVError, match="at most 8192 characters"):
        console("x" * 9000)
    assert "MemoryError" in console("x = 'a' * 10**10")
    with pytest.raises(SVError, match="at most 60 s"):
        Console(board, limit=61)
    others = [Console(board) for _ in range(6)]
    with pytest.raises(SVError, match="this session has ended"):
        console("1")
    assert others[-1]("1") == "1\n"
    alive(board)


def test_what_a_statement_breaks_is_mended(board: Board) -> None:
    console = Console(board)
    assert "is open again" in console("import os; os.closerange(3, 1000)")
    assert "turn was deleted" not in console("1")
    assert "_callbacks was deleted, and is there again" in console("del loop._callbacks")
    assert "len was deleted" in console("import builtins; del builtins.len")
    console("del init, sv, services")
    assert console("sv is init.sv") == "True\n"
    console("import sys; sys.stdout = sys.stderr = sys.stdin = None")
    console("sys.setrecursionlimit(60)")
    assert console("print('here'); input()").startswith("here\nTraceback")
    answer = console.ask("line", line="import os; os.fork() and None")
    assert "fork" in answer["ask"]
    console.ask("answer", yes=True)
    alive(board)
    assert console("1") == "1\n"


def test_completion(board: Board) -> None:
    console = Console(board)
    assert console.ask("complete", text="loop.tur") == {"names": ["loop.turn", "loop.turns"]}
    assert console.ask("complete", text='services["sl') == {"names": ['services["sleeper"]']}
    assert len(console.ask("complete", text="")["names"]) <= 200


def test_crashes_are_kept_and_sent(board: Board) -> None:
    console = Console(board)
    console("def fail(now):", "    weight, password = 12, 'hunter22'", "    raise LookupError('on purpose')", "")
    console("loop.guard('a test', fail, now())")
    (row,) = board.ask("crashes")
    assert (row["what"], row["error"], row["count"]) == ("a test", "LookupError: on purpose", 1)
    inner = row["frames"][-1]
    assert inner["function"] == "fail"
    assert inner["locals"]["weight"] == "12"
    assert inner["locals"]["password"] == "(left out)"
    events = [json.loads(line) for line in (board.root / "run/stack/events").read_text().splitlines() if line]
    (event,) = [one["data"] for one in events if one["kind"] == "exception"]
    assert event["error"] == "LookupError: on purpose"
    assert event["places"][-1].endswith("fail")
    assert "hunter22" not in json.dumps(event)
    assert "LookupError" in console("crashes()")


def test_the_debugger_after_an_exception(board: Board) -> None:
    console = Console(board)
    assert "there is no exception to look at" in console("debug()")
    console("def f(weight): return weight / 0", "", "f(12)")
    answer = console.ask("line", line="debug()")
    assert answer["prompt"] == "(Pdb) "
    assert "-> def f(weight): return weight / 0" in answer["output"]
    assert console("p weight") == "12\n"
    assert "<module>" in console("up")
    assert console.ask("line", line="q")["prompt"] == ">>> "
    console.board.ask("console", do="line", session=console.opened["session"], line="loop.guard('x', lambda now: f(13), now())")
    console("debug(crash=True)")
    console("down")
    assert console("p weight") == "13\n"
    console.ask("line", line="c")
    assert console("1") == "1\n"
    alive(board)


def test_memory_is_compared(board: Board) -> None:
    assert not board.ask("memory")["tracing"]
    assert board.ask("memory", what="start")["tracing"]
    board.ask("memory")
    Console(board)("kept = ['x' * 1000 + str(n) for n in range(500)]")
    rows = board.ask("memory")["grown"]
    assert rows[0]["change"] > 400_000
    assert rows[0]["file"].startswith("<console ")
    assert not board.ask("memory", what="stop")["tracing"]
    with pytest.raises(SVError, match="not 'other'"):
        board.ask("memory", what="other")


def test_tracing_from_the_boot_on(boot: Callable[..., Board]) -> None:
    board = boot(SERVICE, words=("stack.tracemalloc",)).up()
    assert board.ask("memory")["traced"] > 100_000


@pytest.mark.timeout(120)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_pid_1_survives_fuzzed_lines(fuzzed: Console, data: st.DataObject) -> None:
    words = "( ) [ ] { } : ; , . = + ** 9 0x 'a' \" ''' f' lambda def class for in while try except with del not import os init sv loop services \n \t \\ \0 é".split(
        " "
    )
    line = data.draw(st.text(max_size=60) | st.lists(st.sampled_from(words), max_size=25).map(" ".join))
    try:
        answer = fuzzed.ask("line", line=line)
    except SVError:
        return
    assert set(answer) <= {"output", "prompt", "ask"}
    if answer["prompt"] != ">>> ":
        fuzzed.ask("drop")


@pytest.fixture
def fuzzed(board: Board) -> Iterator[Console]:
    yield Console(board, limit=0.5)
    alive(board)


@pytest.mark.parametrize(
    "line",
    [
        "(" * 8000,
        "-" * 8000 + "1",
        "a" + ".a" * 4000,
        "1" + "+1" * 4000,
        "[" * 4000,
        "lambda:" * 1100 + "1",
        "{**" * 2000,
        "x" + "()" * 3000,
    ],
    ids=lambda line: line[:6],
)
def test_lines_that_take_the_compilers_stack(board: Board, line: str) -> None:
    console = Console(board)
    try:
        console.ask("line", line=line)
        console.ask("drop")
    except SVError as error:
        assert "ends the interpreter" in str(error)
    assert console("1") == "1\n"


def test_what_the_console_costs_pid_1(board: Board, record_property: Callable[[str, object], None]) -> None:
    def private() -> float:
        text = Path(f"/proc/{board.pid}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private")) / 1024

    before = private()
    console = Console(board)
    during = private()
    for _ in range(30):
        console("[n for n in range(1000)]")
    used = private()
    console.ask("close")
    after = private()
    record_property(
        "figure",
        f"console: PID 1 has {before:.1f} MiB of its own before, {during:.1f} with a session, {used:.1f} after 30 lines, {after:.1f} closed",
    )
    assert after - before < 4.0


# --- the client ----------------------------------------------------------------------------------------------------------
def test_lines_from_a_pipe(boot: Callable[..., Board]) -> None:
    """`ssh board sv console < lines` is such a process of root's on the board."""
    lines = "import os\\nos.getpid()\\nfor n in range(2):\\n    print(n)\\n\\nstop(1)\\n1/0\\nexit()\\n2\\n"
    command = f'printf "{lines}" | PYTHONPATH={{LIB}} {{PYTHON}} -P {{LIB}}/prompt/command.py console'
    board = boot(f"Service('script', ('sh', '-c', '{command}'), restart='never', after=('logd',)),").up()
    eventually(lambda: "ZeroDivisionError" in board.log("script"), 20)
    log = board.log("script")
    assert [line.split()[-1] for line in log.splitlines()][:3] == ["1", "0", "1"], log
    assert "nobody can be asked: not done" in log
    assert not log.splitlines()[-1].endswith(" 2"), "exit() leaves"


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
def test_somebody_at_the_console(terminal: Terminal) -> None:
    terminal.type("console(limit=30)\n")
    terminal.expect("inside PID 1: ")
    terminal.expect(">>> ")
    terminal.type("import os\n")
    terminal.expect(">>> ")
    terminal.type("os.getpi\t")
    terminal.expect("os.getpid")
    terminal.type("()\n")
    terminal.expect("1\n")
    terminal.type("for n in range(3):\n    print(n * 111)\n\n")
    terminal.expect("222\n")
    terminal.type("import time; time.sleep(25)\n")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.expect("Interrupted: Ctrl-C")
    terminal.expect(">>> ")
    terminal.type("(1 +\n")
    terminal.expect("... ")
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.type("stop('fakegps')\n")
    terminal.expect("Do it? [y/N] ")
    terminal.type("\n")
    terminal.type("services['fakegps'].state\n")
    terminal.expect("'running'\n")
    terminal.type("\x04")
    terminal.expect(">>> ")
    terminal.type("stats_process('fakegps')['state'], open('/var/lib/stack/console_history').read().count('os.getpid()')\n")
    terminal.expect("('running', 1)\n")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="`python -m pdb -p` needs Python 3.14 (sys.remote_exec)")
def test_python_attaches_its_debugger(board: Board, tmp_path: Path) -> None:
    """On the board: it reaches PID 1 by a file in /tmp and over the loopback interface. A question wakes PID 1 for it."""
    enter = ["nsenter", f"--target={board.pid}", "--user", "--pid", "--mount", "--net", "--setuid=0", "--setgid=0"]
    (tmp_path / "typed").write_text("p __name__\nq\n")
    with (tmp_path / "typed").open() as typed, (tmp_path / "said").open("wb") as said:
        words = [*enter, "/python/bin/python", "-m", "pdb", "-p", "1"]
        process = subprocess.Popen(words, stdin=typed, stdout=said, stderr=said)

    def over() -> bool:
        board.ask("board")
        return process.poll() == 0

    try:
        eventually(over, 40)
    finally:
        if process.poll() is None:
            for inside in [pid for pid, name in board.processes().items() if "pdb" in name]:
                os.kill(board.outside(inside), signal.SIGKILL)
            process.kill()
    text = (tmp_path / "said").read_text()
    assert "(Pdb) 'pid1.loop'" in text, text
    alive(board)
