"""References in a configuration: clusters and routes of listeners, addresses of services."""

from __future__ import annotations

from istio_init.envoy.addresses import ANY, packed
from istio_init.envoy.dump import CLUSTERS, ROUTES
from istio_init.envoy.hosts import plain_domains

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.dump import Dump
    from istio_init.envoy.listeners import Listener
    from istio_init.envoy.node import Node
    from istio_init.envoy.walk import Configuration


# What a reference leads to.
ROUTE_CONFIGURATION, CLUSTER = "route configuration", "cluster"


def missing(dump: Dump) -> Iterator[tuple[str, str, Node]]:
    """References to missing clusters and route configurations: the kind, the name, and the referring node."""
    reported: set[tuple[str, str]] = set()
    for kind, name, node in _references(dump):
        exists = name in (dump.routes if kind == ROUTE_CONFIGURATION else dump.clusters)
        has_any = dump.has(ROUTES if kind == ROUTE_CONFIGURATION else CLUSTERS)
        if has_any and not exists and (kind, name) not in reported:
            reported.add((kind, name))
            yield kind, name, node


def _references(dump: Dump) -> Iterator[tuple[str, str, Node]]:
    """Every reference of the listeners' filters: the kind, the name, and the referring node."""
    for config in (config for listener in dump.listeners for config in _filters(listener)):
        if name := config.at("rds", "route_config_name").text():
            yield ROUTE_CONFIGURATION, name, config.get("rds")
        for table in _tables(dump, config):
            yield from ((CLUSTER, cluster, node) for cluster, node, _ in _of_routes(table))
        yield from ((CLUSTER, cluster, node) for cluster, node in _named(config))


def clusters_of(dump: Dump, listener: Listener) -> tuple[str, ...]:
    """The names of the clusters that a listener's connections can go to."""
    names = [name for config in _filters(listener.node) for name, _ in _named(config)]
    for config in _filters(listener.node):
        names += [name for table in _tables(dump, config) for name, _, _ in _of_routes(table)]
    return tuple(dict.fromkeys(names))


def domains_of(dump: Dump, listener: Listener, cluster: str) -> tuple[str, ...]:
    """One domain without a wildcard for each of a listener's virtual hosts that lead to a cluster."""
    domains = []
    for config in _filters(listener.node):
        for table in _tables(dump, config):
            domains += [next(iter(plain_domains(host)), "") for name, _, host in _of_routes(table) if name == cluster]
    return tuple(dict.fromkeys(domains))


def services(configuration: Configuration) -> Iterator[tuple[bytes, int, str, str]]:
    """Each address and port with an outbound listener or a virtual host, with its name and its path in the dump."""
    for listener in configuration.listeners.all:
        if listener.bound:
            continue
        for socket in listener.sockets:
            if socket.address not in ANY:
                yield socket.address, socket.port, listener.name, listener.node.path
                continue
            for host in _virtual_hosts(configuration.dump, listener):
                for address in filter(None, (packed(domain.strip("[]")) for domain in plain_domains(host))):
                    yield address, socket.port, host.get("name").text(), host.path


def _virtual_hosts(dump: Dump, listener: Listener) -> Iterator[Node]:
    for config in _filters(listener.node):
        for table in _tables(dump, config):
            yield from table.get("virtual_hosts").each()


def _filters(listener: Node) -> Iterator[Node]:
    """The configurations of all network filters of a listener."""
    for chain in (*listener.get("filter_chains").each(), listener.get("default_filter_chain")):
        for each in chain.get("filters").each():
            yield each.get("typed_config")


def _tables(dump: Dump, config: Node) -> Iterator[Node]:
    """The route configuration of a connection manager."""
    if config.kind != "HttpConnectionManager":
        return
    if table := config.get("route_config"):
        yield table
    elif (name := config.at("rds", "route_config_name").text()) in dump.routes:
        yield dump.routes[name]


def _of_routes(table: Node) -> Iterator[tuple[str, Node, Node]]:
    """The clusters of a route configuration: the name, the route's action, the virtual host."""
    for host in table.get("virtual_hosts").each():
        for route in host.get("routes").each():
            for name, node in _named(route.get("route")):
                yield name, node, host


def _named(node: Node) -> Iterator[tuple[str, Node]]:
    """The clusters that an action or a TCP proxy names."""
    if "cluster" in node.fields() and isinstance(node.get("cluster").value, str):
        yield node.get("cluster").text(), node
    for each in node.get("weighted_clusters").get("clusters").each() if "weighted_clusters" in node.fields() else ():
        yield each.get("name").text(), node
