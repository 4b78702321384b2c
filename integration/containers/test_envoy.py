"""A real Envoy as the sidecar in REDIRECT mode: which way traffic goes, by Envoy's own counters.

The numbers in the tests' names are the steps of the article's picture: 1 to 8 inbound, 9 to 15 outbound, 16 the
app calling its own service.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from integration.containers.envoy import REDIRECT_USER
from integration.containers.mesh import APP_PORT, Mesh, assert_http2_both_ways, assert_udp_bypasses
from integration.containers.serving import get, talk
from integration.kit.endpoints import Address, User
from istio_init.model.rules import FAMILIES

ARTICLE = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -b '*' -d 15090,15020"
ENVOY = User(1337, 1337)
Ask = Callable[[socket.socket, Address], str]

# The rules of ISTIO_OUTPUT with these options, by their place.
FROM_PASSTHROUGH, PROXY_TO_OWN, APP_TO_OWN, PROXY_OUT = 0, 1, 2, 3


@pytest.fixture(params=FAMILIES)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Envoy runs, no rule exists yet."""
    with Mesh(request.param, REDIRECT_USER) as running:
        yield running


def test_without_rules_nothing_meets_envoy(mesh: Mesh) -> None:
    with mesh.envoy.watched() as moved:
        assert get(mesh.outside(), mesh.to_app) == "app"
        assert get(mesh.inside(), mesh.to_upstream) == "upstream"
    assert moved == {}


@pytest.mark.parametrize(("say", "answer"), [(get, "app"), (talk, "PLAIN WORDS")])
def test_inbound_1_to_8(mesh: Mesh, say: Ask, answer: str) -> None:
    """Client, PREROUTING, ISTIO_INBOUND, ISTIO_IN_REDIRECT, Envoy, rule 1 of ISTIO_OUTPUT, app, and back."""
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        assert say(mesh.outside(), mesh.to_app) == answer
    assert moved == {mesh.inbound: 1, mesh.app_cluster: 1}
    assert [address for address, _ in mesh.app.peers] == [mesh.pod.addresses.passthrough]
    assert mesh.pod.counted("nat", "ISTIO_IN_REDIRECT") == [1]
    assert mesh.output_rules() == {FROM_PASSTHROUGH: 1}


@pytest.mark.parametrize(("say", "answer"), [(get, "upstream"), (talk, "PLAIN WORDS")])
def test_outbound_9_to_15(mesh: Mesh, say: Ask, answer: str) -> None:
    """App, OUTPUT, ISTIO_OUTPUT, ISTIO_REDIRECT, Envoy, rule 4 of ISTIO_OUTPUT, upstream, and back."""
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        assert say(mesh.inside(), mesh.to_upstream) == answer
    assert moved == {mesh.outbound: 1, mesh.passthrough: 1}
    assert [address for address, _ in mesh.upstream.peers] == [mesh.pod.addresses.pod]
    assert mesh.pod.counted("nat", "ISTIO_REDIRECT") == [1]
    assert mesh.output_rules()[PROXY_OUT] == 1


@pytest.mark.parametrize(("say", "answer"), [(get, "app"), (talk, "PLAIN WORDS")])
def test_the_apps_own_service_16(mesh: Mesh, say: Ask, answer: str) -> None:
    """App, Envoy outbound, which picks the pod itself: by rule 2 of ISTIO_OUTPUT through Envoy inbound to the app."""
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        assert say(mesh.inside(), mesh.to_service) == answer
    assert moved == {mesh.outbound: 1, mesh.own: 1, mesh.inbound: 1, mesh.app_cluster: 1}
    assert [address for address, _ in mesh.app.peers] == [mesh.pod.addresses.passthrough]
    rules = mesh.output_rules()
    assert (rules[PROXY_TO_OWN], rules[FROM_PASSTHROUGH]) == (1, 1)


