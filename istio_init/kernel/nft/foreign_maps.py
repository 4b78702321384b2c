"""Verdict maps, maps, sets of several fields and fib in other programs' nftables tables: what iptables has no word for.

Each element of a map becomes a rule. Numbers are those of <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

from istio_init.formats.addresses import address_text
from istio_init.formats.nft.dump_rule import NotReadError, alternatives
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, name
from istio_init.kernel.nft.native_encode import ELEMENTS
from istio_init.kernel.nft.set_intervals import members
from istio_init.kernel.xtables.foreign_matches import TYPES
from istio_init.model.extensions import CtState, SetMark
from istio_init.model.rules import IPV4, Jump, PortRange, Redirect, Verdict
from istio_init.model.unknown import UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from istio_init.model.rules import Family, Match, Target

    # An expression's name and attributes.
    Expression: TypeAlias = tuple[str, dict[int, bytes]]
    Case: TypeAlias = tuple[tuple[Match, ...], Target]

LOOKUP_SET, LOOKUP_DREG, LOOKUP_FLAGS = 1, 3, 5
KEY, DATA, FLAGS, KEY_END = 1, 2, 3, 10  # NFTA_SET_ELEM_*
IS_END, CATCHALL = 1, 2
VALUE, VERDICT = 1, 2  # NFTA_DATA_*
VERDICTS = {0: "DROP", 1: "ACCEPT", -1: "", -5: "RETURN"}
JUMP, GOTO = -3, -4
HEADERS = {
    "ipv4": {(12, 4): "ip saddr", (16, 4): "ip daddr", (9, 1): "ip protocol"},
    "ipv6": {(8, 16): "ip6 saddr", (24, 16): "ip6 daddr", (6, 1): "ip6 nexthdr"},
}
PORTS = {(0, 2): "th sport", (2, 2): "th dport"}
META = {16: "l4proto", 6: "iifname", 7: "oifname", 3: "mark", 10: "skuid", 11: "skgid"}
SIZES = {"l4proto": 1, "iifname": 16, "oifname": 16, "ip protocol": 1, "ip6 nexthdr": 1, "th sport": 2, "th dport": 2}
SIZES |= {"ip6 saddr": 16, "ip6 daddr": 16}
STATES = {1: "INVALID", 2: "ESTABLISHED", 4: "RELATED", 8: "NEW", 64: "UNTRACKED"}
FIB_OIF, FIB_OIFNAME, FIB_TYPE = 1, 2, 3
FIB_SOURCE, FIB_DESTINATION = 1, 2
MARK, STATUS = 3, 2
DNAT_DONE, SNAT_DONE = 0x20, 0x10  # IPS_DST_NAT, IPS_SRC_NAT


class MapReader:
    """The sets and maps of one table, for one family's rules."""

    def __init__(self, elements: Mapping[str, Sequence[bytes]], family: Family) -> None:
        self._elements, self._family = elements, family

    def cases(self, expressions: list[Expression]) -> list[Case] | None:
        """What a rule's last expressions do, one case for each element of a map; None where they are something else."""
        at = next(
            (at for at, (kind, attrs) in enumerate(expressions) if kind == "lookup" and LOOKUP_DREG in attrs), None
        )
        if at is None:
            return None
        try:
            selectors = [self._selector(*each) for each in expressions[:at]]
            result = []
            for key, data in self._entries(expressions[at][1], selectors):
                target = self._target(expressions[at][1], data, expressions[at + 1 :])
                result += [(matches, target) for matches in alternatives(selectors, key, self._family)]
        except (NotReadError, KeyError, ValueError, IndexError):
            return None
        return result

    @staticmethod
    def conditions_end(expressions: list[Expression]) -> int:
        """How many expressions at the beginning are conditions: up to the last one that compares."""
        compares = [at for at, each in enumerate(expressions, 1) if _compares(*each)]
        return compares[-1] if compares else 0

    def choices(self, expressions: list[Expression]) -> list[tuple[Match, ...]] | None:
        """What conditions match: one of these; None where they are something else."""
        result: list[tuple[Match, ...]] = [()]
        try:
            begin = 0
            for at, each in enumerate(expressions, 1):
                if _compares(*each):
                    actual = self._condition(expressions[begin:at])
                    result = [(*before, *matches) for before in result for matches in actual]
                    begin = at
        except (NotReadError, KeyError, ValueError, IndexError):
            return None
        return result if begin == len(expressions) else None

    def _condition(self, expressions: list[Expression]) -> list[tuple[Match, ...]]:
        kind, attrs = expressions[-1]
        if kind != "lookup":
            return [(_single(expressions),)]
        if any(attrs.get(LOOKUP_FLAGS, b"")):
            raise NotReadError
        selectors = [self._selector(*each) for each in expressions[:-1]]
        keys = [key for key, _ in self._entries(attrs, selectors)]
        return [matches for key in keys for matches in alternatives(selectors, key, self._family)]

    def _selector(self, kind: str, attrs: dict[int, bytes]) -> str:
        """What an expression loads, in nft's words."""
        match kind:
            case "payload":
                base, offset, size = (int.from_bytes(attrs[each], "big") for each in (2, 3, 4))
                return (HEADERS[self._family] if base == 1 else PORTS if base == 2 else {})[offset, size]
            case "meta":
                return META[int.from_bytes(attrs[2], "big")]
            case "ct" if not any(attrs[2]):
                return "ct state"
            case "fib" if int.from_bytes(attrs[2], "big") == FIB_TYPE:
                return f"fib {_side(attrs)} type"
            case "numgen":
                return "numgen random"
            case _:
                raise NotReadError

    def _entries(self, attrs: dict[int, bytes], selectors: list[str]) -> Iterator[tuple[str, dict[int, bytes]]]:
        """Each key in nft's words, and its data."""
        lists = [attributes(each[HEAD.size :]).get(ELEMENTS, b"") for each in self._elements[name(attrs[LOOKUP_SET])]]
        entries = [attributes(each) for each in members(b"".join(lists))]
        flagged = [(int.from_bytes(each.get(FLAGS, b""), "big"), each) for each in entries]
        keys = sorted((attributes(each[KEY])[VALUE], flags != IS_END) for flags, each in flagged if KEY in each)
        ranged = any(flags == IS_END for flags, _ in flagged)
        for flags, each in flagged:
            data = attributes(each.get(DATA, b""))
            if flags & CATCHALL:
                yield "*", data
            elif flags != IS_END:
                low = attributes(each[KEY])[VALUE]
                high = attributes(each[KEY_END])[VALUE] if KEY_END in each else _end(keys, low) if ranged else low
                yield _words(selectors, low, high), data

    def _target(self, attrs: dict[int, bytes], data: dict[int, bytes], rest: list[Expression]) -> Target:
        """What is done with the data of one element."""
        if VERDICT in data:
            verdict = attributes(data[VERDICT])
            code = int.from_bytes(verdict[1], "big", signed=True)
            if code in {JUMP, GOTO}:
                return Jump(name(verdict[2]), code == GOTO)
            return Verdict(VERDICTS[code])  # type: ignore[arg-type]
        value = data[VALUE]
        [(kind, facts)] = rest
        start = _place(attrs[LOOKUP_DREG])
        if kind == "nat":
            address = self._part(value, facts.get(3), start, 4 if self._family == IPV4 else 16)
            port = self._part(value, facts.get(5), start, 2)
            return _translation(any(facts[1]), address, port, self._family)
        if kind == "redir":
            number = int.from_bytes(self._part(value, facts[1], start, 2), "big")
            return Redirect(PortRange(number, number))
        if kind == "meta" and int.from_bytes(facts[2], "big") == MARK and 3 in facts:
            return SetMark(int.from_bytes(value[:4], "little"))
        raise NotReadError

    @staticmethod
    def _part(value: bytes, register: bytes | None, start: int, size: int) -> bytes:
        at = (_place(register) - start) * 4 if register else len(value)
        return value[at : at + size]


