"""Dumps: both spellings, what is no dump, and that no JSON at all leads to anything but an answer or one line."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.envoy.dump import load, read
from istio_init.envoy.node import DumpError
from tests.envoy import sidecar

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@contextmanager
def one_line() -> Iterator[None]:
    """Nothing is raised, or a DumpError of one line."""
    caught = ""
    try:
        yield
    except DumpError as error:
        caught = str(error)
    assert "\n" not in caught


def camel(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """The same dump as istioctl prints it."""
    if isinstance(value, list):
        return [camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {_camel(name): camel(each) for name, each in value.items()}


def _camel(name: str) -> str:
    if "_" not in name or "." in name:
        return name
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def test_both_spellings_are_the_same() -> None:
    snake, other = sidecar.value(), camel(sidecar.value())
    assert snake != other
    for port in (9080, 8001, 7071, 15006, 15090, 1):
        one, two = sidecar.pod(snake), sidecar.pod(other)
        assert [
            [(path.end, path.flag, [each.chain for each in path.passages]) for path in answer.paths]
            for answer in sidecar.all_answers(one, sidecar.inbound(port))
        ] == [
            [(path.end, path.flag, [each.chain for each in path.passages]) for path in answer.paths]
            for answer in sidecar.all_answers(two, sidecar.inbound(port))
        ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        (sidecar.text("REDIRECT")[:5000], "cut off"),
        ("[1]", "not a dump of Envoy's configuration but a list"),
        ("{}", "it has no configs"),
        ('{"configs": {}}', "configs: an object: not a list"),
        ('{"configs": [{"@type": "type.googleapis.com/envoy.admin.v2alpha.ListenersConfigDump"}]}', "v2 API"),
        ('{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump"}]}', "no listeners"),
        ('{"configs": ' * 100_000, "nested too deeply"),
        ('{"configs": [{"@type": "x.ListenersConfigDump", "dynamic_listeners": 5}]}', "'5': not a list"),
    ],
)
def test_what_is_no_dump_is_said_in_one_line(text: str, why: str) -> None:
    with pytest.raises(DumpError) as caught:
        load(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@given(JSON)
def test_any_json_is_a_dump_or_an_error_of_one_line(value: Any) -> None:  # noqa: ANN401
    for given_value in (value, {"configs": value}, {"configs": [value]}):
        with one_line():
            read(given_value)


def _places(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Every container of a JSON value with each key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *_places(inner))]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.lists(JSON, min_size=1, max_size=3))
def test_any_change_of_a_dump_leads_to_an_answer_or_an_error_of_one_line(seed: int, values: list[Any]) -> None:
    chance = random.Random(seed)
    dump = sidecar.value(chance.choice(["REDIRECT", "TPROXY"]))
    for value in values:
        container, key = chance.choice(_places(dump))
        container[key] = copy.deepcopy(value)
    port = chance.choice([9080, 8001, 7071, 5555, 7070, 15006, 15090])
    with one_line():
        pod = sidecar.pod(dump)
        for packet in (sidecar.inbound(port), sidecar.outbound(pod, "10.96.0.40", port)):
            assert sidecar.all_answers(pod, packet, host="reviews", path="/v2")


def test_a_refused_update_is_known() -> None:
    dump = sidecar.value()
    entry = next(part["dynamic_listeners"] for part in dump["configs"] if "dynamic_listeners" in part)[0]
    entry["error_state"] = {"details": "duplicate matcher", "failed_configuration": {"name": "bad"}}
    (refused,) = read(dump).refused
    assert (refused.name, refused.why) == ("0.0.0.0_9080", "duplicate matcher")
