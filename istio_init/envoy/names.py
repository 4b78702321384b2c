"""Resolves a service's name from a dump's domains and listeners, without DNS."""

from __future__ import annotations

from istio_init.envoy.addresses import ANY, packed
from istio_init.envoy.hosts import plain_domains

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.node import Node
    from istio_init.envoy.walk import Configuration


def address_of(configuration: Configuration, name: str, port: int) -> bytes | None:
    """The address of a name: the name itself, its virtual host's, or its listener's; None if unknown.

    A virtual host for this port takes precedence.
    """
    if literal := packed(name.strip("[]")):
        return literal
    name = name.lower()
    routes = sorted(configuration.dump.routes.items(), key=lambda each: not _of_port(each[0], port))
    for _, route in routes:
        for host in route.get("virtual_hosts").each():
            domains = [domain.lower() for domain in plain_domains(host)]
            if name in domains or f"{name}:{port}" in domains:
                addresses = (packed(domain.strip("[]")) for domain in domains)
                if address := next((each for each in addresses if each), None):
                    return address
    return next(_listening(configuration, name, port), None)


def _of_port(route: str, port: int) -> bool:
    return route == str(port) or route.endswith(f":{port}")


def _listening(configuration: Configuration, name: str, port: int) -> Iterator[bytes]:
    """Addresses of a port's listeners that lead to a service with this name."""
    for listener in configuration.listeners.all:
        for socket in listener.sockets:
            own = socket.port == port and not listener.bound and socket.address not in ANY
            if own and any(_means(name, service) for service in _services(listener.node)):
                yield socket.address


def _services(listener: Node) -> Iterator[str]:
    """The hosts in the names of a listener's clusters and route configurations, which Istio's names contain."""
    chains = [*listener.get("filter_chains").each(), listener.get("default_filter_chain")]
    for each in (node for chain in chains for node in chain.get("filters").each()):
        config = each.get("typed_config")
        yield config.get("cluster").text().rpartition("|")[2]
        yield config.at("rds", "route_config_name").text().partition(":")[0]


def _means(name: str, service: str) -> bool:
    """Whether a name, possibly without its last labels, is the service's."""
    return bool(service) and (service.lower() == name or service.lower().startswith(f"{name}."))
