"""The rules of the house are executable: who imports what, names, sizes, linters, and what may not be written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import PYTHON, ROOT

# Who may import what of ours: a row for each folder, and for each file at the top that is no app.
MAY = {
    "base": "",
    "_log": "base",
    "tables": "base settings profiles",
    "settings": "base tables",
    "profiles": "settings tables",
    "onboard": "base tables",
    "pid1": "base tables onboard _log",
    "prompt": "base tables onboard bus updates",
    "sv": "base tables onboard pid1 _log prompt",
    "stack": "base tables onboard pid1 _log sv",
    "bus": "base onboard _log",
    "services": "base tables onboard bus",
    "network": "base tables onboard bus",
    "updates": "base tables onboard services uplink",
    "uplink": "base tables onboard bus _log",
    "laptop": "base tables onboard",
    "mothership": "base uplink _log",
    "lab": "base tables onboard bus uplink updates settings laptop _log",
    "bench": "base tables laptop",
    "buildroot": "settings tables",
}
AN_APP = "base onboard bus sv settings _log"  # and never another app
PID1_WING = {"pid1", "sv", "stack"}  # nobody else imports from pid1/
FILES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for folder in (".", *MAY)
    for path in sorted((ROOT / folder).rglob("*.py") if folder not in (".", "buildroot") else (ROOT / folder).glob("*.py"))
}
FILES["buildroot.settings_image"] = ROOT / "buildroot" / "package" / "stack" / "settings_image.py"
TOP = {name for name in FILES if "." not in name}
APPS = {name for name in TOP if FILES[name].parent == ROOT} - set(MAY)
# Who may import a library: one module, or one for each part of it.
THIRD_PARTY = {"paho": "onboard.mqtt", "amqtt": "laptop.broker", "pyroute2": "network.dhcp network.nl80211",
               "pyudev": "services.uevents", "psycopg": "mothership.postgres"}  # fmt: skip
# What PID 1's own files may take from the standard library, besides __future__.
AFFORDABLE = {"gc", "faulthandler", "os", "sys", "time", "select", "errno", "fcntl", "_ctypes", "graphlib", "resource", "_signal", "_socket", "_json", "marshal",
              "_collections", "_operator", "itertools", "_frozen_importlib_external"}  # fmt: skip
# Files that are longer than one sitting, and by how much; the list only gets shorter.
LONGEST: dict[str, int] = {}


def room(name: str) -> str:
    """The folder of a file, or the file itself where it stands at the top."""
    return name.split(".")[0]


def imports(name: str, *, types: bool = True) -> set[str]:
    """Every module that a file imports; `types`: what only type checkers see as well. Ours by their dotted names."""
    path = FILES[name]
    found: set[str] = set()

    def seen(module: str) -> str:
        beside = f"{room(name)}.{module}"  # mothership/ and lab/ are run from their own folder
        return beside if beside in FILES and FILES[beside].parent == path.parent and module not in FILES else module

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            for otherwise in node.orelse:
                visit(otherwise)
            return
        if isinstance(node, ast.Import):
            found.update(seen(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(inner & FILES.keys() or {seen(node.module)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found - {"__future__", name}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_what_its_folder_may(name: str) -> None:
    """Imports under TYPE_CHECKING count: they are arrows in a reader's head too."""
    allowed = {room(name), *MAY.get(room(name), AN_APP).split()} - (APPS if name in APPS else set())
    ours = {room(module) for module in imports(name) if room(module) in {room(one) for one in FILES}}
    assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}; add a row to MAY only if the house needs that arrow"
    if room(name) not in PID1_WING:
        assert "pid1" not in ours


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {name: imports(name) & FILES.keys() for name in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def loaded_by_pid_1() -> set[str]:
    """Names of the modules that `import stack` loads."""
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; import stack; print(*sys.modules)"
    return set(subprocess.run([PYTHON, "-ESB", "-c", code], capture_output=True, text=True, check=True).stdout.split())


PID1 = sorted((loaded_by_pid_1() & FILES.keys()) | {"settings", "tables.plan"})


@pytest.mark.parametrize("name", PID1)
def test_pid_1_takes_only_what_it_can_afford(name: str) -> None:
    outside = {room(module) for module in imports(name, types=False)} - {room(one) for one in FILES}
    assert outside <= AFFORDABLE | ({"logging"} if name == "_log" else set())  # for apps, when they ask for it


def test_what_pid_1_really_loads() -> None:
    loaded = loaded_by_pid_1()
    assert {room(name) for name in loaded & FILES.keys()} <= {"_log", "base", "tables", "onboard", "pid1", "sv", "stack"}
    dear = "json re enum typing collections logging socket signal subprocess asyncio dataclasses threading argparse"
    assert not set(dear.split()) & loaded
    assert "sysconfig" not in loaded


def test_only_one_module_of_the_board_loads_ctypes() -> None:
    """What it does first comes too late after another's."""
    users = {name for name in FILES if {"ctypes", "_ctypes"} & imports(name)}
    assert users - {"laptop.root", "pid1.guard"} == {"base.native"}  # the guard runs before there are modules of ours


def test_the_names_of_ctypes_are_those_of_ctypes() -> None:
    """PID 1 has them from the C module underneath; types are as wide as there, and an error's number is the call's own."""
    code = """
import ctypes as real
from base.native import ctypes as ours
for name in dir(real):
    if name.startswith("c_") and hasattr(ours, name):
        assert real.sizeof(getattr(ours, name)) == real.sizeof(getattr(real, name)), name
libc = ours.CDLL(None, use_errno=True)
assert libc.close(-1) == -1 and ours.get_errno() == 9
assert not hasattr(libc, "no_such_function")
assert len(ours.create_string_buffer(7)) == 7
"""
    subprocess.run([PYTHON, "-B", "-c", code], check=True, cwd=ROOT)


def test_apps_never_import_apps_and_nobody_imports_stack() -> None:
    for name in FILES:
        assert "stack" not in imports(name) or name == "stack"
        assert not imports(name) & APPS, f"{name} imports an app"


def test_a_third_party_library_is_imported_by_its_owners_alone() -> None:
    ours = {room(name) for name in FILES}
    for library, owners in THIRD_PARTY.items():
        users = {name for name in FILES if library in {room(module) for module in imports(name)}}
        assert users - {"mothership.receiver"} == set(owners.split()), library
    board = {name for name in FILES if room(name) not in ("lab", "bench", "mothership", "buildroot")}
    outside = {room(module) for name in board for module in imports(name)} - ours - set(sys.stdlib_module_names)
    assert outside - set(THIRD_PARTY) <= {"_frozen_importlib_external"}


def test_who_loads_the_mqtt_library_says_so_by_bus_or_by_remote() -> None:
    """Loading paho costs 14 MiB, and an app loads the bus alone, not the client of the mothership's broker."""
    board = {name for name in FILES if room(name) not in ("lab", "bench")}
    assert {name for name in board if "onboard.mqtt" in imports(name)} == {"bus", "uplink.remote"}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bus; print(*sys.modules)"
    loaded = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "uplink.remote" not in loaded


def test_no_file_on_pythons_path_takes_a_name_of_python() -> None:
    for name in {room(one) for one in FILES}:
        assert name not in sys.stdlib_module_names


def test_a_name_is_used_for_one_file() -> None:
    """Two files of one name in different folders are mistaken for each other; each folder's service.py is its program."""
    places = ("lab", "bench", "mothership", "buildroot")
    files = [name for name in FILES if room(name) not in places and FILES[name].name != "__init__.py"]
    board = [name.rpartition(".")[2] for name in files]
    assert {name for name in board if board.count(name) > 1} <= {"service"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_read_in_one_sitting(name: str) -> None:
    text = FILES[name].read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST.get(name, 360)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and not getattr(node, "name", "").startswith("_"):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} does not fit a screen"
            if not isinstance(node, ast.FunctionDef):
                assert ast.get_docstring(node), f"{getattr(node, 'name', name)} says nothing of itself"


def test_global_state_is_not_changed() -> None:
    for name in FILES:
        assert not [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Global)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("mypy", ".")],
    ids=lambda command: " ".join(command),
)
def test_linters(command: tuple[str, ...]) -> None:
    words = [str(path) for word in command for path in (sorted(ROOT.glob(word)) if "*" in word else [word])]
    done = subprocess.run([PYTHON, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No registry's host name, no path of the machine that it was made on."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in files:
        text = (ROOT / name).read_text(errors="replace") if (ROOT / name).exists() else ""
        words = "pypi" + r"\.org|" + "python" + "hosted" + r"|deb\." + "debian|/" + "work/|" + "py" + "env"
        found = re.search(words, text)
        assert found is None, f"{name}: {found}"
