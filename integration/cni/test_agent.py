"""The agent's process on a node: what it keeps there, what it answers to probes, and how it ends."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from integration.cni.test_installation import RIGHTS, handles_sigterm
from integration.kit.node_agent import FLANNEL, NodeAgent, node_agent, until
from integration.kit.program import ROOT
from istio_init.cni.node.conflist import PLUGIN, types
from tests.kit.cluster_api import cluster_api
from tests.kit.lying_api import pod


def test_it_installs_answers_probes_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with node_agent(tmp_path) as agent:
        assert types(agent.network.read_text()) == ("flannel", "portmap", PLUGIN)
        assert agent.program.exists()
        assert agent.get("/healthz") == (200, "ok\n")
        assert agent.get("/readyz") == (200, "ready\n")
        assert agent.get("/else")[0] == 404
        # Another program removes the entry.
        agent.network.write_text(FLANNEL)
        until(lambda: PLUGIN in types(agent.network.read_text()), "the entry again")
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(60) == 0
        assert agent.files() == {"10-flannel.conflist"}
        assert agent.network.read_text() == FLANNEL
        assert all(json.loads(line)["level"] in {"info", "warn"} for line in agent.log.splitlines())


def test_the_pods_are_known_without_any_right_of_root(tmp_path: pathlib.Path) -> None:
    with cluster_api(tmp_path) as api:
        api.put(pod("a", 1))
        with NodeAgent(tmp_path, api, prefix=(*RIGHTS,)) as agent:
            agent.ready()
            assert "1 pods of the node node-1 are known" in agent.log


def test_it_is_not_ready_before_the_pods_are_listed(tmp_path: pathlib.Path) -> None:
    with cluster_api(tmp_path) as api:
        api.down = True
        with NodeAgent(tmp_path, api) as agent:
            until(lambda: "the server is down" in agent.log and "added" in agent.log, "a failure")
            until(lambda: agent.get("/readyz") == (503, "the node's pods have not been listed yet\n"), "the reason")
            assert agent.get("/healthz")[0] == 200
            api.down = False
            agent.ready()


def test_the_nodes_taint_goes_once_the_plugin_works(tmp_path: pathlib.Path) -> None:
    other = {"key": "other", "effect": "NoSchedule"}
    with cluster_api(tmp_path) as api:
        api.node["spec"]["taints"] = [{"key": "cni.istio.io/not-ready", "effect": "NoSchedule"}, other]
        api.down = True
        with NodeAgent(tmp_path, api, "--untaint=cni.istio.io/not-ready") as agent:
            until(lambda: "the server is down" in agent.log and "added" in agent.log, "a failure")
            api.down = False
            agent.ready()
            until(lambda: "has been removed from the node" in agent.log, "the taint to go")
            assert api.node["spec"]["taints"] == [other]


@pytest.mark.parametrize(
    ("daemonset", "stays"),
    [
        ({"metadata": {}}, True),
        ({"metadata": {"deletionTimestamp": "2026-11-30T07:00:00Z"}}, False),
        (None, False),
        # An answer that says nothing.
        ({}, True),
    ],
)
def test_what_a_successor_needs_stays(tmp_path: pathlib.Path, daemonset: dict[str, object] | None, stays: bool) -> None:
    """A pod that is replaced leaves plugin and entry; with the DaemonSet they go."""
    with node_agent(tmp_path, "--daemonset=kube-system/istio-init-cni") as agent:
        agent.api.daemonset = daemonset
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(60) == 0
        assert (PLUGIN in agent.files()) == stays, agent.log
        assert (PLUGIN in types(agent.network.read_text())) == stays


def test_an_api_that_is_down_takes_nothing_away(tmp_path: pathlib.Path) -> None:
    with node_agent(tmp_path, "--daemonset=kube-system/istio-init-cni") as agent:
        agent.api.down = True
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(60) == 0
        assert PLUGIN in agent.files()
        assert "the DaemonSet kube-system/istio-init-cni can't be looked up: " in agent.log


@pytest.mark.parametrize("moment", [0.05, 0.3, 0.8, 1.5])
def test_a_signal_at_any_moment_ends_it_and_takes_away_what_was_left(tmp_path: pathlib.Path, moment: float) -> None:
    """As process 1 of a container, to which a signal without a handler does nothing."""
    with cluster_api(tmp_path) as api:
        agent = NodeAgent(tmp_path, api, prefix=("unshare", "--pid", "--fork", "--kill-child"))
        subprocess.run(
            [*agent.command[4:7], "cni", "install", *agent.command[9:12]], cwd=ROOT, capture_output=True, check=True
        )
        assert PLUGIN in agent.files()
        with agent:
            time.sleep(moment)
            children = pathlib.Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
            until(lambda: bool(children.read_text()), "the process")
            [child] = children.read_text().split()
            until(lambda: handles_sigterm(int(child)), "a handler for SIGTERM")
            os.kill(int(child), signal.SIGTERM)
            assert agent.process.wait(60) == 0
        assert agent.files() == {"10-flannel.conflist"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--node=a b",), "--node: 'a b': not a node's name"),
        (("--node=",), "NODE_NAME"),
        (("--listen=x",), "--listen: 'x': use ADDRESS:PORT"),
        (("--listen=127.0.0.1:1000000",), "use ADDRESS:PORT"),
        (("--kubeconfig=/nowhere",), "--kubeconfig: '/nowhere': there is no such file"),
        (("--kubeconfig=",), "KUBERNETES_SERVICE_HOST"),
        (("--interval=x",), "--interval"),
        (("--on-exit=x",), "--on-exit"),
        (("--daemonset=istio-init-cni",), "--daemonset: 'istio-init-cni': use NAMESPACE/NAME"),
    ],
)
def test_mistakes_are_one_line(tmp_path: pathlib.Path, options: tuple[str, ...], why: str) -> None:
    with cluster_api(tmp_path) as api:
        agent = NodeAgent(tmp_path, api, *options)
        done = subprocess.run(agent.command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in {1, 255}, done.stderr
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def resident(pid: int) -> int:
    """The resident memory of a process, in KB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def test_memory_and_descriptors_are_flat_under_churn(tmp_path: pathlib.Path) -> None:
    with node_agent(tmp_path) as agent:

        def churn(rounds: int) -> None:
            for number in range(rounds):
                agent.api.put(pod(f"pod-{number % 100}", 1, env="x" * 5000))
                if number % 3 == 2:
                    agent.api.delete(f"pod-{number % 100}")
            agent.get("/metrics")

        def awaited_pods() -> None:
            text = f"istio_init_cni_pods {len(agent.api.pods)}.0"
            until(lambda: text in agent.get("/metrics")[1], text)

        descriptors = pathlib.Path(f"/proc/{agent.process.pid}/fd")
        churn(500)
        awaited_pods()
        memory, opened = resident(agent.process.pid), len(list(descriptors.iterdir()))
        churn(2000)
        awaited_pods()
        assert resident(agent.process.pid) < memory + 4096
        until(lambda: len(list(descriptors.iterdir())) <= opened, "the descriptors to be as many as before")
