"""YAML and JSON with bounds: what no manifest is ends in one line before it takes time or memory."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from istio_init.formats import yaml_json
from istio_init.formats.yaml_json import DEEPEST, MOST_VALUES, load

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, f"line 6: more than {MOST_VALUES} values, aliases resolved: no manifest"),
        (MERGES, f"line 7: more than {MOST_VALUES} values, aliases resolved: no manifest"),
        ("a: &a [*a]", "line 1: the alias *a is inside of what it stands for"),
        ("a: &a {b: [{c: *a}]}", "line 1: the alias *a is inside of what it stands for"),
        ("[" * (DEEPEST + 1), f"line 1: nested too deeply: more than {DEEPEST} levels"),
        ("{a: " * (DEEPEST + 1), f"line 1: nested too deeply: more than {DEEPEST} levels"),
        ("".join(" " * n + "a:\n" for n in range(DEEPEST + 2)), f"line {DEEPEST + 1}: nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), f"nested too deeply: more than {DEEPEST} levels"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice"),
        ("a: {b: 1, 'b': 2}", "line 1: the key 'b' is given twice"),
        ("- a: 1\n- {a: 1, c: [a, a], a: 2}", "line 2: the key 'a' is given twice"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ("a: !!python/object:os.system x", "not YAML: line 1: could not determine a constructor for the tag"),
        ("a: !Ref x", "not YAML: line 1: could not determine a constructor for the tag"),
        ("a:\n\tb: 1", "not YAML: line 2: found character"),
        ("a: *b", "not YAML: line 1: found undefined alias"),
    ],
)
def test_what_no_manifest_is(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at)
        load(text)
    assert str(caught.value).startswith(why)
    assert "\n" not in str(caught.value)


def test_what_manifests_are() -> None:
    assert load("[" * DEEPEST + "]" * DEEPEST)
    assert load("{a: " * DEEPEST + "}" * DEEPEST)
    assert load("a: &a {b: 1}\nc: {<<: *a, b: 2}\nd: [*a, *a]\n") == [
        {"a": {"b": 1}, "c": {"b": 2}, "d": [{"b": 1}, {"b": 1}]}
    ]
    assert load("a: &x 1\nb: *x\n---\n---\na: &x {z: 1}\nb: *x") == [{"a": 1, "b": 1}, {"a": {"z": 1}, "b": {"z": 1}}]
    assert load("a: {b: 1, c: {b: 1}}\nb: [a, a]") == [{"a": {"b": 1, "c": {"b": 1}}, "b": ["a", "a"]}]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(st.lists(values) | st.dictionaries(st.text(), values), st.booleans())
def test_the_bounds_change_no_meaning(value: object, flow: bool) -> None:
    assert load(json.dumps(value)) == [value]
    # In quotes: what some plain words are, PyYAML sees in another way.
    assert load(yaml.safe_dump(value, default_flow_style=flow, default_style='"')) == [value]


def test_the_loader_in_python_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_json, "loader", lambda module: module.SafeLoader)
    for text, why in ((LAUGHS, "line 6: more than"), ("[" * 300, "line 1: nested"), ("a: 1\na: 2", "line 2: the key")):
        with pytest.raises(ValueError, match=why):
            load(text)
