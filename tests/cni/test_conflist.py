"""Our plugin put into networks' configuration and taken out of it, as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.node import conflist
from istio_init.cni.node.conflist import PLUGIN, list_of_configuration, plugin_entry, types, with_plugin, without_plugin
from istio_init.cni.plugin.protocol import VERSIONS
from tests.cni.networks import BROKEN, LISTS, SINGLE

OURS: dict[str, Any] = {"type": PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=4)
kinds = st.text(min_size=1, max_size=8).filter(lambda kind: kind != PLUGIN)
plugins = st.builds(lambda more, kind: {**more, "type": kind}, objects, kinds)
layouts: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 0, 1, 2, 4, "\t"]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]),
        "ensure_ascii": st.booleans(),
    }
)


@st.composite
def lists(draw: st.DrawFn) -> str:
    """A list of other programs' plugins, in any layout that a JSON writer has."""
    document = {**draw(objects), "name": draw(st.text(min_size=1, max_size=8))}
    document["plugins"] = draw(st.lists(plugins, min_size=1, max_size=4))
    text = json.dumps(document, **draw(layouts))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")  # strings hold none: they are escaped
    return draw(st.sampled_from(["", "\n", " \t"])) + text + draw(st.sampled_from(["", "\n", "\r\n\r\n"]))


def parsed(text: str) -> tuple[dict[str, Any], list[Any]]:
    """A list without its plugins, and its plugins."""
    document = json.loads(text)
    return document, document.pop("plugins")


@given(lists())
def test_in_and_out_again_is_nothing(text: str) -> None:
    entered = with_plugin(text, OURS)
    before, after = parsed(text), parsed(entered)
    assert after == (before[0], [*before[1], OURS])
    assert list(after[0]) == list(before[0])
    assert with_plugin(entered, OURS) == entered
    assert without_plugin(entered) == text
    assert without_plugin(text) == text
    assert (plugin_entry(text), plugin_entry(entered)) == (None, OURS)


@given(lists(), objects, st.data())
def test_ours_among_others_stays_where_it_is_and_is_brought_up_to_date(
    text: str, old: dict[str, Any], data: st.DataObject
) -> None:
    document, others = parsed(text)
    at = data.draw(st.integers(1, len(others)))
    standing = json.dumps({**document, "plugins": [*others[:at], {**old, "type": PLUGIN}, *others[at:]]}, indent=2)
    assert parsed(with_plugin(standing, OURS)) == (document, [*others[:at], OURS, *others[at:]])
    assert parsed(without_plugin(standing)) == (document, others)


@given(lists(), st.integers(0, 3), st.integers(2, 3))
def test_ours_at_the_front_or_several_times_becomes_one_at_the_end(text: str, at: int, times: int) -> None:
    document, others = parsed(text)
    for crowd in ([OURS, *others], [*others[:at], *[OURS] * times, *others[at:]]):
        standing = json.dumps({**document, "plugins": crowd}, indent=1)
        assert parsed(with_plugin(standing, OURS)) == (document, [*others, OURS])


@given(plugins, st.text(min_size=1), layouts)
def test_a_single_configuration_becomes_a_list_of_it(plugin: dict[str, Any], name: str, layout: dict[str, Any]) -> None:
    plugin = {"cniVersion": "0.3.1", **plugin, "name": name}
    network_list = list_of_configuration(json.dumps(plugin, **layout))
    assert json.loads(network_list) == {"cniVersion": plugin["cniVersion"], "name": name, "plugins": [plugin]}
    assert without_plugin(with_plugin(network_list, OURS)) == network_list


@given(st.text() | lists().flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])))
def test_whatever_is_in_a_file_it_is_a_list_or_a_line_that_says_why_not(text: str) -> None:
    try:
        entered = with_plugin(text, OURS)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert types(entered)[-1] == PLUGIN
    assert "\n" not in message


@pytest.mark.parametrize(("text", "why"), BROKEN.items(), ids=range(len(BROKEN)))
def test_what_no_runtime_would_take(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        with_plugin(text, OURS)


@pytest.mark.parametrize("name", LISTS)
def test_it_looks_as_if_it_had_been_written_there(name: str) -> None:
    entered = with_plugin(LISTS[name], OURS)
    lines = LISTS[name].splitlines()
    new = [line for line in entered.splitlines() if line.rstrip(",") not in {old.rstrip(",") for old in lines}]
    assert any(PLUGIN in line for line in new)
    assert without_plugin(entered) == LISTS[name]


def test_flannels_list_afterwards() -> None:
    tail = """\
      "capabilities": {
        "portMappings": true
      }
    },
    {
      "type": "istio-init-cni",
      "capabilities": {
        "io.kubernetes.cri.pod-annotations": true
      }
    }
  ]
}
"""
    assert with_plugin(LISTS["10-flannel"], OURS).endswith(tail)
    entry = '{"type": "istio-init-cni", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}'
    assert with_plugin(LISTS["87-podman"], OURS).endswith(f'{{"type":"tuning"}}, {entry}]}}')


def test_a_single_plugin_of_gkes_as_a_list() -> None:
    network_list = list_of_configuration(SINGLE)
    assert types(network_list) == ("ptp",)
    assert json.loads(network_list)["plugins"] == [json.loads(SINGLE)]


@pytest.mark.parametrize("text", ['{"type": "bridge"}', "[]", "{", '{"type": 1}'])
def test_a_plugin_configuration_that_is_not_ours(text: str) -> None:
    with pytest.raises(ValueError, match=r"type|JSON"):
        conflist.plugin_configuration(text)


@pytest.mark.parametrize("version", ["0.5.0", "2.0.0", 1, ["1.0.0"]])
def test_a_version_that_the_plugin_refuses_is_refused_at_once(version: object) -> None:
    text = json.dumps({"cniVersion": version, "name": "n", "plugins": [{"type": "bridge"}]})
    with pytest.raises(ValueError, match="keep every pod from starting"):
        with_plugin(text, OURS)


@pytest.mark.parametrize(
    "head", [{}, *({"cniVersion": each} for each in VERSIONS), {"cniVersion": "2.0.0", "cniVersions": ["1.1.0"]}]
)
def test_the_versions_that_it_speaks_are_taken(head: dict[str, object]) -> None:
    assert PLUGIN in types(with_plugin(json.dumps({**head, "name": "n", "plugins": [{"type": "bridge"}]}), OURS))
