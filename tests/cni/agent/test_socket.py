"""The plugin's socket: what the agent answers, and what the plugin makes of answers, silence and nonsense."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from istio_init.cni.agent.answers import Answers
from istio_init.cni.agent.credentials import ApiCredentials
from istio_init.cni.agent.health import Health
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.pods import PodStore, from_object
from istio_init.cni.agent.reports import Reports
from istio_init.cni.agent.server import PluginServer
from istio_init.cni.plugin import agent_client
from istio_init.cni.plugin.agent_client import FIELDS, AgentClient
from istio_init.cni.plugin.decision import decide
from istio_init.cni.plugin.protocol import CONFIGURATION, TRY_AGAIN, PluginError, Request
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import settings
from istio_init.log import Log
from istio_init.options.annotations import INJECT, STATUS
from istio_init.options.cni_pod import PodDescription
from istio_init.runner.defaults import account
from tests.kit.lying_api import LyingApi, pod
from tests.kit.options import options

PROXY = {
    "name": "istio-proxy",
    "args": ["proxy", "sidecar"],
    "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "OTHER", "value": "x"}],
    "securityContext": {"runAsUser": 1000650000, "runAsGroup": 1000650001},
}


@asynccontextmanager
async def agent(path: Path, *pods: dict[str, Any], server: LyingApi | None = None) -> AsyncIterator[Answers]:
    """The agent's answers on a socket; it knows these pods by its watch."""
    store, health = PodStore(), Health()
    store.replace(map(from_object, pods), "10")
    health.installed = health.synced = True
    api = KubernetesApi(ApiCredentials(server.url if server else "http://127.0.0.1:1", {}, {}), 1.0)
    answers = Answers(api, store, health)
    reports = Reports(Log("none"))
    handlers = {"pod": answers.pod, "health": answers.health, "report": reports.take}
    async with PluginServer(handlers, Log("none")).serving(str(path)):
        yield answers


def ask(path: Path, name: str, uid: str = "", namespace: str = "default") -> PodDescription:
    client = AgentClient(str(path))
    try:
        return client.pod(namespace, name, uid)
    finally:
        client.close()


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 100))


def test_a_pod_of_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"

    async def test() -> None:
        async with agent(path, pod("web", 1, containers=[{"name": "app"}, PROXY], labels={INJECT: "true", "a": "b"})):
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            actual = await asyncio.to_thread(ask, path, "web", "uid-web")
        variables = {"ISTIO_META_DNS_CAPTURE": "true"}
        desired = PodDescription(
            {STATUS: "{}"}, {INJECT: "true"}, ("app", "istio-proxy"), variables, "sidecar", 1000650000, 1000650001
        )
        assert actual == desired
        assert not path.exists()

    run(test)


def test_a_pod_that_the_watch_does_not_know_is_asked_for_once(tmp_path: Path) -> None:
    async def api(_request: object, answer: Any) -> None:  # noqa: ANN401
        await answer.json(pod("web", 7, uid="new"))

    async def test() -> None:
        async with (
            LyingApi(api).serving() as server,
            agent(tmp_path / "s", pod("web", 1, uid="old"), server=server) as answers,
        ):
            request: list[int] = []
            answers.count_request = lambda: request.append(1)
            # The one before it, of the same name, is what the watch knows.
            assert (await asyncio.to_thread(ask, tmp_path / "s", "web", "new")).annotations == {STATUS: "{}"}
            assert [each.path for each in server.requests] == ["/api/v1/namespaces/default/pods/web"]
            with pytest.raises(PluginError, match="another pod of this name") as raised:
                await asyncio.to_thread(ask, tmp_path / "s", "web", "other")
            assert raised.value.code == TRY_AGAIN
            assert len(request) == 2

    run(test)


