"""Random filter chains in a real Envoy: each connection reaches the chain that the walk names."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from integration.containers.envoy import Envoy
from integration.envoy.many_listeners import running
from integration.envoy.random_chains import Call, random_listener
from istio_init.envoy import chains, listeners
from istio_init.envoy.addresses import packed
from istio_init.envoy.client import CLIENTS, Client
from istio_init.envoy.dump import Dump, load

LISTENERS, CALLS = 120, 50
PATIENCE = 10.0


@pytest.fixture(scope="module")
def seed() -> int:
    return random.SystemRandom().randrange(2**32)


@pytest.fixture(scope="module")
def envoy(seed: int) -> Iterator[Envoy]:
    with running(seed, LISTENERS, random_listener) as running_program:
        yield running_program


def test_each_connection_reaches_the_chain_that_the_walk_names(envoy: Envoy, seed: int) -> None:
    chance = random.Random(seed + 1)
    dump = load(envoy.ask("/config_dump?include_eds"))
    every = listeners.listeners(dump)
    assert len(every) == LISTENERS
    calls = [(listener, Call(chance)) for listener in every for _ in range(CALLS)]
    answers = envoy.namespace.inside(lambda: [answer(listener.sockets[0].port, call) for listener, call in calls])
    wrong = [
        f"{listener.name}, {vars(call)}: Envoy says {real!r}, the walk {walked!r}"
        for (listener, call), real in zip(calls, answers, strict=True)
        if (walked := chosen(dump, listener, call)) != real
    ]
    assert not wrong, f"seed {seed}: {len(wrong)} of {len(calls)} differ, such as {wrong[0]}"
    assert len({*answers}) > 8, "the connections reach many chains, or this shows nothing"


def answer(port: int, call: Call) -> str:
    """The name of the chain that Envoy chooses; empty where it closes the connection."""
    message = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        try:
            client.sendall(call.first_words())
            while more := client.recv(4096):
                message += more
        except (ConnectionResetError, BrokenPipeError):
            # Envoy closes with the client's first words unread; what it had said before arrives all the same.
            pass
    return message.decode()


def chosen(dump: Dump, listener: listeners.Listener, call: Call) -> str:
    """The name of the chain that the walk chooses; empty where it says that there is none."""
    detected = listeners.detect(without_proxy_protocol(listener), call.port, client(call))
    source, destination = packed(call.source), packed(call.destination)
    assert source
    assert destination
    connection = chains.Downstream(
        source, call.source_port, destination, call.port, detected.transport, detected.sni, detected.alpn,
        packed("127.0.0.1") or b"",
    )  # fmt: skip
    selection = chains.select(listener, connection)
    assert not selection.unclear
    return selection.chain.name if selection.chain else ""


def without_proxy_protocol(listener: listeners.Listener) -> listeners.Listener:
    """A listener whose PROXY header the test has read itself."""
    node = listener.node
    kept = [each for each in node.value["listener_filters"] if "proxy_protocol" not in each["name"]]
    return listener.replace(node=node.replace(value={**node.value, "listener_filters": kept}))


def client(call: Call) -> Client:
    """The caller as the walk knows clients."""
    if call.says == "tls":
        return CLIENTS["tls"].replace(sni=call.sni, alpn=call.alpn)
    return CLIENTS["tcp" if call.says == "bytes" else call.says]
