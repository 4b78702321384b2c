"""What the capture costs a request: the same request through no capture and through each kind of it, in turns.

Run by scripts/capture-cost. All pods run at once and are asked in turns, so that whatever else the machine does
falls on all of them alike; the result is ratios, not milliseconds.
"""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from integration.containers.envoy import APP_USER, REDIRECT_USER, ROOT_USER, TPROXY_USER
from integration.containers.mesh import APP_PORT, UPSTREAM_PORT, Mesh, answering
from integration.containers.serving import Server, get
from integration.kit.endpoints import Address
from istio_init.model.rules import IPV4

BASE = "-p 15001 -z 15006 -u 1337 -i '*' -b '*'"
ROUNDS, REQUESTS = 60, 50
CLIENT_PORTS, POD_PORTS = (10000, 29999), (30000, 60999)


class Scenario(NamedTuple):
    """One row: how a request goes, and which end asks."""

    title: str
    mesh: str
    inbound: bool
    open_door: bool = False


# By name: the options of each pod, and who its Envoy is.
PODS = {
    "none": ("", REDIRECT_USER),
    "excluded": (f"{BASE} -m REDIRECT -d {APP_PORT} -o {UPSTREAM_PORT}", REDIRECT_USER),
    "redirect": (f"{BASE} -m REDIRECT", REDIRECT_USER),
    "tproxy": (f"{BASE} -m TPROXY", TPROXY_USER),
}
WAYS = (
    Scenario("inbound, no rules", "none", inbound=True),
    Scenario("inbound, rules present, the port excluded", "excluded", inbound=True),
    Scenario("inbound, no rules, Envoy addressed by its port", "none", inbound=True, open_door=True),
    Scenario("inbound, REDIRECT", "redirect", inbound=True),
    Scenario("inbound, TPROXY", "tproxy", inbound=True),
    Scenario("outbound, no rules", "none", inbound=False),
    Scenario("outbound, rules present, the port excluded", "excluded", inbound=False),
    Scenario("outbound, REDIRECT", "redirect", inbound=False),
    Scenario("outbound, TPROXY", "tproxy", inbound=False),
)


class Measured(NamedTuple):
    """What came of one way: seconds for each request, and the conntrack entries that one request makes in the pod."""

    seconds: list[float]
    entries: float


def measure(rounds: int, requests: int) -> dict[Scenario, Measured]:
    """Ask each way `requests` times in each of the rounds, a new connection each, one at a time."""
    with _pods() as meshes:
        for direction in WAYS:
            _durations(direction, meshes[direction.mesh], requests)
        entries = {direction: _entries(direction, meshes[direction.mesh], requests) for direction in WAYS}
        seconds: dict[Scenario, list[float]] = {direction: [] for direction in WAYS}
        order = random.Random(0)
        for _ in range(rounds):
            # In another order each time: who comes first pays for who came before.
            for direction in order.sample(WAYS, len(WAYS)):
                seconds[direction] += _durations(direction, meshes[direction.mesh], requests)
    return {direction: Measured(seconds[direction], entries[direction]) for direction in WAYS}


class Fast(Mesh):
    """A mesh whose app and upstream are Envoys, too: a slow server would hide what is measured behind its own tail."""

    @contextlib.contextmanager
    def serving(self, server: Server) -> Iterator[None]:
        """An Envoy in the server's place."""
        server.listener.close()
        app = (self.pod.namespace, APP_USER, APP_PORT)
        upstream = (self.pod.peer, ROOT_USER, UPSTREAM_PORT)
        with answering(*(app if server.name == "app" else upstream)):
            yield


@contextlib.contextmanager
def _pods() -> Iterator[dict[str, Mesh]]:
    """All pods, by name, with their rules."""
    with contextlib.ExitStack() as stack:
        meshes: dict[str, Mesh] = {}
        for name, (options, user) in PODS.items():
            mesh = meshes[name] = stack.enter_context(Fast(IPV4, user))
            # With TPROXY, Envoy takes the client's address with a port of the pod's: they must not meet.
            for namespace, (low, high) in ((mesh.pod.peer, CLIENT_PORTS), (mesh.pod.namespace, POD_PORTS)):
                namespace.run("sysctl", "-q", "-w", f"net.ipv4.ip_local_port_range={low} {high}")
            if options:
                mesh.pod.apply(options)
        yield meshes


def _durations(direction: Scenario, mesh: Mesh, requests: int) -> list[float]:
    """How long each request took, in seconds."""
    taken = []
    for _ in range(requests):
        client = mesh.outside() if direction.inbound else mesh.inside()
        begin = time.perf_counter()
        assert get(client, _target(direction, mesh)) == "responder_ipv4"
        taken.append(time.perf_counter() - begin)
    return taken


def _target(direction: Scenario, mesh: Mesh) -> Address:
    if direction.open_door:
        return mesh.open_door
    return mesh.to_app if direction.inbound else mesh.to_upstream


def _entries(direction: Scenario, mesh: Mesh, requests: int) -> float:
    """The conntrack entries in the pod's namespace that a request leaves, on average."""
    mesh.pod.namespace.run("conntrack", "--flush")
    _durations(direction, mesh, requests)
    return int(mesh.pod.namespace.run("conntrack", "--count")) / requests


def table(measured: dict[Scenario, Measured]) -> str:
    """The result in Markdown; each direction is compared with its own first row."""
    lines = [
        "| a request on a connection of its own | requests/s | p50 | p99 | conntrack entries |",
        "| --- | --- | --- | --- | --- |",
    ]
    for direction, result in measured.items():
        first = measured[next(each for each in WAYS if each.inbound == direction.inbound)]
        ratios = [_ratio(figure, result, first) for figure in (_rate, _p50, _p99)]
        lines.append(f"| {direction.title} | {' | '.join(ratios)} | {result.entries:.1f} |")
    return "\n".join(lines)


def _ratio(figure: Callable[[list[float]], float], result: Measured, first: Measured) -> str:
    return f"{figure(result.seconds) / figure(first.seconds):.2f}"


def _rate(seconds: list[float]) -> float:
    return len(seconds) / sum(seconds)


def _p50(seconds: list[float]) -> float:
    return statistics.median(seconds)


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def main(page: str = "") -> None:
    """Measure and print; with the name of a page that has a table, put it there."""
    text = table(measure(ROUNDS, REQUESTS))
    print(text)
    if page:
        path = Path(page)
        path.write_text(re.sub(r"(?m)(^\|.*\n)+", lambda _: f"{text}\n", path.read_text(), count=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
