"""PID 1's small JSON says the same as the real one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from base import stdlib

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip_with_the_json_package(value: object) -> None:
    assert json.loads(stdlib.json.dumps(value)) == value
    assert stdlib.json.loads(json.dumps(value)) == value
    assert stdlib.json.loads(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize("bad", ["", "{", "[1,]", "nul", "1 2", '{"a":}', b"\xff", "'a'", '"\n"'])
def test_what_is_not_json_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        stdlib.json.loads(bad)


def test_what_is_not_json_is_a_value_error_in_pid_1_too() -> None:
    """Where the real package is not loaded, which has the exception that the C scanner looks for, half a file is
    SystemError: nobody expects that of a file in /run that is not yet whole."""
    code = """
text = '{"a": [1, {"b": "x", "c": null}], "d": 1.5}'
for bad in [*(text[:end] for end in range(len(text))), '[1,]', '{1: 2}', '{"a": 1,}', '"\\q"', '[' * 30000, '1' * 5000]:
    try:
        print(json.loads(bad), bad)
    except ValueError:
        pass
assert "json.decoder" not in sys.modules or sys.version_info >= (3, 13)
"""
    begin = f"import sys; sys.path[0] = {str(ROOT)!r}; from base.stdlib import json"
    done = subprocess.run([sys.executable, "-ESB", "-c", begin + code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_what_json_cannot_say_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        stdlib.json.dumps({"a": object()})


def test_a_request_and_its_answer_do_not_import_the_json_package() -> None:
    code = (
        "from base import stdlib; import sys; stdlib.json.loads(stdlib.json.dumps({'a': [1]})); sys.exit('json' in sys.modules)"
    )
    subprocess.run([sys.executable, "-ESB", "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {code}"], check=True)
