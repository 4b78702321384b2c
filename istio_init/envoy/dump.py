"""A configuration dump as a value: listeners, clusters, routes and endpoints by name, each with its path in the dump.

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
    """An update that Envoy rejected: the resource's name, if known, the reason, and the path in the dump."""

    name: str
    why: str
    path: str


class Dump(Record):
    """An indexed dump. `parts` has the names of its messages; the contents of others are unknown."""

    parts: frozenset[str]
    listeners: tuple[Node, ...]
    clusters: dict[str, Node]
    routes: dict[str, Node]
    endpoints: dict[str, Node]
    refused: tuple[Refused, ...]
    bootstrap: Node
    # Unhealthy hosts by cluster, from /clusters?format=json.
    ejected: dict[str, frozenset[str]] = {}  # noqa: RUF012 (a Record is never changed)

    def has(self, part: str) -> bool:
        """Whether the dump has this part at all."""
        return part in self.parts


def load(text: str) -> Dump:
    """Parse a dump. DumpError, in one line, if it is not a dump of Envoy's configuration."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DumpError(f"not JSON: {error}; is it cut off?") from None
    except RecursionError:
        raise DumpError("not a dump: nested too deeply") from None
    return read(value)


def read(value: Any) -> Dump:  # noqa: ANN401 (any JSON)
    """The dump from a JSON value. DumpError if it is not one."""
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
    by_kind: dict[str, list[Node]] = {}
    for message in messages:
        if isinstance(message.value, dict) and ".v2" in str(message.value.get("@type")):
            raise DumpError(f"{message.path}: Envoy's v2 API, removed in Envoy 1.17, is not supported")
        by_kind.setdefault(message.kind, []).append(message)
    if not by_kind.keys() & {LISTENERS, CLUSTERS, ROUTES, ENDPOINTS}:
        raise DumpError(
            "the dump has no listeners, clusters, routes or endpoints; use the answer to /config_dump?include_eds"
        )
    bootstrap = next((each.get("bootstrap") for each in by_kind.get(BOOTSTRAP, ())), Node(None, "bootstrap"))
    every = [each for messages in by_kind.values() for each in messages]
    return Dump(
        frozenset(by_kind),
        tuple(_listeners(by_kind.get(LISTENERS, ()))),
        _named(_clusters(by_kind.get(CLUSTERS, ())), "name"),
        _named(_routes(by_kind.get(ROUTES, ())), "name"),
        _named(_endpoints(by_kind.get(ENDPOINTS, ())), "cluster_name"),
        tuple(_refused(every)),
        bootstrap,
    )


def _named(nodes: Iterator[Node], key: str) -> dict[str, Node]:
    """The nodes by name; the first one with a name is used."""
    by_name: dict[str, Node] = {}
    for node in nodes:
        name = node.get(key).text()
        if name not in by_name:
            by_name[name] = node
    return by_name


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
    """The name of an entry's resource, for entries without a name."""
    for part, key in (("cluster", "name"), ("route_config", "name"), ("endpoint_config", "cluster_name")):
        if name := entry.get(part).get(key).text():
            return name
    return ""


def with_health(dump: Dump, text: str) -> Dump:
    """The dump with the endpoints that Envoy itself considers unhealthy, from /clusters?format=json."""
    try:
        root = Node(json.loads(text), "clusters")
    except (ValueError, RecursionError):
        raise DumpError("the answer to /clusters?format=json is not JSON") from None
    return dump.replace(
        ejected={each.get("name").text(): _unhealthy(each) for each in root.get("cluster_statuses").each()}
    )


# The health flags that Envoy itself sets.
FAILURES = ("failed_active_health_check", "failed_outlier_check")


def _unhealthy(cluster: Node) -> frozenset[str]:
    endpoints = set()
    for each in cluster.get("host_statuses").each():
        health = each.get("health_status")
        if any(health.get(name).flag() for name in FAILURES):
            socket = each.at("address", "socket_address")
            address = packed(socket.get("address").text())
            if address is not None:
                endpoints.add(endpoint_text(address, socket.get("port_value").port()))
    return frozenset(endpoints)