def _compares(kind: str, attrs: dict[int, bytes]) -> bool:
    return kind in {"cmp", "range"} or (kind == "lookup" and LOOKUP_DREG not in attrs)


def _side(attrs: dict[int, bytes]) -> str:
    flags = int.from_bytes(attrs[3], "big")
    return {FIB_SOURCE: "saddr", FIB_DESTINATION: "daddr"}[flags & 3]


def _place(register: bytes) -> int:
    """A register as the number of its first 32 bits."""
    number = int.from_bytes(register, "big")
    return (number - 1) * 4 if number <= 4 else number - 8


def _end(keys: list[tuple[bytes, bool]], low: bytes) -> bytes:
    """The last key of the interval that begins with one: the kernel keeps the first one behind it."""
    behind = next((key for key, begins in keys if key > low and not begins), None)
    if behind is None:
        return b"\xff" * len(low)
    return (int.from_bytes(behind) - 1).to_bytes(len(low))


def _words(selectors: list[str], low: bytes, high: bytes) -> str:
    words, at = [], 0
    for selector in selectors:
        size = SIZES.get(selector, 4)
        ends = [_value(selector, each[at : at + size]) for each in (low, high)]
        words.append(ends[0] if ends[0] == ends[1] else "-".join(ends))
        at += (size + 3) & ~3
    return " . ".join(words)