@pytest.mark.parametrize("status", [404, 403, 500, 0])
def test_without_an_answer_of_the_api_server_the_pod_does_not_start(tmp_path: Path, status: int) -> None:
    async def api(_request: object, answer: Any) -> None:  # noqa: ANN401
        await (answer.refuse(status) if status else asyncio.sleep(60))

    async def test() -> None:
        async with LyingApi(api).serving() as server, agent(tmp_path / "s", server=server):
            with pytest.raises(PluginError) as raised:
                await asyncio.to_thread(ask, tmp_path / "s", "web")
            assert raised.value.code == TRY_AGAIN
            assert "pod default/web: " in str(raised.value)

    run(test)


def test_a_pod_that_cannot_be_understood_is_final(tmp_path: Path) -> None:
    strange = pod("web", 1, containers=[{"name": "istio-proxy", "env": [{"name": "INVALID_DROP", "value": 7}]}])

    async def test() -> None:
        async with agent(tmp_path / "s", strange):
            with pytest.raises(PluginError, match="INVALID_DROP") as raised:
                await asyncio.to_thread(ask, tmp_path / "s", "web")
            assert raised.value.code == CONFIGURATION

    run(test)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"{", "cannot be understood"),
        (b"[]", "cannot be understood"),
        (b"\xff", "cannot be understood"),
        (b'{"version": 2, "ask": "pod"}', "this agent has version 1"),
        (b'{"version": 1, "ask": "x"}', "use one of pod, health, report"),
        (b'{"version": 1, "ask": {}}', "use one of"),
        (b'{"version": 1, "ask": "pod"}', "have to be texts"),
        (b'{"version": 1, "ask": "pod", "namespace": "../x", "name": "y", "uid": ""}', "not a pod's name"),
    ],
    ids=range(8),
)
def test_requests_that_are_none_are_refused(tmp_path: Path, request_: bytes, text: str) -> None:
    async def test() -> None:
        async with agent(tmp_path / "s", pod("web", 1)):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(request_ + b"\n")
            answer = json.loads(await reader.readline())
            assert text in answer["error"]
            # The connection goes on.
            writer.write(b'{"version": 1, "ask": "health"}\n')
            assert json.loads(await reader.readline())["version"] == 1
            writer.close()

    run(test)


@pytest.mark.parametrize("sent", [b"x" * (3 << 20), b"", b'{"version": 1'])
def test_a_client_that_sends_too_much_or_too_little_is_let_go(tmp_path: Path, sent: bytes) -> None:
    async def test() -> None:
        async with agent(tmp_path / "s", pod("web", 1)):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(sent)
            if len(sent) < 100:
                writer.write_eof()
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            writer.close()
            assert (await asyncio.to_thread(ask, tmp_path / "s", "web")).annotations

    run(test)


def test_the_next_agent_replaces_the_socket_and_the_former_leaves_it(tmp_path: Path) -> None:
    async def test() -> None:
        first = agent(tmp_path / "s", pod("web", 1))
        await first.__aenter__()
        async with agent(tmp_path / "s", pod("web", 1), pod("two", 2)):
            await first.__aexit__(None, None, None)
            await asyncio.to_thread(ask, tmp_path / "s", "two")

    run(test)
    assert not list(tmp_path.iterdir())


def test_reports_become_lines_of_the_agents_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = ['{"msg": "applied", "pod": "web"}', "no JSON", "[]", '{"a": "\n"}', "{" * 90_000, '{"msg": "two"}']

    async def test() -> None:
        async with agent(tmp_path / "s"):
            client = AgentClient(str(tmp_path / "s"))
            await asyncio.to_thread(client.report, {"command": "ADD"}, lines)
            assert await asyncio.to_thread(client.health) == ("the plugin's socket is not served",)
            client.close()

    run(test)
    assert capfd.readouterr().err == f"{lines[0]}\n{lines[-1]}\n"


def test_a_fault_of_the_agent_is_an_answer_and_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def broken(_request: object) -> None:
        raise RuntimeError("two\nlines")

    async def test() -> None:
        async with PluginServer({"pod": broken}, Log("info")).serving(str(tmp_path / "s")):
            with pytest.raises(PluginError, match="internal error of the agent") as raised:
                await asyncio.to_thread(ask, tmp_path / "s", "web")
            assert raised.value.code == TRY_AGAIN

    run(test)
    [line] = capfd.readouterr().err.splitlines()
    assert "internal error: pod: RuntimeError: two" in line


