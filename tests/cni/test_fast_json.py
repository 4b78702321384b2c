"""JSON by the C half of the standard library's module: what that module reads and writes, ours does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_init.cni.plugin.fast_json import decode, encode, members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_what_is_written_is_read_back_by_both(value: object) -> None:
    assert decode(encode(value)) == json.loads(encode(value)) == value
    assert encode(value) == json.dumps(value)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1, "\t"]))
def test_members_come_with_their_text(value: dict[str, object], indent: str | int | None) -> None:
    text = f" {json.dumps(value, indent=indent)}\n"
    members_read = members(text)
    assert {name: member for name, (member, _) in members_read.items()} == value
    assert all(json.loads(raw) == member and raw in text for member, raw in members_read.values())


def no_json(word: str) -> None:
    """Refuse NaN and Infinity, which the module takes and JSON does not have."""
    raise ValueError(word)


@example("NaN")
@given(st.text() | st.text('{}[]":,\\ 0a-.eE\n'))
def test_any_text_is_read_as_the_module_reads_it_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        value = json.loads(text, parse_constant=no_json)
        assert decode(text) == value
        return
    with pytest.raises(ValueError, match=r"."):
        decode(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"a"', '{"a"}', '{"a":{"a"}}', '{"a":}', '{"a":1,}', '{"a":NaN}', "{} {}", "[1]", '{"a":' * 100_000,
        '{"a":' + "[" * 100_000, '{"a":' + "9" * 5000 + "}", '{"a":tru}', "{1:2}", "{'a':1}", "\ufeff{}",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_object_is_refused_in_one_line(text: str) -> None:
    # In a process of its own, where nobody has imported json.
    program = "import sys; from istio_init.cni.plugin.fast_json import members; members(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SystemError" not in done.stderr
    with pytest.raises(ValueError, match=r".") as raised:
        members(text)
    assert "\n" not in str(raised.value)
