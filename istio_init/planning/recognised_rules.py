"""Istio's rules in a ruleset, by the chains they are in: what planning/recognition.py reads options from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from istio_init.model.extensions import Mark, SaveMark
from istio_init.model.rules import (
    TCP,
    Destination,
    DestinationPorts,
    Jump,
    PortRange,
    Protocol,
    Rule,
    Ruleset,
)
from istio_init.planning.capture import RETURN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.model.rules import TableName


T = TypeVar("T")

TO_INBOUND = (Jump("ISTIO_IN_REDIRECT"), Jump("ISTIO_TPROXY"))
TO_OUTBOUND = Jump("ISTIO_REDIRECT")


class Reader:
    """One family's rules, by table and chain."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self.family = ruleset.family

    def chain(self, table: TableName, name: str) -> tuple[Rule, ...]:
        """A chain's rules; none where it does not exist."""
        existing = self._ruleset.table(table)
        chain = existing.chain(name) if existing else None
        return chain.rules if chain else ()

    def exists(self, table: TableName, name: str) -> bool:
        """Whether a chain exists."""
        existing = self._ruleset.table(table)
        return bool(existing and existing.chain(name))

    @property
    def tproxy(self) -> bool:
        """Whether inbound traffic is captured with TPROXY: its marks are saved even where nothing is captured."""
        saving = any(isinstance(rule.target, SaveMark) and only(rule, Protocol, Mark) for rule in self.marking)
        return saving or self.exists("mangle", "ISTIO_TPROXY")

    @property
    def marking(self) -> tuple[Rule, ...]:
        """The chain in which TPROXY saves marks."""
        return self.chain("mangle", "PREROUTING")

    @property
    def inbound(self) -> tuple[Rule, ...]:
        """The chain that decides about inbound connections."""
        return self.chain("mangle" if self.tproxy else "nat", "ISTIO_INBOUND")

    def outbound(self) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        """ISTIO_OUTPUT's rules before and from the one that leaves loopback alone: the first with a destination alone.

        Without it the first rule that captures begins the second part.
        """
        rules = self.chain("nat", "ISTIO_OUTPUT")
        spared = [at for at, rule in enumerate(rules) if rule.target == RETURN and only(rule, Destination)]
        captured = [at for at, rule in enumerate(rules) if rule.target == TO_OUTBOUND]
        at = (spared or captured or [len(rules)])[0]
        return rules[:at], rules[at:]


def only(rule: Rule, *kinds: type) -> bool:
    """Whether a rule has matches of exactly these kinds, one each, none negated."""
    plain = not any(getattr(match, "negated", False) for match in rule.matches)
    return plain and len(rule.matches) == len(kinds) and {type(match) for match in rule.matches} == set(kinds)


def match_of(rule: Rule, kind: type[T]) -> T:
    """The rule's match of a kind that it has."""
    return next(match for match in rule.matches if isinstance(match, kind))


def has(rule: Rule, kind: type, *, negated: bool = False) -> bool:
    """Whether a rule has a match of this kind."""
    return any(isinstance(match, kind) and getattr(match, "negated", False) == negated for match in rule.matches)


def ports_to(rules: Iterable[Rule], target: object, protocol: int = TCP) -> tuple[PortRange, ...]:
    """The ports of the rules to a target that say nothing but the protocol and a port."""
    return tuple(
        match_of(rule, DestinationPorts).ports
        for rule in rules
        if rule.target == target
        and only(rule, Protocol, DestinationPorts)
        and match_of(rule, Protocol).number == protocol
    )


def without(entries: Iterable[T], *removed: T) -> tuple[T, ...]:
    """The entries without the first occurrence of each of the others."""
    rest = list(entries)
    for each in removed:
        if each in rest:
            rest.remove(each)
    return tuple(rest)
