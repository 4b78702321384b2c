"""Planted faults: a ruleset with one thing wrong."""

from __future__ import annotations

from collections.abc import Iterator

from istio_init.model.extensions import Mark
from istio_init.model.parsers import masked
from istio_init.model.rules import (
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Redirect,
    Rule,
    Ruleset,
    Source,
)


def mutations(ruleset: Ruleset) -> Iterator[tuple[str, Ruleset]]:
    """Each ruleset that has one rule dropped, two swapped, or one value wrong; and what was done."""
    for table in ruleset.tables:
        for chain in table.chains:
            for rules, what in _changed(chain):
                chains = tuple(each.replace(rules=rules) if each is chain else each for each in table.chains)
                tables = tuple(each.replace(chains=chains) if each is table else each for each in ruleset.tables)
                yield f"{ruleset.family} {table.name} {chain.name}: {what}", ruleset.replace(tables=tables)


def _changed(chain: Chain) -> Iterator[tuple[tuple[Rule, ...], str]]:
    rules = chain.rules
    for number, rule in enumerate(rules):
        yield (*rules[:number], *rules[number + 1 :]), f"rule {number + 1} dropped"
        if number + 1 < len(rules) and rules[number + 1] != rule:
            yield (*rules[:number], rules[number + 1], rule, *rules[number + 2 :]), f"rule {number + 1} swapped"
        for wrong, what in _wrong(rule):
            yield (*rules[:number], wrong, *rules[number + 1 :]), f"rule {number + 1}: {what}"


def _wrong(rule: Rule) -> Iterator[tuple[Rule, str]]:
    for number, match in enumerate(rule.matches):
        wrong = _other(match)
        if wrong is not None:
            yield rule.replace(matches=(*rule.matches[:number], wrong, *rule.matches[number + 1 :])), f"{wrong}"
    if isinstance(rule.target, Redirect):
        port = rule.target.ports.low + 1
        yield rule.replace(target=Redirect(PortRange(port, port))), f"to port {port}"


def _other(match: object) -> object:
    match match:
        case Source(network) | Destination(network):
            prefix = max(network.prefix - 9, 0)
            return match.replace(network=Network(masked(network.address, prefix), prefix))
        case InInterface(name) | OutInterface(name):
            return match.replace(name="veth1" if name == "lo" else "lo")
        case DestinationPorts(ports):
            return match.replace(ports=PortRange(ports.low + 1, ports.high + 1))
        case Owner(low=low):
            return match.replace(low=low + 1, high=low + 1)
        case Mark(value):
            return match.replace(value=value + 1)
        case _:
            return None
