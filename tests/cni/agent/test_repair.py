"""What the agent does about pods that were missed: how often, how many at once, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from istio_init.cli.verbs.cni_agent import MODES
from istio_init.cni.agent import repair as repair_module
from istio_init.cni.agent.credentials import ApiCredentials
from istio_init.cni.agent.inspection import InspectedPod, Inspector, program, states
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.pods import from_object
from istio_init.cni.agent.repair import Repair, RepairSettings, event
from istio_init.cni.node.repair import DRIFTED, UNCAPTURED
from istio_init.errors import InitError
from istio_init.log import Log
from tests.kit.lying_api import Answer, LyingApi, Request, pod

MISSED = InspectedPod("default", "web", "u1", UNCAPTURED, "because")


class Server:
    """An API server that has the same status for every eviction, and notes requests."""

    def __init__(self, status: int = 201) -> None:
        self.status, self.paths = status, list[str]()

    async def answer(self, request: Request, answer: Answer) -> None:
        """Answer a request."""
        self.paths.append(request.path.rpartition("/")[2])
        if request.path.endswith("/eviction") and self.status >= 300:
            await answer.refuse(self.status)
        else:
            await answer.json({}, 201)


def run(test: Callable[[Repair, Server], Awaitable[None]], *, status: int = 201, **settings: Any) -> list[str]:  # noqa: ANN401
    """What a Repair counts in a test."""
    counted: list[str] = []

    async def whole() -> None:
        result = Server(status)
        async with LyingApi(result.answer).serving() as server:
            api = KubernetesApi(ApiCredentials(server.url, {}, {}))
            repair = Repair(RepairSettings(**settings), "node-1", Inspector(()), api, Log("none"))
            repair.counted = lambda *what: counted.append(" ".join(what))
            await test(repair, result)

    asyncio.run(asyncio.wait_for(whole(), 60))
    return counted


def test_a_pod_is_deleted_only_if_it_was_wrong_twice() -> None:
    async def test(repair: Repair, server: Server) -> None:
        assert await repair.take([MISSED])
        assert server.paths == ["events"]
        # It is another state now.
        assert await repair.take([MISSED.replace(state=DRIFTED)])
        assert "eviction" not in server.paths
        assert not await repair.take([MISSED.replace(state=DRIFTED)])
        assert server.paths.count("eviction") == 1

    assert run(test, mode="delete")[-1] == "drifted delete done"


def test_pods_are_evicted_at_a_rate() -> None:
    many = [MISSED.replace(name=f"web-{number}", uid=f"u{number}") for number in range(9)]

    async def test(repair: Repair, server: Server) -> None:
        await repair.take(many)
        assert await repair.take(many)
        assert server.paths.count("eviction") == 4
        assert await repair.take(many[4:])
        assert server.paths.count("eviction") == 4

    run(test, mode="delete", rate=4)


@pytest.mark.parametrize(
    ("status", "left", "text"),
    [(429, True, "refused"), (404, False, ""), (409, False, ""), (500, True, "failed"), (403, True, "failed")],
)
def test_an_eviction_that_is_refused(status: int, left: bool, text: str) -> None:
    async def test(repair: Repair, _server: Server) -> None:
        await repair.take([MISSED])
        assert await repair.take([MISSED]) == left

    counted = run(test, status=status, mode="delete")
    assert counted == ["uncaptured report done", *([f"uncaptured delete {text}"] if text else [])]


def test_pods_of_the_control_plane_are_left_alone() -> None:
    async def test(repair: Repair, server: Server) -> None:
        for _ in range(3):
            assert not await repair.take([MISSED.replace(namespace="istio-system")])
        assert server.paths == ["events"]

    run(test, mode="delete", protected=("istio-system",))


def test_each_is_told_of_once_until_it_was_well() -> None:
    async def test(repair: Repair, server: Server) -> None:
        for _ in range(3):
            await repair.take([MISSED])
        assert server.paths == ["events"]
        await repair.take([])
        await repair.take([MISSED])
        assert server.paths == ["events", "events"]
        assert repair.by_state == {UNCAPTURED: 1}

    run(test, mode="report")


def test_what_calls_for_an_inspection(monkeypatch: pytest.MonkeyPatch) -> None:
    old = from_object(pod("a", 1))
    for new, wakes in (
        (from_object(pod("a", 2)), False),
        (from_object(pod("a", 2, status={"phase": "Failed"})), True),
        (from_object(pod("a", 2, annotations={"sidecar.istio.io/inject": "false"})), True),
        (None, False),
    ):
        repair = Repair(RepairSettings(), "n", Inspector(()), KubernetesApi(ApiCredentials("http://x", {}, {})), Log())
        repair.note(new, old)
        assert repair._wake.is_set() == wakes


def test_an_event_is_one_of_kubernetes() -> None:
    actual = event(MISSED, "node-1", "Warning", "NotCaptured", "x" * 5000)
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(actual, kubernetes_validate.latest_version(), strict=True)
    assert len(str(actual["message"])) == 1000


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('istio-init: no socket\\x1b')", "no socket"),
        ("print('{}')", "'pods'"),
        ("print('[]')", "list indices"),
        ("print('{\"pods\": [{}]}')", "namespace"),
    ],
)
def test_an_inspection_that_fails_is_one_line(code: str, why: str) -> None:
    inspector = Inspector((), (sys.executable, "-c", code))

    async def test() -> None:
        with pytest.raises(InitError, match=why) as raised:
            await inspector.inspect(fix=False)
        assert str(raised.value).isprintable()

    asyncio.run(test())


def test_an_inspection_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("istio_init.cni.agent.inspection.PATIENCE", 0.2)
    inspector = Inspector((), (sys.executable, "-c", "import time; time.sleep(600)"))
    with pytest.raises(InitError, match="not done"):
        asyncio.run(inspector.inspect(fix=False))


def test_the_report_is_read_as_the_verb_writes_it() -> None:
    from istio_init.cli.verbs.cni_repair import document, finding_of
    from istio_init.cni.node.cri import Sandbox
    from istio_init.cni.node.repair import Finding

    finding = Finding(Sandbox("id", "web", "default", "u"), DRIFTED, "because", ("a", "b"), 3, fixed=True)
    report = json.loads(json.dumps(document(finding)))
    assert finding_of(report) == finding
    [state] = states({"pods": [report]})
    assert state == InspectedPod("default", "web", "u", DRIFTED, "because", fixed=True, differences=("a", "b"))


def test_the_same_program_is_started_however_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-ISXutf8", "/usr/local/bin/istio-init", "cni", "agent", "-x"])
    assert program() == [sys.executable, "-ISXutf8", "/usr/local/bin/istio-init"]


def test_the_modes_are_the_command_lines() -> None:
    assert repair_module.MODES == MODES
