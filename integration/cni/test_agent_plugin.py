"""The plugin with a node agent: pods as the API server has them decide, in real network namespaces."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from integration.kit import program
from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, node_agent
from istio_init.cni.plugin.protocol import TRY_AGAIN, UNAVAILABLE
from istio_init.options.annotations import INJECT
from tests.kit.lying_api import pod

# What comes mesh-wide through proxyMetadata, and a user as OpenShift assigns it: in no annotation.
SIDECAR: dict[str, Any] = {
    "name": "istio-proxy",
    "args": ["proxy", "sidecar"],
    "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "INVALID_DROP", "value": "true"}],
    "securityContext": {"runAsUser": 1000650000, "runAsGroup": 1000650000},
}
EVERYTHING = ("-i", "*", "-b", "*", "-d", "15020,15021,15090", "-o", "15020", "--cni-mode")
MANY = 16


@pytest.fixture
def agent(tmp_path: pathlib.Path) -> Iterator[NodeAgent]:
    (tmp_path / "node").mkdir()
    with node_agent(tmp_path / "node") as running:
        yield running


def plugin(directory: pathlib.Path, agent: NodeAgent, policy: str = "required") -> Plugin:
    return Plugin(directory, agent=policy, agent_socket=str(agent.socket))


def put(agent: NodeAgent, name: str = "pod-a1", **spec: Any) -> None:  # noqa: ANN401 (JSON)
    """Create a pod, and wait until the agent has seen it."""
    agent.api.put(pod(name, 1, **spec))


def standing(*flags: str) -> object:
    with Namespace() as other:
        program.succeed(other, *flags)
        return program.standing(other)


def test_the_network_names_the_agent(agent: NodeAgent) -> None:
    [*_, entry] = json.loads(agent.network.read_text())["plugins"]
    assert (entry["agent"], entry["agent_socket"]) == ("required", str(agent.socket))


@pytest.mark.parametrize("native", [False, True])
def test_the_pods_own_specification_decides(
    namespace: Namespace, tmp_path: pathlib.Path, agent: NodeAgent, native: bool
) -> None:
    containers: list[dict[str, Any]] = [{"name": "app"}]
    if native:
        put(agent, containers=containers, initContainers=[SIDECAR])
    else:
        put(agent, containers=[*containers, SIDECAR])
    plugin(tmp_path, agent).done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    desired = ("--redirect-dns", "--capture-all-dns", "--drop-invalid", "-u", "1000650000", "-g", "1000650000")
    assert program.standing(namespace) == standing(*EVERYTHING, *desired)


def test_a_label_counts_more_than_an_annotation(namespace: Namespace, tmp_path: pathlib.Path, agent: NodeAgent) -> None:
    put(agent, labels={INJECT: "false"}, annotations={INJECT: "true"})
    answer = plugin(tmp_path, agent).call("ADD", namespace.path, {**INJECTED, INJECT: "true"}, prevResult=PREVIOUS)
    assert (answer.code, answer.log[-1]["decision"]) == (0, "passed through")
    assert program.standing(namespace) == standing_of_nothing()


def standing_of_nothing() -> object:
    with Namespace() as other:
        return program.standing(other)


def test_a_pod_that_no_watch_tells_of_is_asked_for_once(
    namespace: Namespace, tmp_path: pathlib.Path, agent: NodeAgent
) -> None:
    agent.api.hidden.add("pod-a1")
    put(agent)
    plugin(tmp_path, agent).done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    assert program.standing(namespace) == standing(*EVERYTHING, "-u", "1337")
    assert len(agent.api.requests_of("GET", "/pods/pod-a1")) == 1


def test_without_the_api_server_or_the_agent_no_pod_starts_uncaptured(
    namespace: Namespace, tmp_path: pathlib.Path, agent: NodeAgent
) -> None:
    before = program.standing(namespace)
    required, preferred = plugin(tmp_path, agent), plugin(tmp_path, agent, "preferred")
    agent.api.down = True
    for killed in (False, True):
        if killed:
            agent.process.kill()
        error = required.call("ADD", namespace.path, INJECTED, prevResult=PREVIOUS).error
        assert error["code"] == TRY_AGAIN
        assert program.standing(namespace) == before
        assert required.state() is None
    agent.process.wait()
    status = required.call("STATUS").error
    assert status["code"] == UNAVAILABLE
    assert "the node agent does not answer" in status["details"]
    preferred.done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    assert program.standing(namespace) == standing(*EVERYTHING, "-u", "1337")
    # The rest of a sandbox's life needs no agent.
    required.done("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS)
    required.done("DEL", namespace.path)


def test_the_agents_output_has_the_log_of_all_pods(
    namespace: Namespace, tmp_path: pathlib.Path, agent: NodeAgent
) -> None:
    put(agent)
    plugin(tmp_path, agent).done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)

    def lines() -> list[dict[str, str]]:
        return [document for line in agent.log.splitlines() if (document := json.loads(line)).get("command") == "ADD"]

    awaited(lambda: any("applied" in each["msg"] for each in lines()), "the plugin's log")
    assert {(each["namespace"], each["pod"], each["decision"]) for each in lines()} == {
        ("default", "pod-a1", "captured")
    }
    status, text = agent.get("/metrics")
    assert status == 200
    assert 'istio_init_cni_adds_total{decision="captured"} 1.0' in text
    assert 'istio_init_cni_call_duration_seconds_count{command="ADD"} 1.0' in text
    assert "istio_init_cni_pods 1.0" in text
    assert "istio_init_cni_ready 1.0" in text


def test_status_is_well_with_an_agent_that_is(tmp_path: pathlib.Path, agent: NodeAgent) -> None:
    assert plugin(tmp_path, agent).done("STATUS") == ""


def test_pods_that_start_while_the_agent_is_killed_are_captured_or_tried_again(
    tmp_path: pathlib.Path, agent: NodeAgent
) -> None:
    """As a kubelet does: until it works. None may start uncaptured, none may be stuck."""
    result = plugin(tmp_path, agent)
    names = [f"c{number}" for number in range(MANY)]
    for name in names:
        put(agent, f"pod-{name}")
    failures: list[int] = []

    def start(name: str, namespace: Namespace) -> None:
        for _ in range(100):
            answer = result.call("ADD", namespace.path, INJECTED, name, prevResult=PREVIOUS)
            assert (answer.code == 0) == ("ISTIO_OUTPUT" in namespace.run("iptables-legacy-save")), answer
            if answer.code == 0:
                return
            assert answer.error["code"] == TRY_AGAIN, answer
            failures.append(answer.code)
        raise AssertionError(f"{name} is stuck")

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(start, name, stack.enter_context(Namespace())) for name in names]
        for _ in range(3):
            agent.process.kill()
            agent.process.wait()
            agent.start()
            agent.ready()
        for run in runs:
            run.result()


def test_without_an_agent_nothing_more_is_imported(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys, json\n"
        "from istio_init.cni.plugin import plugin\n"
        f"plugin.answer({{'CNI_COMMAND': 'ADD', 'CNI_CONTAINERID': 'a', 'CNI_IFNAME': 'e', 'CNI_NETNS': '/nowhere'}},"
        f" json.dumps({{'cniVersion': '1.0.0', 'name': 'n', 'log_file': '', 'run_dir': {str(tmp_path)!r}}}).encode())\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "istio_init.cni.plugin.decision" in done.stdout
    assert "agent" not in done.stdout
    assert "unix_stream" not in done.stdout
