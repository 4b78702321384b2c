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
from integration.kit.endpoints import awaited
from integration.kit.node_agent import FLANNEL, NodeAgent, node_agent
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
        awaited(lambda: PLUGIN in types(agent.network.read_text()), "the entry again")
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
            awaited(lambda: "the server is down" in agent.log and "added" in agent.log, "a failure")
            awaited(lambda: agent.get("/readyz") == (503, "the node's pods have not been listed yet\n"), "the reason")
            assert agent.get("/healthz")[0] == 200
            api.down = False
            agent.ready()


def test_the_nodes_taint_goes_once_the_plugin_works(tmp_path: pathlib.Path) -> None:
    other = {"key": "other", "effect": "NoSchedule"}
    with cluster_api(tmp_path) as api:
        api.node["spec"]["taints"] = [{"key": "cni.istio.io/not-ready", "effect": "NoSchedule"}, other]
        api.down = True
        with NodeAgent(tmp_path, api, "--untaint=cni.istio.io/not-ready") as agent:
            awaited(lambda: "the server is down" in agent.log and "added" in agent.log, "a failure")
            api.down = False
            agent.ready()
            awaited(lambda: "has been removed from the node" in agent.log, "the taint to go")
            assert api.node["spec"]["taints"] == [other]


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
            awaited(lambda: bool(children.read_text()), "the process")
            [child] = children.read_text().split()
            awaited(lambda: handles_sigterm(int(child)), "a handler for SIGTERM")
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
    ],
)
def test_mistakes_are_one_line(tmp_path: pathlib.Path, options: tuple[str, ...], why: str) -> None:
    with cluster_api(tmp_path) as api:
        agent = NodeAgent(tmp_path, api, *options)
        done = subprocess.run(agent.command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in {1, 255}, done.stderr
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
