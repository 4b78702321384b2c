"""A connection's way through Istio's own configuration, and through what is changed in it."""

from __future__ import annotations

from typing import Any

import pytest

from istio_init.envoy.client import CLIENTS
from istio_init.envoy.dump import read, with_health
from istio_init.envoy.path import follow
from tests.envoy import sidecar

RATINGS, REVIEWS, SNIFFED, ECHO = "10.96.0.10", "10.96.0.40", "10.96.0.30", "10.96.0.20"

TO_RATINGS = "outbound|9080||ratings.default.svc.cluster.local"
TO_SNIFFED = "outbound|5555||sniffed.default.svc.cluster.local"
TO_ECHO = "outbound|7070||tcp-echo.default.svc.cluster.local"

# Destination, port, client, Host: the listener, chain, route and cluster in the access log, and the end.
OUTBOUND = {
    "a service by its address": (RATINGS, 9080, "http", "ratings", "0.0.0.0_9080", "", "rest", TO_RATINGS, "wire", ""),
    "a service by its port in Host": (
        RATINGS,
        9080,
        "h2c",
        "ratings:9080",
        "0.0.0.0_9080",
        "",
        "rest",
        TO_RATINGS,
        "wire",
        "",
    ),
    "Host decides, not the address": (
        "203.0.113.9",
        9080,
        "http",
        "ratings",
        "0.0.0.0_9080",
        "",
        "rest",
        TO_RATINGS,
        "wire",
        "",
    ),
    "Host in no domain": (
        RATINGS,
        9080,
        "http",
        "unknown",
        "0.0.0.0_9080",
        "",
        "allow_any",
        "PassthroughCluster",
        "wire",
        "",
    ),
    "not HTTP on an HTTP port": (
        RATINGS,
        9080,
        "tcp",
        "",
        "0.0.0.0_9080",
        "PassthroughFilterChain",
        "",
        "PassthroughCluster",
        "wire",
        "",
    ),
    "TLS on an HTTP port": (
        RATINGS,
        9080,
        "tls",
        "",
        "0.0.0.0_9080",
        "PassthroughFilterChain",
        "",
        "PassthroughCluster",
        "wire",
        "",
    ),
    "server first on an HTTP port": (RATINGS, 9080, "server-first", "", "0.0.0.0_9080", "", "", "", "hangs", ""),
    "server first on a TCP port": (ECHO, 7070, "server-first", "", "10.96.0.20_7070", "", "", TO_ECHO, "wire", ""),
    "a sniffed port": (SNIFFED, 5555, "http", "x", "10.96.0.30_5555", "", "default", TO_SNIFFED, "wire", ""),
    "a sniffed port, not HTTP": (SNIFFED, 5555, "tcp", "", "10.96.0.30_5555", "", "", TO_SNIFFED, "wire", ""),
    "a port that nobody declared": (
        RATINGS,
        1234,
        "http",
        "ratings",
        "virtualOutbound",
        "virtualOutbound-catchall-tcp",
        "",
        "PassthroughCluster",
        "wire",
        "",
    ),
    "any host's 15090": ("203.0.113.9", 15090, "http", "x", "prometheus", "", "", "", "answers", ""),
    "the proxy's own port": (
        "203.0.113.9",
        15001,
        "tcp",
        "",
        "virtualOutbound",
        "virtualOutbound-blackhole",
        "",
        "BlackHoleCluster",
        "closes",
        "UH",
    ),
}
# Port, client: the same.
INBOUND = {
    "http on an HTTP port": (
        9080,
        "http",
        "virtualInbound",
        "0.0.0.0_9080",
        "default",
        "inbound|9080||",
        "application",
        "",
    ),
    "mtls on an HTTP port": (
        9080,
        "mtls",
        "virtualInbound",
        "0.0.0.0_9080",
        "default",
        "inbound|9080||",
        "application",
        "",
    ),
    "the app's own TLS on an HTTP port": (9080, "tls", "virtualInbound", "", "", "", "closes", "NR"),
    "not HTTP on an HTTP port": (9080, "tcp", "virtualInbound", "0.0.0.0_9080", "", "", "answers", "DPE"),
    "TLS on a sniffed port": (8001, "tls", "virtualInbound", "0.0.0.0_8001", "", "inbound|8001||", "application", ""),
    "not HTTP on a TCP port": (7071, "tcp", "virtualInbound", "0.0.0.0_7071", "", "inbound|7071||", "application", ""),
    "server first on a TCP port": (7071, "server-first", "virtualInbound", "", "", "", "hangs", ""),
    "a port without chains": (
        1234,
        "http",
        "virtualInbound",
        "virtualInbound-catchall-http",
        "default",
        "InboundPassthroughCluster",
        "application",
        "",
    ),
    "the proxy's own port": (
        15006,
        "http",
        "virtualInbound",
        "virtualInbound-blackhole",
        "",
        "BlackHoleCluster",
        "closes",
        "UH",
    ),
    "an excluded port": (15090, "http", "prometheus", "", "", "", "answers", ""),
}


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
@pytest.mark.parametrize("name", OUTBOUND)
def test_outbound(name: str, mode: str) -> None:
    address, port, speaks, host, *expected = OUTBOUND[name]
    pod = sidecar.pod(mode=mode)
    path = sidecar.only(pod, sidecar.outbound(pod, address, port), speaks, host=host)
    first = path.passages[0]
    assert [first.listener, first.chain, first.route, first.cluster, path.end, path.flag] == expected


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
@pytest.mark.parametrize("name", INBOUND)
def test_inbound(name: str, mode: str) -> None:
    port, speaks, *expected = INBOUND[name]
    path = sidecar.only(sidecar.pod(mode=mode), sidecar.inbound(port), speaks, host="reviews")
    (only,) = path.passages
    assert [only.listener, only.chain, only.route, only.cluster, path.end, path.flag] == expected


