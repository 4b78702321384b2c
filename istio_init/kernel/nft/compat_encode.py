"""Rules as iptables-nft keeps them in nftables: a Rule packed into netlink attributes; nft_reader.py unpacks it.

What a rule asks of addresses, interfaces, protocol, ports and mark are expressions of nftables' own; any other
match, and every target but a verdict, is an x_tables extension with its struct (extensions.py, extensions_rare.py) in
an expression "match" or "target". That is what iptables-nft 1.8.9 writes, so every iptables-nft can list, edit and
delete it.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import text, word
from istio_init.kernel.nft.registers import (
    COMPAT,
    DESTINATION_AT,
    ELEMENT,
    EQUAL,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    EXPRESSIONS,
    GOTO,
    IIFNAME,
    JUMP,
    L4PROTO,
    MARK,
    NATIVE,
    NESTED,
    NETWORK,
    OIFNAME,
    REGISTER,
    SIGNATURE,
    SOURCE_AT,
    TRANSPORT,
    UNEQUAL,
    UNREAD,
    USERDATA,
    VERDICTS,
)
from istio_init.kernel.xtables.encode_match import HEAD, pack_match, pack_target
from istio_init.model.extensions import Mark
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Protocol,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import UnknownMatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, Rule, Target

_INVERTED = 2  # NFT_RULE_COMPAT_F_INV


class RuleWriter:
    """Packs rules of one family; what many have in common, being the same object, is packed once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._packed: dict[int, tuple[Match | Target, bytes]] = {}

    def pack(self, rule: Rule) -> bytes:
        """The attributes of a rule's message that say what it does, with our signature. KernelError where none can."""
        try:
            matches = b"".join([self._match(match) for match in _in_order(rule.matches)])
            expressions = matches + _COUNTER + self._target(rule.target)
        except (ValueError, OverflowError) as error:
            raise KernelError(f"{rule!r}: no rule of the kernel for {self._family} can hold this: {error}") from error
        protocol = next((match for match in rule.matches if isinstance(match, Protocol)), None)
        compat = b""
        if protocol is not None:
            # Extensions ask the rule's head for the protocol; here it stands for that head.
            compat = _nest(COMPAT, word(1, protocol.number) + word(2, _INVERTED * protocol.negated))
        return _nest(EXPRESSIONS, expressions) + compat + _SIGNED

    def _match(self, match: Match) -> bytes:
        known = self._packed.get(id(match))
        if known is None:
            # With the match itself, or another might get its place in memory.
            known = self._packed[id(match)] = match, _packed_match(match)
        return known[1]

    def _target(self, target: Target) -> bytes:
        known = self._packed.get(id(target))
        if known is None:
            known = self._packed[id(target)] = target, _packed_target(target, self._family)
        return known[1]


# iptables-nft's order: interfaces, protocol, addresses, then all else as it was given.
_RANK: dict[type, int] = {InInterface: 0, OutInterface: 1, Protocol: 2, Source: 3, Destination: 4}


def _in_order(matches: tuple[Match, ...]) -> list[Match]:
    return sorted(matches, key=lambda match: _RANK.get(type(match), 5))


def _packed_match(match: Match) -> bytes:
    match match:
        case InInterface() | OutInterface():
            key = IIFNAME if isinstance(match, InInterface) else OIFNAME
            encoded = match.name.encode(errors="surrogateescape")
            wanted = encoded[:-1] if encoded.endswith(b"+") else encoded + b"\0"
            return _meta(key) + _compare(wanted, negated=match.negated) if wanted else b""
        case Protocol():
            return _meta(L4PROTO) + _compare(bytes((match.number,)), negated=match.negated) if match.number else b""
        case Source():
            return _address(match, SOURCE_AT)
        case Destination():
            return _address(match, DESTINATION_AT)
        case SourcePorts():
            return _port(match, 0)
        case DestinationPorts():
            return _port(match, 2)
        case Mark():
            masked = b"" if match.mask == 0xFFFFFFFF else _mask(NATIVE.pack(match.mask))
            return _meta(MARK) + masked + _compare(NATIVE.pack(match.value), negated=match.negated)
        case UnknownMatch(name=name) if name == UNREAD:
            return match.data
        case _:
            return _extension("match", pack_match(match))


def _address(match: Source | Destination, at: dict[int, int]) -> bytes:
    address, prefix = match.network.address, match.network.prefix
    whole, odd = divmod(prefix, 8)
    if not odd:
        wanted, masked = address[:whole], b""
    else:
        mask = ((1 << prefix) - 1) << (len(address) * 8 - prefix)
        wanted, masked = address, _mask(mask.to_bytes(len(address), "big"))
    if not prefix:
        if match.negated:
            raise ValueError("no packet has an address outside of all networks")
        return b""
    load = _load(NETWORK, at[len(address)], len(wanted))
    return load + masked + _compare(wanted, negated=match.negated)


def _port(match: SourcePorts | DestinationPorts, at: int) -> bytes:
    low, high = (port.to_bytes(2, "big") for port in (match.ports.low, match.ports.high))
    load = _load(TRANSPORT, at, 2)
    if low == high:
        return load + _compare(low, negated=match.negated)
    limits = _nest(3, attribute(1, low)) + _nest(4, attribute(1, high))
    return load + _expression("range", word(1, REGISTER) + word(2, UNEQUAL if match.negated else EQUAL) + limits)


def _packed_target(target: Target, family: Family) -> bytes:
    match target:
        case Verdict():
            return _immediate(word(1, VERDICTS[target.name])) if target.name else b""
        case Jump():
            code = GOTO if target.goto else JUMP
            return _immediate(word(1, code) + text(2, target.chain))
        case _:
            return _extension("target", pack_target(target, family))


def _nest(kind: int, value: bytes) -> bytes:
    return attribute(kind | NESTED, value)


def _expression(name: str, data: bytes) -> bytes:
    return _nest(ELEMENT, text(EXPRESSION_NAME, name) + _nest(EXPRESSION_DATA, data))


def _meta(key: int) -> bytes:
    return _expression("meta", word(2, key) + word(1, REGISTER))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", word(1, REGISTER) + word(2, base) + word(3, offset) + word(4, length))


def _mask(mask: bytes) -> bytes:
    operands = _nest(4, attribute(1, mask)) + _nest(5, attribute(1, bytes(len(mask))))
    return _expression("bitwise", word(1, REGISTER) + word(2, REGISTER) + word(3, len(mask)) + operands)


def _compare(value: bytes, *, negated: bool) -> bytes:
    operator = UNEQUAL if negated else EQUAL
    return _expression("cmp", word(1, REGISTER) + word(2, operator) + _nest(3, attribute(1, value)))


def _immediate(verdict: bytes) -> bytes:
    return _expression("immediate", word(1, 0) + _nest(2, _nest(2, verdict)))


def _extension(kind: str, element: bytes) -> bytes:
    """An expression of an xt_entry_match or xt_entry_target."""
    _, field, revision = HEAD.unpack_from(element)
    name = field.partition(b"\0")[0]
    return _expression(kind, attribute(1, name + b"\0") + word(2, revision) + attribute(3, element[HEAD.size :]))


_COUNTER = _expression("counter", attribute(1, bytes(8)) + attribute(2, bytes(8)))
_SIGNED = attribute(USERDATA, SIGNATURE)
