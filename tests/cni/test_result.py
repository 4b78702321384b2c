"""The addresses in results of each version of the CNI specification."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.plugin.result import addresses
from istio_init.model import parsers

OLD = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1"}}
MIDDLE = {"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::2/64"}, {"address": "10.0.0.2/24"}]}
NEW = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24", "interface": 0}, {"address": "fd00::2/64"}]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["ips", "ip4", "ip6", "ip", "address"]), inner),
)


@pytest.mark.parametrize(
    ("result", "actual"),
    [
        (OLD, ["10.0.0.2", "fd00::2"]),
        (MIDDLE, ["fd00::2", "10.0.0.2"]),
        (NEW, ["10.0.0.2", "fd00::2"]),
        ({}, []),
        ({"ips": [{"address": "what?"}, 5, {}], "ip4": []}, []),
    ],
)
def test_the_addresses_in_their_order(result: dict[str, Any], actual: list[str]) -> None:
    assert [each.network for each in addresses(result)] == [parsers.address(text) for text in actual]


@given(JSON)
def test_any_result_is_read(result: Any) -> None:  # noqa: ANN401 (JSON)
    addresses(result)
