"""The middle of a connection's walk through a proxy: a filter chain's TLS and filters, until a cluster is chosen."""

from __future__ import annotations

from istio_init.envoy import chains, clusters, hosts
from istio_init.envoy.client import TLS
from istio_init.envoy.dump import ROUTES
from istio_init.envoy.node import plain
from istio_init.envoy.passage import Other
from istio_init.envoy.walk_cluster import to_cluster
from istio_init.envoy.walk_progress import Ended
from istio_init.envoy.walk_text import match_text, route_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.chains import FilterChain
    from istio_init.envoy.node import Node
    from istio_init.envoy.walk_progress import Progress

HTTP_MANAGER, TCP_PROXY = "envoy.filters.network.http_connection_manager", "envoy.filters.network.tcp_proxy"
FILTER_KINDS = {"HttpConnectionManager": HTTP_MANAGER, "TcpProxy": TCP_PROXY}
# Filters that do not affect routing; all others are conditions.
TRANSPARENT = frozenset({
    "envoy.filters.network.metadata_exchange", "istio.metadata_exchange", "istio.stats", "envoy.filters.http.router",
    "envoy.filters.http.cors", "envoy.filters.http.grpc_stats", "envoy.filters.http.grpc_web", "istio.alpn",
    "istio_authn", "istio.istio_authn", "envoy.filters.http.istio_stats", "envoy.filters.http.peer_metadata",
    "istio.peer_metadata", "envoy.filters.http.health_check", "envoy.filters.network.set_filter_state",
    "envoy.filters.http.set_filter_state", "connect_authority", "waypoint_downstream_peer_metadata",
    "envoy.filters.network.connection_limit",
})  # fmt: skip
# Status codes of a redirect by their names in the API, in its order.
REDIRECTS = {"MOVED_PERMANENTLY": 301, "FOUND": 302, "SEE_OTHER": 303, "TEMPORARY_REDIRECT": 307,
    "PERMANENT_REDIRECT": 308}  # fmt: skip
# Envoy's answer to a client that does not speak HTTP.
NOT_HTTP = "400 Bad Request: not HTTP in clear where HTTP in clear is expected"


def terminate_tls(progress: Progress, chain: FilterChain) -> None:
    """Terminate TLS, if the chain has TLS. Ended where the handshake fails."""
    socket = chain.node.get("transport_socket")
    if not socket or not clusters.is_tls(socket):
        return
    client = progress.client
    if client.transport != TLS:
        progress.step("filter chain", "its transport socket is TLS, the client speaks in clear", socket.path)
        raise Ended("closes", "the TLS handshake fails: the client speaks no TLS")
    context = socket.get("typed_config")
    if context.get("require_client_certificate").flag() and not client.certificate:
        progress.step("filter chain", "its TLS wants a client certificate", socket.path)
        raise Ended("closes", "the TLS handshake fails: a client certificate is required")
    mutual = "mutual TLS" if context.get("require_client_certificate").flag() else "TLS"
    progress.step("filter chain", f"{mutual} ends here", socket.path)
    progress.client = client.decrypted


def follow_filters(progress: Progress, chain: FilterChain, connection: chains.Downstream) -> None:
    """Follow the filters to the one that ends the chain, and the connection or request through it; may raise Ended."""
    for node in chain.node.get("filters").each():
        name = FILTER_KINDS.get(node.get("typed_config").kind, node.get("name").text())
        if name == TCP_PROXY:
            _tcp(progress, node.get("typed_config"), connection)
            return
        if name == HTTP_MANAGER:
            _http(progress, node.get("typed_config"), connection)
            return
        _condition(progress, "network filter", name, node)
    if progress.conditions:
        raise Ended("undecided", f"the chain ends in a filter that is not followed: {progress.conditions[-1]}")
    raise Ended("closes", "the filter chain has no filters: the connection is closed")


def _condition(progress: Progress, what: str, name: str, node: Node) -> None:
    if name in TRANSPARENT:
        return
    progress.conditions.append(f"{what} {plain(name)} may refuse or change it; it is not followed")
    progress.step("filter", f"{plain(name)}: not followed", node.path)


