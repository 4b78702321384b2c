"""A connection's path through Envoy: listener, listener filters, filter chain, route or TCP proxy, cluster, endpoint.

Pure: computed from a configuration dump, the connection's arrival, and the client. path.py adds the kernel's part.
An unsupported feature is reported: as a condition if it may change the result, as an end if it decides it.
"""

from __future__ import annotations

from istio_init.envoy import chains, clusters, hosts, listeners
from istio_init.envoy.client import RAW_BUFFER, TLS, Client
from istio_init.envoy.dump import ROUTES
from istio_init.envoy.node import plain
from istio_init.envoy.passage import Dial, ListenerArrival, Other, Passage, Step, Stop
from istio_init.envoy.walk_text import (
    chain_name,
    count_text,
    criteria_text,
    listener_text,
    match_text,
    quoted_name,
    route_name,
    speaks_text,
)
from istio_init.formats.addresses import address_text, endpoint_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.chains import FilterChain
    from istio_init.envoy.clusters import Cluster, Upstream
    from istio_init.envoy.dump import Dump
    from istio_init.envoy.listeners import Detection, Listener
    from istio_init.envoy.node import Node
    from istio_init.envoy.passage import Part

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


class Configuration:
    """A dump with its listeners indexed."""

    def __init__(self, dump: Dump) -> None:
        self.dump = dump
        self.listeners = listeners.Bindings(dump)


def walk(configuration: Configuration, arrival: ListenerArrival, client: Client) -> Passage:
    """The connection's path through Envoy. DumpError if the dump has a value that Envoy would reject."""
    return _Walk(configuration, arrival, client).passage()


class _Ended(Exception):
    def __init__(self, end: Stop) -> None:
        super().__init__(end.text)
        self.end = end


