"""Rules that Istio's releases, from 1.5 on, put into built-in chains without a jump to one of their own chains. Pure.

Other programs may have equal ones. A rule is claimed, so that a cleanup removes it, where something beside it shows
that Istio's program wrote it: Istio's chains in the same tables, in which nothing is signed, or rules that no other
program makes. One that only looks like Istio's is a suspect: it is left, and named.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_init.formats.iptables_save import rule_text
from istio_init.model.claims import KnownTable, claim
from istio_init.model.rules import IPV4, IPV6, OWN_CHAINS, Jump, Rule, Table, ordered
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.model.claims import RuleClaim
    from istio_init.model.rules import Chain, Family, Ruleset, TableName

# Rules as iptables-save prints them. The agent's DNS proxy listens at 15053; Envoy's own mark is 1338 (0x53a).
_DNS = r"-p (?:udp -m udp|tcp -m tcp) --dport 53"
_OWNER = r"-m owner --[ug]id-owner (?P<owner>\d+)(?:-\d+)?"
_ALL_BITS = "--nfmask 0xffffffff --ctmask 0xffffffff"
# Istio 1.8 captured DNS by DNAT, and needed SNAT for it.
_DNAT = r"(?:127\.0\.0\.1|\[?::1\]?):15053"
DNS_DNAT, DNS_REDIRECT, DNS_OWNER, DNS_SOURCE = "DNS by DNAT", "DNS", "DNS of the proxy", "source of captured DNS"
ZONE_AGENT, ZONE = "DNS zone of the agent", "DNS zone"
SAVE, RESTORE, MARKED, PROXY_MARK = "mark saved", "mark restored", "marked, by lo", "the proxy's mark"
COMING, GOING = "interface, in", "interface, out"
INVALID, NO_IPV6, GUARDRAIL = "invalid packets", "no IPv6", "guardrail of a reconcile"
# Kind, table, chain, and the rule's text.
SHAPES: tuple[tuple[str, str, str, re.Pattern[str]], ...] = tuple(
    (kind, table, chain, re.compile(text))
    for kind, table, chain, text in (
        (DNS_OWNER, "nat", "OUTPUT", rf"{_DNS} {_OWNER} -j RETURN"),
        (DNS_DNAT, "nat", "OUTPUT", rf"(?:-d \S+ )?{_DNS} -j DNAT --to-destination {_DNAT}"),
        (DNS_REDIRECT, "nat", "OUTPUT", rf"(?:-d \S+ )?{_DNS} -j REDIRECT --to-ports 15053"),
        (DNS_SOURCE, "nat", "POSTROUTING",
         r"(?:-d \S+ )?-p udp -m udp --dport 15053 -j SNAT --to-source (?:127\.0\.0\.1|::1)"),
        (ZONE, "raw", "OUTPUT", rf"-p udp -m udp --dport 53 {_OWNER} -j CT --zone 1"),
        (ZONE_AGENT, "raw", "OUTPUT", rf"-p udp -m udp --sport 15053 {_OWNER} -j CT --zone 2"),
        (ZONE, "raw", "OUTPUT", r"(?:-d \S+ )?-p udp -m udp --dport 53 -j CT --zone 2"),
        (ZONE, "raw", "PREROUTING", r"(?:-s \S+ )?-p udp -m udp --sport 53 -j CT --zone 1"),
        (SAVE, "mangle", "PREROUTING", rf"-p tcp -m mark --mark (?P<mark>\w+) -j CONNMARK --save-mark {_ALL_BITS}"),
        (RESTORE, "mangle", "OUTPUT",
         rf"-p tcp -m connmark --mark (?P<mark>\w+) -j CONNMARK --restore-mark {_ALL_BITS}"),
        (MARKED, "mangle", "OUTPUT", r"-o lo -p tcp -m mark --mark (?P<mark>\w+) -j RETURN"),
        (PROXY_MARK, "mangle", "OUTPUT", rf"! -d \S+ -o lo -p tcp {_OWNER} -j MARK --set-xmark 0x53a/0xffffffff"),
        (COMING, "nat", "PREROUTING", r"-i (?P<interface>\S+) -j RETURN"),
        (GOING, "nat", "OUTPUT", r"-o (?P<interface>\S+) -j RETURN"),
        (COMING, "mangle", "PREROUTING", r"-i (?P<interface>\S+) -j RETURN"),
        (GOING, "mangle", "OUTPUT", r"-o (?P<interface>\S+) -j RETURN"),
        (INVALID, "mangle", "PREROUTING", r"-m conntrack --ctstate INVALID -j DROP"),
        (NO_IPV6, "filter", "INPUT", r"-m state --state ESTABLISHED -j ACCEPT"),
        (NO_IPV6, "filter", "INPUT", r"-d ::1/128 -i lo -j ACCEPT"),
        (NO_IPV6, "filter", "INPUT", r"-j REJECT --reject-with icmp6-port-unreachable"),
        *((GUARDRAIL, "filter", chain, r"-p (?:tcp|udp) -j DROP") for chain in ("INPUT", "FORWARD", "OUTPUT")),
    )
)  # fmt: skip
DNS_KINDS = frozenset({DNS_OWNER, DNS_DNAT, DNS_REDIRECT, DNS_SOURCE})
ZONES = frozenset({ZONE, ZONE_AGENT})
# Those that say nothing about a cleanup unless they are all there.
GUARDRAILS = 6
# Chains of other meshes, which have rules of the same shapes.
OTHER_MESHES = ("KUMA_", "MESH_", "PROXY_INIT_")
ISTIO_ID, ISTIO_MARK = "1337", "0x539"


class Likeness(Record):
    """A rule in a built-in chain that has a shape of Istio's; `number` is its place, from 0."""

    kind: str
    family: Family
    table: Table
    chain: Chain
    number: int
    text: str
    groups: dict[str, str | None]


