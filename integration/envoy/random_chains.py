"""Random filter chains and connections: what the walk says of them, and what a real Envoy does with them."""

from __future__ import annotations

import itertools
import random
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

from integration.containers.envoy_config import TYPES, Json

# Chooses what a chain names of one field.
Pool: TypeAlias = Callable[[], Sequence[str]]
PORTS = [(), (), ("443",), ("80",), ("8080",)]
NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "2001:db8::/32", "2001:db8::1/128"]
WHOLE = ["0.0.0.0/0", "::/0"]
NAMES = ["a.example.com", "b.a.example.com", "*.example.com", "*.a.example.com", "*.com", "*.example.org"]
PROTOCOLS = ["h2", "http/1.1", "h2c", "istio", "istio-http/1.1"]
SOURCES = ["127.0.0.1/32", "127.0.0.0/8", "10.9.0.0/16", "10.9.8.7/32", "2001:db8:9::/48"]
SOURCE_PORTS = ["1000", "2000", "3000"]

# What clients have of each.
DESTINATIONS = ["10.1.2.3", "10.1.9.9", "10.200.0.1", "192.0.2.55", "198.51.100.1", "127.0.0.1"]
DESTINATIONS6 = ["2001:db8::1", "2001:db8::2", "2001:db9::1", "::1"]
CALLERS = ["127.0.0.1", "127.0.0.6", "10.9.8.7", "10.9.1.1", "10.1.2.3", "203.0.113.5"]
CALLERS6 = ["::1", "2001:db8:9::7", "2001:db8::1", "2001:dba::1"]
CALLED = [
    "a.example.com",
    "b.a.example.com",
    "c.b.a.example.com",
    "x.example.com",
    "example.com",
    "x.org",
    "A.example.COM",
]
OFFERED = [[], ["h2", "http/1.1"], ["http/1.1"], ["istio-http/1.1", "istio", "http/1.1"], ["unheard-of", "h2"]]

FIELDS = (
    "destination_port", "prefix_ranges", "server_names", "transport_protocol", "application_protocols",
    "direct_source_prefix_ranges", "source_type", "source_prefix_ranges", "source_ports",
)  # fmt: skip


class Call:
    """One connection: addresses as the PROXY header tells them, and what the client says."""

    def __init__(self, chance: random.Random) -> None:
        six = chance.random() < 0.25
        self.source = chance.choice(CALLERS6 if six else CALLERS)
        self.destination = chance.choice(DESTINATIONS6 if six else DESTINATIONS)
        self.source_port = int(chance.choice([*SOURCE_PORTS, "4000"]))
        self.port = int(chance.choice(["443", "80", "8080", "9090"]))
        self.says = chance.choice(["tls", "tls", "http", "h2c", "bytes"])
        self.sni = chance.choice([*CALLED, ""])
        self.alpn = tuple(chance.choice(OFFERED))

    def first_words(self) -> bytes:
        """What the client sends: a PROXY header (version 2), and then what it says."""
        family, kind = (socket.AF_INET6, 0x21) if ":" in self.source else (socket.AF_INET, 0x11)
        addresses = socket.inet_pton(family, self.source) + socket.inet_pton(family, self.destination)
        body = addresses + struct.pack("!HH", self.source_port, self.port)
        header = b"\r\n\r\n\0\r\nQUIT\n\x21" + struct.pack("!BH", kind, len(body)) + body
        words = {
            "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "h2c": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "bytes": b"\1" * 64,
        }
        return header + (hello(self.sni, self.alpn) if self.says == "tls" else words[self.says])


@cache
def hello(sni: str, alpn: tuple[str, ...]) -> bytes:
    """A TLS ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=sni or None)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def random_listener(chance: random.Random, port: int) -> Json:
    """A listener of random chains, each of which answers with its name."""
    chains: list[Json] = []
    taken: set[tuple[str, ...]] = set()
    pools = _pools(chance)
    for _ in range(chance.randint(1, 12)):
        values = tuple(tuple(pool()) for pool in pools)
        combined = set(itertools.product(*(each or ("",) for each in values)))
        # Envoy refuses chains that overlap in all they name.
        if combined & taken:
            continue
        taken |= combined
        chains.append(_chain(f"chain-{len(chains) + 1}", values))
    listener: Json = {
        "name": f"listener-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [
            _filter("proxy_protocol", "proxy_protocol.v3.ProxyProtocol"),
            _filter("tls_inspector", "tls_inspector.v3.TlsInspector"),
            *([_filter("http_inspector", "http_inspector.v3.HttpInspector")] if chance.random() < 0.8 else []),
        ],
        "filter_chains": chains,
    }
    if chance.random() < 0.5:
        listener["default_filter_chain"] = _chain("default", ((),) * 9)
    return listener


def _pools(chance: random.Random) -> tuple[Pool, ...]:
    whole = chance.random() < 0.2
    whole_source = chance.random() < 0.2

    def some(values: list[str], likely: float, most: int = 2) -> Pool:
        return lambda: chance.sample(values, chance.randint(1, most)) if chance.random() < likely else []

    def networks(values: list[str], everything: bool) -> Pool:
        # To name 0.0.0.0/0 beside nothing is not defined: one of the two only.
        return lambda: some(values, 0.6)() or (list(WHOLE) if everything else [])

    return (
        lambda: chance.choice(PORTS),
        networks(NETWORKS, whole),
        some(NAMES, 0.5),
        lambda: chance.choice([[], [], ["tls"], ["raw_buffer"]]),
        some(PROTOCOLS, 0.4, 3),
        some(["127.0.0.0/8", "10.0.0.0/8"], 0.2, 1),
        lambda: chance.choice([[], [], [], ["EXTERNAL"], ["SAME_IP_OR_LOOPBACK"]]),
        networks(SOURCES, whole_source),
        some(SOURCE_PORTS, 0.3),
    )


def _chain(name: str, values: tuple[tuple[str, ...], ...]) -> Json:
    match: Json = {}
    for field, each in zip(FIELDS, values, strict=True):
        if not each:
            continue
        if field.endswith("ranges"):
            match[field] = [
                {"address_prefix": text.split("/")[0], "prefix_len": int(text.split("/")[1])} for text in each
            ]
        elif field == "source_ports":
            match[field] = [int(port) for port in each]
        elif field == "destination_port":
            match[field] = int(each[0])
        else:
            match[field] = each[0] if field in {"transport_protocol", "source_type"} else list(each)
    answer = {"@type": f"{TYPES}.filters.network.direct_response.v3.Config", "response": {"inline_string": name}}
    filters = [{"name": "envoy.filters.network.direct_response", "typed_config": answer}]
    return {"name": name, "filter_chain_match": match, "filters": filters}


def _filter(name: str, kind: str) -> Json:
    return {"name": f"envoy.filters.listener.{name}", "typed_config": {"@type": f"{TYPES}.filters.listener.{kind}"}}
