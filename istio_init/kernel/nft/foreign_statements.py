"""Statements of other programs' nftables rules from their expressions: marks, and translations to ranges."""

from __future__ import annotations

from istio_init.formats.addresses import address_text
from istio_init.formats.nft.mark_values import MarkValue
from istio_init.kernel.netlink.channel import attributes
from istio_init.model.unclear import ALL_BITS
from istio_init.model.unknown import UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from istio_init.kernel.nft.foreign_maps import Expression
    from istio_init.model.rules import Family, Target

META_MARK, CT_MARK = 3, 3  # NFT_META_MARK, NFT_CT_MARK
META_SREG, CT_SREG = 3, 4
# Of what gives a number: the register that it loads, its modulus and its offset.
NUMBERS = {"numgen": (1, 2, 4), "hash": (2, 4, 6)}


def mark_target(elements: list[Expression]) -> Target | None:
    """The target of iptables that gives a mark what these expressions do; None where they are something else."""
    kind, facts = elements[-1]
    fields: dict[str, Literal["mark", "ct mark"]] = {"meta": "mark", "ct": "ct mark"}
    source = {"meta": META_SREG, "ct": CT_SREG}.get(kind)
    if source not in facts or int.from_bytes(facts[2], "big") != META_MARK:
        return None
    registers: dict[bytes, MarkValue] = {}
    try:
        for each in elements[:-1]:
            _load(registers, *each)
        return registers[facts[source]].target(fields[kind])
    except (KeyError, ValueError):
        return None


def _load(registers: dict[bytes, MarkValue], kind: str, facts: dict[int, bytes]) -> None:
    """Note what an expression loads. KeyError or ValueError for others."""
    match kind:
        case "immediate":
            registers[facts[1]] = MarkValue("", 0, _number(facts[2]))
        case "meta" if int.from_bytes(facts[2], "big") == META_MARK:
            registers[facts[1]] = MarkValue("mark", ALL_BITS)
        case "ct" if int.from_bytes(facts[2], "big") == CT_MARK:
            registers[facts[1]] = MarkValue("ct mark", ALL_BITS)
        case "bitwise" if 4 in facts and 5 in facts:
            registers[facts[2]] = registers[facts[1]].masked(_number(facts[4]), _number(facts[5]))
        case "payload" | "meta" | "ct":
            pass  # what a hash is made of
        case _:
            into, modulus, offset = NUMBERS[kind]
            numbers = [int.from_bytes(facts.get(each, b""), "big") for each in (modulus, offset)]
            registers[facts[into]] = MarkValue("", 0, numbers[1], numbers[0])


def _number(data: bytes) -> int:
    """A mark, which the kernel keeps in the machine's order."""
    value = attributes(data)[1]
    if len(value) != 4:
        raise ValueError("not 32 bits")
    return int.from_bytes(value, "little")


def translation(elements: list[Expression], family: Family) -> UnknownTarget | None:
    """dnat, snat, masquerade or redirect to constants; None where they are something else."""
    kind, facts = elements[-1]
    if any(each != "immediate" for each, _ in elements[:-1]) or kind not in {"nat", "masq", "redir"}:
        return None
    constants = {attrs[1]: attributes(attrs[2])[1] for _, attrs in elements[:-1]}
    # NFTA_NAT_REG_ADDR_MIN, _MAX, _PROTO_MIN, _MAX; the others have ports alone.
    places = (3, 4, 5, 6) if kind == "nat" else (0, 0, 2, 3) if kind == "masq" else (0, 0, 1, 2)
    if {facts[each] for each in places if each in facts} - {*constants}:
        return None
    low, high, first, last = (constants.get(facts.get(each, b"")) for each in places)
    ports = _span(*(str(int.from_bytes(each, "big")) if each else "" for each in (first, last)))
    if kind != "nat":
        name, options = ("MASQUERADE" if kind == "masq" else "REDIRECT"), f"--to-ports {ports}" if ports else ""
        return UnknownTarget(name, 0, b"", options)
    text = _span(*(address_text(each) if each else "" for each in (low, high)))
    if ports:
        text = f"{text if family == 'ipv4' or not text else f'[{text}]'}:{ports}"
    name, side = ("DNAT", "destination") if any(facts[1]) else ("SNAT", "source")
    return UnknownTarget(name, 0, b"", f"--to-{side} {text}")


def _span(low: str, high: str) -> str:
    return f"{low}-{high}" if high not in {"", low} else low