class Suspect(Record):
    """A rule that may be Istio's, and may be another program's; `text` as iptables-save prints it."""

    family: Family
    table: TableName
    chain: str
    text: str

    def command(self, backend: str) -> str:
        """The command that removes it from the tables of a backend."""
        tool = "iptables" if self.family == IPV4 else "ip6tables"
        return f"{tool}-{backend} -t {self.table} -D {self.chain} {self.text}"


def recognisable_table(table: TableName, planned: Table | None, claims: tuple[RuleClaim, ...]) -> Table:
    """What a cleanup knows of a table: the plan's rules, and the claims."""
    return KnownTable(table, planned.chains if planned else ordered(table, {}), claims)


def claims(rulesets: tuple[Ruleset, ...]) -> dict[tuple[Family, TableName], tuple[RuleClaim, ...]]:
    """The rules of one backend's tables that are Istio's, by family and table."""
    by_table: dict[tuple[Family, TableName], tuple[RuleClaim, ...]] = {}
    for each in _claimed(rulesets):
        place = each.family, each.table.name
        by_table[place] = (*by_table.get(place, ()), claim(each.chain, each.number))
    return by_table


def suspects(rulesets: tuple[Ruleset, ...]) -> tuple[Suspect, ...]:
    """The rules of one backend's tables that look like Istio's, without anything that shows that they are."""
    claimed = [*_claimed(rulesets)]
    likenesses = [each for each in _likenesses(rulesets) if each not in claimed]
    guardrails = {(each.chain.name, each.text) for each in likenesses if each.kind == GUARDRAIL}
    return tuple(
        Suspect(each.family, each.table.name, each.chain.name, each.text)
        for each in likenesses
        if _is_suspicious(each, every_guardrail=len(guardrails) == GUARDRAILS)
    )


def _is_suspicious(each: Likeness, *, every_guardrail: bool) -> bool:
    """Whether a rule's shape alone is worth a word: marks if they are Istio's own, what is usual only in numbers."""
    if each.kind in {NO_IPV6, GUARDRAIL}:
        return each.kind == GUARDRAIL and every_guardrail
    return each.groups.get("mark") in {None, ISTIO_MARK}


def _claimed(rulesets: tuple[Ruleset, ...]) -> Iterator[Likeness]:
    likenesses = [*_likenesses(rulesets)]
    if not likenesses or any(chain.name.startswith(OTHER_MESHES) for _, _, chain in _chains(rulesets)):
        return
    unsigned = not any(rule.ours for _, _, chain in _chains(rulesets) if chain.policy for rule in chain.rules)
    istio = {family for family, _, chain in _chains(rulesets) if chain.name in OWN_CHAINS} if unsigned else set()
    for ruleset in rulesets:
        own_family = [each for each in likenesses if each.family == ruleset.family]
        yield from _dns(own_family, istio=ruleset.family in istio)
        for table in ruleset.tables:
            here = [each for each in own_family if each.table is table]
            if unsigned and any(chain.name in OWN_CHAINS for chain in table.chains):
                yield from _interfaces(table, here)
            yield from _marks(table, here)
        if ruleset.family == IPV6 and istio:
            yield from _no_ipv6(own_family)


