"""`make mutants`: small changes are made to a module, one at a time, and its tests should notice each of them.

The tree is copied to build/mutants; nothing is changed in place. Only the pure tests are run (STACK_PURE). Which mutants are
tried follows from SEED; those on lines that git says have changed come first. lab/equivalents.txt lists mutants that no test
can notice, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "mutants" / str(os.getpid())  # another run has another
PATIENCE = 120.0  # seconds for the tests of one mutant; one that takes longer is noticed
# Modules that are tested elsewhere than in tests/test_NAME.py.
TESTS = {
    "pid1/relatives.py": "relatives sv", "pid1/requests.py": "sv control", "pid1/changes.py": "changes sv",
    "sv.py": "sv process",
    "pid1/log_pipes.py": "logd", "pid1/instances.py": "sv settings", "pid1/life.py": "sv stack", "pid1/teardown.py": "stack",
    "pid1/rescue.py": "sv stack", "uplink/numbering.py": "outbox", "onboard/pushed.py": "push", "services/boots.py": "keeper",
    "services/seed.py": "keeper",
}  # fmt: skip
BY_FOLDER = {"tables": "settings tables", "network": "network links", "prompt": "prompt", "uplink": "uplink outbox"}
DEFAULT = "pid1/process.py pid1/changes.py sv.py tables/values.py tables/check_services.py uplink/outbox.py uplink/numbering.py"
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
}


class Mutant(NamedTuple):
    """One change: where, what the line's expression was and what it is now, and the whole file with it."""

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        """What lab/equivalents.txt calls it: no line number, which moves."""
        return f"{self.module}: {self.before} -> {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            yield ast.Compare(node.left, [COMPARE[type(op)]()], node.comparators)
        case ast.BoolOp(op=op):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.If(test=test) | ast.IfExp(test=test):
            twin = copy.copy(node)
            twin.test = ast.UnaryOp(ast.Not(), test)
            yield twin
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Assign() | ast.AugAssign():
            yield ast.Pass()


def mutants(module: str, text: str) -> list[Mutant]:
    """Every mutant of a module's functions; its names, types and docstrings stay."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(inner) for function in functions for statement in function.body for inner in ast.walk(statement)}
    found = []
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            places = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, node in places:
                if not isinstance(node, ast.AST) or id(node) not in inside or field in ("annotation", "returns"):
                    continue
                for other in changes(node):
                    ast.copy_location(other, node)
                    put(parent, field, index, other)
                    whole = ast.unparse(ast.fix_missing_locations(tree))
                    put(parent, field, index, node)
                    line = getattr(node, "lineno", 0)
                    found.append(Mutant(module, line, shown(node), shown(other), whole))
    return found


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    """Set a field of a node, or an element of it."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def shown(node: ast.AST) -> str:
    """A node as a line of code: of a statement its first one."""
    return ast.unparse(node).split("\n")[0][:100]


def changed_lines(module: str, since: str) -> set[int]:
    """Lines that have changed since a commit."""
    words = ["git", "diff", "--unified=0", since, "--", module]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found: set[int] = set()
    for line in done.stdout.splitlines():
        if line.startswith("@@"):
            first, _, count = line.split("+")[1].split(" ")[0].partition(",")
            found |= set(range(int(first), int(first) + int(count or 1)))
    return found


def chosen(module: str, count: int, seed: int, since: str) -> list[Mutant]:
    """So many of a module's mutants, those of changed lines first."""
    every = mutants(module, (ROOT / module).read_text())
    random.Random(f"{seed} {module}").shuffle(every)
    changed = changed_lines(module, since)
    return sorted(every, key=lambda one: one.line not in changed)[:count]


def tests_of(module: str) -> list[str]:
    """The test files that should notice; a word of TESTS is a file's name."""
    name = Path(module).stem
    words = TESTS.get(module) or (
        "" if (ROOT / f"tests/test_{name}.py").exists() else BY_FOLDER.get(Path(module).parent.name, "")
    )
    return [f"tests/test_{word}.py" for word in (words or name).split()]


def copy_tree() -> None:
    """What git knows of the tree, with the same environment."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, TREE / name)
    (TREE / ".venv").symlink_to(ROOT / ".venv")


def run_tests(files: list[str], *options: str) -> tuple[bool, str]:
    """Whether the pure tests pass, and what they print."""
    words = [".venv/bin/python", "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options, *files]
    environment = {**os.environ, "STACK_PURE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(words, cwd=TREE, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return False, "too long"
    return done.returncode == 0, done.stdout


def equivalents() -> dict[str, str]:
    """Mutants that no test can notice, and why: `MODULE: BEFORE -> AFTER # REASON`."""
    lines = (ROOT / "lab/equivalents.txt").read_text().splitlines()
    pairs = (line.rpartition(" # ") for line in lines if " # " in line and not line.startswith("#"))
    return {key: reason for key, _, reason in pairs}


def main(arguments: list[str]) -> int:
    """Print the survivors, then a line for each module. Exit status 1 where the tests fail without any mutant."""
    parser = argparse.ArgumentParser(description="Which small mistakes in a module do its tests notice?")
    parser.add_argument("modules", nargs="*", default=DEFAULT.split())
    parser.add_argument("--mutants", type=int, default=20, help="of each module; 20")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--since", default="HEAD~20", help="a commit: lines changed since then come first")
    parser.add_argument("--seconds", type=float, default=1800.0, help="for all; 1800")
    options = parser.parse_args(arguments)
    deadline, known, rows = time.monotonic() + options.seconds, equivalents(), []
    copy_tree()
    for module in options.modules:
        files, path = tests_of(module), TREE / module
        good, said = run_tests(files)
        if not good:
            print(f"{module}: its tests fail without a mutant\n{said[-2000:]}", file=sys.stderr)
            return 1
        killed = survived = equal = 0
        original = path.read_text()
        for one in chosen(module, options.mutants, options.seed, options.since):
            if time.monotonic() > deadline:
                print(f"{module}: {options.seconds:g} s are over", file=sys.stderr)
                break
            path.write_text(one.text)
            lives, _ = run_tests(files)
            killed += not lives
            equal += lives and one.key in known
            survived += lives and one.key not in known
            if lives and one.key not in known:
                print(f"survived  {module}:{one.line}: {one.before}  ->  {one.after}", flush=True)
        path.write_text(original)
        rows.append((module, killed + survived + equal, killed, survived, equal))
    shutil.rmtree(TREE)
    print(f"\n{'module':28}{'mutants':>9}{'killed':>9}{'survived':>10}{'equivalent':>12}{'noticed':>9}")
    for module, count, killed, survived, equal in rows:
        share = f"{100 * killed / max(1, count - equal):.0f} %"
        print(f"{module:28}{count:9}{killed:9}{survived:10}{equal:12}{share:>9}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