@pytest.mark.parametrize(("mode", "source"), [("REDIRECT", bytes((127, 0, 0, 6))), ("TPROXY", sidecar.CLIENT)])
def test_the_app_sees_the_source_that_envoy_is_bound_to(mode: str, source: bytes) -> None:
    path = sidecar.only(sidecar.pod(mode=mode), sidecar.inbound(9080))
    assert path.legs[-1].arrived.source == source
    assert path.legs[-1].end == "application"


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_the_apps_own_service_leads_through_both_listeners(mode: str) -> None:
    pod = sidecar.pod(mode=mode)
    path = sidecar.only(pod, sidecar.outbound(pod, REVIEWS, 8001), host="reviews")
    assert [each.listener for each in path.passages] == ["10.96.0.40_8001", "virtualInbound"]
    assert [each.end for each in path.legs] == ["outbound", "inbound", "application"]


def test_a_header_chooses_a_route_and_each_other_says_why_not() -> None:
    pod = sidecar.pod()
    packet = sidecar.outbound(pod, RATINGS, 9080)
    jason = sidecar.only(pod, packet, host="ratings", path="/v2", headers=(("end-user", "jason"),))
    assert jason.passages[0].route == "jason"
    other = sidecar.only(pod, packet, host="ratings", path="/v2").passages[0]
    (step,) = [each for each in other.steps if each.part == "route"]
    assert [(each.name, each.why) for each in step.others] == [("route 1 jason", "no header end-user")]
    assert step.path.endswith("dynamic_route_configs[1].route_config.virtual_hosts[0].routes[1]")


def test_one_answer_for_all_clients_that_are_treated_alike() -> None:
    pod = sidecar.pod()
    actual = sidecar.all_answers(pod, sidecar.inbound(9080), host="x")
    assert [[client.speaks for client in answer.clients] for answer in actual] == [
        ["http", "h2c"], ["tls"], ["mtls"], ["tcp"], ["server-first"],
    ]  # fmt: skip


def ended(dump: Any, packet: Any = None, speaks: str = "http", mode: str = "REDIRECT") -> tuple[str, str, str]:  # noqa: ANN401
    """How a request for ratings ends, with a dump that was changed."""
    pod = sidecar.pod(dump, mode)
    path = sidecar.only(pod, packet or sidecar.outbound(pod, RATINGS, 9080), speaks, host="ratings")
    return path.end, path.flag, path.passages[-1].end.text