def _dns(likenesses: list[Likeness], *, istio: bool) -> Iterator[Likeness]:
    """Capture of DNS, by the agent's port: with Istio's chains, by the DNAT of 1.8, or with Istio's user."""
    kinds = {each.kind for each in likenesses}
    by_user = any(each.groups.get("owner") == ISTIO_ID for each in likenesses if each.kind in DNS_KINDS | ZONES)
    sure = istio or by_user or DNS_DNAT in kinds
    if sure and kinds & {DNS_DNAT, DNS_REDIRECT}:
        yield from (each for each in likenesses if each.kind in DNS_KINDS)
    if sure and ZONE_AGENT in kinds:
        yield from (each for each in likenesses if each.kind in ZONES)


def _interfaces(table: Table, likenesses: list[Likeness]) -> Iterator[Likeness]:
    """Excluded interfaces, a rule for each direction, and those of virtual machines, which have jumps as well."""
    places = [each for each in likenesses if each.kind in {COMING, GOING}]
    excluded = [
        each for each in places if _leads(each, {other.number for other in likenesses if other.chain is each.chain})
    ]
    both = {each.groups["interface"] for each in excluded if each.kind == COMING}
    both &= {each.groups["interface"] for each in excluded if each.kind == GOING}
    virtual = {_virtual(rule) for chain in table.chains for rule in chain.rules}
    for each in places:
        interface = each.groups["interface"]
        if (each in excluded and interface in both) or (each.kind == COMING and interface in virtual):
            yield each


def _leads(each: Likeness, likenesses: set[int]) -> bool:
    """Whether only Istio's rules are between this one and the first jump to Istio's chains, as it appends them."""
    jumps = [number for number, rule in enumerate(each.chain.rules) if number > each.number and _enters(rule)]
    return not jumps or likenesses.issuperset(range(each.number, jumps[0]))


def _enters(rule: Rule) -> bool:
    return isinstance(rule.target, Jump) and rule.target.chain in OWN_CHAINS


def _virtual(rule: Rule) -> str:
    """The interface from which a rule redirects what virtual machines send; empty where it does not."""
    match = re.match(r"(?:-d \S+ )?-i (\S+) -j ISTIO_REDIRECT$", rule_text(rule)) if _enters(rule) else None
    return match[1] if match else ""


def _marks(table: Table, likenesses: list[Likeness]) -> Iterator[Likeness]:
    """TPROXY's marks: those that Istio's chains set, or all the rules for a mark together."""
    from istio_init.planning.changes import inbound_marks

    own = {f"{mark:#x}" for mark in inbound_marks(table)}
    by_kind = {kind: {each.groups["mark"] for each in likenesses if each.kind == kind} for kind in (SAVE, RESTORE)}
    if any(each.kind == PROXY_MARK for each in likenesses):
        own |= {mark for mark in by_kind[SAVE] & by_kind[RESTORE] if mark}
    for each in likenesses:
        if own and (each.kind == PROXY_MARK or each.groups.get("mark") in own):
            yield each


def _no_ipv6(likenesses: list[Likeness]) -> Iterator[Likeness]:
    """The three rules by which releases before 1.10 kept IPv6 out: one after the other, and at the chain's end."""
    three = [each for each in likenesses if each.kind == NO_IPV6]
    shapes = [shape for kind, *_, shape in SHAPES if kind == NO_IPV6]
    for start in range(len(three) - 2):
        group = three[start : start + 3]
        follows = [each.number for each in group] == [*range(group[0].number, group[0].number + 3)]
        if follows and all(shape.fullmatch(each.text) for shape, each in zip(shapes, group, strict=True)):
            yield from group
            return


def _likenesses(rulesets: Iterable[Ruleset]) -> Iterator[Likeness]:
    for family, table, chain in _chains(rulesets):
        shapes = [(kind, shape) for kind, name, hook, shape in SHAPES if (name, hook) == (table.name, chain.name)]
        for number, rule in enumerate(chain.rules if shapes else ()):
            text = "" if rule.ours else rule_text(rule)
            for kind, shape in shapes:
                if text and (match := shape.fullmatch(text)):
                    yield Likeness(kind, family, table, chain, number, text, match.groupdict())
                    break


def _chains(rulesets: Iterable[Ruleset]) -> Iterator[tuple[Family, Table, Chain]]:
    for ruleset in rulesets:
        for table in ruleset.tables:
            yield from ((ruleset.family, table, chain) for chain in table.chains)
