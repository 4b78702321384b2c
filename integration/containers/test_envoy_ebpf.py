"""A real Envoy as the sidecar of a pod that is captured by eBPF: the ways of REDIRECT and TPROXY, without a rule."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from integration.containers.envoy import REDIRECT_USER, TPROXY_USER
from integration.containers.mesh import APP_PORT, Mesh, assert_http2_both_ways
from integration.containers.serving import get, talk
from integration.kit.ebpf_node import EbpfNode
from integration.kit.ebpf_pod import EbpfPod
from istio_init.kernel.ebpf import pods
from istio_init.model.rules import FAMILIES

OPTIONS = "-p 15001 -z 15006 -u 1337 -i '*' -b '*' -d 15090,15020 -m"
USERS = {"REDIRECT": REDIRECT_USER, "TPROXY": TPROXY_USER}
# Envoy takes the client's address with a port of its own, which must not be a live one of the client's.
PORTS = itertools.count(20000)


@pytest.fixture(params=[(family, mode) for family in FAMILIES for mode in USERS], ids=" ".join)
def mesh(request: pytest.FixtureRequest, node: EbpfNode) -> Iterator[Mesh]:
    """Envoy was started in a captured pod."""
    family, mode = request.param
    with Mesh(family, USERS[mode], EbpfPod(family, node, f"{OPTIONS} {mode}")) as running:
        running.pod.namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 60999")
        running.pod.peer.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=10000 19999")
        yield running


def client(mesh: Mesh) -> socket.socket:
    """A client outside, at an address that is nowhere near the pod's."""
    return mesh.outside((mesh.pod.addresses.outer, next(PORTS)))


def test_every_way(mesh: Mesh, node: EbpfNode) -> None:
    """Inbound, outbound, the app to its own service and to itself, Envoy's own ports, one after the other."""
    pod, lost = mesh.pod, pods.counts(node.installation)["lost"]
    tproxy = mesh.envoy.user == TPROXY_USER
    for say, word in (get, ""), (talk, "PLAIN WORDS"):
        with mesh.envoy.watched() as moved:
            assert say(client(mesh), mesh.to_app) == (word or "app")
        assert moved == {mesh.inbound: 1, mesh.app_cluster: 1}
        assert [host for host, _ in mesh.app.peers] == [pod.addresses.outer if tproxy else pod.addresses.passthrough]
        with mesh.envoy.watched() as moved:
            assert say(mesh.inside(), mesh.to_upstream) == (word or "upstream")
        assert moved == {mesh.outbound: 1, mesh.passthrough: 1}
        assert [host for host, _ in mesh.upstream.peers] == [pod.addresses.pod]
        with mesh.envoy.watched() as moved:
            assert say(mesh.inside(), mesh.to_service) == (word or "app")
        # The worker that had the first request may still have its connection to the app.
        assert {**moved, mesh.app_cluster: 1} == {mesh.outbound: 1, mesh.own: 1, mesh.inbound: 1, mesh.app_cluster: 1}
        mesh.app.peers.clear()
        mesh.upstream.peers.clear()
    with mesh.envoy.watched() as moved:
        for address in (pod.addresses.pod, pod.addresses.second_pod, pod.addresses.loopback):
            assert get(mesh.inside(), (address, APP_PORT)) == "app"
    assert moved == {}
    for port, name in ((15090, f"prometheus_{mesh.family}"), (15020, f"status_{mesh.family}")):
        with mesh.envoy.watched() as moved:
            assert get(client(mesh), (pod.addresses.pod, port)) == name
        assert moved == {name: 1}
    assert pods.counts(node.installation)["lost"] == lost
    # A call to the proxy's own port has no other destination, and does not loop.
    assert talk(client(mesh), (pod.addresses.pod, 15006)) == ""
    assert pods.counts(node.installation)["lost"] == lost + 1
    assert pod.namespace.run("cat", "/proc/net/nf_conntrack") == ""


def test_many_and_http2(mesh: Mesh) -> None:
    with mesh.envoy.watched() as moved:
        for _ in range(50):
            assert talk(client(mesh), mesh.to_app) == "PLAIN WORDS"
            assert talk(mesh.inside(), mesh.to_upstream) == "PLAIN WORDS"
    assert moved == {mesh.inbound: 50, mesh.app_cluster: 50, mesh.outbound: 50, mesh.passthrough: 50}
    assert_http2_both_ways(mesh)
