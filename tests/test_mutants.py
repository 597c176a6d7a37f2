"""`make mutants`: what it changes, and that one that no test can notice is known by its words."""

from __future__ import annotations

import ast
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "lab"))

import mutants

TEXT = """
LIMIT = 3

def late(now: float, due: float = 1.0) -> bool:
    \"\"\"Whether it is.\"\"\"
    if now >= due and not LIMIT == 2:
        return now + 1 > due
    return False
"""


def test_each_mutant_differs_in_one_place_and_is_a_program() -> None:
    found = mutants.mutants("late.py", TEXT)
    changed = [one.key.removeprefix("late.py: ") for one in found]
    for expected in (
        "now >= due -> now > due", "LIMIT == 2 -> LIMIT != 2", "not LIMIT == 2 -> LIMIT == 2", "2 -> 3", "now + 1 -> now - 1",
        "now + 1 > due -> now + 1 >= due", "return now + 1 > due -> return None", "False -> True",
        "now >= due and (not LIMIT == 2) -> now >= due or not LIMIT == 2",
        "if now >= due and (not LIMIT == 2): -> if not (now >= due and (not LIMIT == 2)):",
    ):  # fmt: skip
        assert expected in changed
    same = ast.unparse(ast.parse(TEXT))
    for one in found:
        compile(one.text, "late.py", "exec")
        assert one.text != same
        assert "LIMIT = 3" in one.text
        assert "due: float=1.0" in one.text, "what is not in a function's body stays"


def test_the_same_seed_chooses_the_same_mutants() -> None:
    first, second, other = (mutants.chosen("pid1/changes.py", 10, seed, "HEAD") for seed in (1, 1, 2))
    assert first == second != other
    assert len(first) == 10


def test_every_equivalent_has_a_reason_and_still_is_a_mutant() -> None:
    known = mutants.equivalents()
    assert known
    for key, reason in known.items():
        module = key.partition(": ")[0]
        assert reason
        assert key in {one.key for one in mutants.mutants(module, (ROOT / module).read_text())}, (
            "the code has changed: take it out"
        )


def test_every_module_has_tests() -> None:
    for module in (*mutants.TESTS, *mutants.DEFAULT.split()):
        assert (ROOT / module).exists(), module
        assert all((ROOT / name).exists() for name in mutants.tests_of(module)), module