def part(dump: Any, kind: str) -> Any:  # noqa: ANN401
    """A part of a dump by its message."""
    return next(each for each in dump["configs"] if each["@type"].endswith(f".{kind}"))


def without(dump: Any, kind: str) -> Any:  # noqa: ANN401
    """The dump without a part."""
    dump["configs"].remove(part(dump, kind))
    return dump


def ratings(dump: Any) -> Any:  # noqa: ANN401
    """The endpoints of ratings."""
    result = (each["endpoint_config"] for each in part(dump, "EndpointsConfigDump")["dynamic_endpoint_configs"])
    return next(each for each in result if "ratings" in each["cluster_name"])["endpoints"][0]["lb_endpoints"]


def test_no_cluster_is_nc_and_no_part_of_the_dump_is_undecided() -> None:
    dump = sidecar.value()
    clusters = part(dump, "ClustersConfigDump")["dynamic_active_clusters"]
    clusters[:] = [each for each in clusters if "ratings" not in each["cluster"]["name"]]
    assert ended(dump)[:2] == ("answers", "NC")
    end, flag, why = ended(without(sidecar.value(), "ClustersConfigDump"))
    assert (end, flag) == ("undecided", "")
    assert "not in the dump, which has no clusters" in why


def test_no_endpoint_is_uh_and_no_part_of_the_dump_is_undecided() -> None:
    dump = sidecar.value()
    ratings(dump)[0]["health_status"] = "UNHEALTHY"
    assert ended(dump)[:2] == ("answers", "UH")
    ratings(dump).clear()
    assert ended(dump)[:2] == ("answers", "UH")
    assert "?include_eds" in ended(without(sidecar.value(), "EndpointsConfigDump"))[2]


def test_routes_that_were_not_received_are_404_and_those_not_in_the_dump_undecided() -> None:
    dump = sidecar.value()
    part(dump, "RoutesConfigDump")["dynamic_route_configs"] = []
    assert ended(dump)[:2] == ("answers", "NR")
    assert ended(without(sidecar.value(), "RoutesConfigDump"))[0] == "undecided"


def test_a_panic_takes_unhealthy_endpoints() -> None:
    dump = sidecar.value()
    ratings(dump)[0]["health_status"] = "UNHEALTHY"
    del sidecar.cluster(dump, "outbound|9080||ratings.default.svc.cluster.local")["common_lb_config"]
    assert ended(dump)[0] == "wire"


def test_an_ejected_endpoint_is_unhealthy() -> None:
    status = '{"cluster_statuses": [{"name": "outbound|9080||ratings.default.svc.cluster.local", "host_statuses": ['
    status += '{"address": {"socket_address": {"address": "10.44.1.11", "port_value": 9080}}, '
    status += '"health_status": {"failed_outlier_check": true}}]}]}'
    assert ended(with_health(read(sidecar.value()), status))[:2] == ("answers", "UH")


def test_a_destination_that_is_not_restored_is_the_listeners_own_port() -> None:
    dump = sidecar.value()
    listener = sidecar.listener(dump, "virtualInbound")
    listener["listener_filters"] = [each for each in listener["listener_filters"] if "original" not in each["name"]]
    assert ended(dump, sidecar.inbound(9080))[:2] == ("closes", "UH")


def test_another_source_than_the_passthrough_address_is_a_loop() -> None:
    dump = sidecar.value()
    sidecar.cluster(dump, "inbound|9080||")["upstream_bind_config"]["source_address"]["address"] = "127.0.0.7"
    assert ended(dump, sidecar.inbound(9080))[0] == "loop"
    del sidecar.cluster(dump, "inbound|9080||")["upstream_bind_config"]
    assert ended(dump, sidecar.inbound(9080))[0] == "loop"


def test_an_outbound_cluster_bound_to_loopback_fails() -> None:
    dump = sidecar.value()
    bind = {"source_address": {"address": "127.0.0.6", "port_value": 0}}
    sidecar.cluster(dump, "outbound|9080||ratings.default.svc.cluster.local")["upstream_bind_config"] = bind
    end, flag, why = ended(dump)
    assert (end, flag) == ("answers", "UF")
    assert "EINVAL" in why


