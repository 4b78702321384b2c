"""The node agent with capture by eBPF: restores what is removed, counts, tells captured pods from missed ones."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from integration.kit.cni import INJECTED, PREVIOUS, Plugin
from integration.kit.cri_runtime import cri_runtime
from integration.kit.ebpf_node import ADDRESS, ELSEWHERE, EbpfNode, enclosed, reached
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, until
from istio_init.cni.node.conflist import plugin_entry
from istio_init.cni.plugin.protocol import DRIFTED
from istio_init.kernel.ebpf import syscall
from tests.kit.cluster_api import cluster_api
from tests.kit.lying_api import pod

EBPF: dict[str, object] = {"capture-backend": "ebpf"}


@pytest.fixture
def sandbox() -> Iterator[Namespace]:
    with Namespace() as fresh:
        fresh.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "lo")
        yield fresh


def plugin_on(node: EbpfNode, directory: pathlib.Path, **defaults: object) -> Plugin:
    plugin = Plugin(directory, defaults=defaults)
    plugin.command = [*enclosed(node), *plugin.command]
    return plugin


def metric(agent: NodeAgent, name: str) -> float:
    """The value of one of the agent's metrics."""
    lines = agent.get("/metrics")[1].splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"istio_init_cni_{name} ")))


def test_what_is_removed_is_restored_and_counted(node: EbpfNode, sandbox: Namespace, tmp_path: pathlib.Path) -> None:
    (tmp_path / "node").mkdir()
    plugin = plugin_on(node, tmp_path, **EBPF)
    options = ("--capture-backend=ebpf",)
    with cluster_api(tmp_path) as api, NodeAgent(tmp_path / "node", api, *options, prefix=(*enclosed(node),)) as agent:
        agent.ready()
        entry = plugin_entry(agent.network.read_text())
        assert entry is not None
        assert entry["defaults"] == EBPF
        assert metric(agent, "ebpf_missing_programs") == 0
        plugin.done("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS)
        assert reached(sandbox) == ELSEWHERE
        assert metric(agent, "ebpf_pods") == 1
        taken = metric(agent, 'ebpf_events_total{event="taken"}')
        assert taken >= 1
        # The agent has seen all pins once one that is removed comes back.
        pathlib.Path(node.installation.path("links", "connect4")).unlink()
        until(lambda: "removed pins have been restored" in agent.log or "attached again" in agent.log, "the program")
        before = metric(agent, "ebpf_restored_total")
        shutil.rmtree(node.installation.home)
        assert reached(sandbox) == ELSEWHERE
        until(lambda: metric(agent, "ebpf_restored_total") > before, "the pins")
        assert plugin.done("CHECK", sandbox.path, INJECTED, prevResult=PREVIOUS) == ""
        assert metric(agent, 'ebpf_events_total{event="taken"}') == taken + 1
        plugin.done("DEL", sandbox.path)
        assert metric(agent, "ebpf_pods") == 0
        assert "Traceback" not in agent.log
    # Without the agent, too, the pod that was removed stays so.
    assert reached(sandbox) is None


def test_a_dead_agent_stops_nothing(node: EbpfNode, sandbox: Namespace, tmp_path: pathlib.Path) -> None:
    (tmp_path / "node").mkdir()
    plugin = plugin_on(node, tmp_path, **EBPF)
    options = ("--capture-backend=ebpf",)
    with cluster_api(tmp_path) as api, NodeAgent(tmp_path / "node", api, *options, prefix=(*enclosed(node),)) as agent:
        agent.ready()
        agent.process.kill()
        agent.process.wait()
        plugin.done("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS)
        assert reached(sandbox) == ELSEWHERE
        plugin.done("DEL", sandbox.path)


def test_check_says_which_pins_are_missing_and_the_next_add_restores_them(
    node: EbpfNode, sandbox: Namespace, tmp_path: pathlib.Path
) -> None:
    """On a node without the agent."""
    plugin = plugin_on(node, tmp_path, **EBPF)
    plugin.done("ADD", sandbox.path, INJECTED, prevResult=PREVIOUS)
    pathlib.Path(node.installation.path("links", "connect4")).unlink()
    error = plugin.call("CHECK", sandbox.path, INJECTED, prevResult=PREVIOUS).error
    assert error["code"] == DRIFTED
    assert "the program cgroup/connect4 is not attached at the node's cgroup" in error["msg"]
    with Namespace() as next_sandbox:
        plugin.done("ADD", next_sandbox.path, INJECTED, container="next", prevResult=PREVIOUS)
        assert plugin.done("CHECK", sandbox.path, INJECTED, prevResult=PREVIOUS) == ""
        assert reached(sandbox) == ELSEWHERE
        plugin.done("DEL", next_sandbox.path, container="next")
    plugin.done("DEL", sandbox.path)


def test_a_pod_is_inspected_by_the_backend_that_captured_it(
    node: EbpfNode, sandbox: Namespace, tmp_path: pathlib.Path
) -> None:
    """Of one node that changes from rules to eBPF: neither pod was missed; one whose program is gone has drifted."""
    (tmp_path / "node").mkdir()
    by_rules, by_ebpf = plugin_on(node, tmp_path), plugin_on(node, tmp_path, **EBPF)
    config = tmp_path / "plugin.json"
    config.write_text(json.dumps({"run_dir": str(tmp_path / "run"), "log_file": str(tmp_path / "log" / "cni.log")}))
    options = (
        "--capture-backend=ebpf", "--repair=report", "--repair-interval=1s", f"--cri-socket={tmp_path}/cri.sock",
        f"--plugin-config={config}",
    )  # fmt: skip
    with Namespace() as older, cri_runtime(tmp_path / "cri.sock") as runtime, cluster_api(tmp_path) as api:
        by_rules.done("ADD", older.path, INJECTED, container="id-older", prevResult=PREVIOUS)
        by_ebpf.done("ADD", sandbox.path, INJECTED, container="id-web", prevResult=PREVIOUS)
        for name, namespace in (("older", older), ("web", sandbox)):
            runtime.sandboxes[f"id-{name}"] = name, "default", namespace.path
            api.put(pod(name, 1))
        with NodeAgent(tmp_path / "node", api, *options, prefix=(*enclosed(node),)) as agent:
            agent.ready()
            until(lambda: 'pod_states{state="captured"} 2.0' in agent.get("/metrics")[1], "both pods")
            assert api.events == []
            # The agent cannot restore what it holds no descriptor of: here the entry of the pod.
            [each] = pathlib.Path(node.installation.path("pods", "")).iterdir()
            with node.installation.lock():
                syscall.delete(node.installation.map("pods"), int(each.name).to_bytes(8, "little"))
            until(lambda: bool(api.events), "the Event")
            assert "the pod is not in the map of captured pods" in json.dumps(api.events)
        by_ebpf.done("DEL", sandbox.path, container="id-web")
