"""Options as JSON data: what is written is read back, and anything else is one error that names the option."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.kit.command_lines import command_lines, running
from istio_init.options.json_data import from_data, to_data
from istio_init.options.table import OPTIONS, Options
from tests.kit.options import options

every_option = st.tuples(command_lines, running).map(lambda parts: options([*parts[0], *parts[1]], {}))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(every_option)
@settings(max_examples=200)
def test_what_is_written_is_read_back(result: Options | None) -> None:
    assert result is not None
    data = json.loads(json.dumps(to_data(result)))
    assert from_data(data) == result
    assert to_data(from_data(data)) == data


def test_long_lists_are_read_back_as_equal_data() -> None:
    networks = ",".join(f"10.{n // 256}.{n % 256}.0/24" for n in range(1000))
    ports = ",".join(map(str, range(1, 20_000)))
    result = options(["-i", networks, "-b", ports], {})
    assert result is not None
    data = to_data(result)
    assert to_data(from_data(data)) == data
    assert len(json.dumps(data)) < 2 * len(networks + ports)


def test_the_data_is_readable() -> None:
    words = "-b 80,8000-8080 -i 10.0.0.0/8,fd00::/8 -u 1337 -c eth1 --wait 2.5 --redirect-dns"
    result = options(words.split(" "), {})
    assert result is not None
    assert to_data(result) == {
        "istio_inbound_ports": [80, [8000, 8080]],
        "istio_service_cidr": ["10.0.0.0/8", "fd00::/8"],
        "istio_exclude_interfaces": ["eth1"],
        "wait": 2.5,
        "redirect_dns": True,
    }
    assert to_data(Options()) == {}


@given(st.dictionaries(st.sampled_from([each.field for each in OPTIONS]) | st.text(), JSON))
def test_any_other_data_is_a_value_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        from_data(data)


@pytest.mark.parametrize(
    "data",
    [
        {"other": 1}, {"envoy_port": "1"}, {"envoy_port": True}, {"envoy_port": None}, {"redirect_dns": 1},
        {"envoy_port": [1]}, {"ip_family": 4}, {"wait": "1"},
        {"istio_service_cidr": ["10.0.0.0/99"]}, {"istio_service_cidr": [1]}, {"istio_inbound_ports": [[1, 2, 3]]},
        {"istio_outbound_ipv4_loopback_cidr": 5}, {"istio_exclude_interfaces": [1]}, {"proxy_uid": ["root"]},
    ],
)  # fmt: skip
def test_the_error_names_the_option(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^option '{next(iter(data))}': "):
        from_data(data)