def test_the_app_reaches_itself_directly(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    addresses = mesh.pod.addresses
    with mesh.envoy.watched() as moved:
        for address in (addresses.pod, addresses.second_pod, addresses.loopback):
            assert get(mesh.inside(), (address, APP_PORT)) == "app"
    assert moved == {}
    assert [peer for peer, _ in mesh.app.peers] == [addresses.pod, addresses.second_pod, addresses.loopback]


def test_the_proxy_reaches_the_app_by_localhost_directly_and_by_the_pods_address_through_itself(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        assert get(mesh.pod.client(ENVOY), (mesh.pod.addresses.loopback, APP_PORT)) == "app"
    assert moved == {}
    with mesh.envoy.watched() as moved:
        assert get(mesh.pod.client(ENVOY), mesh.to_app) == "app"
    assert moved == {mesh.inbound: 1, mesh.app_cluster: 1}


def test_the_sidecars_own_ports_are_excluded(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    for port, name in ((15090, f"prometheus_{mesh.family}"), (15020, f"status_{mesh.family}")):
        with mesh.envoy.watched() as moved:
            assert get(mesh.outside(), (mesh.pod.addresses.pod, port)) == name
        assert moved == {name: 1}


BASE = "-p 15001 -z 15006 -u 1337"
DIRECT, CAPTURED = False, True

# Options; who dials; which attribute of the pod's addresses; port; whether Envoy sees it.
CHOICES = {
    "-d, the port": ("-b '*' -d 8080", "outside", "pod", 8080, DIRECT),
    "-d, another": ("-b '*' -d 8081", "outside", "pod", 8080, CAPTURED),
    "-b, the port": ("-b 8080", "outside", "pod", 8080, CAPTURED),
    "-b, another": ("-b 8081", "outside", "pod", 8080, DIRECT),
    "no -b": ("-i '*'", "outside", "pod", 8080, DIRECT),
    "-c, the interface in": ("-b '*' -c veth1", "outside", "second_pod", 8080, DIRECT),
    "-c, another in": ("-b '*' -c veth1", "outside", "pod", 8080, CAPTURED),
    "-c, the interface out": ("-i '*' -c veth1", "inside", "second_peer", 80, DIRECT),
    "-c, another out": ("-i '*' -c veth1", "inside", "peer", 80, CAPTURED),
    "-o, the port": ("-i '*' -o 80", "inside", "peer", 80, DIRECT),
    "-o, another": ("-i '*' -o 81", "inside", "peer", 80, CAPTURED),
    "-q, the port": ("-q 80", "inside", "peer", 80, CAPTURED),
    "-q, another": ("-q 81", "inside", "peer", 80, DIRECT),
    "no -i": ("-b '*'", "inside", "peer", 80, DIRECT),
    "-x, in it": ("-i '*' -x 203.0.113.0/24,2001:db8::/32", "inside", "outer", 80, DIRECT),
    "-x, not in it": ("-i '*' -x 203.0.113.0/24,2001:db8::/32", "inside", "inner", 80, CAPTURED),
    "-i, in it": ("-i 203.0.113.0/24,2001:db8::/32", "inside", "outer", 80, CAPTURED),
    "-i, not in it": ("-i 203.0.113.0/24,2001:db8::/32", "inside", "inner", 80, DIRECT),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_and_what_is_spared(mesh: Mesh, name: str) -> None:
    arguments, who, address, port, captured = CHOICES[name]
    mesh.pod.apply(f"{BASE} {arguments}")
    with mesh.envoy.watched() as moved:
        client, answer = (mesh.outside(), "app") if who == "outside" else (mesh.inside(), "upstream")
        assert get(client, (getattr(mesh.pod.addresses, address), port)) == answer
    ways = {"outside": {mesh.inbound: 1, mesh.app_cluster: 1}, "inside": {mesh.outbound: 1, mesh.passthrough: 1}}
    assert moved == (ways[who] if captured else {})


def test_udp_is_left_alone(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    assert_udp_bypasses(mesh)


@pytest.mark.parametrize("port", [15001, 15006])
def test_dialling_the_proxys_own_ports_does_not_loop(mesh: Mesh, port: int) -> None:
    """From outside both are captured like any other port; what Envoy then does must come to an end."""
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        assert talk(mesh.outside(), (mesh.pod.addresses.pod, port)) == ""
    assert sum(moved.values()) <= 4, moved


def test_what_goes_in_comes_out_once(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    with mesh.envoy.watched() as moved:
        for _ in range(250):
            assert talk(mesh.outside(), mesh.to_app) == "PLAIN WORDS"
            assert talk(mesh.inside(), mesh.to_upstream) == "PLAIN WORDS"
    assert moved == {mesh.inbound: 250, mesh.app_cluster: 250, mesh.outbound: 250, mesh.passthrough: 250}


def test_http2_both_ways(mesh: Mesh) -> None:
    mesh.pod.apply(ARTICLE)
    assert_http2_both_ways(mesh)
    counters = mesh.envoy.counters()
    for name in (f"http.{mesh.inbound}.downstream_cx", f"http.{mesh.outbound}.downstream_cx"):
        assert counters[f"{name}_http2_total"] == 1
    assert counters[f"cluster.{mesh.app_cluster}.upstream_cx_http2_total"] == 1
    assert counters[f"cluster.{mesh.passthrough}.upstream_cx_http2_total"] == 1
