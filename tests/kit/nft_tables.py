"""Rules, rulesets and plans for the tests of nftables' formats."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from istio_init import plan
from istio_init.formats.nft.layout import layout
from istio_init.model.inet import (
    NAMES,
    InetTable,
)
from istio_init.model.rules import (
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    Network,
    PortRange,
    Protocol,
    Rule,
    Ruleset,
    Table,
    Verdict,
    ordered,
)
from tests.kit.options import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.model.rules import Family, TableName, Target
    from istio_init.planning.plan import Plan

RETURN, DROP = Verdict("RETURN"), Verdict("DROP")
IS_TCP, IS_UDP = Protocol(TCP), Protocol(UDP)


def planned(*words: str) -> Plan:
    """The plan of a command line."""
    chosen = options(["-u", "1337", *words], {})
    assert chosen is not None
    return plan(chosen)


def laid_out(rulesets: Sequence[Ruleset]) -> tuple[InetTable, ...]:
    """All tables that hold something."""
    return tuple(each for name in NAMES if (each := layout(rulesets, name)).chains)


def nat(family: Family, chains: dict[str, tuple[Rule, ...]], name: TableName = "nat") -> Ruleset:
    """A ruleset of one table."""
    result = {
        each: Chain(each, rules, "ACCEPT" if each.isupper() and "_" not in each else None)
        for each, rules in chains.items()
    }
    return Ruleset(family, (Table(name, ordered(name, result)),))


def dport(number: int, last: int = 0, *, protocol: Protocol = IS_TCP, to: Target = RETURN) -> Rule:
    """A rule about a destination port, or a range of them."""
    return Rule((protocol, DestinationPorts(PortRange(number, last or number))), to)


def to(cidr: str, target: Target = RETURN) -> Rule:
    """A rule about a destination."""
    network = ipaddress.ip_network(cidr)
    return Rule((Destination(Network(network.network_address.packed, network.prefixlen)),), target)
