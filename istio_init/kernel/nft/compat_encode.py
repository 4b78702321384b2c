"""Encodes a Rule as iptables-nft keeps it in nftables: netlink attributes. compat_decode.py reads them.

Matches of addresses, interfaces, protocol, ports and mark become native nftables expressions. Any other match, and
every target but a verdict, becomes an expression "match" or "target" with the struct of its x_tables extension
(xtables/encode_match.py, encode_extension.py). iptables-nft 1.8.9 writes the same, so every iptables-nft can list,
edit and delete these rules.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import word
from istio_init.kernel.nft.expressions import (
    COMPAT,
    DESTINATION_AT,
    EXPRESSIONS,
    GOTO,
    IIFNAME,
    JUMP,
    L4PROTO,
    MARK,
    NATIVE,
    NETWORK,
    OIFNAME,
    SIGNATURE,
    SOURCE_AT,
    TRANSPORT,
    UNREAD,
    USERDATA,
    VERDICTS,
    compare,
    compare_range,
    expression,
    load_meta,
    load_payload,
    mask,
    verdict,
)
from istio_init.kernel.xtables.encode_match import HEAD, pack_match, pack_target
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    Protocol,
    Redirect,
    Run,
    Source,
    SourcePorts,
    Verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.kernel.nft.compat_run import Content, RunContents
    from istio_init.kernel.xtables.encode_match import RareMatch
    from istio_init.model.rules import Family, Match, Rule, Target

_INVERTED = 2  # NFT_RULE_COMPAT_F_INV
# Rules of a run that are made at once: fewer are packed before the module for it would be read.
_LONG = 20


class RuleWriter:
    """Packs rules of one family; what many have in common, being the same object, is packed once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._packed: dict[int, tuple[Match | Target, bytes]] = {}

    def pack(self, rule: Rule) -> bytes:
        """The attributes of a rule's message that say what it does, with our signature. KernelError where none can."""
        before, after, compat = self.content(rule)
        return before + COUNTS + after + compat + SIGNED

    def contents(self, parts: Sequence[Rule | Run]) -> list[Content | RunContents]:
        """The content of each rule of a chain, those of long runs made at once."""
        contents: list[Content | RunContents] = []
        for part in parts:
            if not isinstance(part, Run):
                contents.append(self.content(part))
                continue
            if len(part) < _LONG:
                contents += map(self.content, part.rules())
                continue
            try:
                from istio_init.kernel.nft.compat_run import RunContents

                contents.append(RunContents(part, self.content))
            except (ValueError, OverflowError):
                contents += map(self.content, part.rules())  # the rule that can't be packed is found
        return contents

    def content(self, rule: Rule) -> Content:
        """What a rule's message says: expressions before the counter's numbers, those behind, what is not dumped."""
        try:
            matches = b"".join([self._match(match) for match in _in_order(rule.matches)])
            expressions = attribute(EXPRESSIONS, matches + _COUNTER + (target := self._target(rule.target)))
        except (ValueError, OverflowError) as error:
            raise KernelError(f"{rule!r}: no rule of the kernel for {self._family} can hold this: {error}") from error
        protocol = next((match for match in rule.matches if isinstance(match, Protocol)), None)
        compat = b""
        if protocol is not None:
            # Extensions read the protocol from the rule's head, which this replaces.
            compat = attribute(COMPAT, word(1, protocol.number) + word(2, _INVERTED * protocol.negated))
        return expressions[: len(expressions) - len(target) - len(COUNTS)], target, compat

    def _match(self, match: Match) -> bytes:
        packed = self._packed.get(id(match))
        if packed is None:
            # With the match itself, or another might get its place in memory.
            packed = self._packed[id(match)] = match, _packed_match(match)
        return packed[1]

    def _target(self, target: Target) -> bytes:
        packed = self._packed.get(id(target))
        if packed is None:
            packed = self._packed[id(target)] = target, _packed_target(target, self._family)
        return packed[1]


