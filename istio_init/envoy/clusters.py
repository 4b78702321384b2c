"""Clusters: a connection's endpoint, its source address, and its transport security.

Sources: in Envoy's source/common/upstream load_balancer_impl.cc (health and panic), upstream_impl.cc (bind addresses)
and transport_socket_match_impl.cc; source/extensions/clusters/original_dst.
"""

from __future__ import annotations

from istio_init.envoy.addresses import packed
from istio_init.envoy.dump import CLUSTERS, ENDPOINTS
from istio_init.envoy.node import Node, plain
from istio_init.formats.addresses import endpoint_text
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.dump import Dump

TYPES = ("STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST")
WITH_ENDPOINTS = frozenset({"STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS"})
# Extensions that stand for one of the types.
EXTENSIONS = {
    "envoy.cluster.static": "STATIC",
    "envoy.cluster.strict_dns": "STRICT_DNS",
    "envoy.cluster.logical_dns": "LOGICAL_DNS",
    "envoy.cluster.dns": "STRICT_DNS",
    "envoy.cluster.eds": "EDS",
    "envoy.cluster.original_dst": "ORIGINAL_DST",
}
HEALTH = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")
HEALTHY = frozenset({"UNKNOWN", "HEALTHY", "DEGRADED"})
# Defaults: the percentage of healthy hosts below which Envoy uses all hosts, and the overprovisioning factor.
PANIC, OVERPROVISIONING = 50.0, 1.4
MATCHING = "envoy.transport_socket_match"
# Kinds of addresses other than IP addresses, by their field.
NO_IP = {
    "envoy_internal_address": "an internal listener, which is not followed",
    "pipe": "a Unix socket, which is not followed",
}
PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# The socket option that marks a cluster's packets: SOL_SOCKET, SO_MARK.
SO_MARK = (1, 36)


class Upstream(Record):
    """An endpoint: its address, or the name that Envoy resolves; whether it is healthy; its labels."""

    address: bytes
    port: int
    name: str
    healthy: bool
    labels: tuple[tuple[str, str], ...]
    priority: int
    node: Node

    @property
    def text(self) -> str:
        """Its address and port, or its name and port."""
        return endpoint_text(self.address, self.port) if self.address else f"{plain(self.name)}:{self.port}"


class Security(Record):
    """The transport socket for an endpoint: TLS or not, the match that selected it, and TLS parameters."""

    tls: bool
    by: str
    alpn: tuple[str, ...] = ()
    sni: str = ""
    certificate: bool = False


class Cluster(Record):
    """A cluster: its name, its type (empty for one that is not followed), and the rest."""

    name: str
    type: str
    node: Node

    @property
    def restored(self) -> bool:
        """Whether it dials the original destination."""
        return bool(self.type == "ORIGINAL_DST")


def cluster(dump: Dump, name: str) -> Cluster | None:
    """The cluster with this name; None if the dump has none."""
    node = dump.clusters.get(name)
    if node is None:
        return None
    custom = node.at("cluster_type", "name").text()
    kind = EXTENSIONS.get(custom, "") if custom else node.get("type").enum(*TYPES)
    return Cluster(name, kind if kind in {*WITH_ENDPOINTS, "ORIGINAL_DST"} else "", node)


def knows_clusters(dump: Dump) -> bool:
    """Whether the dump contains clusters; without them, a missing cluster means nothing."""
    return dump.has(CLUSTERS)


class Endpoints(Record):
    """A cluster's endpoints, and the usable ones; `unclear` is why that can't be decided, or empty."""

    every: tuple[Upstream, ...]
    callable: tuple[Upstream, ...]
    panic: bool = False
    unclear: str = ""


def endpoints(dump: Dump, of: Cluster) -> Endpoints:
    """The endpoints of a cluster."""
    if next(of.node.at("lb_subset_config", "subset_selectors").each(), None):
        return Endpoints(
            (), (), unclear=f"cluster {plain(of.name)} chooses among subsets by metadata, which is not followed"
        )
    assignment = _assignment(dump, of)
    if assignment is None:
        return Endpoints(
            (), (), unclear=f"the endpoints of {plain(of.name)} are not in the dump; make it with ?include_eds"
        )
    ejected = dump.ejected.get(of.name, frozenset())
    every = tuple(_endpoints(assignment, ejected))
    usable, panic = _callable(every, _threshold(of.node))
    if name := next((each.name for each in usable if not each.address), ""):
        why = NO_IP.get(name, f"{plain(name)} is a name, which Envoy looks up itself")
        return Endpoints(every, usable, panic, f"endpoint of {plain(of.name)}: {why}")
    return Endpoints(every, usable, panic)


def _assignment(dump: Dump, of: Cluster) -> Node | None:
    """The assignment with a cluster's endpoints; None if the dump does not have it."""
    service = of.node.at("eds_cluster_config", "service_name").text() or of.name
    for name in (service, of.name):
        if assignment := dump.endpoints.get(name):
            return assignment
    if of.type != "EDS":
        return of.node.get("load_assignment")
    return Node(None, "") if dump.has(ENDPOINTS) else None


