"""DNS capture with all in place: the app asks a name, the agent asks the resolver, Envoy carries what follows."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from integration.containers.dns import Nameserver, address_in, ask, question, response
from integration.containers.envoy import REDIRECT_USER
from integration.containers.mesh import Mesh
from integration.containers.serving import get
from integration.kit.endpoints import FAMILY_NUMBERS, listener, opened
from integration.kit.pod import APP, PROXY
from istio_init.model.rules import FAMILIES

ARTICLE = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -b '*' -d 15090,15020 --redirect-dns"
SERVERS = f"{ARTICLE} --dns-servers 10.77.0.1,fd77::1"
ALL_SERVERS = f"{ARTICLE} --capture-all-dns"
AGENT_PORT = 15053


class Names:
    """The agent in the pod and the resolver outside, which knows one name: the upstream's."""

    def __init__(self, mesh: Mesh) -> None:
        pod = mesh.pod
        self.mesh, self.family = mesh, FAMILY_NUMBERS[mesh.family]
        self.address, self.server = pod.addresses.outer, (pod.addresses.peer, 53)
        here, there = (pod.addresses.loopback, AGENT_PORT), self.server
        dgram = socket.SOCK_DGRAM
        self.agent = Nameserver(
            listener(pod.namespace, mesh.family, here, PROXY, kind=dgram),
            listener(pod.namespace, mesh.family, here, PROXY),
            lambda query: ask(opened(pod.namespace, mesh.family, dgram, PROXY), self.server, query),
        )
        self.resolver = Nameserver(
            listener(pod.peer, mesh.family, there, kind=dgram),
            listener(pod.peer, mesh.family, there),
            lambda query: response(query, self.family, self.address),
        )

    def resolved(self, kind: socket.SocketKind) -> str:
        """What the app learns of the upstream's name."""
        pod, query = self.mesh.pod, question("upstream.example", self.family)
        return address_in(ask(opened(pod.namespace, pod.family, kind, APP), self.server, query), query, self.family)


@pytest.fixture(params=FAMILIES)
def names(request: pytest.FixtureRequest) -> Iterator[Names]:
    """A mesh with both nameservers; no rule exists yet."""
    with Mesh(request.param, REDIRECT_USER) as mesh:
        instance = Names(mesh)
        with instance.agent, instance.resolver:
            yield instance


@pytest.mark.parametrize("options", [SERVERS, ALL_SERVERS])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_name_is_asked_and_its_address_dialled(names: Names, kind: socket.SocketKind, options: str) -> None:
    mesh = names.mesh
    mesh.pod.apply(options)
    with mesh.envoy.watched() as moved:
        address = names.resolved(kind)
    assert address == names.address
    # Redirecting changes where a query goes, not whence it comes; the agent's own leaves as it is.
    for nameserver in (names.agent, names.resolver):
        assert [client for client, _ in nameserver.clients] == [mesh.pod.addresses.pod]
    assert moved == {}
    with mesh.envoy.watched() as moved:
        assert get(mesh.inside(), (address, 80)) == "upstream"
    assert moved == {mesh.outbound: 1, mesh.passthrough: 1}


def test_without_dns_capture_the_agent_is_not_asked(names: Names) -> None:
    names.mesh.pod.apply(ARTICLE.replace(" --redirect-dns", ""))
    assert names.resolved(socket.SOCK_DGRAM) == names.address
    assert names.agent.clients == []
