"""Phrases for the steps of a connection's walk through a proxy."""

from __future__ import annotations

from istio_init.envoy import chains, hosts
from istio_init.envoy.client import TLS, Client
from istio_init.envoy.node import plain
from istio_init.formats.addresses import endpoint_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.chains import FilterChain
    from istio_init.envoy.listeners import Listener
    from istio_init.envoy.node import Node

# Labels of a chain's criteria, in order.
LABELS = ("port ", "to ", "SNI ", "", "", "directly from ", "source ", "from ", "source port ")


def speaks_text(client: Client) -> str:
    """What a client speaks, as `explain --speaks` has it."""
    if client.transport == TLS:
        return client.speaks
    return {"http/1.1": "http", "h2c": "h2c", "bytes": "tcp", "silence": "server-first"}[client.application]


def count_text(number: int) -> str:
    """A number of endpoints."""
    return f"{number} endpoint{'s' * (number != 1)}"


def quoted_name(name: str) -> str:
    """A name that may be missing, behind a blank."""
    return f" {plain(name)}" if name else ""


def chain_name(chain: FilterChain) -> str:
    """A filter chain by its number and, if it has one, its name."""
    return f"chain {chain.number}{quoted_name(chain.name)}"


def route_name(route: hosts.HttpRoute) -> str:
    """A route likewise."""
    return f"route {route.number}{quoted_name(route.name)}"


def listener_text(listener: Listener, address: bytes, port: int) -> str:
    """A listener, and the original destination that it restores."""
    where = f"original destination {endpoint_text(address, port)}" if listener.restores else "no original destination"
    return f"{plain(listener.name)}, {where}"


def criteria_text(chain: FilterChain) -> str:
    """The criteria of a filter chain; empty where it takes every connection."""
    named = [
        f"{label}{' or '.join(chains.value_text(value) for value in values[:6])}"
        for label, values in zip(LABELS, chain.criteria, strict=True)
        if values
    ]
    return f": {', '.join(map(plain, named))}" if named else ""


def match_text(match: Node) -> str:
    """What a route matches: the path, headers and parameters."""
    fields = match.fields()
    kind = next((name for name in hosts.PATHS if name in fields), "")
    value = fields[kind].get("regex").text() if kind == "safe_regex" else fields[kind].text() if kind else ""
    parts = [f"{kind} {plain(value)}"]
    parts += [f"header {plain(each.get('name').text())}" for each in match.get("headers").each()]
    parts += [f"parameter {plain(each.get('name').text())}" for each in match.get("query_parameters").each()]
    return ", ".join(parts)
