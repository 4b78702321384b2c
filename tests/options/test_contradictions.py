"""Options that have no effect beside others are told, and no others are."""

from __future__ import annotations

import pytest
from hypothesis import given

from integration.kit.command_lines import command_lines, running
from istio_init.options import argv
from istio_init.options.contradictions import RULES, contradictions
from istio_init.options.table import OPTIONS
from istio_init.runner.defaults import account
from tests.kit.options import options

INJECTED = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x  -b * -d 15090,15021,15020 --log_output_level=default:info"


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("-b 80 -d 8080", "--istio-local-exclude-ports (-d)"),
        ("-d 8080", "--istio-local-exclude-ports (-d)"),
        ("-i * -q 443", "--istio-outbound-ports (-q)"),
        ("-x 10.0.0.0/8", "--istio-service-exclude-cidr (-x)"),
        ("-o 25", "--istio-local-outbound-ports-exclude (-o)"),
        ("--capture-all-dns", "--capture-all-dns"),
        ("--dns-servers 10.0.0.10", "--dns-servers"),
        ("--redirect-dns --capture-all-dns --dns-servers 10.0.0.10", "--dns-servers"),
        ("--dual-stack --enable-ipv6=false", "--dual-stack"),
        ("-t 7", "--istio-inbound-tproxy-mark (-t)"),
        ("-r 7", "--istio-inbound-tproxy-route-table (-r)"),
        ("--probe-timeout 1s", "--probe-timeout"),
        ("--iptables-probe-port 1", "--iptables-probe-port"),
        ("--reconcile --cleanup-only", "--reconcile"),
        ("--force-apply --skip-rule-apply", "--force-apply"),
        (
            "--istio-outbound-owner-groups 5 --istio-outbound-owner-groups-exclude 6",
            "--istio-outbound-owner-groups-exclude",
        ),
    ],
)
def test_what_has_no_effect_is_told(line: str, flag: str) -> None:
    warnings: list[str] = []
    result = argv.options(line.split(" "), {}, account, warnings)
    assert result is not None
    assert [warning.partition(": no effect: ")[0] for warning in warnings] == [flag]


@pytest.mark.parametrize(
    "line",
    [
        INJECTED, INJECTED.replace("-b *", "-b 80"), "-b * -d 8080", "-i 10.0.0.0/8 -q 443",
        "-i * -x 10.0.0.0/8 -q 443",
        "-i * -x 10.0.0.0/8 -o 25", "--redirect-dns --dns-servers 10.0.0.10", "-m TPROXY -t 7 -r 7", "--reconcile",
        "--run-validation --probe-timeout 1s", "--dual-stack", "",
    ],
)  # fmt: skip
def test_nothing_is_told_of_what_belongs_together(line: str) -> None:
    warnings: list[str] = []
    assert argv.options(line.split(" ") if line else [], {}, account, warnings) is not None
    assert warnings == []


@given(command_lines, running)
def test_what_is_told_is_never_missed_by_the_cheap_look(shaping: list[str], acting: list[str]) -> None:
    """A plain run asks for contradictions only of options that are dubious."""
    result = options([*shaping, *acting], {})
    assert result is not None
    assert argv.dubious(result) or not contradictions(result)


def test_the_rules_name_fields() -> None:
    assert {field for field, _, _ in RULES} <= {each.field for each in OPTIONS}
