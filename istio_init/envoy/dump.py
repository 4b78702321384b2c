"""A configuration dump as a value: listeners, clusters, routes and endpoints by name, each with its place.

It is what Envoy's admin interface answers to /config_dump?include_eds, in either spelling of protobuf's JSON. Its
entries are read only when they are needed: a dump of thousands of clusters is not parsed as a whole.
Source: envoy/api envoy/admin/v3/config_dump_shared.proto.
"""

from __future__ import annotations

import json

from istio_init.envoy.addresses import packed
from istio_init.envoy.node import DumpError, Node, clipped
from istio_init.formats.addresses import endpoint_text
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# The parts of a dump, by the message that has them.
LISTENERS, CLUSTERS, ROUTES, ENDPOINTS, BOOTSTRAP = (
    "ListenersConfigDump", "ClustersConfigDump", "RoutesConfigDump", "EndpointsConfigDump", "BootstrapConfigDump",
)  # fmt: skip


class Refused(Record):
    """An update that Envoy refused: what of (its name, where there is one), why, and where the dump says so."""

    name: str
    why: str
    path: str


class Dump(Record):
    """A dump, indexed. `parts` says which messages it has: what another message would hold is not known."""

    parts: frozenset[str]
    listeners: tuple[Node, ...]
    clusters: dict[str, Node]
    routes: dict[str, Node]
    endpoints: dict[str, Node]
    refused: tuple[Refused, ...]
    bootstrap: Node
    # The endpoints' health as /clusters?format=json has it: unhealthy hosts by cluster.
    ejected: dict[str, frozenset[str]] = {}  # noqa: RUF012 (a Record is never changed)

    def has(self, part: str) -> bool:
        """Whether the dump has this part at all."""
        return part in self.parts


def load(text: str) -> Dump:
    """The dump in a text. DumpError, in one line, where it is no dump of Envoy's configuration."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DumpError(f"not JSON: {error}; is it cut off?") from None
    except RecursionError:
        raise DumpError("not a dump: nested too deeply") from None
    return read(value)


def read(value: Any) -> Dump:  # noqa: ANN401 (any JSON)
    """The dump that a JSON value is. DumpError where it is none."""
    root = Node(value)
    if not isinstance(value, dict):
        raise DumpError(
            f"not a dump of Envoy's configuration but {clipped(value)}; use the answer to /config_dump?include_eds"
        )
    messages = list(root.get("configs").each())
    if not messages:
        raise DumpError(
            "not a dump of Envoy's configuration: it has no configs; use the answer to /config_dump?include_eds"
        )
    found: dict[str, list[Node]] = {}
    for message in messages:
        if isinstance(message.value, dict) and ".v2" in str(message.value.get("@type")):
            raise DumpError(
                f"{message.path}: of Envoy's second API (v2), which ended with Envoy 1.17; nothing is known of it"
            )
        found.setdefault(message.kind, []).append(message)
    if not found.keys() & {LISTENERS, CLUSTERS, ROUTES, ENDPOINTS}:
        raise DumpError(
            "the dump has no listeners, clusters, routes or endpoints; use the answer to /config_dump?include_eds"
        )
    bootstrap = next((each.get("bootstrap") for each in found.get(BOOTSTRAP, ())), Node(None, "bootstrap"))
    every = [each for messages in found.values() for each in messages]
    return Dump(
        frozenset(found),
        tuple(_listeners(found.get(LISTENERS, ()))),
        _named(_clusters(found.get(CLUSTERS, ())), "name"),
        _named(_routes(found.get(ROUTES, ())), "name"),
        _named(_endpoints(found.get(ENDPOINTS, ())), "cluster_name"),
        tuple(_refused(every)),
        bootstrap,
    )


def _named(nodes: Iterator[Node], key: str) -> dict[str, Node]:
    """By name; the first of a name counts."""
    found: dict[str, Node] = {}
    for node in nodes:
        name = node.get(key).text()
        if name not in found:
            found[name] = node
    return found


def _listeners(messages: Any) -> Iterator[Node]:  # noqa: ANN401
    for message in messages:
        for each in message.get("static_listeners").each():
            if listener := each.get("listener"):
                yield listener
        for each in message.get("dynamic_listeners").each():
            if listener := each.at("active_state", "listener"):
                yield listener


def _clusters(messages: Any) -> Iterator[Node]:  # noqa: ANN401
    for message in messages:
        for part in ("static_clusters", "dynamic_active_clusters"):
            for each in message.get(part).each():
                if cluster := each.get("cluster"):
                    yield cluster


def _routes(messages: Any) -> Iterator[Node]:  # noqa: ANN401
    # A route configuration inside a listener is a static one; its name need not be unique.
    for message in messages:
        for part in ("dynamic_route_configs", "static_route_configs"):
            for each in message.get(part).each():
                if route := each.get("route_config"):
                    yield route


def _endpoints(messages: Any) -> Iterator[Node]:  # noqa: ANN401
    for message in messages:
        for part in ("dynamic_endpoint_configs", "static_endpoint_configs"):
            for each in message.get(part).each():
                if assignment := each.get("endpoint_config"):
                    yield assignment


PARTS = (
    "dynamic_listeners", "dynamic_active_clusters", "dynamic_warming_clusters", "dynamic_route_configs",
    "dynamic_endpoint_configs",
)  # fmt: skip


def _refused(messages: list[Node]) -> Iterator[Refused]:
    for message in messages:
        for part in PARTS:
            for each in message.get(part).each():
                if error := each.get("error_state"):
                    name = each.get("name").text() or error.at("failed_configuration", "name").text()
                    yield Refused(name or _inner_name(each), error.get("details").text(), error.path)


def _inner_name(entry: Node) -> str:
    """The name of what an entry holds, where the entry has none of its own."""
    for part, key in (("cluster", "name"), ("route_config", "name"), ("endpoint_config", "cluster_name")):
        if name := entry.get(part).get(key).text():
            return name
    return ""


def with_health(dump: Dump, text: str) -> Dump:
    """The dump with what /clusters?format=json says of endpoints that Envoy itself has found to be unhealthy."""
    try:
        root = Node(json.loads(text), "clusters")
    except (ValueError, RecursionError):
        raise DumpError("the answer to /clusters?format=json is not JSON") from None
    return dump.replace(
        ejected={each.get("name").text(): _unhealthy(each) for each in root.get("cluster_statuses").each()}
    )


# What makes an endpoint unhealthy, beside what the control plane says.
FAILURES = ("failed_active_health_check", "failed_outlier_check")


def _unhealthy(cluster: Node) -> frozenset[str]:
    found = set()
    for each in cluster.get("host_statuses").each():
        health = each.get("health_status")
        if any(health.get(name).flag() for name in FAILURES):
            socket = each.at("address", "socket_address")
            address = packed(socket.get("address").text())
            if address is not None:
                found.add(endpoint_text(address, socket.get("port_value").port()))
    return frozenset(found)
