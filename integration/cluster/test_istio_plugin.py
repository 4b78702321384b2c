"""Istio's own CNI plugin beside ours, with the same pods of one API server: the same decision, the same rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cluster.build_istio import PROGRAM, istio
from integration.cluster.pod_kinds import KINDS, pod_of
from integration.kit import program
from integration.kit.cni import PREVIOUS, Plugin
from integration.kit.namespace import Namespace
from integration.kit.node_agent import NodeAgent, node_agent

CAPTURED, PASSED, REFUSED = "captured", "passed through", "refused"
# Where ours does otherwise: Istio's decision, and ours. docs/agent.md says why.
OTHERWISE = {
    "other arguments first": (CAPTURED, PASSED),
    "template gateway": (CAPTURED, PASSED),
    "NONE": (REFUSED, PASSED),
    "an address without a length": (REFUSED, CAPTURED),
    # The rules differ.
    "user without a group": (CAPTURED, CAPTURED),
    "mode in proxy.istio.io/config": (CAPTURED, CAPTURED),
    "status port": (CAPTURED, CAPTURED),
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeAgent]:
    with node_agent(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with iptables' programs for the legacy tables alone: Istio's plugin takes those that it finds."""
    directory = tmp_path_factory.mktemp("tools")
    program_file = shutil.which("xtables-legacy-multi")
    assert program_file, "iptables is not installed; scripts/test installs it"
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            (directory / f"{family}{verb}").symlink_to(program_file)
    (directory / "istio-cni").symlink_to(istio() / PROGRAM)
    return directory


def istios(directory: Path, tools: Path, agent: NodeAgent, namespace: Namespace, name: str) -> str:
    """What Istio's plugin does about a pod."""
    shutil.copyfile(agent.api.kubeconfig, directory / "istio-cni-kubeconfig")
    configuration = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "istio-cni",
        "cni_agent_run_dir": str(directory),
        "prevResult": {**PREVIOUS, "cniVersion": "1.0.0"},
    }
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": name,
        "CNI_NETNS": namespace.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(tools),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}",
        "PATH": str(tools),
        "XTABLES_LOCKFILE": namespace.lock,
        "HOME": os.environ["HOME"],
    }
    done = subprocess.run(
        [tools / "istio-cni"],
        env=environment,
        input=json.dumps(configuration),
        capture_output=True,
        text=True,
        check=False,
    )
    return _decision(namespace, done.returncode, done.stdout + done.stderr)


def rules(namespace: Namespace) -> dict[tuple[str, str, str], list[str]]:
    """The rules by family, table and chain, in their order; chains without a rule are left out."""
    by_chain: dict[tuple[str, str, str], list[str]] = {}
    for family, tables in program.all_saved(namespace).items():
        for table, text in tables.items():
            for line in text.splitlines():
                if line.startswith("-A "):
                    by_chain.setdefault((family, table, line.split()[1]), []).append(line)
    return by_chain


def has_addresses(namespace: Namespace) -> None:
    """Give it what a network plugin would have: Istio's plugin looks for the pod's addresses."""
    namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "uplink")
    for link in ("uplink", "eth0"):
        # No link-local address of its own, at random and some time later.
        namespace.run("ip", "link", "set", link, "addrgenmode", "none")
        namespace.run("ip", "link", "set", link, "up")
    namespace.run("ip", "addr", "add", "10.0.0.2/24", "dev", "eth0")
    namespace.run("ip", "addr", "add", "fd00::2/64", "dev", "eth0", "nodad")


def _decision(namespace: Namespace, code: int, output: str) -> str:
    if code:
        assert output
        return REFUSED
    return CAPTURED if "ISTIO_OUTPUT" in namespace.run("iptables-legacy-save") else PASSED


def ours(directory: Path, agent: NodeAgent, namespace: Namespace, name: str) -> str:
    """What ours does, with the agent's answer."""
    plugin = Plugin(directory, agent="required", agent_socket=str(agent.socket))
    outcome = plugin.call("ADD", namespace.path, {}, name.removeprefix("pod-"), prevResult=PREVIOUS)
    return _decision(namespace, outcome.code, outcome.result)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_decision_and_the_same_rules(tmp_path: Path, tools: Path, agent: NodeAgent, kind: str) -> None:
    name = f"pod-{list(KINDS).index(kind)}"
    agent.api.put(pod_of(kind, name))
    with Namespace() as one, Namespace() as other:
        for namespace in (one, other):
            has_addresses(namespace)
        decisions = istios(tmp_path, tools, agent, one, name), ours(tmp_path, agent, other, name)
        if kind in OTHERWISE:
            assert decisions == OTHERWISE[kind]
            assert rules(one) != rules(other) or REFUSED in decisions
            return
        assert decisions[0] == decisions[1]
        assert rules(one) == rules(other)
        assert program.routing(one) == program.routing(other)


def test_the_page_names_each_kind_that_differs() -> None:
    page = (program.ROOT / "docs/agent.md").read_text()
    section = page.partition("## Beside Istio's plugin")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[1:3] for line in section.splitlines() if line.startswith("| ")][2:]
    listed = [(theirs, mine) for theirs, mine in rows]
    assert sorted(listed) == sorted(OTHERWISE.values())