class _Walk:
    def __init__(self, configuration: Configuration, arrival: ListenerArrival, client: Client) -> None:
        self._listeners, self._dump = configuration.listeners, configuration.dump
        self._arrival, self._client = arrival, client
        self._steps: list[Step] = []
        self._conditions: list[str] = []
        self._listener = self._chain = self._route = self._cluster = ""
        self._dials: tuple[Dial, ...] = ()
        self._spoofs: Node | None = None
        # Whether the listener restored the destination, and whether a route chose the cluster, so that a failure is an
        # HTTP answer.
        self._restored = self._is_request = False

    def passage(self) -> Passage:
        """The whole path."""
        try:
            self._go()
            end = Stop("dials", self._dials_text())
        except _Ended as ended:
            end = ended.end
        return Passage(
            tuple(self._steps), end, self._listener, self._chain, self._route, self._cluster, self._dials,
            tuple(dict.fromkeys(self._conditions)),
        )  # fmt: skip

    def _dials_text(self) -> str:
        return " or ".join(endpoint_text(each.address, each.port) for each in self._dials)

    def _step(self, part: Part, text: str, path: str = "", others: tuple[Other, ...] = ()) -> None:
        self._steps.append(Step(part, text, path, others))

    def _go(self) -> None:
        listener, connection = self._accept()
        selection = chains.select(listener, connection)
        if selection.unclear:
            raise _Ended(Stop("undecided", selection.unclear))
        others = tuple(Other(chain_name(chain), plain(why), chain.node.path) for chain, why in selection.others)
        chain = selection.chain
        if chain is None:
            self._step("filter chain", "none", listener.node.path, others)
            what = f"no filter chain of {plain(listener.name)} is for this client (filter_chain_not_found)"
            raise _Ended(Stop("closes", f"the connection is reset: {what}", "NR"))
        self._chain = chain.name
        total = len(others) + (chain.number > 0)
        place = f"chain {chain.number} of {total}" if chain.number else "the default chain, no other fits"
        self._step("filter chain", f"{place}{quoted_name(chain.name)}{criteria_text(chain)}", chain.node.path, others)
        self._terminate_tls(chain)
        self._filters(chain, connection)

    # Listener and its filters.

    def _accept(self) -> tuple[Listener, chains.Downstream]:
        arrival = self._arrival
        listener = self._listeners.bound(arrival.address, arrival.port)
        at = endpoint_text(arrival.address, arrival.port)
        if listener is None:
            raise _Ended(Stop("closes", f"Envoy does not listen on {at}: the connection is refused"))
        self._listener = listener.name
        if arrival.transparent and not listener.transparent:
            self._step("listener", f"{plain(listener.name)}, whose socket is not transparent", listener.node.path)
            why = (
                f"TPROXY finds no transparent socket at port {arrival.port} and drops the packet: the client times out"
            )
            raise _Ended(Stop("hangs", why))
        restored = self._restored = listener.restores
        address, port = (arrival.original, arrival.original_port) if restored else (arrival.address, arrival.port)
        self._step("listener", listener_text(listener, address, port), listener.node.path)
        detected = self._detect(listener, port, None)
        if restored and listener.hands_on:
            target = self._listeners.of_destination(address, port)
            if target is not None and target is not listener:
                self._listener = target.name
                self._step("listener", self._handoff_text(target, address, port), target.node.path)
                detected = self._detect(target, port, detected)
                listener = target
            elif target is None:
                self._step(
                    "listener", f"kept: no listener is for {endpoint_text(address, port)} or any address at {port}"
                )
        connection = chains.Downstream(
            arrival.source, arrival.source_port, address, port, detected.transport or RAW_BUFFER, detected.sni,
            detected.alpn,
        )  # fmt: skip
        return listener, connection

    def _handoff_text(self, target: Listener, address: bytes, port: int) -> str:
        exact = any((socket.address, socket.port) == (address, port) for socket in target.sockets)
        where = "its address" if exact else f"any address; no listener is {endpoint_text(address, port)}"
        bound = ", a bound listener: a call to any host's port ends here" if target.bound and not exact else ""
        return f"handed on to {plain(target.name)} ({where}{bound})"

    def _detect(self, listener: Listener, port: int, before: Detection | None) -> Detection:
        detection = listeners.detect(listener, port, self._client, before)
        for each, note in detection.notes:
            self._step("listener filter", note, each.node.path)
            if each.name == listeners.ORIGINAL_SRC:
                self._spoofs = each.node.get("typed_config")
        for each in listener.filters():
            if each.name == listeners.ORIGINAL_SRC and not each.is_off(port):
                self._spoofs = each.node.get("typed_config")
                self._step("listener filter", "original_src: Envoy will dial from the client's address", each.node.path)
        if detection.unknown:
            raise _Ended(Stop("undecided", f"listener filter {plain(detection.unknown)} is not followed"))
        if detection.waits:
            self._waits(listener, detection.waits)
        return detection

    def _waits(self, listener: Listener, inspector: str) -> None:
        seconds = listener.timeout
        if not seconds:
            why = (
                f"{inspector} waits for the client, the client for the server, for ever (listener_filters_timeout: 0s)"
            )
            raise _Ended(Stop("hangs", why))
        if not listener.goes_on:
            raise _Ended(
                Stop("closes", f"closed after {seconds:g} s: {inspector} waits for the client, which says nothing")
            )
        self._step(
            "listener filter", f"after {seconds:g} s (listener_filters_timeout) it goes on without", listener.node.path
        )

    # The filter chain.

    def _terminate_tls(self, chain: FilterChain) -> None:
        """Terminate TLS, if the chain has TLS."""
        socket = chain.node.get("transport_socket")
        if not socket or not clusters.is_tls(socket):
            return
        client = self._client
        if client.transport != TLS:
            self._step("filter chain", "its transport socket is TLS, the client speaks in clear", socket.path)
            raise _Ended(Stop("closes", "the TLS handshake fails: the client speaks no TLS"))
        context = socket.get("typed_config")
        if context.get("require_client_certificate").flag() and not client.certificate:
            self._step("filter chain", "its TLS wants a client certificate", socket.path)
            raise _Ended(Stop("closes", "the TLS handshake fails: a client certificate is required"))
        mutual = "mutual TLS" if context.get("require_client_certificate").flag() else "TLS"
        self._step("filter chain", f"{mutual} ends here", socket.path)
        self._client = client.decrypted

    def _filters(self, chain: FilterChain, connection: chains.Downstream) -> None:
        for node in chain.node.get("filters").each():
            name = FILTER_KINDS.get(node.get("typed_config").kind, node.get("name").text())
            if name == TCP_PROXY:
                self._tcp(node.get("typed_config"), connection)
                return
            if name == HTTP_MANAGER:
                self._http(node.get("typed_config"), connection)
                return
            self._condition("network filter", name, node)
        if self._conditions:
            raise _Ended(Stop("undecided", f"the chain ends in a filter that is not followed: {self._conditions[-1]}"))
        raise _Ended(Stop("closes", "the filter chain has no filters: the connection is closed"))

    def _condition(self, what: str, name: str, node: Node) -> None:
        if name in TRANSPARENT:
            return
        self._conditions.append(f"{what} {plain(name)} may refuse or change it; it is not followed")
        self._step("filter", f"{plain(name)}: not followed", node.path)

    def _tcp(self, proxy: Node, connection: chains.Downstream) -> None:
        if proxy.get("tunneling_config"):
            raise _Ended(
                Stop("undecided", "tcp_proxy tunnels by HTTP CONNECT (tunneling_config), which is not followed")
            )
        name = self._cluster_name(proxy, "tcp_proxy")
        self._step("filter", f"tcp_proxy: cluster {plain(name)}", proxy.path)
        self._to_cluster(name, connection)

    def _cluster_name(self, node: Node, what: str) -> str:
        """The cluster of a TCP proxy or a route."""
        if name := node.get("cluster").text():
            return name
        if "weighted_clusters" in node.fields():
            weighted = node.get("weighted_clusters")
            shares = [
                (each.get("name").text(), each.get("weight").number()) for each in weighted.get("clusters").each()
            ]
            names = [name for name, weight in shares if weight]
            if len(names) == 1 and names[0]:
                return names[0]
            shares_text = ", ".join(f"{plain(name)} {weight}" for name, weight in shares[:10])
            raise _Ended(Stop("undecided", f"{what} picks a cluster by chance, by weight: {shares_text}"))
        specifiers = sorted(
            node.fields().keys() & {"cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin"}
        )
        raise _Ended(
            Stop(
                "undecided", f"{what} chooses its cluster by {specifiers[0] if specifiers else 'nothing'}: not followed"
            )
        )

    def _http(self, manager: Node, connection: chains.Downstream) -> None:
        client = self._client
        if client.application == "silence":
            raise _Ended(Stop("hangs", "HTTP: Envoy waits for a request, and the client for the server to begin"))
        if client.transport == TLS or not client.is_http:
            raise _Ended(Stop("answers", NOT_HTTP, "DPE", 400))
        for each in manager.get("http_filters").each():
            if not each.get("disabled").flag():
                self._condition("HTTP filter", each.get("name").text(), each)
        table = self._routes(manager)
        choice = hosts.choose(table, manager, client.request, connection.destination_port)
        name = plain(table.get("name").text())
        if choice.unclear:
            raise _Ended(Stop("undecided", choice.unclear))
        if choice.host is None:
            self._step("route", f"route configuration {name}: no domain is {plain(client.request.host)}", table.path)
            raise _Ended(Stop("answers", "404: the Host is in no domain (route_not_found)", "NR", 404))
        others = tuple(Other(route_name(each), why, each.node.path) for each, why in choice.others)
        domain = f"route {name}: domain {plain(choice.host.domain)} (of {plain(choice.host.name)})"
        if choice.route is None:
            self._step("route", f"{domain}, none of its routes", choice.host.node.path, others)
            raise _Ended(Stop("answers", "404: no route is for this request (route_not_found)", "NR", 404))
        self._route = choice.route.name
        matched = match_text(choice.route.node.get("match"))
        self._step("route", f"{domain}, {route_name(choice.route)}: {matched}", choice.route.node.path, others)
        self._is_request = True
        self._apply_route(choice.route.node, connection)

    def _routes(self, manager: Node) -> Node:
        if table := manager.get("route_config"):
            return table
        if manager.get("scoped_routes"):
            raise _Ended(Stop("undecided", "scoped routes, which are not followed, choose the route configuration"))
        name = manager.at("rds", "route_config_name").text()
        if name in self._dump.routes:
            return self._dump.routes[name]
        if not self._dump.has(ROUTES):
            raise _Ended(Stop("undecided", f"route configuration {plain(name)} is not in the dump: it has no routes"))
        self._step("route", f"route configuration {plain(name)} was not received", manager.get("rds").path)
        raise _Ended(
            Stop("answers", f"404: route configuration {plain(name)} was not received (route_not_found)", "NR", 404)
        )

    def _apply_route(self, route: Node, connection: chains.Downstream) -> None:
        if direct := route.get("direct_response"):
            status = direct.get("status").number()
            raise _Ended(Stop("answers", f"{status}: Envoy answers itself (direct_response)", "", status))
        if redirect := route.get("redirect"):
            status = REDIRECTS.get(redirect.get("response_code").enum(*REDIRECTS), 301)
            raise _Ended(Stop("answers", f"{status}: Envoy sends the client elsewhere (redirect)", "", status))
        action = route.get("route")
        if not action:
            raise _Ended(Stop("undecided", f"{route.path} has an action that is not followed"))
        if action.get("metadata_match"):
            raise _Ended(Stop("undecided", f"{action.path} chooses endpoints by metadata_match, which is not followed"))
        self._to_cluster(self._cluster_name(action, "the route"), connection)

    # Cluster and endpoint.

    def _to_cluster(self, name: str, connection: chains.Downstream) -> None:
        self._cluster = name
        target = clusters.cluster(self._dump, name)
        if target is None:
            if not clusters.knows_clusters(self._dump):
                raise _Ended(Stop("undecided", f"cluster {plain(name)} is not in the dump, which has no clusters"))
            raise self._failed(f"there is no cluster {plain(name)} (cluster_not_found)", "NC")
        if not target.type:
            kind = target.node.at("cluster_type", "name").text() or target.node.get("type").enum(*clusters.TYPES)
            raise _Ended(Stop("undecided", f"cluster {plain(name)} is of type {plain(kind)}, which is not followed"))
        if target.restored:
            self._original(target, connection)
        else:
            self._balanced(target, connection)

    def _failed(self, why: str, flag: str) -> _Ended:
        if self._is_request:
            return _Ended(Stop("answers", f"503: {why}", flag, 503))
        return _Ended(Stop("closes", f"the connection is closed: {why}", flag))

    def _original(self, of: Cluster, connection: chains.Downstream) -> None:
        config = of.node.get("original_dst_lb_config")
        if config.get("use_http_header").flag() or config.get("metadata_key"):
            raise _Ended(
                Stop(
                    "undecided",
                    f"cluster {plain(of.name)} reads its destination from the request, which is not followed",
                )
            )
        if not self._restored:
            self._step("cluster", f"{plain(of.name)}: ORIGINAL_DST", of.node.path)
            raise self._failed("no original destination: the listener does not restore it (original_dst)", "UH")
        port = config.get("upstream_port_override").port() or connection.destination_port
        at = endpoint_text(connection.destination, port)
        self._step("cluster", f"{plain(of.name)}: ORIGINAL_DST, where the client called, {at}", of.node.path)
        self._dials = (self._dial(of, connection, connection.destination, port, None),)

    def _balanced(self, of: Cluster, connection: chains.Downstream) -> None:
        endpoints = clusters.endpoints(self._dump, of)
        if endpoints.unclear:
            raise _Ended(Stop("undecided", endpoints.unclear))
        unhealthy = tuple(
            Other(each.text, "not healthy", each.node.path)
            for each in endpoints.every
            if each not in endpoints.callable
        )
        self._step("cluster", f"{plain(of.name)}: {of.type}, {count_text(len(endpoints.every))}", of.node.path)
        if not endpoints.callable:
            why = "no endpoints" if not endpoints.every else "no healthy endpoint"
            self._step("endpoint", "none", "", unhealthy)
            raise self._failed(f"cluster {plain(of.name)} has {why} (no_healthy_upstream)", "UH")
        panic = ", none healthy enough, so all are taken (panic)" if endpoints.panic else ""
        many = f"one of {len(endpoints.callable)}: " if len(endpoints.callable) > 1 else ""
        for each in endpoints.callable:
            self._dials = (*self._dials, self._dial(of, connection, each.address, each.port, each))
        first = endpoints.callable[0]
        self._step(
            "endpoint",
            f"{many}{', '.join(each.text for each in endpoints.callable[:5])}{panic}",
            first.node.path,
            unhealthy,
        )

    def _dial(
        self, of: Cluster, connection: chains.Downstream, address: bytes, port: int, endpoint: Upstream | None
    ) -> Dial:
        source, mark = None, clusters.mark(of)
        if self._spoofs is not None:
            source, mark = connection.source, self._spoofs.get("mark").number() or mark
        elif bound := clusters.bind_address(self._dump, of, len(address)):
            source = bound[0]
            if all(step.path != bound[1].path for step in self._steps):
                self._step("cluster", f"bound to {address_text(source)} (upstream_bind_config)", bound[1].path)
        return Dial(address, port, source, mark, self._onward(of, endpoint))

    def _onward(self, of: Cluster, endpoint: Upstream | None) -> Client:
        """Envoy as the upstream's client."""
        client, secured = self._client, clusters.security(of, endpoint)
        if self._is_request:
            client = client.replace(application="h2c" if clusters.speaks_http2(of, client.application) else "http/1.1")
        if secured.by or secured.tls:
            by = f" ({plain(secured.by)})" if secured.by else ""
            text = f"towards it: {'TLS' if secured.tls else 'in clear'}{by}"
            if all(step.text != text for step in self._steps):
                self._step("cluster", text, of.node.path)
        if not secured.tls:
            return client.replace(speaks=speaks_text(client))
        return client.replace(
            speaks="mtls" if secured.certificate else "tls", transport=TLS, alpn=secured.alpn, sni=secured.sni,
            certificate=secured.certificate,
        )  # fmt: skip
