"""A real Envoy as the sidecar in TPROXY mode: both addresses of a client's connection reach the app."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator

import pytest

from integration.containers.envoy import TPROXY_USER
from integration.containers.mesh import APP_PORT, Mesh, assert_http2_both_ways, assert_udp_bypasses
from integration.containers.serving import get, talk
from integration.kit.endpoints import Address, awaited
from istio_init.model.rules import FAMILIES

BASE = "-p 15001 -z 15006 -u 1337 -m TPROXY"
ALL = f"{BASE} -i '*' -b '*' -d 15090,15020"
Ask = Callable[[socket.socket, Address], str]

# Ports for clients outside. Envoy takes the client's address with a port of its own; were that one a live port of the
# client's, the two would be one connection to conntrack.
PORTS = itertools.count(20000)


@pytest.fixture(params=FAMILIES)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Envoy runs, no rule exists yet."""
    with Mesh(request.param, TPROXY_USER) as running:
        running.pod.namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 60999")
        yield running


def client(mesh: Mesh) -> socket.socket:
    """A client outside, at an address that is nowhere near the pod's."""
    return mesh.outside((mesh.pod.addresses.outer, next(PORTS)))


@pytest.mark.parametrize(("say", "answer"), [(get, "app"), (talk, "PLAIN WORDS")])
def test_inbound_the_app_sees_the_client(mesh: Mesh, say: Ask, answer: str) -> None:
    mesh.pod.apply(ALL)
    with mesh.envoy.watched() as moved:
        assert say(client(mesh), mesh.to_app) == answer
    assert moved == {mesh.inbound: 1, mesh.app_cluster: 1}
    assert [address for address, _ in mesh.app.peers] == [mesh.pod.addresses.outer]


@pytest.mark.parametrize(("say", "answer"), [(get, "upstream"), (talk, "PLAIN WORDS")])
def test_outbound(mesh: Mesh, say: Ask, answer: str) -> None:
    mesh.pod.apply(ALL)
    with mesh.envoy.watched() as moved:
        assert say(mesh.inside(), mesh.to_upstream) == answer
    assert moved == {mesh.outbound: 1, mesh.passthrough: 1}
    assert [address for address, _ in mesh.upstream.peers] == [mesh.pod.addresses.pod]


@pytest.mark.parametrize(("say", "answer"), [(get, "app"), (talk, "PLAIN WORDS")])
def test_the_apps_own_service(mesh: Mesh, say: Ask, answer: str) -> None:
    mesh.pod.apply(ALL)
    with mesh.envoy.watched() as moved:
        assert say(mesh.inside(), mesh.to_service) == answer
    assert moved == {mesh.outbound: 1, mesh.own: 1, mesh.inbound: 1, mesh.app_cluster: 1}


def test_the_app_reaches_itself_directly(mesh: Mesh) -> None:
    mesh.pod.apply(ALL)
    addresses = mesh.pod.addresses
    with mesh.envoy.watched() as moved:
        for address in (addresses.pod, addresses.second_pod, addresses.loopback):
            assert get(mesh.inside(), (address, APP_PORT)) == "app"
    assert moved == {}


def test_the_sidecars_own_ports_are_excluded(mesh: Mesh) -> None:
    mesh.pod.apply(ALL)
    for port, name in ((15090, f"prometheus_{mesh.family}"), (15020, f"status_{mesh.family}")):
        with mesh.envoy.watched() as moved:
            assert get(client(mesh), (mesh.pod.addresses.pod, port)) == name
        assert moved == {name: 1}


# Options; which address of the pod's is dialled from outside; whether Envoy sees it.
CHOICES = {
    "-d, the port": ("-b '*' -d 8080", "pod", False),
    "-d, another": ("-b '*' -d 8081", "pod", True),
    "-b, the port": ("-b 8080", "pod", True),
    "-b, another": ("-b 8081", "pod", False),
    "no -b": ("-i '*'", "pod", False),
    "-c, the interface": ("-b '*' -c veth1", "second_pod", False),
    "-c, another": ("-b '*' -c veth1", "pod", True),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_and_what_is_spared(mesh: Mesh, name: str) -> None:
    arguments, address, captured = CHOICES[name]
    mesh.pod.apply(f"{BASE} {arguments}")
    with mesh.envoy.watched() as moved:
        assert get(client(mesh), (getattr(mesh.pod.addresses, address), APP_PORT)) == "app"
    assert moved == ({mesh.inbound: 1, mesh.app_cluster: 1} if captured else {})


def test_udp_is_left_alone(mesh: Mesh) -> None:
    mesh.pod.apply(ALL)
    assert_udp_bypasses(mesh)


def test_dialling_the_proxys_inbound_port_does_not_loop(mesh: Mesh) -> None:
    mesh.pod.apply(ALL)
    with mesh.envoy.watched() as moved:
        assert talk(client(mesh), (mesh.pod.addresses.pod, 15006)) == ""
        # Envoy closes such a connection before it counts it.
        awaited(lambda: f"listener.{mesh.inbound}.downstream_cx_total" in mesh.envoy.counters(), "Envoy's counter")
    assert moved == {mesh.inbound: 1}


def test_what_goes_in_comes_out_once(mesh: Mesh) -> None:
    mesh.pod.apply(ALL)
    with mesh.envoy.watched() as moved:
        for _ in range(250):
            assert talk(client(mesh), mesh.to_app) == "PLAIN WORDS"
            assert talk(mesh.inside(), mesh.to_upstream) == "PLAIN WORDS"
    assert moved == {mesh.inbound: 250, mesh.app_cluster: 250, mesh.outbound: 250, mesh.passthrough: 250}
    assert {address for address, _ in mesh.app.peers} == {mesh.pod.addresses.outer}


def test_http2_both_ways(mesh: Mesh) -> None:
    pod = mesh.pod
    pod.apply(ALL)
    pod.peer.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=10000 19999")
    assert_http2_both_ways(mesh)
    counters = mesh.envoy.counters()
    assert counters[f"cluster.{mesh.app_cluster}.upstream_cx_http2_total"] == 1
    assert counters[f"cluster.{mesh.passthrough}.upstream_cx_http2_total"] == 1