# -- The plugin's side against another that listens there.


@contextmanager
def listening(path: Path, *answers: bytes | None) -> Iterator[None]:
    """A program on the socket that answers so, a connection each; None: it keeps silent."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        over = threading.Event()

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    if answer is None:
                        over.wait(60)
                    else:
                        connection.recv(1 << 16)
                        try:
                            connection.sendall(answer)
                        except OSError:
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


GOOD: dict[str, Any] = {**dict.fromkeys(FIELDS, ""), "annotations": {}, "labels": {}, "containers": [], "variables": {}}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\n", b"{}\n", b"[]\n", b"{\n", b"\xff\n", b'{"version": 1}\n', b'{"version": 2, "pod": {}}\n',
        b'{"version": 1, "pod": {}}\n', b'{"version": 1, "pod": []}\n', b"x" * (3 << 20),
        json.dumps({"version": 1, "pod": {**GOOD, "proxy_uid": True}}).encode() + b"\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_an_answer_that_is_none_is_a_failure_to_be_tried_again(tmp_path: Path, answer: bytes) -> None:
    with listening(tmp_path / "s", answer), pytest.raises(PluginError) as raised:
        ask(tmp_path / "s", "web")
    assert raised.value.code == TRY_AGAIN
    assert str(tmp_path / "s") in str(raised.value)
    assert str(raised.value).isprintable()


def test_an_agent_that_is_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "PATIENCE", 0.2)
    with listening(tmp_path / "s", None), pytest.raises(PluginError, match="timed out"):
        ask(tmp_path / "s", "web")


# -- What decides.

REQUEST = Request("ADD", "1.1.0", args={"K8S_POD_NAME": "web", "K8S_POD_NAMESPACE": "default", "K8S_POD_UID": "u"})
INJECTED = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {STATUS: "{}"}}}
EVERYTHING = "--cni-mode -i * -b * -d 15020,15021,15090 -o 15020"


def never(*_: object) -> PodDescription:
    raise AssertionError("nobody is to be asked")


def test_the_pods_own_specification_decides_before_its_annotations() -> None:
    chosen = settings({"agent": "required", **INJECTED})
    request: list[tuple[str, ...]] = []
    whole = from_object(pod("web", 1, containers=[{"name": "app"}, PROXY])).description

    def answer(*key: str) -> PodDescription | None:
        request.append(key)
        return whole

    decision = decide(REQUEST, chosen, never, account, answer)
    assert decision.options == options(f"{EVERYTHING} --redirect-dns -u 1000650000 -g 1000650001".split(), {})
    assert request == [("default", "web", "u")]
    passed = from_object(pod("web", 1, labels={INJECT: "false"}, annotations={INJECT: "true"})).description
    assert decide(REQUEST, chosen, never, account, lambda *_: passed).decision == PASSED
    # Native sidecars are init containers.
    native = from_object(pod("web", 1, containers=[{"name": "app"}], initContainers=[PROXY])).description
    assert decide(REQUEST, chosen, never, account, lambda *_: native).options == decision.options


def test_without_an_agent_annotations_decide_and_nobody_is_asked() -> None:
    decision = decide(REQUEST, settings({"agent": "none", **INJECTED}), never, account, never)
    assert decision.decision == CAPTURED
    decision = decide(REQUEST, settings({"agent": "preferred", **INJECTED}), never, account, lambda *_: None)
    assert decision.options == options(f"{EVERYTHING} -u 1337".split(), {})
    # Pods of excluded namespaces start before there is an agent.
    excluded = settings({"agent": "required", "exclude_namespaces": ["default"], **INJECTED})
    assert decide(REQUEST, excluded, never, account, never).decision == PASSED


@pytest.mark.parametrize("value", ["always", True, None, ["required"]])
def test_settings_that_are_wrong(value: object) -> None:
    with pytest.raises(PluginError, match="use none, preferred or required"):
        settings({"agent": value})