def _value(selector: str, data: bytes) -> str:
    if selector.endswith("addr"):
        return address_text(data)
    if selector.endswith("ifname"):
        return name(data)
    if selector in {"mark", "skuid", "skgid"}:
        return str(int.from_bytes(data, "little"))
    if selector == "ct state":
        return STATES[int.from_bytes(data, "little")]
    if selector.endswith("type"):
        return TYPES[int.from_bytes(data, "little")]
    return str(int.from_bytes(data, "big"))


def _translation(destination: bool, address: bytes, port: bytes, family: Family) -> UnknownTarget:  # noqa: FBT001
    text = address_text(address) if address else ""
    if port:
        text = f"{text if family == IPV4 or not text else f'[{text}]'}:{int.from_bytes(port, 'big')}"
    named, side = ("DNAT", "destination") if destination else ("SNAT", "source")
    return UnknownTarget(named, 0, b"", f"--to-{side} {text}")


def _single(expressions: list[Expression]) -> Match:
    """fib, the type of an ICMP packet, or whether its connection is translated."""
    kinds = [kind for kind, _ in expressions]
    attrs, compared = expressions[0][1], expressions[-1][1]
    value = attributes(compared[3])[VALUE]
    negated = bool(int.from_bytes(compared[2], "big"))
    if kinds == ["fib", "cmp"]:
        return _fib(attrs, value, negated=negated)
    if kinds == ["ct", "bitwise", "cmp"] and int.from_bytes(attrs[2], "big") == STATUS and not any(value) and negated:
        mask = int.from_bytes(attributes(expressions[1][1][4])[VALUE], "little")
        return CtState(({DNAT_DONE: "DNAT", SNAT_DONE: "SNAT"}[mask],))
    if kinds == ["payload", "cmp"] and [int.from_bytes(attrs[each], "big") for each in (2, 3, 4)] == [2, 0, 1]:
        return UnknownMatch("icmp", 0, b"", "")
    raise NotReadError


def _fib(attrs: dict[int, bytes], value: bytes, *, negated: bool) -> Match:
    result = int.from_bytes(attrs[2], "big")
    if result == FIB_TYPE:
        side = {"saddr": "src", "daddr": "dst"}[_side(attrs)]
        kind = TYPES[int.from_bytes(value, "little")]
        return UnknownMatch("addrtype", 0, b"", f"{'! ' if negated else ''}--{side}-type {kind}")
    if result in {FIB_OIF, FIB_OIFNAME} and _side(attrs) == "saddr":
        # Whether there is a route back, or which interface it has.
        missing = (not any(value)) != negated
        return UnknownMatch("rpfilter", 0, b"", "--invert" if missing else "")
    raise NotReadError