def test_tproxy_needs_a_transparent_socket() -> None:
    dump = sidecar.value("TPROXY")
    sidecar.listener(dump, "virtualInbound")["transparent"] = False
    end, _, why = ended(dump, sidecar.inbound(9080), mode="TPROXY")
    assert end == "hangs"
    assert "no transparent socket" in why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda listener: listener.update(filter_chain_matcher={}), "filter_chain_matcher"),
        (lambda listener: listener["filter_chains"][0]["filter_chain_match"].update(new_field=1), "new_field"),
        (lambda listener: listener["listener_filters"].append({"name": "envoy.filters.listener.lua"}), "lua"),
    ],
)
def test_what_is_not_followed_is_named(change: Any, why: str) -> None:  # noqa: ANN401
    dump = sidecar.value()
    change(sidecar.listener(dump, "virtualInbound"))
    end, _, text = ended(dump, sidecar.inbound(9080))
    assert end == "undecided"
    assert why in text


def test_a_filter_that_may_refuse_is_a_condition() -> None:
    dump = sidecar.value()
    chain = sidecar.listener(dump, "virtualInbound")["filter_chains"][-1]
    chain["filters"][0]["typed_config"]["http_filters"].insert(0, {"name": "envoy.filters.http.rbac"})
    path = sidecar.only(sidecar.pod(dump), sidecar.inbound(9080), host="x")
    assert path.end == "application"
    assert path.conditions == ("HTTP filter envoy.filters.http.rbac may refuse or change it; it is not followed",)


def test_everything_beside_nothing_is_undecided() -> None:
    dump = sidecar.value()
    chains = sidecar.listener(dump, "virtualInbound")["filter_chains"]
    whole = {"address_prefix": "0.0.0.0", "prefix_len": 0}
    chains[-1]["filter_chain_match"]["prefix_ranges"] = [whole]
    assert "by chance" in ended(dump, sidecar.inbound(9080))[2]


def test_weights_are_listed() -> None:
    dump = sidecar.value()
    tables = part(dump, "RoutesConfigDump")["dynamic_route_configs"]
    route = next(each["route_config"] for each in tables if each["route_config"]["name"] == "9080")
    rest = route["virtual_hosts"][0]["routes"][1]["route"]
    del rest["cluster"]
    rest["weighted_clusters"] = {"clusters": [{"name": "one", "weight": 90}, {"name": "two", "weight": 10}]}
    end, _, why = ended(dump)
    assert (end, why) == ("undecided", "the route picks a cluster by chance, by weight: one 90, two 10")


def test_a_pod_of_its_own_and_one_elsewhere_are_two_paths() -> None:
    dump = sidecar.value()
    endpoints = ratings(dump)
    own = {"endpoint": {"address": {"socket_address": {"address": "10.44.0.2", "port_value": 9080}}}}
    endpoints.append(own)
    pod = sidecar.pod(dump)
    client = CLIENTS["http"]
    paths = follow(
        pod, sidecar.outbound(pod, RATINGS, 9080), client.replace(request=client.request.replace(host="ratings"))
    )
    assert sorted(path.end for path in paths) == ["application", "wire"]


def test_what_opens_no_tcp_connection_goes_no_further_than_the_rules() -> None:
    pod = sidecar.pod()
    for changes in ({"ctstate": "ESTABLISHED"}, {"protocol": 17}):
        (path,) = follow(pod, sidecar.inbound(9080).replace(**changes), CLIENTS["http"])
        assert path.passages == ()


@pytest.mark.parametrize(
    ("address", "why"),
    [({"pipe": {"path": "/x"}}, "a Unix socket"), ({"envoy_internal_address": {}}, "an internal listener")],
)
def test_endpoints_without_an_ip_address_are_undecided(address: Any, why: str) -> None:  # noqa: ANN401
    dump = sidecar.value()
    ratings(dump)[0]["endpoint"]["address"] = address
    end, _, text = ended(dump)
    assert end == "undecided"
    assert why in text
