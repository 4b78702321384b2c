"""Random virtual hosts and routes in a real Envoy: each request takes the route that the walk names."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from integration.containers.envoy import Envoy
from integration.envoy.many_listeners import running
from integration.envoy.random_routes import listener, random_configuration, random_request
from istio_init.envoy.client import HttpCall
from istio_init.envoy.dump import load
from istio_init.envoy.hosts import choose
from istio_init.envoy.listeners import listeners

CONFIGURATIONS, REQUESTS = 160, 60
PATIENCE = 10.0
NOT_FOUND = "404"


@pytest.fixture(scope="module")
def seed() -> int:
    return random.SystemRandom().randrange(2**32)


@pytest.fixture(scope="module")
def envoy(seed: int) -> Iterator[Envoy]:
    with running(
        seed, CONFIGURATIONS, lambda chance, port: listener(*random_configuration(chance), port)
    ) as running_program:
        yield running_program


def test_each_request_takes_the_route_that_the_walk_names(envoy: Envoy, seed: int) -> None:
    chance = random.Random(seed + 1)
    wrong, answers = [], []
    for each in listeners(load(envoy.ask("/config_dump?include_eds"))):
        manager = next(each.node.get("filter_chains").each()).get("filters").value[0]["typed_config"]
        node = each.node.replace(value=manager)
        requests = [random_request(chance) for _ in range(REQUESTS)]
        port = each.sockets[0].port
        real = envoy.namespace.inside(lambda requests=requests, port=port: routes_taken(port, requests))  # type: ignore[misc]
        for request, answer in zip(requests, real, strict=True):
            choice = choose(node.get("route_config"), node, request, port)
            assert not choice.unclear, choice.unclear
            walked = choice.route.name if choice.route else NOT_FOUND
            answers.append(answer)
            if walked != answer:
                configuration = node.get("route_config").value
                wrong.append(f"{request}: Envoy says {answer}, the walk {walked}: {configuration}")
    assert not wrong, f"seed {seed}: {len(wrong)} of {len(answers)} differ, such as {wrong[0]}"
    assert len({*answers}) > 20, "the requests take many routes, or this shows nothing"


def routes_taken(port: int, requests: list[HttpCall]) -> list[str]:
    """The names of the routes that requests take, one after the other on one connection."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        stream = client.makefile("rb")
        result = []
        for request in requests:
            lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {request.host}", "Content-Length: 0"]
            lines += [f"{name}: {value}" for name, value in request.headers]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            status = stream.readline().split()[1].decode()
            length = 0
            while (line := stream.readline().strip().lower()) != b"":
                length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
            body = stream.read(length).decode()
            result.append(body if status == "200" else status)
        return result
