"""Real runtimes call the plugin in a chain behind Debian's: containerd as a kubelet uses it, podman, and ctr.

What counts is who answers the pod's first process, which dials before it does anything else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cri_api.v1.api_pb2 as api
import grpc
import pytest

from integration.containers.chain import CAPTURED, FIRST, TARGET, Attachment, ChainNode, Traces, differences, make_first
from integration.containers.cri import Containerd, CriPod
from integration.containers.engine import Engine
from integration.containers.node import ADDRESS, APP_PORT
from integration.containers.podman import Podman
from integration.containers.test_cri import rights
from integration.kit.cni import INJECTED
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace
from istio_init.cni.node.conflist import PLUGIN
from istio_init.cni.plugin.protocol import DRIFTED
from istio_init.model.rules import PortRange
from istio_init.options.annotations import MODE, PROXY_CONFIG

PORTS = "traffic.sidecar.istio.io/includeInboundPorts"
DUAL_STACK = {PROXY_CONFIG: 'proxyMetadata: {ISTIO_DUAL_STACK: "true"}'}
BLOCK = {"istio-inbound-ports": "*", "istio-service-cidr": "*", "dual-stack": True}
HOST_PORT = 18080
MANY = 50


@pytest.fixture(scope="module")
def node(engine: Engine, state: Path) -> Iterator[ChainNode]:
    """A node with three networks: what pods ask for counts, everybody is captured, nobody can be."""
    make_first(engine, state)
    with ChainNode(state / "chain") as chain_node:
        chain_node.chain("pods")
        chain_node.chain("block", istio=BLOCK)
        chain_node.chain("wrong", istio={"envoy-port": "seventy"})
        yield chain_node


@pytest.fixture(scope="module")
def containerd(engine: Engine, node: ChainNode) -> Iterator[Containerd]:
    """Containerd, whose sandboxes' own process is first.c."""
    with Containerd(node, FIRST, node.networks / "pods") as instance:
        instance.load(engine, FIRST)
        yield instance


@pytest.fixture(scope="module")
def podman(engine: Engine, node: ChainNode) -> Iterator[Podman]:
    """Podman with the networks that need no annotations."""
    both = node.networks / "podman"
    both.mkdir()
    for name in ("block", "wrong"):
        shutil.copy(node.networks / name / f"{name}.conflist", both)
    with Podman(node, both) as instance:
        instance.load(engine, FIRST)
        yield instance


def first(pod: CriPod) -> str:
    """The first word of what the sandbox's own process was answered: it is called so from then on."""
    name = Path(f"/proc/{pod.pid}/comm")
    answers = {"captured\n", "upstream\n", "refused\n", "cut\n"}
    awaited(lambda: name.read_text() in answers, "the first process' answer")
    return name.read_text().strip()


def but_rules(traces: Traces) -> Traces:
    """What is gone after an ADD that failed: Debian's firewall does nothing in a DEL without the result of an ADD."""
    return traces._replace(rules=[])