def _endpoints(assignment: Node, ejected: frozenset[str]) -> Iterator[Upstream]:
    for locality in assignment.get("endpoints").each():
        priority = locality.get("priority").number()
        for node in locality.get("lb_endpoints").each():
            socket = node.at("endpoint", "address", "socket_address")
            address = packed(socket.get("address").text()) if socket else None
            port = socket.get("port_value").port()
            name = "" if address else socket.get("address").text() or _other_address(node)
            labels = node.at("metadata", "filter_metadata", MATCHING).fields()
            yield Upstream(
                address or b"", port, name,
                _is_healthy(node, address, port, ejected),
                tuple((key, str(each.value)) for key, each in labels.items()), priority, node,
            )  # fmt: skip


def _is_healthy(node: Node, address: bytes | None, port: int, ejected: frozenset[str]) -> bool:
    if node.get("health_status").enum(*HEALTH) not in HEALTHY:
        return False
    return not address or endpoint_text(address, port) not in ejected


def _other_address(node: Node) -> str:
    """The kind of an endpoint without an IP address: a pipe, or an internal listener."""
    fields = sorted(node.at("endpoint", "address").fields())
    return fields[0] if fields else "an endpoint without an address"


def _threshold(node: Node) -> float:
    panic = node.at("common_lb_config", "healthy_panic_threshold")
    if not panic:
        return PANIC
    value = panic.get("value").value or 0.0
    if not isinstance(value, int | float):
        raise panic.wrong("a percentage")
    return float(value)


def _callable(every: tuple[Upstream, ...], threshold: float) -> tuple[tuple[Upstream, ...], bool]:
    """The usable endpoints: healthy ones of the first priorities with enough of them or, in panic mode, all."""
    usable: list[Upstream] = []
    load = 0.0
    for priority in sorted({each.priority for each in every}):
        level = [each for each in every if each.priority == priority]
        healthy = [each for each in level if each.healthy]
        usable += healthy
        load += OVERPROVISIONING * len(healthy) / len(level)
        if load >= 1.0:
            return tuple(usable), False
    # No priority has enough: if too few hosts are healthy in all, Envoy ignores their health.
    if every and load * 100 / OVERPROVISIONING < threshold:
        return every, True
    return tuple(usable), False


def bind_address(dump: Dump, of: Cluster, family_length: int) -> tuple[bytes, Node] | None:
    """The address that a cluster's connections to a family are bound to, if there is one."""
    config = of.node.get("upstream_bind_config") or dump.bootstrap.at("cluster_manager", "upstream_bind_config")
    sources = [config.get("source_address")]
    sources += [each.get("address") for each in config.get("extra_source_addresses").each()]
    candidates = [(address, each) for each in sources if each and (address := packed(each.get("address").text()))]
    fitting = [each for each in candidates if len(each[0]) == family_length]
    return next(iter(fitting or candidates), None)


def mark(of: Cluster) -> int:
    """The mark that a cluster's own socket options put on its packets; 0 without one."""
    for option in of.node.at("upstream_bind_config", "socket_options").each():
        if (option.get("level").number(), option.get("name").number()) == SO_MARK:
            return option.get("int_value").number()
    return 0


def security(of: Cluster, endpoint: Upstream | None) -> Security:
    """The transport socket for an endpoint: the first match whose labels it has, else the cluster's."""
    labels = dict(endpoint.labels) if endpoint else {}
    for each in of.node.get("transport_socket_matches").each():
        required = {name: str(node.value) for name, node in each.get("match").fields().items()}
        if required.items() <= labels.items():
            return _secured(each.get("transport_socket"), each.get("name").text())
    return _secured(of.node.get("transport_socket"), "")


def is_tls(socket: Node) -> bool:
    """Whether a transport socket is TLS."""
    return socket.get("typed_config").kind in {"UpstreamTlsContext", "DownstreamTlsContext"} or socket.get(
        "name"
    ).text() in {"envoy.transport_sockets.tls", "tls"}


def _secured(socket: Node, by: str) -> Security:
    if not socket or not is_tls(socket):
        return Security(False, by)
    context = socket.get("typed_config")
    common = context.get("common_tls_context")
    certificates = common.get("tls_certificates") or common.get("tls_certificate_sds_secret_configs")
    return Security(True, by, common.get("alpn_protocols").texts(), context.get("sni").text(), bool(certificates))


def speaks_http2(of: Cluster, downstream: str) -> bool:
    """Whether a cluster uses HTTP/2; `downstream` is the protocol of the incoming request."""
    options = of.node.get("typed_extension_protocol_options").value
    options_of_http = options.get(PROTOCOL_OPTIONS) if isinstance(options, dict) else None
    node = Node(options_of_http, f"{of.node.path}.typed_extension_protocol_options")
    if node.get("use_downstream_protocol_config"):
        return downstream == "h2c"
    return bool(node.at("explicit_http_config", "http2_protocol_options")) or bool(
        of.node.get("http2_protocol_options")
    )