# iptables-nft's order: interfaces, protocol, addresses, then all else as it was given.
_RANK: dict[type, int] = {InInterface: 0, OutInterface: 1, Protocol: 2, Source: 3, Destination: 4}


def _in_order(matches: tuple[Match, ...]) -> list[Match]:
    return sorted(matches, key=lambda match: _RANK.get(type(match), 5))


def _packed_match(match: Match) -> bytes:
    match match:
        case InInterface() | OutInterface():
            key = IIFNAME if isinstance(match, InInterface) else OIFNAME
            encoded = match.name.encode(errors="surrogateescape")
            name = encoded[:-1] if encoded.endswith(b"+") else encoded + b"\0"
            return load_meta(key) + compare(name, negated=match.negated) if name else b""
        case Protocol():
            return load_meta(L4PROTO) + compare(bytes((match.number,)), negated=match.negated) if match.number else b""
        case Source():
            return _address(match, SOURCE_AT)
        case Destination():
            return _address(match, DESTINATION_AT)
        case SourcePorts():
            return _port(match, 0)
        case DestinationPorts():
            return _port(match, 2)
        case Owner():
            return _extension("match", pack_match(match))
        case _:
            return _packed_rare_match(match)


def _packed_rare_match(match: RareMatch) -> bytes:
    """What a plain run does not have: making these classes would take it longer than packing all of its rules."""
    from istio_init.model.extensions import Mark
    from istio_init.model.unknown import UnknownMatch

    match match:
        case Mark():
            masked = b"" if match.mask == 0xFFFFFFFF else mask(NATIVE.pack(match.mask))
            return load_meta(MARK) + masked + compare(NATIVE.pack(match.value), negated=match.negated)
        case UnknownMatch(name=name) if name.startswith(UNREAD):
            return match.data
        case _:
            return _extension("match", pack_match(match))


def _address(match: Source | Destination, at: dict[int, int]) -> bytes:
    address, prefix = match.network.address, match.network.prefix
    whole, odd = divmod(prefix, 8)
    if not odd:
        value, masked = address[:whole], b""
    else:
        bits = ((1 << prefix) - 1) << (len(address) * 8 - prefix)
        value, masked = address, mask(bits.to_bytes(len(address), "big"))
    if not prefix:
        if match.negated:
            raise ValueError("no packet has an address outside of all networks")
        return b""
    load = load_payload(NETWORK, at[len(address)], len(value))
    return load + masked + compare(value, negated=match.negated)


def _port(match: SourcePorts | DestinationPorts, at: int) -> bytes:
    low, high = (port.to_bytes(2, "big") for port in (match.ports.low, match.ports.high))
    load = load_payload(TRANSPORT, at, 2)
    if low == high:
        return load + compare(low, negated=match.negated)
    return load + compare_range(low, high, negated=match.negated)


def _packed_target(target: Target, family: Family) -> bytes:
    match target:
        case Verdict():
            return verdict(VERDICTS[target.name]) if target.name else b""
        case Jump():
            code = GOTO if target.goto else JUMP
            return verdict(code, target.chain)
        case Redirect():
            return _extension("target", pack_target(target, family))
        case _:
            from istio_init.model.unknown import UnknownTarget

            if isinstance(target, UnknownTarget) and target.name.startswith(UNREAD):
                return target.data
            return _extension("target", pack_target(target, family))


def _extension(kind: str, element: bytes) -> bytes:
    """An expression of an xt_entry_match or xt_entry_target."""
    _, field, revision = HEAD.unpack_from(element)
    name = field.partition(b"\0")[0]
    return expression(kind, attribute(1, name + b"\0") + word(2, revision) + attribute(3, element[HEAD.size :]))


# A counter's numbers, and the whole of one.
COUNTS = attribute(1, bytes(8)) + attribute(2, bytes(8))
_COUNTER = expression("counter", COUNTS)
SIGNED = attribute(USERDATA, SIGNATURE)
