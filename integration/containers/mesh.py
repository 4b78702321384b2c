"""A pod with a sidecar and an app, an upstream and clients outside of it."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import TYPE_CHECKING, Self

from integration.containers.envoy import APP_USER, ROOT_USER, TPROXY_USER, Envoy
from integration.containers.envoy_config import OPEN, Service, responder, sidecar
from integration.containers.serving import Server, http2
from integration.kit.endpoints import ROOT, Address, ask, opened
from integration.kit.pod import ADDRESSES, APP, Pod
from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace
    from istio_init.model.rules import Family

APP_PORT, UPSTREAM_PORT = 8080, 80
SERVICES: dict[Family, Service] = {
    IPV4: Service("10.96.0.1", ADDRESSES[IPV4].pod, APP_PORT),
    IPV6: Service("fd96::1", ADDRESSES[IPV6].pod, APP_PORT),
}


class Mesh:
    """All of it from `with` to its end, for clients of one family; no rule exists until `pod.apply`.

    `pod` may be of another kind. The other attributes are the names under which Envoy counts: its listeners and its
    clusters.
    """

    def __init__(self, family: Family, user: tuple[str, ...], pod: Pod | None = None) -> None:
        self.family, self.pod = family, pod or Pod(family)
        tproxy = user == TPROXY_USER
        self.envoy = Envoy(self.pod.namespace, user, lambda admin: sidecar(SERVICES, admin, tproxy=tproxy))
        addresses = ADDRESSES[family]
        self.to_app, self.to_upstream = (addresses.pod, APP_PORT), (addresses.peer, UPSTREAM_PORT)
        self.open_door = (addresses.pod, OPEN)
        self.to_service = (SERVICES[family].address, 80)
        self.inbound, self.outbound = f"inbound_{family}", f"outbound_{family}"
        self.app_cluster, self.passthrough, self.own = f"app_{family}", f"passthrough_{family}", f"own_{family}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.pod)
            self.pod.listen("app", APP_PORT, APP)
            self.pod.listen_at_peer("upstream", UPSTREAM_PORT)
            self.app = Server("app", self.pod.listeners.pop("app"))
            self.upstream = Server("upstream", self.pod.listeners.pop("upstream"))
            for server in (self.app, self.upstream):
                stack.enter_context(self.serving(server))
            self.prepare()
            stack.enter_context(self.envoy)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def prepare(self) -> None:
        """What is done in the pod before its Envoy starts: nothing."""

    def serving(self, server: Server) -> contextlib.AbstractContextManager[object]:
        """What has the server serve."""
        return server

    def outside(self, source: Address | None = None) -> socket.socket:
        """A client outside of the pod."""
        return self.pod.client(ROOT, source, at=self.pod.peer)

    def inside(self) -> socket.socket:
        """The app as a client."""
        return self.pod.client(APP)

    def output_rules(self) -> dict[int, int]:
        """How many connections each rule of nat's ISTIO_OUTPUT decided, by its place; zeros are left out."""
        return {place: count for place, count in enumerate(self.pod.counted("nat", "ISTIO_OUTPUT")) if count}


def answering(namespace: Namespace, user: tuple[str, ...], port: int) -> Envoy:
    """An Envoy that answers HTTP requests of any version itself."""
    return Envoy(namespace, user, lambda admin: responder(admin, port))


def assert_http2_both_ways(mesh: Mesh) -> None:
    """The app and the upstream are Envoys that answer in the version of the request."""
    pod = mesh.pod
    with answering(pod.namespace, APP_USER, 8082), answering(pod.peer, ROOT_USER, 8083):
        with mesh.envoy.watched() as moved:
            assert http2(pod.peer, ROOT_USER, (pod.addresses.pod, 8082)) == ("2", f"responder_{mesh.family}")
        assert moved == {mesh.inbound: 1, mesh.app_cluster: 1}
        with mesh.envoy.watched() as moved:
            assert http2(pod.namespace, APP_USER, (pod.addresses.peer, 8083)) == ("2", f"responder_{mesh.family}")
        assert moved == {mesh.outbound: 1, mesh.passthrough: 1}


def assert_udp_bypasses(mesh: Mesh) -> None:
    """UDP reaches the application and the upstream, and Envoy sees none of it."""
    pod = mesh.pod
    pod.receive("app", (pod.addresses.pod, 5353), APP)
    pod.receive("upstream", (pod.addresses.peer, 53), at=pod.peer)
    with mesh.envoy.watched() as moved:
        assert pod.query(APP, (pod.addresses.peer, 53)).at == "upstream"
        query = opened(pod.peer, pod.family, socket.SOCK_DGRAM)
        assert ask(query, (pod.addresses.pod, 5353), pod.receivers).at == "app"
    assert moved == {}
