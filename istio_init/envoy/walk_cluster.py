"""The last part of a connection's walk through a proxy: from a cluster to the endpoints that Envoy may dial."""

from __future__ import annotations

from istio_init.envoy import chains, clusters
from istio_init.envoy.client import TLS, Client
from istio_init.envoy.node import plain
from istio_init.envoy.passage import Dial, Other
from istio_init.envoy.walk_progress import Ended
from istio_init.envoy.walk_text import count_text, speaks_text
from istio_init.formats.addresses import address_text, endpoint_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.clusters import Cluster, Upstream
    from istio_init.envoy.walk_progress import Progress


def to_cluster(progress: Progress, name: str, connection: chains.Downstream) -> None:
    """Add the cluster's step and what Envoy dials. Ended where that is nothing, or can't be known."""
    progress.cluster = name
    target = clusters.cluster(progress.dump, name)
    if target is None:
        if not clusters.knows_clusters(progress.dump):
            raise Ended("undecided", f"cluster {plain(name)} is not in the dump, which has no clusters")
        raise _failed(progress, f"there is no cluster {plain(name)} (cluster_not_found)", "NC")
    if not target.type:
        kind = target.node.at("cluster_type", "name").text() or target.node.get("type").enum(*clusters.TYPES)
        raise Ended("undecided", f"cluster {plain(name)} is of type {plain(kind)}, which is not followed")
    if target.restored:
        _original(progress, target, connection)
    else:
        _balanced(progress, target, connection)


def _failed(progress: Progress, why: str, flag: str) -> Ended:
    if progress.is_request:
        return Ended("answers", f"503: {why}", flag, 503)
    return Ended("closes", f"the connection is closed: {why}", flag)


def _original(progress: Progress, of: Cluster, connection: chains.Downstream) -> None:
    config = of.node.get("original_dst_lb_config")
    if config.get("use_http_header").flag() or config.get("metadata_key"):
        raise Ended(
            "undecided",
            f"cluster {plain(of.name)} reads its destination from the request, which is not followed",
        )
    if not progress.restored:
        progress.step("cluster", f"{plain(of.name)}: ORIGINAL_DST", of.node.path)
        raise _failed(progress, "no original destination: the listener does not restore it (original_dst)", "UH")
    port = config.get("upstream_port_override").port() or connection.destination_port
    at = endpoint_text(connection.destination, port)
    progress.step("cluster", f"{plain(of.name)}: ORIGINAL_DST, where the client called, {at}", of.node.path)
    progress.dials = (_dial(progress, of, connection, (connection.destination, port), None),)


def _balanced(progress: Progress, of: Cluster, connection: chains.Downstream) -> None:
    endpoints = clusters.endpoints(progress.dump, of)
    if endpoints.unclear:
        raise Ended("undecided", endpoints.unclear)
    unhealthy = tuple(
        Other(each.text, "not healthy", each.node.path) for each in endpoints.every if each not in endpoints.callable
    )
    progress.step("cluster", f"{plain(of.name)}: {of.type}, {count_text(len(endpoints.every))}", of.node.path)
    if not endpoints.callable:
        why = "no endpoints" if not endpoints.every else "no healthy endpoint"
        progress.step("endpoint", "none", "", unhealthy)
        raise _failed(progress, f"cluster {plain(of.name)} has {why} (no_healthy_upstream)", "UH")
    panic = ", none healthy enough, so all are taken (panic)" if endpoints.panic else ""
    many = f"one of {len(endpoints.callable)}: " if len(endpoints.callable) > 1 else ""
    for each in endpoints.callable:
        progress.dials = (*progress.dials, _dial(progress, of, connection, (each.address, each.port), each))
    first = endpoints.callable[0]
    progress.step(
        "endpoint",
        f"{many}{', '.join(each.text for each in endpoints.callable[:5])}{panic}",
        first.node.path,
        unhealthy,
    )


def _dial(
    progress: Progress, of: Cluster, connection: chains.Downstream, to: tuple[bytes, int], endpoint: Upstream | None
) -> Dial:
    source, mark = None, clusters.mark(of)
    if progress.spoofs is not None:
        source, mark = connection.source, progress.spoofs.get("mark").number() or mark
    elif bound := clusters.bind_address(progress.dump, of, len(to[0])):
        source = bound[0]
        if all(step.path != bound[1].path for step in progress.steps):
            progress.step("cluster", f"bound to {address_text(source)} (upstream_bind_config)", bound[1].path)
    return Dial(*to, source, mark, _onward(progress, of, endpoint))


def _onward(progress: Progress, of: Cluster, endpoint: Upstream | None) -> Client:
    """Envoy as the upstream's client."""
    client, secured = progress.client, clusters.security(of, endpoint)
    if progress.is_request:
        client = client.replace(application="h2c" if clusters.speaks_http2(of, client.application) else "http/1.1")
    if secured.by or secured.tls:
        by = f" ({plain(secured.by)})" if secured.by else ""
        text = f"towards it: {'TLS' if secured.tls else 'in clear'}{by}"
        if all(step.text != text for step in progress.steps):
            progress.step("cluster", text, of.node.path)
    if not secured.tls:
        return client.replace(speaks=speaks_text(client))
    return client.replace(
        speaks="mtls" if secured.certificate else "tls", transport=TLS, alpn=secured.alpn, sni=secured.sni,
        certificate=secured.certificate,
    )  # fmt: skip
