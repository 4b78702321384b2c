"""Continuous repair: pods that the plugin missed, and pods whose rules were changed, in real network namespaces."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.cri_runtime import CriRuntime, cri_runtime
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, node_agent, until
from integration.kit.program import ROOT, VERBS
from tests.kit.lying_api import pod


class Repairing:
    """An agent that repairs, the runtime whose pods it sees, and a plugin of the same configuration."""

    def __init__(self, directory: pathlib.Path, agent: NodeAgent, runtime: CriRuntime) -> None:
        self.agent, self.runtime = agent, runtime
        self.plugin = Plugin(directory, agent="required", agent_socket=str(agent.socket))

    def run(self, namespace: Namespace, name: str = "web", kubernetes: str = "default") -> None:
        """A pod runs in the namespace, which no plugin was called for."""
        self.runtime.sandboxes[f"id-{name}"] = name, kubernetes, namespace.path
        self.agent.api.put(pod(name, 1, namespace=kubernetes))

    def wait_for_line(self, text: str) -> None:
        """Wait for a line of the agent's log."""
        until(lambda: text in self.agent.log, text)

    def events(self) -> list[tuple[str, str, str]]:
        """The Events so far: the pod, the reason, the message."""
        result = self.agent.api.events
        return [(each["involvedObject"]["name"], each["reason"], each["message"]) for each in result]


@contextmanager
def repairing(directory: pathlib.Path, mode: str, *options: str) -> Iterator[Repairing]:
    (directory / "node").mkdir()
    config = directory / "plugin.json"
    config.write_text(json.dumps({"run_dir": str(directory / "run"), "log_file": str(directory / "log" / "cni.log")}))
    flags = (f"--repair={mode}", f"--cri-socket={directory}/cri.sock", "--repair-interval=1s")
    with (
        cri_runtime(directory / "cri.sock") as runtime,
        node_agent(directory / "node", *flags, f"--plugin-config={config}", *options) as agent,
    ):
        yield Repairing(directory, agent, runtime)


def captured(namespace: Namespace) -> bool:
    return "ISTIO_OUTPUT" in namespace.run("iptables-legacy-save")


def test_a_pod_that_was_missed_is_mended_in_place_and_so_is_one_that_was_changed(
    namespace: Namespace, tmp_path: pathlib.Path
) -> None:
    with repairing(tmp_path, "mend") as repair:
        repair.run(namespace)
        repair.wait_for_line("pod default/web: uncaptured")
        assert captured(namespace)
        until(lambda: len(repair.events()) == 1, "the Event")
        [(name, reason, message)] = repair.events()
        assert (name, reason) == ("web", "Captured")
        assert "no record of the plugin" in message
        [event] = repair.agent.api.events
        assert event["involvedObject"]["uid"] == "uid-web"
        assert (event["type"], event["count"]) == ("Normal", 1)
        namespace.run("iptables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", "1")
        repair.wait_for_line("pod default/web: drifted")
        until(lambda: len(repair.events()) == 2, "the second Event")
        text = repair.agent.get("/metrics")[1]
        assert 'istio_init_cni_repairs_total{action="mend",result="done",state="uncaptured"} 1.0' in text
        assert 'istio_init_cni_repairs_total{action="mend",result="done",state="drifted"} 1.0' in text
        until(lambda: 'pod_states{state="captured"} 1.0' in repair.agent.get("/metrics")[1], "the pod's state")


@pytest.mark.parametrize("mode", ["report", "label"])
def test_a_pod_that_was_missed_is_told_of_once_and_left_alone(
    namespace: Namespace, tmp_path: pathlib.Path, mode: str
) -> None:
    with repairing(tmp_path, mode) as repair:
        repair.run(namespace)
        repair.wait_for_line("pod default/web: uncaptured")
        until(lambda: bool(repair.events()), "the Event")
        if mode == "label":
            repair.wait_for_line("labelled cni.istio.io/uninitialized=true")
            labels = repair.agent.api.pods["default", "web"]["metadata"]["labels"]
            assert labels == {"cni.istio.io/uninitialized": "true"}
        # Some inspections later.
        repair.run(namespace, "other")
        repair.wait_for_line("pod default/other: uncaptured")
        assert [each[:2] for each in repair.events()].count(("web", "NotCaptured")) == 1
        assert not captured(namespace)


def test_a_pod_is_evicted_unless_its_budget_or_its_namespace_forbid_it(
    namespace: Namespace, tmp_path: pathlib.Path
) -> None:
    with repairing(tmp_path, "delete", "--repair-except=control") as repair:
        repair.agent.api.eviction = 429
        repair.run(namespace)
        with Namespace() as other:
            repair.run(other, "istiod", "control")
            repair.wait_for_line("not evicted yet")
            repair.agent.api.eviction = 201
            repair.wait_for_line("pod default/web: uncaptured: evicted")
            assert ("default", "web") not in repair.agent.api.pods
            assert ("control", "istiod") in repair.agent.api.pods
            evictions = repair.agent.api.requests_of("POST", "/eviction")
            assert {each.path for each in evictions} == {"/api/v1/namespaces/default/pods/web/eviction"}
            body = json.loads(evictions[-1].body)
            assert body["deleteOptions"] == {"preconditions": {"uid": "uid-web"}}
            assert not captured(other)


def test_the_verb_asks_the_agent(namespace: Namespace, tmp_path: pathlib.Path) -> None:
    with repairing(tmp_path, "report") as repair:
        repair.run(namespace)
        command = [*VERBS, "cni", "repair", f"--cni-net-dir={repair.agent.networks}"]
        # Without the runtime's socket, which this process is not told of.
        done = subprocess.run([*command, "--output=json"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr
        [actual] = json.loads(done.stdout)["pods"]
        assert (actual["pod"], actual["state"], actual["fixed"]) == ("web", "uncaptured", False)
        done = subprocess.run([*command, "--fix"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "1 uncaptured, fixed" in done.stdout
        assert captured(namespace)
        checked = repair.plugin.call("CHECK", namespace.path, INJECTED, "id-web", prevResult=PREVIOUS)
        assert checked.code == 0, checked


def test_a_runtime_that_is_not_there_is_said_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "node").mkdir()
    with node_agent(tmp_path / "node", "--repair=mend", "--cri-socket=/nowhere", "--repair-interval=1s") as agent:
        until(lambda: "the pods cannot be inspected" in agent.log, "the reason")
        assert "/nowhere" in agent.log
        assert agent.is_ready()
