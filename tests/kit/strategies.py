"""Hypothesis strategies for netfilter's values, as the kernel would keep them and iptables-save would print them.

That means: a rule's own matches come first and in order, a port is under `-p tcp` or `-p udp`, a match
that every packet passes is left out. A table is one that the kernel takes: no loops, and in the built-in
chains (and the chains that they jump to) nothing that another hook or table alone may have.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from istio_init.formats.addresses import PROTOCOLS
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.parsers import masked
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    IPV4,
    OWN_CHAINS,
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Ruleset,
    Source,
    SourcePorts,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from hypothesis.strategies import SearchStrategy

    from istio_init.model.rules import Family, Match, TableName, Target

NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
# Names that -j takes for something else than a chain.
TARGET_NAMES = {"ACCEPT", "DROP", "RETURN", "QUEUE", "REDIRECT", "TPROXY", "MARK", "CONNMARK", "CT"}

marks = st.integers(0, 0xFFFFFFFF)
ids = st.integers(0, 2**32 - 2)
ports = st.integers(0, 65535)
negations = st.booleans()
families: SearchStrategy[Family] = st.sampled_from(("ipv4", "ipv6"))


def addresses(family: Family) -> SearchStrategy[bytes]:
    """A packed address."""
    size = 4 if family == IPV4 else 16
    return st.binary(min_size=size, max_size=size)


def networks(family: Family, shortest: int = 1) -> SearchStrategy[Network]:
    """A network with a prefix of at least `shortest` bits."""
    prefixes = st.integers(shortest, 32 if family == IPV4 else 128)
    return st.builds(lambda address, prefix: Network(masked(address, prefix), prefix), addresses(family), prefixes)


def port_ranges() -> SearchStrategy[PortRange]:
    """One port, or a range that is not all of them: iptables takes that for no match at all."""
    ranges = st.tuples(ports, ports).map(lambda pair: PortRange(min(pair), max(pair)))
    return st.one_of(ports.map(lambda port: PortRange(port, port)), ranges.filter(lambda r: r != PortRange(0, 65535)))


def interfaces() -> SearchStrategy[str]:
    """An interface's name, or a prefix that ends in +."""
    start = st.sampled_from(NAME_CHARACTERS.replace("-", ""))
    names = st.builds(str.__add__, start, st.text(NAME_CHARACTERS, max_size=13))
    return st.builds(str.__add__, names, st.sampled_from(("", "+")))


def chain_names() -> SearchStrategy[str]:
    """The name of a chain of a user's: one of Istio's, or another."""
    start = st.sampled_from(NAME_CHARACTERS.replace("-", ""))
    others = st.builds(str.__add__, start, st.text(NAME_CHARACTERS, max_size=27))
    taken = TARGET_NAMES.union(*BUILTIN_CHAINS.values())
    return st.one_of(st.sampled_from(sorted(OWN_CHAINS)), others.filter(lambda name: name not in taken))


def comments() -> SearchStrategy[str]:
    """A comment of at most 255 bytes on one line."""
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), max_size=255)
    return text.filter(lambda comment: len(comment.encode()) <= 255)


def protocols() -> SearchStrategy[Protocol]:
    """A protocol that has a name, or one of those that have none (IANA: 146 to 254)."""
    return st.builds(Protocol, st.one_of(st.sampled_from(sorted(PROTOCOLS)), st.integers(146, 254)), negations)


def multiports() -> SearchStrategy[Multiport]:
    """One to fifteen ports, a range counting as two."""
    lists = st.lists(port_ranges(), min_size=1, max_size=15).map(tuple)
    fits = lists.filter(lambda chosen: sum(1 if p.low == p.high else 2 for p in chosen) <= 15)
    return st.builds(Multiport, st.sampled_from(("sports", "dports", "ports")), fits, negations)


def owners() -> SearchStrategy[Owner]:
    """One uid or gid, or a range of them."""
    kinds: SearchStrategy[Literal["uid", "gid"]] = st.sampled_from(("uid", "gid"))
    one = st.builds(lambda kind, number, negated: Owner(kind, number, number, negated), kinds, ids, negations)
    ranges = st.builds(
        lambda kind, a, b, negated: Owner(kind, min(a, b), max(a, b), negated), kinds, ids, ids, negations
    )
    return one | ranges


def ct_states() -> SearchStrategy[CtState]:
    """Some states, in the order in which they are printed."""
    chosen = st.sets(st.sampled_from(CT_STATES), min_size=1)
    return st.builds(CtState, chosen.map(lambda some: tuple(s for s in CT_STATES if s in some)), negations)


