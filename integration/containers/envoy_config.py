"""Envoy's configuration as Istio's control plane would give it to a sidecar, cut down to what traffic needs.

    virtualOutbound :15001   original_dst ─┬─ port 15001 itself ──────── closed: it would loop
                                           ├─ the service's address ──── cluster "own": the pod
                                           ├─ HTTP ───────────────────── cluster "passthrough": where the app said
                                           └─ anything else ──────────── the same
    virtualInbound  :15006   original_dst ─┬─ port 15006 itself ──────── closed, the same
                             (TPROXY:      ├─ HTTP ───────────────────── cluster "app": where the client said,
                              original_src)└─ anything else ────────────  bound to 127.0.0.6 (TPROXY: to its address)
    :15090 Prometheus, :15020 status, :15080 the app's service for who dials Envoy without any capture

There is one set of listeners and clusters for each family; their names end in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from istio_init.model.rules import FAMILIES

if TYPE_CHECKING:
    from istio_init.model.rules import Family

Json = dict[str, Any]

OUTBOUND, INBOUND, PROMETHEUS, STATUS, OPEN = 15001, 15006, 15090, 15020, 15080
MARK = 1337
ANY = {"ipv4": "0.0.0.0", "ipv6": "::"}
PASSTHROUGH_SOURCE = {"ipv4": "127.0.0.6", "ipv6": "::6"}
HOST_BITS = {"ipv4": 32, "ipv6": 128}
TYPES = "type.googleapis.com/envoy.extensions"


class Service:
    """The app's own service: the address by which others, and the app itself, call it, and the pod behind it."""

    def __init__(self, address: str, pod: str, port: int) -> None:
        self.address, self.pod, self.port = address, pod, port


def sidecar(services: dict[Family, Service], admin: Path, *, tproxy: bool) -> Json:
    """The whole bootstrap of a sidecar; `admin` is the path of the socket of Envoy's admin interface."""
    listeners, clusters = [], []
    for family in FAMILIES:
        listeners += [
            _virtual_outbound(family, services[family]),
            _virtual_inbound(family, tproxy=tproxy),
            _answering(f"prometheus_{family}", family, PROMETHEUS),
            _answering(f"status_{family}", family, STATUS),
            _open_door(family),
        ]
        clusters += [
            _original_destination(f"passthrough_{family}"),
            _original_destination(f"app_{family}", None if tproxy else PASSTHROUGH_SOURCE[family]),
            _static(f"own_{family}", services[family]),
        ]
    clusters.append({"name": "blackhole", "type": "STATIC", "connect_timeout": "5s"})
    return _bootstrap(admin, listeners, clusters)


def responder(admin: Path, port: int) -> Json:
    """An Envoy that answers every HTTP request itself, in whatever version it comes: an app or an upstream."""
    return _bootstrap(admin, [_answering(f"responder_{family}", family, port) for family in FAMILIES], [])


def _bootstrap(admin: Path, listeners: list[Json], clusters: list[Json]) -> Json:
    return {
        "admin": {"address": {"pipe": {"path": str(admin)}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _listener(name: str, family: Family, port: int, chains: list[Json], **more: object) -> Json:
    address = {"address": ANY[family], "port_value": port}
    return {
        "name": name,
        "stat_prefix": name,
        "address": {"socket_address": address},
        "filter_chains": chains,
        **more,
    }


def _virtual_outbound(family: Family, service: Service) -> Json:
    prefix = [{"address_prefix": service.address, "prefix_len": HOST_BITS[family]}]
    chains = [
        _closed(family, OUTBOUND),
        {
            "name": "own",
            "filter_chain_match": {"prefix_ranges": prefix},
            "filters": [_tcp(f"own_{family}", f"own_{family}")],
        },
        {
            "name": "http",
            "filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]},
            "filters": [_http(f"outbound_{family}", f"passthrough_{family}")],
        },
        {"name": "tcp", "filters": [_tcp(f"outbound_{family}", f"passthrough_{family}")]},
    ]
    filters = [_listener_filter("original_dst", "original_dst.v3.OriginalDst"), *_inspector()]
    return _listener(
        f"outbound_{family}",
        family,
        OUTBOUND,
        chains,
        listener_filters=filters,
        listener_filters_timeout="0.2s",
        continue_on_listener_filters_timeout=True,
    )


def _virtual_inbound(family: Family, *, tproxy: bool) -> Json:
    chains = [
        _closed(family, INBOUND),
        {
            "name": "http",
            "filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]},
            "filters": [_http(f"inbound_{family}", f"app_{family}")],
        },
        {"name": "tcp", "filters": [_tcp(f"inbound_{family}", f"app_{family}")]},
    ]
    filters = [_listener_filter("original_dst", "original_dst.v3.OriginalDst")]
    if tproxy:
        filters.append(_listener_filter("original_src", "original_src.v3.OriginalSrc", mark=MARK))
    return _listener(
        f"inbound_{family}",
        family,
        INBOUND,
        chains,
        listener_filters=[*filters, *_inspector()],
        listener_filters_timeout="0.2s",
        continue_on_listener_filters_timeout=True,
        transparent=tproxy,
    )


def _open_door(family: Family) -> Json:
    return _listener(f"open_{family}", family, OPEN, [{"filters": [_http(f"open_{family}", f"own_{family}")]}])


def _closed(family: Family, port: int) -> Json:
    """Nobody means the listener's own port: what it would be passed on to is the listener itself."""
    return {
        "name": "itself",
        "filter_chain_match": {"destination_port": port},
        "filters": [_tcp(f"itself_{family}", "blackhole")],
    }


def _inspector() -> list[Json]:
    return [_listener_filter("http_inspector", "http_inspector.v3.HttpInspector")]


def _listener_filter(name: str, kind: str, **fields: object) -> Json:
    config = {"@type": f"{TYPES}.filters.listener.{kind}", **fields}
    return {"name": f"envoy.filters.listener.{name}", "typed_config": config}


def _tcp(prefix: str, cluster: str) -> Json:
    kind = f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"
    config = {"@type": kind, "stat_prefix": prefix, "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def _http(prefix: str, cluster: str) -> Json:
    return _connection_manager(prefix, {"cluster": cluster, "timeout": "30s"})


def _connection_manager(prefix: str, route: Json | None) -> Json:
    answer: Json = (
        {"route": route} if route else {"direct_response": {"status": 200, "body": {"inline_string": prefix}}}
    )
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **answer}]}]
    peer = {"key": "x-peer", "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"}
    config = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": prefix,
        "route_config": {
            "virtual_hosts": hosts,
            # What the one who answers sees; a proxy on the way leaves it as it is.
            **({} if route else {"response_headers_to_add": [{"header": peer}]}),
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _answering(name: str, family: Family, port: int) -> Json:
    return _listener(name, family, port, [{"filters": [_connection_manager(name, None)]}])


def _original_destination(name: str, source: str | None = None) -> Json:
    """A cluster that connects where the client wanted to go, in the HTTP version the client speaks."""
    kind = f"{TYPES}.upstreams.http.v3.HttpProtocolOptions"
    both: Json = {"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}
    cluster: Json = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": kind, **both}
        },
    }
    if source:
        cluster["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    return cluster


def _static(name: str, service: Service) -> Json:
    endpoint = {"address": {"socket_address": {"address": service.pod, "port_value": service.port}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment}
