"""Clusters: where a connection goes on to, from which address, and how it is secured.

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
# Extensions that are one of the types under a name.
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
# Percent of healthy hosts under which Envoy takes all hosts, where a cluster says nothing; what a healthy host counts.
PANIC, OVERPROVISIONING = 50.0, 1.4
MATCHING = "envoy.transport_socket_match"
# Kinds of addresses that are no IP addresses, by their field.
NO_IP = {
    "envoy_internal_address": "an internal listener, which is not followed",
    "pipe": "a Unix socket, which is not followed",
}
PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# socket_options by which a cluster marks its packets: SOL_SOCKET, SO_MARK.
SO_MARK = (1, 36)


class Upstream(Record):
    """An endpoint: its address, or the name that Envoy looks up; whether it may be called; its labels."""

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
    """The transport socket towards an endpoint: TLS or not, which match chose it, and what TLS offers."""

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
    """The cluster of a name; None where the dump has none."""
    node = dump.clusters.get(name)
    if node is None:
        return None
    custom = node.at("cluster_type", "name").text()
    known = EXTENSIONS.get(custom, "") if custom else node.get("type").enum(*TYPES)
    return Cluster(name, known if known in {*WITH_ENDPOINTS, "ORIGINAL_DST"} else "", node)


def knows_clusters(dump: Dump) -> bool:
    """Whether the dump has clusters at all: else a missing one is not missing."""
    return dump.has(CLUSTERS)


class Endpoints(Record):
    """A cluster's endpoints and those of them that may be called; `unclear` is why that cannot be decided, or empty."""

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
    """Where a cluster's endpoints are; None where the dump lacks them."""
    service = of.node.at("eds_cluster_config", "service_name").text() or of.name
    for name in (service, of.name):
        if found := dump.endpoints.get(name):
            return found
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
    """What an endpoint without an IP address is: a pipe, or an internal listener."""
    found = sorted(node.at("endpoint", "address").fields())
    return found[0] if found else "an endpoint without an address"


def _threshold(node: Node) -> float:
    panic = node.at("common_lb_config", "healthy_panic_threshold")
    if not panic:
        return PANIC
    value = panic.get("value").value or 0.0
    if not isinstance(value, int | float):
        raise panic.wrong("a percentage")
    return float(value)


def _callable(every: tuple[Upstream, ...], threshold: float) -> tuple[tuple[Upstream, ...], bool]:
    """Who may be called: healthy endpoints of the first priorities that are enough, or, in a panic, all."""
    usable: list[Upstream] = []
    load = 0.0
    for priority in sorted({each.priority for each in every}):
        level = [each for each in every if each.priority == priority]
        healthy = [each for each in level if each.healthy]
        usable += healthy
        load += OVERPROVISIONING * len(healthy) / len(level)
        if load >= 1.0:
            return tuple(usable), False
    # Nobody is enough: where too few of all are healthy, Envoy no longer minds.
    if every and load * 100 / OVERPROVISIONING < threshold:
        return every, True
    return tuple(usable), False


def bind_address(dump: Dump, of: Cluster, family_length: int) -> tuple[bytes, Node] | None:
    """The address that connections of a cluster are bound to, for destinations of a family; None where it is none."""
    config = of.node.get("upstream_bind_config") or dump.bootstrap.at("cluster_manager", "upstream_bind_config")
    sources = [config.get("source_address")]
    sources += [each.get("address") for each in config.get("extra_source_addresses").each()]
    found = [(address, each) for each in sources if each and (address := packed(each.get("address").text()))]
    fitting = [each for each in found if len(each[0]) == family_length]
    return next(iter(fitting or found), None)


def mark(of: Cluster) -> int:
    """The mark that a cluster's own socket options put on its packets; 0 without one."""
    for option in of.node.at("upstream_bind_config", "socket_options").each():
        if (option.get("level").number(), option.get("name").number()) == SO_MARK:
            return option.get("int_value").number()
    return 0


def security(of: Cluster, endpoint: Upstream | None) -> Security:
    """The transport socket towards an endpoint: the first match whose labels it has, or else the cluster's."""
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
    shown = common.get("tls_certificates") or common.get("tls_certificate_sds_secret_configs")
    return Security(True, by, common.get("alpn_protocols").texts(), context.get("sni").text(), bool(shown))


def speaks_http2(of: Cluster, downstream: str) -> bool:
    """Whether a cluster's HTTP requests are HTTP/2 ones; `downstream` is how the request came."""
    options = of.node.get("typed_extension_protocol_options").value
    found = options.get(PROTOCOL_OPTIONS) if isinstance(options, dict) else None
    node = Node(found, f"{of.node.path}.typed_extension_protocol_options")
    if node.get("use_downstream_protocol_config"):
        return downstream == "h2c"
    return bool(node.at("explicit_http_config", "http2_protocol_options")) or bool(
        of.node.get("http2_protocol_options")
    )
