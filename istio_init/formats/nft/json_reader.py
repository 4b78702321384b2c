"""What libnftables lists, as JSON, read as inet tables.

What a rule has that this module does not model is kept as an UnknownMatch or UnknownTarget that bears its JSON.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_pton

from istio_init.formats.nft.json_writer import dumped, loaded, statements
from istio_init.formats.nft.layout import DROP, alone
from istio_init.formats.nft.listing import ALL_BITS, FAMILY_WORDS, PROTOCOLS, STATES
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    CtZone,
    Mark,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.inet import (
    BASE_CHAINS,
    Addresses,
    InetChain,
    InetRule,
    InetTable,
    Ports,
    iptables_name,
    merged,
)
from istio_init.model.rules import InInterface, Jump, OutInterface, Owner, PortRange, Protocol, Redirect, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Literal

    from istio_init.formats.nft.json_writer import Json
    from istio_init.model.inet import InetMatch, Interval
    from istio_init.model.rules import Family, TableName, Target

_FAMILIES: dict[str, Family] = {word: family for family, word in FAMILY_WORDS.items()}
_PROTOCOLS = {word: number for number, word in PROTOCOLS.items()}
_STATES = {word: state for state, word in STATES.items()}
_VERDICTS: dict[str, Literal["ACCEPT", "DROP", "RETURN"]] = {"accept": "ACCEPT", "drop": "DROP", "return": "RETURN"}


def table(name: TableName, text: str) -> InetTable:
    """The table of ours that a listing shows, as it is meant."""
    chains, elements = _contents(name, text)
    read = {chain: tuple(_rule(expression, elements) for expression in rules) for chain, rules in chains.items()}
    return _meant(InetTable(name, tuple(InetChain(chain, rules) for chain, rules in read.items())))


def counted(name: TableName, text: str) -> tuple[tuple[InetChain, tuple[tuple[int, int] | None, ...]], ...]:
    """Every chain as it stands, and how many packets and bytes each of its rules has met, where it has a counter."""
    chains, elements = _contents(name, text)
    return tuple(
        (InetChain(chain, tuple(_rule(each, elements) for each in rules)), tuple(map(_counter, rules)))
        for chain, rules in chains.items()
    )


def _counter(expression: list[Json]) -> tuple[int, int] | None:
    counters = [statement["counter"] for statement in expression if "counter" in statement]
    return (counters[0]["packets"], counters[0]["bytes"]) if counters else None


def _contents(name: TableName, text: str) -> tuple[dict[str, list[list[Json]]], dict[str, list[Json]]]:
    """The rules' statements by chain, and the elements of sets by their names behind an @."""
    chains: dict[str, list[list[Json]]] = {}
    elements: dict[str, list[Json]] = {}
    known: dict[str, str] = {}
    for item in loaded(text)["nftables"]:
        match item:
            case {"set": facts}:
                elements[f"@{facts['name']}"] = facts.get("elem", [])
            case {"chain": facts}:
                known[facts["name"]] = _known_as(name, facts)
                chains[known[facts["name"]]] = []
            case {"rule": facts}:
                chains[known[facts["chain"]]].append(facts["expr"])
            case _:
                pass
    return chains, elements


def _known_as(table: TableName, facts: Json) -> str:
    """A chain's name in iptables; a base chain that is hooked in otherwise than ours keeps its own."""
    name = iptables_name(facts["name"])
    hooked = {hook: (kind, hook, priority, "accept") for hook, (kind, priority) in BASE_CHAINS[table].items()}
    hook = iptables_name(facts["hook"]) if "hook" in facts else None
    found = (facts["type"], hook, facts["prio"], facts["policy"]) if hook else None
    return name if found == hooked.get(name) else facts["name"]  # type: ignore[call-overload]


def _meant(table: InetTable) -> InetTable:
    """What a table that stands in the kernel means: `written` undone."""
    only = alone(table)
    chains = []
    for chain in table.chains:
        rules = list(chain.rules)
        if only:
            if chain.name in BASE_CHAINS[table.name]:
                del rules[0]
            rules = [rule.replace(family=only) if rule.family is None else rule for rule in rules]
        chains.append(chain.replace(rules=tuple(_without_drops(rules))))
    return table.replace(chains=tuple(chains))


def _without_drops(rules: list[InetRule]) -> Iterator[InetRule]:
    drop: InetRule | None = None
    for number, rule in enumerate(rules):
        if rule == drop:
            drop = None
            continue
        drop = rule.replace(target=DROP) if isinstance(rule.target, Tproxy) else None
        if drop is None or drop in rules[number + 1 : number + 2]:
            yield rule
        else:
            # Not what iptables' TPROXY does, so no such target.
            kept = dumped(statements(rule.target)).encode()
            yield rule.replace(target=UnknownTarget("tproxy that passes on what nobody listens for", 0, kept))


def _rule(expression: list[Json], named: Mapping[str, list[Json]]) -> InetRule:
    matches: list[InetMatch] = []
    rest: list[Json] = []
    family: Family | None = None
    for statement in expression:
        if "counter" in statement:
            continue
        if "match" not in statement or rest:
            rest.append(statement)
            continue
        told, match = _ask(statement["match"], named)
        family = told or family
        if match is not None:
            matches.append(match)
    if any(isinstance(match, Ports) for match in matches):
        matches = [match for match in matches if not isinstance(match, Protocol)]
    return InetRule(tuple(matches), _target(rest), family)


