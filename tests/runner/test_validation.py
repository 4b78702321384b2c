"""Which paths --run-validation expects to be captured."""

from __future__ import annotations

import pytest

from istio_init.model.parsers import networks, ports
from istio_init.options.table import Options
from istio_init.runner.validation import captured_destinations, expected

EVERYTHING = Options(istio_service_cidr="*")


def texts(options: Options) -> list[str]:
    return [network.address.hex() for network in captured_destinations(options)]


def test_with_everything_captured_an_address_of_nobodys_is_dialled() -> None:
    assert texts(EVERYTHING) == ["c0000201", "20010db8000000000000000000000001"]


@pytest.mark.parametrize(
    "changes",
    [
        {"istio_service_cidr": ()},
        {"istio_local_outbound_ports_exclude": ports("15000-15010")},
        {"istio_service_exclude_cidr": networks("0.0.0.0/0,::/0")},
        {"istio_exclude_interfaces": ("eth0",)},
    ],
)
def test_nothing_is_dialled_outbound_where_nothing_is_captured_for_sure(changes: dict[str, object]) -> None:
    assert texts(EVERYTHING.replace(**changes)) == []


def test_included_ranges_are_dialled_unless_an_excluded_one_overlaps() -> None:
    options = Options(
        istio_service_cidr=networks("10.0.0.0/8,172.16.0.0/12"), istio_service_exclude_cidr=networks("10.1.0.0/16")
    )
    assert texts(options) == ["ac100000"]


def test_an_included_port_is_captured_wherever_it_leads() -> None:
    assert texts(Options(istio_outbound_ports=ports("15002")))[0] == "c0000201"


def test_the_groups_follow_the_users() -> None:
    assert expected(Options(proxy_uid=(5,))).proxy_gids == (5,)
    assert expected(Options(istio_outbound_owner_groups=(7,), istio_outbound_owner_groups_exclude=(8,))).groups == (7,)
    assert expected(Options(istio_outbound_owner_groups_exclude=(8,))).groups_excluded == (8,)
