"""What `nft list ruleset` prints, as rulesets: iptables-nft's tables and Istio's native ones.

The expressions are those that translate iptables' matches and targets. Anything else becomes an UnknownTarget that
holds the rule's text, so that what it matches is undecided and named; nothing is guessed.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

from istio_init.errors_rare import SaveError
from istio_init.formats.nft.dump_rule import NotReadError, RuleText
from istio_init.model.extensions import (
    Multiport,
    Tproxy,
)
from istio_init.model.inet import NAMES, iptables_name
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    FAMILIES,
    IPV4,
    IPV6,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    OutInterface,
    Protocol,
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
    from collections.abc import Iterator

    from istio_init.model.rules import Family, Match, TableName

_TABLES: dict[str, TableName] = {name: table for table, name in NAMES.items()}
_HEADER = (Source, Destination, InInterface, OutInterface, Protocol, SourcePorts, DestinationPorts, Multiport)


# What `nft -a` adds to lines.
_HANDLE = re.compile(r" # handle \d+[ \t\r]*$", re.MULTILINE)

# Words of statements that change something, or look it up.
_DOES_MORE = frozenset(
    {"set", "dnat", "snat", "redirect", "masquerade", "tproxy", "jump", "goto", "map", "vmap", "queue", "dup", "fwd"}
    | {"notrack", "update", "add", "delete", "synproxy", "reject"}
)


def without_handles(text: str) -> str:
    """A listing of `nft -a` as it is without -a."""
    return _HANDLE.sub("", text)


def read_nft(text: str) -> tuple[Ruleset, ...]:
    """The rulesets of both families, those that have tables. SaveError where no table is iptables' or Istio's."""
    chains_by_table: dict[Family, dict[TableName, dict[str, Chain]]] = {}
    for kind, name, body in blocks(text, "table"):
        table = _TABLES.get(name) if kind == "inet" else name if kind in {"ip", "ip6"} else None
        if table not in BUILTIN_CHAINS:
            continue
        sets = named_sets(body)
        families = {"ip": (IPV4,), "ip6": (IPV6,)}.get(kind) or _families(body)
        for family in families:
            chains = chains_by_table.setdefault(family, {}).setdefault(table, {})
            for _, chain, inner in blocks(body, "chain"):
                native = kind == "inet"
                read = _chain(iptables_name(chain) if native else chain, inner, family, sets)
                chains[read.name] = _as_iptables(read) if native else read
    if not chains_by_table:
        raise SaveError("no table in it that is iptables' (ip nat and so on) or Istio's (inet istio-proxy-nat)")
    return tuple(
        Ruleset(
            family,
            tuple(
                Table(name, ordered(name, chains_by_table[family][name]))
                for name in BUILTIN_CHAINS
                if name in chains_by_table[family]
            ),
        )
        for family in FAMILIES
        if family in chains_by_table
    )


# The first rule of a base chain, where it is for one family's packets. It may have a comment.
_GUARD = re.compile(
    r"""hook [^\n]*\n\s*(?:meta nfproto (\S+) (?:counter packets \d+ bytes \d+ )?return(?: comment "[^"\n]*")?$)?""",
    re.MULTILINE,
)


def _families(body: str) -> tuple[Family, ...]:
    """The families of a native table: in that of one, each base chain begins with a rule for the other's packets."""
    guards = {"ipv6": (IPV4,), "ipv4": (IPV6,)}
    begins = _GUARD.findall(body)
    return guards.get(begins[0], FAMILIES) if len(set(begins)) == 1 else FAMILIES


def _as_iptables(chain: Chain) -> Chain:
    """A native chain as iptables has it: a rule for each port of a set, and no drop behind a TPROXY."""
    rules: list[Rule] = []
    for rule in chain.rules:
        before = rules[-1] if rules else None
        follows = before and isinstance(before.target, Tproxy) and _without_comment(rule) == _without_comment(before)
        if follows and rule.target == Verdict("DROP"):
            continue
        rules += _for_each_port(rule)
    return chain.replace(rules=tuple(rules))


def _without_comment(rule: Rule) -> list[Match]:
    return [match for match in rule.matches if not isinstance(match, Comment)]


def _for_each_port(rule: Rule) -> Iterator[Rule]:
    for at, match in enumerate(rule.matches):
        if isinstance(match, Multiport) and match.side == "dports" and not match.negated:
            for ports in match.ports:
                yield rule.replace(matches=(*rule.matches[:at], DestinationPorts(ports), *rule.matches[at + 1 :]))
            return
    yield rule


def blocks(text: str, word: str) -> Iterator[tuple[str, str, str]]:
    """The blocks `word [KIND] NAME { ... }` of a text: kind, name and what is inside."""
    for match in re.finditer(rf"^\s*{word} (?:(\S+) )?(\S+) \{{", text, re.MULTILINE):
        depth, end = 1, len(text)
        # Names of interfaces, in quotes, may have braces.
        for brace in re.finditer(r'"[^"\n]*"|[{}]', text[match.end() :]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                end = match.end() + brace.start()
                break
        yield match[1] or "", match[2], text[match.end() : end]


def elements(body: str) -> list[str]:
    """The elements of a set, by what is inside of its block."""
    inner = re.search(r"elements = \{([^}]*)\}", body)
    return [" ".join(each.split()) for each in inner[1].split(",")] if inner else []


def named_sets(body: str) -> dict[str, list[str]]:
    """The elements of a table's sets and maps, by name."""
    return {name: elements(inner) for word in ("set", "map") for _, name, inner in blocks(body, word)}


def _chain(name: str, body: str, family: Family, sets: dict[str, list[str]]) -> Chain:
    policy, rules = None, []
    for line in filter(None, map(str.strip, body.splitlines())):
        if hook := re.match(r"type \S+ hook (\S+) .*?(?:policy (\S+);)?$", line):
            name, policy = hook[1].upper(), (hook[2] or "accept").upper()
        elif not line.startswith("#"):
            rules += rules_of(line, family, sets)
    return Chain(name, tuple(rules), policy)


def rules_of(line: str, family: Family, sets: dict[str, list[str]]) -> list[Rule]:
    """The rules of iptables that a line means for a family: one for each address of a set; none of the other family."""
    reader = RuleText(line, family, sets)
    try:
        reader.read()
    except (NotReadError, ValueError, IndexError, KeyError):
        # What was read before it must hold as well.
        reader.cases = []
        if verdict := _final_verdict(line):
            reader.matches.append(UnknownMatch("nftables", -1, line.encode(), None))
            reader.target = verdict
        else:
            reader.target = UnknownTarget("nftables", -1, line.encode(), line)
    if reader.other_family:
        return []
    cases = reader.cases or [((), reader.target)]
    return [
        Rule(_ordered((*(match for part in some for match in part), *reader.matches, *matches)), target)
        for some in product(*reader.either)
        for matches, target in cases
    ]


def _final_verdict(line: str) -> Verdict | None:
    """The verdict that ends a rule which otherwise only matches; None where it may do something else."""
    words = line.partition(" comment ")[0].split()
    if words[-1] not in {"accept", "drop", "return"} or not _DOES_MORE.isdisjoint(words):
        return None
    return Verdict(words[-1].upper())  # type: ignore[arg-type]


def _ordered(matches: tuple[Match, ...]) -> tuple[Match, ...]:
    """The matches in iptables' order: those of the header first, which nft prints wherever they were added."""
    return tuple(sorted(matches, key=lambda each: _HEADER.index(type(each)) if type(each) in _HEADER else len(_HEADER)))