def test_a_pod_is_captured_before_its_first_process(containerd: Containerd, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    ports = [api.PortMapping(container_port=APP_PORT, host_port=HOST_PORT)]
    with containerd.pod("captured", annotations={**INJECTED, **DUAL_STACK}, port_mappings=ports) as pod:
        assert first(pod) == "captured"
        app = pod.start("app", FIRST, rights(1000, 1000), args=["once"])
        assert pod.finished(app) == 0
        awaited(lambda: pod.log("app") == CAPTURED, "the app to be captured")
        # From the node through portmap to the pod.
        assert node.ask((ADDRESS, HOST_PORT)) == f"captured 15006 {pod.address}:{APP_PORT}"
        state = node.state(pod.identity)
        assert (state.pod, state.namespace, state.uid, state.attachments) == (
            "captured", "default", "captured", (("pods", "eth0"),),
        )  # fmt: skip
        assert state.options
        assert state.options.dual_stack
        assert differences(state) == ()
    assert len(node.upstream.peers) == request
    assert not Path(state.netns).exists()
    # A kubelet stops a sandbox and then removes it; each time the runtime calls DEL.
    assert [line["command"] for line in node.log_of(pod.identity)].count("DEL") > 1
    assert node.traces() == before


def test_a_pod_without_a_sidecar_is_left_alone(containerd: Containerd, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    with containerd.pod("plain", annotations={"example.com/other": "1"}) as pod:
        assert first(pod) == "upstream"
        (line,) = node.log_of(pod.identity)
        assert (line["decision"], line["pod"], line["namespace"]) == ("passed through", "plain", "default")
        assert "no annotation sidecar.istio.io/status" in line["why"]
    assert len(node.upstream.peers) == request + 1
    assert node.traces() == before


def test_a_failure_keeps_the_sandbox_from_starting(containerd: Containerd, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    with pytest.raises(grpc.RpcError) as raised:
        containerd.sandbox("failing", annotations={**INJECTED, PORTS: "http"})
    assert f"annotation {PORTS}: 'http': not a port" in raised.value.details()
    assert list(containerd.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items) == []
    assert len(node.upstream.peers) == request
    assert but_rules(node.traces()) == but_rules(before)


def test_many_sandboxes_at_once(containerd: Containerd, node: ChainNode) -> None:
    """Each asks for something else, every fifth for nothing."""

    def asked_for(number: int) -> dict[str, str]:
        mode = ("REDIRECT", "TPROXY")[number % 2]
        return {**INJECTED, **DUAL_STACK, MODE: mode, PORTS: str(9000 + number)} if number % 5 else {}

    before = node.traces()
    with ThreadPoolExecutor(MANY) as pool:
        begun = [pool.submit(containerd.sandbox, f"many-{n}", annotations=asked_for(n)) for n in range(MANY)]
        try:
            for number, pod in enumerate(each.result() for each in begun):
                state = node.state(pod.identity)
                assert state.pod == f"many-{number}"
                assert first(pod) == ("captured" if asked_for(number) else "upstream"), state
                if state.captured:
                    assert state.options
                    assert state.options.istio_inbound_ports == (PortRange(9000 + number, 9000 + number),)
                    assert differences(state) == ()
        finally:
            list(pool.map(CriPod.discard, [each.result() for each in begun if not each.exception()]))
    assert node.traces() == before


def test_the_chain_checked(node: ChainNode, namespace: Namespace) -> None:
    """A CHECK, which none of these runtimes calls by itself."""
    before = node.traces()
    attachment = Attachment(node, "pods", namespace, "checked", INJECTED)
    assert list(attachment.add()) == ["bridge", "firewall", "portmap", PLUGIN]
    assert attachment.check() == {}
    namespace.run("iptables-legacy", "-t", "nat", "-F", "ISTIO_REDIRECT")
    report = attachment.check()
    assert report["code"] == DRIFTED
    assert "ISTIO_REDIRECT" in report["msg"]
    attachment.delete()
    assert node.traces() == before


@pytest.mark.parametrize("users", [(), ("--uidmap=0:100000:65536",)], ids=["the node's users", "users of its own"])
def test_podman(podman: Podman, node: ChainNode, users: tuple[str, ...]) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    assert podman.run("run", "--rm", "--network=block", *users, FIRST, "once") == CAPTURED
    assert len(node.upstream.peers) == request
    assert node.traces() == before


def test_a_failure_in_podman(podman: Podman, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    done = podman.completed("run", "--rm", "--network=wrong", FIRST, "once")
    assert done.returncode == 126
    assert b"istio-init-cni failed: --envoy-port (-p): 'seventy': not a port" in done.stderr
    assert (done.stdout, len(node.upstream.peers)) == (b"", request)
    assert but_rules(node.traces()) == but_rules(before)


def test_ctr(containerd: Containerd, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    done = containerd.run("one", FIRST, "/first", *TARGET, "once", networks=node.networks / "block")
    assert (done.returncode, done.stdout) == (0, CAPTURED), done.stderr
    # It does not keep the plugin's standard error to itself.
    assert {json.loads(line)["decision"] for line in done.stderr.splitlines()} == {"captured"}
    assert len(node.upstream.peers) == request
    assert node.traces() == before


def test_a_failure_in_ctr(containerd: Containerd, node: ChainNode) -> None:
    before, request = node.traces(), len(node.upstream.peers)
    done = containerd.run("two", FIRST, "/first", *TARGET, "once", networks=node.networks / "wrong")
    assert done.returncode == 1
    assert "istio-init-cni\" failed (add): --envoy-port (-p): 'seventy': not a port" in done.stderr
    assert (done.stdout, len(node.upstream.peers)) == ("", request)
    assert but_rules(node.traces()) == but_rules(before)
