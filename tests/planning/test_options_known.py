"""An option that shapes the rules is known to all that promise or do the same as the rules."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from istio_init.cli.given_options import SHAPING
from istio_init.options.table import OPTIONS
from istio_init.planning import capture, capture_dns, capture_tproxy, plan, socket_capture
from istio_init.verify import invariants, proof

# Read by functions of capture.py that the others call; what says a place among other programs' rules, of which neither
# a plan alone nor eBPF has any; and comments, which decide nothing.
BY_CALL = {"redirect_dns", "istio_inbound_interception_mode", "insert_jumps", "rule_comments"}
# Read where the proxy and the routes are described that invariants are about (simulate.path.Proxy, capture.loopback).
BY_DESCRIPTION = {
    "envoy_port",
    "inbound_capture_port",
    "istio_inbound_tproxy_mark",
    "istio_outbound_ipv4_loopback_cidr",
}
# What makes rules of options.
CAPTURE = (capture, capture_dns, capture_tproxy)


def fields(*modules: ModuleType) -> set[str]:
    """The options that modules read, as attributes of any object."""
    nodes = (node for module in modules for node in ast.walk(ast.parse(inspect.getsource(module))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)} & {option.field for option in OPTIONS}


@pytest.mark.parametrize(
    ("modules", "others"),
    [
        # Capture by eBPF tracks no connections, so there are no invalid packets.
        ((socket_capture,), {"drop_invalid"}),
        ((invariants, proof), BY_DESCRIPTION),
    ],
)
def test_every_option_that_shapes_the_rules_is_known(modules: tuple[ModuleType, ...], others: set[str]) -> None:
    assert fields(*CAPTURE) - fields(*modules) - BY_CALL == others


def test_every_option_that_shapes_the_rules_is_compared_as_it_is_given() -> None:
    """With one of them on its command line a verb takes no options from the rules that exist."""
    assert fields(*CAPTURE, plan) <= {each.field for each in SHAPING}