def _ask(facts: Json, named: Mapping[str, list[Json]]) -> tuple[Family | None, InetMatch | None]:
    """What one match asks: the family that it names, and the rest."""
    left, right, negated = facts["left"], facts["right"], facts["op"] == "!="
    try:
        match left:
            case {"meta": {"key": "nfproto"}} if right in ("ipv4", "ipv6") and not negated:
                return right, None
            case {"payload": {"protocol": "ip" | "ip6" as word, "field": "saddr" | "daddr" as side}}:
                spans = merged(_address_interval(each, word) for each in _elements(right, named))
                return _FAMILIES[word], Addresses(side, spans, negated)
            case {"payload": {"protocol": "tcp" | "udp" as word, "field": "sport" | "dport" as side}}:
                return None, Ports(_PROTOCOLS[word], side, merged(map(_interval, _elements(right, named))), negated)
            case {"meta": {"key": key}}:
                found = _meta(key, right, negated=negated)
                if found is not None:
                    return None, found
            case {"&": [{"meta": {"key": "mark"}}, int() as mask]}:
                return None, Mark(_whole(right), mask, negated)
            case {"&": [{"ct": {"key": "mark"}}, int() as mask]}:
                return None, ConnMark(_whole(right), mask, negated)
            case {"ct": {"key": "mark"}}:
                return None, ConnMark(_whole(right), ALL_BITS, negated)
            case {"ct": {"key": "state"}} if facts["op"] == "in":
                return None, CtState(_states(right))
            case _:
                pass
    except (TypeError, ValueError, KeyError):
        pass
    return None, UnknownMatch("nftables", 0, dumped({"match": facts}).encode())


def _meta(key: str, right: Json, *, negated: bool) -> InetMatch | None:
    match key:
        case "iifname" | "oifname":
            kind = InInterface if key == "iifname" else OutInterface
            return kind(_interface_name(right), negated)
        case "l4proto":
            return Protocol(_PROTOCOLS[right] if right in _PROTOCOLS else _whole(right), negated)
        case "skuid" | "skgid":
            low, high = _interval(right)
            return Owner("uid" if key == "skuid" else "gid", low, high, negated)
        case "mark":
            return Mark(_whole(right), ALL_BITS, negated)
        case _:
            return None


def _elements(right: Json, named: Mapping[str, list[Json]]) -> list[Json]:
    if isinstance(right, str) and right in named:
        elements = named[right]
    else:
        elements = right["set"] if isinstance(right, dict) and "set" in right else [right]
    if not elements:
        raise ValueError("an empty set")
    return elements


def _whole(value: Json) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no number")
    return value


def _interval(value: Json) -> Interval:
    if isinstance(value, dict):
        low, high = value["range"]
        return _whole(low), _whole(high)
    return _whole(value), value


def _address_interval(value: Json, word: str) -> Interval:
    family = AF_INET if word == "ip" else AF_INET6
    if isinstance(value, str):
        number = int.from_bytes(_packed(family, value), "big")
        return number, number
    if "range" in value:
        low, high = (int.from_bytes(_packed(family, each), "big") for each in value["range"])
        return low, high
    low = int.from_bytes(_packed(family, value["prefix"]["addr"]), "big")
    return low, low + (1 << ((32 if word == "ip" else 128) - value["prefix"]["len"])) - 1


def _packed(family: int, text: str) -> bytes:
    try:
        return inet_pton(family, text)
    except OSError as error:
        raise ValueError(text) from error


def _interface_name(text: Json) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no name")
    if text.endswith("\\*"):
        return text[:-2] + "*"
    return text[:-1] + "+" if text.endswith("*") else text


def _states(right: Json) -> tuple[str, ...]:
    words = {_STATES[word] for word in (right if isinstance(right, list) else [right])}
    return tuple(state for state in CT_STATES if state in words)


def _target(rest: list[Json]) -> Target:
    match rest:
        case []:
            return Verdict("")
        case [{"accept": None}] | [{"drop": None}] | [{"return": None}]:
            return Verdict(_VERDICTS[next(iter(rest[0]))])
        case [{"jump": {"target": str() as chain}}]:
            return Jump(iptables_name(chain))
        case [{"goto": {"target": str() as chain}}]:
            return Jump(iptables_name(chain), goto=True)
        case [{"redirect": {"port": int() as port, **more}}] if not more:
            return Redirect(PortRange(port, port))
        case [{"redirect": {"port": {"range": [int() as low, int() as high]}, **more}}] if not more:
            return Redirect(PortRange(low, high))
        case [
            {"tproxy": {"family": "ip" | "ip6" as word, "port": int() as port, **more}},
            {"mangle": {"key": {"meta": {"key": "mark"}}, "value": int() as mark}},
            {"accept": None},
        ] if not more:
            return Tproxy(port, bytes(4 if word == "ip" else 16), mark)
        case [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": int() as mark}}]:
            return SetMark(mark)
        case [{"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"meta": {"key": "mark"}}}}]:
            return SaveMark()
        case [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}]:
            return RestoreMark()
        case [{"mangle": {"key": {"ct": {"key": "zone"}}, "value": int() as zone}}]:
            return CtZone(zone)
        case _:
            return UnknownTarget("nftables", 0, dumped(rest).encode())
