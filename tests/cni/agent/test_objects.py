"""Objects of the API server as JSON: what a tenant may put into a pod, and what no server should send."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.objects import parse_event, parse_list, parse_pod
from istio_init.cni.agent.pods import NodePod
from tests.cni.agent.test_watch import STAY, events, lists, run, until, watching
from tests.kit.lying_api import Answer, Request, pod, pod_list

CLAIM = {"metadata": {"creationTimestamp": None}, "spec": {"accessModes": ["ReadWriteOnce"]}}
SAMPLE = pod(
    "a",
    5,
    labels={"app": "a"},
    volumes=[{"name": "scratch", "ephemeral": {"volumeClaimTemplate": CLAIM}}],
    initContainers=[{"name": "istio-validation", "env": [{"name": "A", "value": "b"}]}],
    status={
        "phase": "Pending",
        "initContainerStatuses": [
            {"name": "istio-validation", "state": {"terminated": {"exitCode": 126}}, "lastState": {}}
        ],
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:  # noqa: ANN401 (JSON)
    """The path to each value of a document, its own included."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(document: Any, path: tuple[str | int, ...], value: object) -> Any:  # noqa: ANN401 (JSON)
    """A copy of a document with another value at a path."""
    if not path:
        return value
    result = holder = copy.deepcopy(document)
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return result


EVENT = {"type": "ADDED", "object": SAMPLE}
BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
ERROR = {"type": "ERROR", "object": {"message": "no", "code": 410}}


@pytest.mark.parametrize("event", [EVENT, BOOKMARK, ERROR], ids=lambda event: event["type"])
@given(data=st.data())
def test_an_event_with_anything_wrong_is_an_event_or_an_error(event: dict[str, Any], data: st.DataObject) -> None:
    wrong = replaced(event, data.draw(st.sampled_from(list(places(event)))), data.draw(JSON))
    with contextlib.suppress(HttpError):
        kind, content = parse_event(json.dumps(wrong).encode())
        assert isinstance(kind, str)
        version = content if kind == "BOOKMARK" else content.version
        assert isinstance(version, str)
        assert version


@given(data=st.data())
def test_a_list_with_anything_wrong_is_a_list_or_an_error(data: st.DataObject) -> None:
    document = pod_list(10, SAMPLE, pod("b", 6))
    wrong = replaced(document, data.draw(st.sampled_from(list(places(document)))), data.draw(JSON))
    with contextlib.suppress(HttpError):
        pods, version = parse_list(json.dumps(wrong).encode())
        assert version
        assert all(isinstance(each, NodePod) for each in pods)
    wrong = replaced(SAMPLE, data.draw(st.sampled_from(list(places(SAMPLE)))), data.draw(JSON))
    with contextlib.suppress(HttpError):
        assert isinstance(parse_pod(json.dumps(wrong).encode()), NodePod)


@pytest.mark.parametrize(
    "fields",
    [
        {"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": CLAIM}}]},
        {"labels": {"metadata": "", "spec": ""}},
        {"annotations": {"metadata": "x", "spec": "y"}},
        {"nodeSelector": {"metadata": "x", "spec": "y"}},
        {"volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"metadata": "{}", "spec": "{}"}}}]},
        # Alike enough to be taken for a pod of its own.
        {"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": pod("inner", 1)}}]},
    ],
    ids=range(6),
)
def test_fields_that_look_like_a_pod_hide_no_pod(fields: dict[str, Any]) -> None:
    """A user who may create pods must not be able to keep the agent from knowing the others."""
    tricky = pod("tricky", 5, **copy.deepcopy(fields))
    pods, version = parse_list(json.dumps(pod_list(10, pod("a", 4), tricky, pod("b", 6))).encode())
    assert [each.name for each in pods] == ["a", "tricky", "b"]
    assert version == "10"
    assert pods[1] == parse_pod(json.dumps(tricky).encode())
    assert pods[1].description is not None


def test_a_pod_as_long_as_etcd_takes_it_does_not_end_the_watch() -> None:
    """1.5 MiB in etcd, and six times that as the API server writes it: Go's JSON escapes <."""
    large = pod("large", 11)
    large["spec"]["containers"].append({"name": "x", "env": [{"name": "X", "value": "<" * (1400 << 10)}]})
    line = json.dumps({"type": "ADDED", "object": large}).replace("<", "\\u003c").encode() + b"\n"

    async def changes(_request: Request, answer: Answer) -> None:
        await answer.begin()
        await answer.piece(line)
        await answer.event("ADDED", pod("b", 12))
        await asyncio.sleep(3600)

    async def test() -> None:
        async with watching(lists(10, pod("a", 5)), changes) as watched:
            await until(lambda: watched.names == ["a", "b", "large"])
            assert watched.failures == []

    run(test)


async def endless(_request: Request, answer: Answer) -> None:
    """An event without an end."""
    await answer.begin()
    while True:
        await answer.piece(b"x" * (1 << 20))


async def invalid(_request: Request, answer: Answer) -> None:
    await answer.refuse(400, "Invalid value: resourceVersion")


@pytest.mark.parametrize("lie", [endless, invalid])
def test_a_watch_that_cannot_go_on_is_followed_by_a_list(lie: Any) -> None:  # noqa: ANN401 (a handler)
    async def test() -> None:
        async with watching(lists(10, pod("a", 5)), lie, lists(30, pod("b", 6)), STAY) as watched:
            await until(lambda: watched.names == ["b"])

    run(test)


def test_events_that_come_twice_or_in_disorder_leave_the_last_state() -> None:
    changes = events(
        ("ADDED", pod("a", 11)),
        ("ADDED", pod("a", 11)),
        ("MODIFIED", pod("a", 12, labels={"sidecar.istio.io/inject": "false"})),
        ("DELETED", pod("b", 13)),
        ("DELETED", pod("b", 13)),
        ("HELLO", pod("c", 14)),
        ("ADDED", pod("d", 15)),
    )

    async def test() -> None:
        async with watching(lists(10, pod("b", 5)), changes) as watched:
            await until(lambda: watched.names == ["a", "d"])
            assert watched.changes == [("b", ""), ("a", ""), ("a", "a"), ("", "b"), ("d", "")]
            assert watched.failures == []

    run(test)
