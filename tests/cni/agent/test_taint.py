"""The node's taint: removed alone, and only from the node as it was read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from istio_init.cni.agent import taint
from istio_init.cni.agent.credentials import ApiCredentials
from istio_init.cni.agent.health import Health
from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.taint import TAINT, Untaint
from istio_init.log import Log
from tests.kit.lying_api import Answer, Handler, LyingApi, Request

OTHER = {"key": "other", "value": "x", "effect": "NoSchedule"}


def node(*taints: dict[str, str]) -> Handler:
    async def handler(_request: Request, answer: Answer) -> None:
        spec = {"taints": list(taints)} if taints else {}
        await answer.json({"kind": "Node", "metadata": {"name": "n", "resourceVersion": "7"}, "spec": spec})

    return handler


async def conflict(_request: Request, answer: Answer) -> None:
    await answer.refuse(409)


async def nonsense(_request: Request, answer: Answer) -> None:
    await answer.json({"spec": [7]})


def untaint(server: LyingApi, health: Health | None = None) -> Untaint:
    api = KubernetesApi(ApiCredentials(server.url, {}, {}))
    return Untaint(TAINT, "n", api, health or Health(), Log("none"))


def removed(*handlers: Handler) -> tuple[bool, list[Request]]:
    async def test() -> tuple[bool, list[Request]]:
        async with LyingApi(*handlers).serving() as server:
            return await untaint(server).remove(), server.requests

    return asyncio.run(asyncio.wait_for(test(), 60))


def test_the_taint_alone_is_removed_whatever_its_effect() -> None:
    ours: list[dict[str, str]] = [{"key": TAINT, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
    was, [read, written] = removed(node(ours[0], OTHER, ours[1]))
    assert was
    assert (read.method, written.method, written.path) == ("GET", "PATCH", "/api/v1/nodes/n")
    assert written.headers["content-type"] == "application/merge-patch+json"
    assert json.loads(written.body) == {"metadata": {"resourceVersion": "7"}, "spec": {"taints": [OTHER]}}


@pytest.mark.parametrize("taints", [(), (OTHER,)])
def test_a_node_without_it_is_not_written(taints: tuple[dict[str, str], ...]) -> None:
    was, requests = removed(node(*taints))
    assert not was
    assert [each.method for each in requests] == ["GET"]


@pytest.mark.parametrize(("handlers", "status"), [((node({"key": TAINT}), conflict), 409), ((nonsense,), 0)])
def test_what_goes_wrong_is_an_error(handlers: tuple[Handler, ...], status: int) -> None:
    with pytest.raises(HttpError) as raised:
        removed(*handlers)
    assert raised.value.status == status


def test_it_waits_for_the_agent_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taint, "LOOK", 0.01)
    monkeypatch.setattr(taint, "AFTER_FAILURE", 0.01)

    async def test() -> list[str]:
        health = Health()
        handlers: tuple[Any, ...] = (nonsense, node({"key": TAINT}), conflict, node({"key": TAINT}), node())
        async with LyingApi(*handlers).serving() as server:
            task = asyncio.create_task(untaint(server, health).run())
            await asyncio.sleep(0.1)
            assert server.requests == []
            health.installed = health.synced = health.serving = True
            async with asyncio.timeout(60):
                while len(server.requests) < 5:  # noqa: ASYNC110 (what is waited for has no event)
                    await asyncio.sleep(0.01)
            task.cancel()
            return [each.method for each in server.requests]

    assert asyncio.run(test()) == ["GET", "GET", "PATCH", "GET", "PATCH"]
