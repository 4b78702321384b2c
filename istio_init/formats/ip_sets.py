"""IP sets as `ipset save` prints them."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

from istio_init.formats.addresses import PROTOCOLS
from istio_init.model.ip_sets import (
    AddressPart,
    IpSet,
    MarkPart,
    Member,
    NamedPart,
    PortPart,
    UnknownPart,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.ip_sets import MemberPart
    from istio_init.model.rules import Family

LINE = re.compile(r"(?:create|add) \S+ \S+")
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}


def ip_sets(text: str) -> tuple[IpSet, ...]:
    """The sets that the `create` and `add` lines of a text make, whatever else it has."""
    created: dict[str, tuple[str, list[str]]] = {}
    members: dict[str, list[Member]] = {}
    for line in text.splitlines():
        words = line.split()
        if not LINE.match(line):
            continue
        if words[0] == "create":
            created[words[1]], members[words[1]] = (words[2], words[3:]), []
        elif words[1] in created:
            kind, options = created[words[1]]
            parts = tuple(_parts(kind, options, words[2]))
            members[words[1]].append(Member(parts, "nomatch" in words[3:]))
    return tuple(
        IpSet(name, kind, _family(kind, options), tuple(members[name])) for name, (kind, options) in created.items()
    )


def _family(kind: str, options: list[str]) -> Family | str:
    if kind in {"list:set", "bitmap:port", "hash:mac"}:
        return ""
    return "ipv6" if "inet6" in options else "ipv4"


def _parts(kind: str, options: list[str], text: str) -> Iterator[MemberPart]:
    dimensions = kind.partition(":")[2].split(",")
    words = text.split(",")
    netmask = options[options.index("netmask") + 1] if "netmask" in options else ""
    if len(words) != len(dimensions) or "bitmask" in options or "markmask" in options:
        yield UnknownPart(text)
        return
    for dimension, word in zip(dimensions, words, strict=True):
        try:
            yield _part(dimension, word, netmask)
        except ValueError:
            yield UnknownPart(word)


def _part(dimension: str, word: str, netmask: str) -> MemberPart:
    match dimension:
        case "ip" | "net":
            return _addresses(word if "/" in word or "-" in word or not netmask else f"{word}/{netmask}")
        case "port":
            protocol, colon, ports = word.rpartition(":")
            low, _, high = ports.partition("-")
            number = _NUMBERS.get(protocol) or (int(protocol) if colon else None)
            return PortPart(number, int(low), int(high or low))
        case "iface":
            if word.startswith("physdev:"):
                raise ValueError(word)
            return NamedPart("iface", word)
        case "set":
            return NamedPart("set", word)
        case "mark":
            return MarkPart(int(word, 0))
        case _:
            return UnknownPart(word)


def _addresses(word: str) -> AddressPart:
    low, dash, high = word.partition("-")
    if dash:
        return AddressPart(ip_address(low).packed, ip_address(high).packed, 0)
    network = ip_network(word, strict=False)
    return AddressPart(network.network_address.packed, network.broadcast_address.packed, network.prefixlen)