def data() -> SearchStrategy[bytes]:
    """An extension's data: the kernel aligns its size to eight bytes."""
    return st.integers(0, 8).flatmap(lambda words: st.binary(min_size=8 * words, max_size=8 * words))


def sources(family: Family) -> SearchStrategy[Source]:
    """A source network; the empty prefix is a match only where it is negated."""
    return st.one_of(
        st.builds(Source, networks(family), negations), st.builds(Source, networks(family, 0), st.just(True))
    )


def destinations(family: Family) -> SearchStrategy[Destination]:
    """A destination network, like a source."""
    return sources(family).map(lambda match: Destination(match.network, match.negated))


# A strategy for each kind, given the family. Made once: building one costs more than drawing from it.
MATCHES: dict[type, Callable[[Family], SearchStrategy[Match]]] = {
    Source: cache(sources),
    Destination: cache(destinations),
    InInterface: cache(lambda _: st.builds(InInterface, interfaces(), negations)),
    OutInterface: cache(lambda _: st.builds(OutInterface, interfaces(), negations)),
    Protocol: cache(lambda _: protocols()),
    SourcePorts: cache(lambda _: st.builds(SourcePorts, port_ranges(), negations)),
    DestinationPorts: cache(lambda _: st.builds(DestinationPorts, port_ranges(), negations)),
    Multiport: cache(lambda _: multiports()),
    Owner: cache(lambda _: owners()),
    Mark: cache(lambda _: st.builds(Mark, marks, marks, negations)),
    ConnMark: cache(lambda _: st.builds(ConnMark, marks, marks, negations)),
    CtState: cache(lambda _: ct_states()),
    Comment: cache(lambda _: st.builds(Comment, comments())),
    UnknownMatch: cache(
        lambda _: st.builds(UnknownMatch, st.sampled_from(("string", "set")), st.integers(0, 4), data())
    ),
}
TARGETS: dict[type, Callable[[Family], SearchStrategy[Target]]] = {
    Verdict: cache(lambda _: st.builds(Verdict, st.sampled_from(("ACCEPT", "DROP", "RETURN", "QUEUE", "")))),
    Jump: cache(lambda _: st.builds(Jump, chain_names(), st.booleans())),
    Redirect: cache(lambda _: st.builds(Redirect, port_ranges())),
    Tproxy: cache(lambda family: st.builds(Tproxy, ports, addresses(family), marks, marks)),
    SetMark: cache(lambda _: st.builds(SetMark, marks, marks)),
    SaveMark: cache(lambda _: st.builds(SaveMark, marks, marks)),
    RestoreMark: cache(lambda _: st.builds(RestoreMark, marks, marks)),
    CtZone: cache(lambda _: st.builds(CtZone, st.integers(0, 65535))),
    UnknownTarget: cache(
        lambda _: st.builds(UnknownTarget, st.sampled_from(("LOG", "SET")), st.integers(0, 4), data())
    ),
}

# What the kernel takes in one table alone, or from some hooks alone (`table` and `hooks` of xt_target and xt_match).
TABLE_TARGETS: dict[type, TableName] = {Redirect: "nat", Tproxy: "mangle", SetMark: "mangle", CtZone: "raw"}
HOOK_TARGETS = {Redirect, Tproxy}
# Owner belongs to some hooks; iptables-restore refuses interfaces that a built-in chain's packets can't have.
HOOK_MATCHES = {Owner, InInterface, OutInterface}
# Matches and targets that ask for a protocol with ports.
PORT_MATCHES = {SourcePorts, DestinationPorts, Multiport}
PORT_TARGETS = {Redirect, Tproxy}
# Kinds that come before Protocol; with the ports of both sides, all kinds that have a place of their own.
ENTRY = (Source, Destination, InInterface, OutInterface)
ORDERED = (*ENTRY, SourcePorts, DestinationPorts)

PROTOCOLS_OF_RULES: SearchStrategy[Protocol | None] = st.one_of(
    st.none(), st.sampled_from((Protocol(TCP), Protocol(UDP))), protocols()
)


@cache
def kinds_of_matches(*, transport: bool, anywhere: bool) -> SearchStrategy[list[type]]:
    """Kinds of matches for one rule, each once."""
    left_out = {Protocol, UnknownMatch} | (set() if transport else PORT_MATCHES) | (HOOK_MATCHES if anywhere else set())
    return st.lists(st.sampled_from([kind for kind in MATCHES if kind not in left_out]), max_size=4, unique=True)


