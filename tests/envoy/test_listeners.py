"""Listeners: which one a connection reaches, and when a listener filter is off."""

from __future__ import annotations

from typing import Any

import pytest

from istio_init.envoy import listeners
from istio_init.envoy.client import CLIENTS
from istio_init.envoy.dump import Dump, read
from istio_init.envoy.listeners import Bindings, detect

ANY, POD, OTHER = bytes(4), bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def dump(*result: dict[str, Any]) -> Dump:
    """A dump with these listeners."""
    kind = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump"
    return read({"configs": [{"@type": kind, "static_listeners": [{"listener": each} for each in result]}]})


def listener(name: str, address: str, port: int = 80, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 (JSON)
    """A listener in JSON."""
    socket = {"socket_address": {"address": address, "port_value": port}}
    return {"name": name, "address": socket, **fields}


def name(result: listeners.Listener | None) -> str | None:
    return result.name if result else None


def test_the_exact_address_comes_before_any_address() -> None:
    every = Bindings(dump(listener("any", "0.0.0.0"), listener("exact", "10.0.0.1"), listener("other", "0.0.0.0", 81)))
    assert name(every.bound(POD, 80)) == name(every.of_destination(POD, 80)) == "exact"
    assert name(every.bound(OTHER, 80)) == name(every.of_destination(OTHER, 80)) == "any"
    assert every.bound(OTHER, 82) is None


def test_a_listener_that_is_not_bound_is_reached_by_its_destination_alone() -> None:
    for fields in ({"bind_to_port": False}, {"deprecated_v1": {"bind_to_port": False}}):
        every = Bindings(dump(listener("virtual", "0.0.0.0", **fields)))
        assert every.bound(POD, 80) is None
        assert name(every.of_destination(POD, 80)) == "virtual"


def test_ipv6_takes_ipv4_where_it_is_compatible() -> None:
    assert Bindings(dump(listener("six", "::"))).bound(POD, 80) is None
    compatible = listener("six", "::")
    compatible["address"]["socket_address"]["ipv4_compat"] = True
    every = Bindings(dump(compatible))
    assert name(every.bound(POD, 80)) == name(every.bound(bytes(16), 80)) == "six"


def test_further_addresses_count_and_what_has_no_tcp_socket_does_not() -> None:
    further = [{"address": {"socket_address": {"address": "::", "port_value": 80}}}]
    internal = {"name": "internal", "internal_listener": {}}
    udp = listener("udp", "0.0.0.0", 53)
    udp["address"]["socket_address"]["protocol"] = "UDP"
    every = Bindings(dump(listener("both", "0.0.0.0", additional_addresses=further), internal, udp))
    assert [each.name for each in every.all] == ["both"]
    assert name(every.bound(bytes(15) + b"\1", 80)) == "both"


RANGE = {"destination_port_range": {"start": 80, "end": 82}}


@pytest.mark.parametrize(
    ("predicate", "off"),
    [
        (RANGE, {80, 81}),
        ({"any_match": True}, {79, 80, 81, 82}),
        ({"not_match": RANGE}, {79, 82}),
        ({"or_match": {"rules": [RANGE, {"destination_port_range": {"start": 79, "end": 80}}]}}, {79, 80, 81}),
        ({"and_match": {"rules": [RANGE, {"destination_port_range": {"start": 81, "end": 90}}]}}, {81}),
    ],
)
def test_where_a_filter_is_off(predicate: dict[str, Any], off: set[int]) -> None:
    inspector = {"name": listeners.HTTP_INSPECTOR, "filter_disabled": predicate}
    (only,) = Bindings(dump(listener("x", "0.0.0.0", listener_filters=[inspector]))).all
    assert {port for port in (79, 80, 81, 82) if not detect(only, port, CLIENTS["http"]).alpn} == off


def test_a_filter_is_known_by_its_message_or_its_names() -> None:
    result = [
        {"name": "mine", "typed_config": {"@type": "x.TlsInspector"}},
        {"name": "envoy.listener.http_inspector"},
        {"name": listeners.ORIGINAL_DST},
    ]
    (only,) = Bindings(dump(listener("x", "0.0.0.0", listener_filters=result))).all
    kinds = [each.name for each in only.filters()]
    assert kinds == [listeners.TLS_INSPECTOR, listeners.HTTP_INSPECTOR, listeners.ORIGINAL_DST]
