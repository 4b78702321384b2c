"""Inet tables as libnftables' JSON: the transaction that puts them in place. The schema is libnftables-json(5)'s."""

from __future__ import annotations

# json's C halves: the module around them imports re, which costs as much as the rest of the run.
from _json import encode_basestring_ascii as _quoted
from _json import make_encoder as _make_encoder
from _json import make_scanner as _make_scanner

from istio_init.errors import InitError, assert_never, shown
from istio_init.formats.nft.layout import written
from istio_init.formats.nft.listing import ALL_BITS, FAMILY_WORDS, PROTOCOLS, STATES, address
from istio_init.model.extensions import (
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
    NAMES,
    Addresses,
    Ports,
    chain_name,
    element_type,
    holds_intervals,
    needs_family_match,
    prefix_length,
    sets,
)
from istio_init.model.rules import IPV4, InInterface, Jump, OutInterface, Owner, Protocol, Redirect, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeAlias

    from istio_init.model.inet import InetChain, InetMatch, InetRule, InetTable, Interval, Sets
    from istio_init.model.rules import Family, TableName, Target

    Json: TypeAlias = Any


# Words that libnftables' JSON has a meaning for wherever they stand (its parser_json.c): no interface can be told by
# them.
_NO_NAMES = frozenset(["*", "tcp", "udp", "udplite", "esp", "ah", "icmp", "icmpv6", "comp", "dccp", "sctp", "redirect"])


def replacement(names: Sequence[TableName], tables: Iterable[InetTable]) -> str:
    """The transaction after which, of the tables `names`, exactly `tables` (as `nft.layout` makes them) stand."""
    commands: list[Json] = []
    for name in names:
        # Added first, or deleting one that is not there would fail.
        commands += [{verb: {"table": _of(name=NAMES[name])}} for verb in ("add", "delete")]
    for table in tables:
        commands.append({"add": {"table": _of(name=NAMES[table.name])}})
        standing = written(table)
        named = sets(standing)
        commands += [{"add": {"set": _named_set(table, *key, name)}} for key, name in named.items()]
        commands += [{"add": {"chain": _chain(table, chain)}} for chain in standing.chains]
        for chain in standing.chains:
            head = _of(table=NAMES[table.name], chain=chain_name(chain.name))
            commands += [{"add": {"rule": {**head, "expr": expression(rule, named)}}} for rule in chain.rules]
    return dumped({"nftables": commands})


def _of(**facts: str) -> Json:
    return {"family": "inet", **facts}


def _named_set(table: InetTable, kind: str, intervals: tuple[Interval, ...], name: str) -> Json:
    facts: Json = _of(table=NAMES[table.name], name=name, type=kind)
    if holds_intervals(kind, intervals):
        facts["flags"] = ["interval"]
    return {**facts, "elem": _spans(kind, intervals)}


def _spans(kind: str, intervals: tuple[Interval, ...]) -> list[Json]:
    if kind == "inet_service":
        return [low if low == high else {"range": [low, high]} for low, high in intervals]
    family: Family = "ipv4" if kind == "ipv4_addr" else "ipv6"
    return [_address_json(each, family) for each in intervals]


def _chain(table: InetTable, chain: InetChain) -> Json:
    facts: Json = {"family": "inet", "table": NAMES[table.name], "name": chain_name(chain.name)}
    for hook, (kind, priority) in BASE_CHAINS[table.name].items():
        if chain.name == hook:
            facts.update(type=kind, hook=chain_name(hook), prio=priority, policy="accept")
    return facts


def expression(rule: InetRule, named: Sets) -> list[Json]:
    """A rule's statements, given the table's sets."""
    asked: list[Json] = [_match({"meta": {"key": "nfproto"}}, rule.family)] if needs_family_match(rule) else []
    asked += [_asked(match, rule, named) for match in rule.matches]
    return [*asked, {"counter": None}, *statements(rule.target)]


def _match(left: Json, right: Json, *, negated: bool = False, op: str = "==") -> Json:
    return {"match": {"op": "!=" if negated else op, "left": left, "right": right}}


