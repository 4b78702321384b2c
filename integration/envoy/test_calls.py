"""Calls with real rules and a real Envoy, in three modes: its access log says what the walk says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.envoy.world import World, client
from istio_init.envoy.client import Client
from istio_init.envoy.passage import Passage
from istio_init.envoy.path import Path
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.simulate.path import Leg

RATINGS, ECHO, SNIFFED, REVIEWS = "10.96.0.10", "10.96.0.20", "10.96.0.30", "10.96.0.40"
POD, ELSEWHERE = "10.77.0.2", "203.0.113.9"

# Which way, to where, who: a service and a pod, the app's own service, what is excluded, what nobody knows.
CALLS: dict[str, tuple[str, str, int, Client]] = {
    "in http": ("in", POD, 9080, client("http", "reviews")),
    "in http, any path": ("in", POD, 9080, client("http", "any-host", "/a/b?c")),
    "in bytes on an HTTP port": ("in", POD, 9080, client("tcp")),
    "in mtls": ("in", POD, 9080, client("mtls", "reviews")),
    "in the app's TLS on an HTTP port": ("in", POD, 9080, client("tls", "reviews")),
    "in http on a sniffed port": ("in", POD, 8001, client("http", "reviews")),
    "in bytes on a sniffed port": ("in", POD, 8001, client("tcp")),
    "in mtls on a sniffed port": ("in", POD, 8001, client("mtls", "reviews")),
    "in bytes on a TCP port": ("in", POD, 7071, client("tcp")),
    "in http on a port without chains": ("in", POD, 1234, client("http", "x")),
    "in bytes on a port without chains": ("in", POD, 1234, client("tcp")),
    "in on Envoy's own port": ("in", POD, 15006, client("tcp")),
    "in on an excluded port": ("in", POD, 15090, client("http", "x")),
    "out to a service": ("out", RATINGS, 9080, client("http", "ratings")),
    "out to a service by another name": ("out", RATINGS, 9080, client("http", "ratings.default:9080")),
    "out by a header": ("out", RATINGS, 9080, client("http", "ratings", "/v2/x", end_user="jason")),
    "out to another address, the same Host": ("out", ELSEWHERE, 9080, client("http", "ratings")),
    "out to nobody's Host": ("out", ELSEWHERE, 9080, client("http", "unknown")),
    "out bytes on an HTTP port": ("out", RATINGS, 9080, client("tcp")),
    "out http on a sniffed port": ("out", SNIFFED, 5555, client("http", "sniffed")),
    "out bytes on a sniffed port": ("out", SNIFFED, 5555, client("tcp")),
    "out on a TCP port": ("out", ECHO, 7070, client("tcp")),
    "out to a port that nobody declared": ("out", ELSEWHERE, 1234, client("tcp")),
    "out to the app's own service": ("out", REVIEWS, 8001, client("http", "reviews")),
    "out to the app's own service, bytes": ("out", REVIEWS, 7071, client("tcp")),
    "out to the app's own service by name": ("out", REVIEWS, 9080, client("http", "reviews")),
    "out to anybody's 15090": ("out", ELSEWHERE, 15090, client("http", "x")),
    "out on Envoy's own port": ("out", ELSEWHERE, 15001, client("tcp")),
    "in, a server that speaks first": ("in", POD, 7071, client("server-first")),
    "the app calls itself": ("out", POD, 9080, client("http", "x")),
}
MODES = ("REDIRECT", "REGISTRY_ONLY", "TPROXY")


@pytest.fixture(scope="module", params=MODES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    mode = "TPROXY" if request.param == "TPROXY" else "REDIRECT"
    with World(mode, registry_only=request.param == "REGISTRY_ONLY") as instance:
        yield instance


@pytest.mark.parametrize("name", CALLS)
def test_a_call(world: World, name: str) -> None:
    direction, address, port, caller = CALLS[name]
    path = world.walk(direction, address, port, caller)
    peers = {each: [len(server.peers) for server in servers] for each, servers in world.servers.items()}
    answer = world.call(direction, address, port, caller)
    if path.end == "hangs":
        assert answer == "hangs"
        return
    logged = world.logged(len(path.passages))
    # The inner connection is closed, and logged, first or last.
    assert sorted(map(flat, map(entry, logged))) == sorted(map(flat, expected(path))), answer
    assert answer == ending(path, caller)
    if not caller.is_http:
        # Of HTTP the answer names the server, and Envoy may have had a connection to it before.
        reached = {
            each: any(len(server.peers) > count for server, count in zip(servers, peers[each], strict=True))
            for each, servers in world.servers.items()
        }
        assert reached == {"app": path.end == "application", "peer": path.end == "wire"}


def expected(path: Path) -> Iterator[dict[str, Any]]:
    """What the access log is to say, by the walk."""
    for number, stage in enumerate(path.stages):
        if isinstance(stage, Passage):
            following = path.stages[number + 1] if stage.dials else None
            assert following is None or isinstance(following, Leg)
            yield {
                "listener": stage.listener,
                "chain": stage.chain or None,
                "route": stage.route or None,
                "cluster": stage.cluster or None,
                "flags": stage.end.flag or "-",
                "status": 0 if stage.end.status == 200 else stage.end.status,
                "source": address_text(following.packet.source) if following else None,
                "host": endpoint_text(stage.dials[0].address, stage.dials[0].port) if stage.dials else None,
            }


def entry(logged: dict[str, Any]) -> dict[str, Any]:
    """An entry of the log, as far as the walk says it: 200 is what a server says."""
    return {**logged, "status": 0 if logged["status"] in {None, 200} else logged["status"]}


def flat(each: dict[str, Any]) -> str:
    return " ".join(f"{name}={each.get(name)}" for name in sorted(each))


def ending(path: Path, caller: Client) -> str:
    """What the client gets, by the walk."""
    if path.end in {"application", "wire"}:
        server = "app" if path.end == "application" else "peer"
        return server if caller.is_http else "echo"
    last = path.passages[-1].end
    if last.kind == "answers":
        return path.passages[-1].listener if last.status == 200 else str(last.status)
    return "closed"