def _tcp(progress: Progress, proxy: Node, connection: chains.Downstream) -> None:
    if proxy.get("tunneling_config"):
        raise Ended("undecided", "tcp_proxy tunnels by HTTP CONNECT (tunneling_config), which is not followed")
    name = _cluster_name(proxy, "tcp_proxy")
    progress.step("filter", f"tcp_proxy: cluster {plain(name)}", proxy.path)
    to_cluster(progress, name, connection)


def _cluster_name(node: Node, what: str) -> str:
    """The cluster of a TCP proxy or a route."""
    if name := node.get("cluster").text():
        return name
    if "weighted_clusters" in node.fields():
        weighted = node.get("weighted_clusters")
        shares = [(each.get("name").text(), each.get("weight").number()) for each in weighted.get("clusters").each()]
        names = [name for name, weight in shares if weight]
        if len(names) == 1 and names[0]:
            return names[0]
        shares_text = ", ".join(f"{plain(name)} {weight}" for name, weight in shares[:10])
        raise Ended("undecided", f"{what} picks a cluster by chance, by weight: {shares_text}")
    specifiers = sorted(
        node.fields().keys() & {"cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin"}
    )
    raise Ended(
        "undecided", f"{what} chooses its cluster by {specifiers[0] if specifiers else 'nothing'}: not followed"
    )


def _http(progress: Progress, manager: Node, connection: chains.Downstream) -> None:
    client = progress.client
    if client.application == "silence":
        raise Ended("hangs", "HTTP: Envoy waits for a request, and the client for the server to begin")
    if client.transport == TLS or not client.is_http:
        raise Ended("answers", NOT_HTTP, "DPE", 400)
    for each in manager.get("http_filters").each():
        if not each.get("disabled").flag():
            _condition(progress, "HTTP filter", each.get("name").text(), each)
    table = _routes(progress, manager)
    choice = hosts.choose(table, manager, client.request, connection.destination_port)
    name = plain(table.get("name").text())
    if choice.unclear:
        raise Ended("undecided", choice.unclear)
    if choice.host is None:
        progress.step("route", f"route configuration {name}: no domain is {plain(client.request.host)}", table.path)
        raise Ended("answers", "404: the Host is in no domain (route_not_found)", "NR", 404)
    others = tuple(Other(route_name(each), why, each.node.path) for each, why in choice.others)
    domain = f"route {name}: domain {plain(choice.host.domain)} (of {plain(choice.host.name)})"
    if choice.route is None:
        progress.step("route", f"{domain}, none of its routes", choice.host.node.path, others)
        raise Ended("answers", "404: no route is for this request (route_not_found)", "NR", 404)
    progress.route = choice.route.name
    matched = match_text(choice.route.node.get("match"))
    progress.step("route", f"{domain}, {route_name(choice.route)}: {matched}", choice.route.node.path, others)
    progress.is_request = True
    _apply_route(progress, choice.route.node, connection)


def _routes(progress: Progress, manager: Node) -> Node:
    if table := manager.get("route_config"):
        return table
    if manager.get("scoped_routes"):
        raise Ended("undecided", "scoped routes, which are not followed, choose the route configuration")
    name = manager.at("rds", "route_config_name").text()
    if name in progress.dump.routes:
        return progress.dump.routes[name]
    if not progress.dump.has(ROUTES):
        raise Ended("undecided", f"route configuration {plain(name)} is not in the dump: it has no routes")
    progress.step("route", f"route configuration {plain(name)} was not received", manager.get("rds").path)
    raise Ended("answers", f"404: route configuration {plain(name)} was not received (route_not_found)", "NR", 404)


def _apply_route(progress: Progress, route: Node, connection: chains.Downstream) -> None:
    if direct := route.get("direct_response"):
        status = direct.get("status").number()
        raise Ended("answers", f"{status}: Envoy answers itself (direct_response)", "", status)
    if redirect := route.get("redirect"):
        status = REDIRECTS.get(redirect.get("response_code").enum(*REDIRECTS), 301)
        raise Ended("answers", f"{status}: Envoy sends the client elsewhere (redirect)", "", status)
    action = route.get("route")
    if not action:
        raise Ended("undecided", f"{route.path} has an action that is not followed")
    if action.get("metadata_match"):
        raise Ended("undecided", f"{action.path} chooses endpoints by metadata_match, which is not followed")
    to_cluster(progress, _cluster_name(action, "the route"), connection)