def _asked(match: InetMatch, rule: InetRule, named: Sets) -> Json:
    match match:
        case InInterface():
            return _match({"meta": {"key": "iifname"}}, _interface(match.name), negated=match.negated)
        case OutInterface():
            return _match({"meta": {"key": "oifname"}}, _interface(match.name), negated=match.negated)
        case Addresses():
            left = {"payload": {"protocol": FAMILY_WORDS[rule.family or IPV4], "field": match.side}}
            return _match(left, _set(match, rule, named), negated=match.negated)
        case Protocol():
            return _match({"meta": {"key": "l4proto"}}, match.number, negated=match.negated)
        case Ports():
            word = PROTOCOLS.get(match.protocol)
            if not word:
                raise InitError(
                    f"--native-nftables: ports of protocol {match.protocol}: only those of TCP and UDP are known"
                )
            return _match(
                {"payload": {"protocol": word, "field": match.side}}, _set(match, rule, named), negated=match.negated
            )
        case Owner():
            ids = match.low if match.low == match.high else {"range": [match.low, match.high]}
            return _match({"meta": {"key": f"sk{match.kind}"}}, ids, negated=match.negated)
        case Mark():
            return _match(_masked({"meta": {"key": "mark"}}, match.mask), match.value, negated=match.negated)
        case ConnMark():
            return _match(_masked({"ct": {"key": "mark"}}, match.mask), match.value, negated=match.negated)
        case CtState():
            states = [word for state, word in STATES.items() if state in match.states]
            return _match({"ct": {"key": "state"}}, states if len(states) > 1 else states[0], op="in")
        case UnknownMatch():
            return loaded(match.data.decode())
        case _:
            assert_never(match)


def _masked(left: Json, mask: int) -> Json:
    return left if mask == ALL_BITS else {"&": [left, mask]}


def _set(match: Ports | Addresses, rule: InetRule, named: Sets) -> Json:
    kind = element_type(match, rule)
    if name := named.get((kind, match.intervals)):
        return f"@{name}"
    spans = _spans(kind, match.intervals)
    return spans[0] if len(spans) == 1 else {"set": spans}


def _interface(name: str) -> str:
    if name in _NO_NAMES or name.startswith("@"):
        raise InitError(f"--native-nftables: interface {shown(name)}: libnftables takes this for something else")
    if name.endswith("+"):
        return name[:-1] + "*"
    return name[:-1] + "\\*" if name.endswith("*") else name


def _address_json(interval: Interval, family: Family) -> Json:
    low, high = interval
    if low == high:
        return address(low, family)
    if (length := prefix_length(interval, family)) is not None:
        return {"prefix": {"addr": address(low, family), "len": length}}
    return {"range": [address(low, family), address(high, family)]}


def statements(target: Target) -> list[Json]:  # noqa: C901 (one arm a kind, and the marks' masks)
    """What a target is made of."""
    match target:
        case Verdict():
            if target.name == "QUEUE":
                raise InitError("--native-nftables: the target QUEUE has no form there")
            return [{target.name.lower(): None}] if target.name else []
        case Jump():
            return [{"goto" if target.goto else "jump": {"target": chain_name(target.chain)}}]
        case Redirect():
            low, high = target.ports.low, target.ports.high
            return [{"redirect": {"port": low if low == high else {"range": [low, high]}}}]
        case Tproxy():
            if any(target.address) or target.mask != ALL_BITS:
                raise _inexpressible(target)
            family = FAMILY_WORDS["ipv4" if len(target.address) == 4 else "ipv6"]
            return [{"tproxy": {"family": family, "port": target.port}}, _set_mark(target.mark), {"accept": None}]
        case SetMark():
            if target.mask != ALL_BITS:
                raise _inexpressible(target)
            return [_set_mark(target.value)]
        case SaveMark():
            if (target.nfmask, target.ctmask) != (ALL_BITS, ALL_BITS):
                raise _inexpressible(target)
            return [{"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"meta": {"key": "mark"}}}}]
        case RestoreMark():
            if (target.nfmask, target.ctmask) != (ALL_BITS, ALL_BITS):
                raise _inexpressible(target)
            return [_set_mark({"ct": {"key": "mark"}})]
        case CtZone():
            return [{"mangle": {"key": {"ct": {"key": "zone"}}, "value": target.zone}}]
        case UnknownTarget():
            kept: list[Json] = loaded(target.data.decode())
            return kept
        case _:
            assert_never(target)


def _set_mark(value: Json) -> Json:
    return {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}


def _inexpressible(target: Target) -> InitError:
    return InitError(
        f"--native-nftables: {shown(repr(target))}: only whole marks have a form there; leave the flag out"
    )


def list_table(name: TableName) -> str:
    """The command that lists one table of ours, which is to exist."""
    return dumped({"nftables": [{"list": {"table": _of(name=NAMES[name])}}]})


# JSON itself.


class _Plain:
    """How the scanner in C is to build each kind of value."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


_PLAIN: Any = _Plain


def loaded(text: str) -> Json:
    """JSON text as Python values. InitError where it is none."""
    try:
        value, _ = _make_scanner(_PLAIN)(text.strip(), 0)
    except (StopIteration, ValueError) as error:
        raise InitError(f"libnftables' answer is no JSON: {shown(text)}: {error}") from error
    return value


def dumped(value: Json) -> str:
    """Python values of JSON's kinds as JSON text; TypeError for others."""
    circles: Any = None  # are not looked for
    others: Any = None  # what would be called with a value of another kind
    indent = None
    encode = _make_encoder(circles, others, _quoted, indent, ":", ",", False, False, False)
    return "".join(encode(value, 0))
