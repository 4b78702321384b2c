"""Thousands of connections while the rules are rewritten: none goes past Envoy, none is reset, none makes others."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from integration.containers.envoy import REDIRECT_USER, TPROXY_USER
from integration.containers.mesh import Mesh
from integration.containers.serving import talk
from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from istio_init.model.rules import Family

BASE = "-p 15001 -z 15006 -u 1337 -i '*' -b '*' --reconcile"
# Both capture what is dialled below; every second run has to rewrite each table.
PLANS = ("-d 15090,15020", "-d 15090,15020,9090 -o 9091")
EACH_WAY = 300
CLIENTS = 2
MODES = {"REDIRECT": REDIRECT_USER, "TPROXY": TPROXY_USER}


@pytest.mark.parametrize(("family", "mode"), [(IPV4, "REDIRECT"), (IPV6, "REDIRECT"), (IPV4, "TPROXY")])
def test_nothing_leaks_while_the_rules_are_rewritten(family: Family, mode: str) -> None:
    with Mesh(family, MODES[mode]) as mesh:
        mesh.pod.namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 60999")
        mesh.pod.apply(f"{BASE} -m {mode} {PLANS[0]}")
        with mesh.envoy.watched() as moved:
            rewritten = _rewritten_under_load(mesh, mode)
        assert rewritten >= 10
        total = EACH_WAY * CLIENTS
        ways = (mesh.inbound, mesh.app_cluster, mesh.outbound, mesh.passthrough)
        assert moved == dict.fromkeys(ways, total)
        observed = mesh.pod.addresses.passthrough if mode == "REDIRECT" else mesh.pod.addresses.outer
        assert {address for address, _ in mesh.app.peers} == {observed}
        assert (len(mesh.app.peers), len(mesh.upstream.peers)) == (total, total)


def _rewritten_under_load(mesh: Mesh, mode: str) -> int:
    """Have clients ask both ways, and rewrite the rules until they are done; returns how often that was.

    A client's AssertionError or OSError is raised here.
    """
    ports, errors = itertools.count(10000), list[BaseException]()

    def ask() -> None:
        try:
            for _ in range(EACH_WAY):
                source = (mesh.pod.addresses.outer, next(ports))
                assert talk(mesh.outside(source), mesh.to_app) == "PLAIN WORDS"
                assert talk(mesh.inside(), mesh.to_upstream) == "PLAIN WORDS"
        except (AssertionError, OSError) as error:
            errors.append(error)

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    rewritten = 0
    while any(client.is_alive() for client in clients):
        assert mesh.pod.apply(f"{BASE} -m {mode} {PLANS[(rewritten + 1) % 2]}")
        rewritten += 1
    for client in clients:
        client.join()
    if errors:
        raise errors[0]
    return rewritten