@cache
def targets(family: Family, table: TableName, *, transport: bool, anywhere: bool) -> SearchStrategy[Target]:
    """A target for a rule of the table that is no jump."""
    left_out = {UnknownTarget, Jump} | {kind for kind, only in TABLE_TARGETS.items() if only != table}
    left_out |= (set() if transport else PORT_TARGETS) | (HOOK_TARGETS if anywhere else set())
    some = st.one_of([TARGETS[kind](family) for kind in TARGETS if kind not in left_out])
    # iptables-restore takes no DROP in nat.
    return some.filter(lambda target: target != Verdict("DROP")) if table == "nat" else some


@st.composite
def rules(
    draw: st.DrawFn, family: Family, table: TableName, jumps: tuple[str, ...] = (), *, anywhere: bool = False
) -> Rule:
    """A rule of the table that may jump to these chains; `anywhere`: one that may be in every chain."""
    protocol = draw(PROTOCOLS_OF_RULES)
    transport = protocol in (Protocol(TCP), Protocol(UDP))
    kinds = draw(kinds_of_matches(transport=transport, anywhere=anywhere))
    placed = [kind for kind in ORDERED if kind in kinds]
    request = [draw(MATCHES[kind](family)) for kind in (*placed, *(kind for kind in kinds if kind not in ORDERED))]
    if protocol:
        request.insert(sum(1 for kind in kinds if kind in ENTRY), protocol)
    if draw(st.booleans()) and jumps:
        target: Target = Jump(draw(st.sampled_from(jumps)), draw(st.booleans()))
    else:
        target = draw(targets(family, table, transport=transport, anywhere=anywhere))
    return Rule(tuple(request), target, ours=draw(st.booleans()))


@cache
def several_rules(
    family: Family, table: TableName, jumps: tuple[str, ...], *, anywhere: bool
) -> SearchStrategy[tuple[Rule, ...]]:
    """The rules of one chain."""
    return st.lists(rules(family, table, jumps, anywhere=anywhere), max_size=3).map(tuple)


CHAIN_NAMES = st.sets(chain_names(), max_size=3).map(sorted)
POLICIES = st.sampled_from(("ACCEPT", "DROP"))


@st.composite
def tables(draw: st.DrawFn, family: Family, name: TableName) -> Table:
    """A table that the kernel takes: users' chains jump to later ones alone, built-in ones to those that allow it."""
    users = draw(CHAIN_NAMES)
    # Chains that every built-in chain may lead to, so that nothing in them belongs to one hook alone.
    common = tuple(user for user in users if draw(st.booleans()))
    chains: dict[str, Chain] = {}
    for number, user in enumerate(users):
        later = tuple(other for other in users[number + 1 :] if other in common or user not in common)
        chains[user] = Chain(user, draw(several_rules(family, name, later, anywhere=user in common)))
    for hook in BUILTIN_CHAINS[name]:
        chains[hook] = Chain(hook, draw(several_rules(family, name, common, anywhere=True)), draw(POLICIES))
    return Table(name, ordered(name, chains))


@st.composite
def rulesets(draw: st.DrawFn, family: Family, names: tuple[TableName, ...] = tuple(BUILTIN_CHAINS)) -> Ruleset:
    """Up to two of these tables, in a packet's order, each of which holds something."""
    chosen = draw(st.sets(st.sampled_from(names), max_size=2))
    some = [draw(tables(family, name)) for name in BUILTIN_CHAINS if name in chosen]
    return Ruleset(family, tuple(t for t in some if any(c.rules or c.policy != "ACCEPT" for c in t.chains)))


@st.composite
def wanted_tables(draw: st.DrawFn, family: Family, name: TableName) -> Table:
    """A table as a plan has it: Istio chains, and Istio rules in the built-in ones, some inserted."""
    table = draw(tables(family, name))
    chains = {}
    for chain in table.chains:
        if chain.policy or chain.name in OWN_CHAINS:
            rules = tuple(rule for rule in chain.rules if not _leads_to_others(rule))
            inserted = draw(st.integers(0, len(rules))) if chain.policy else 0
            chains[chain.name] = Chain(chain.name, rules, "ACCEPT" if chain.policy else None, inserted)
    return Table(name, ordered(name, chains))


def _leads_to_others(rule: Rule) -> bool:
    return isinstance(rule.target, Jump) and rule.target.chain not in OWN_CHAINS
