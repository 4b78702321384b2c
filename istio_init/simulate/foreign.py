"""The meaning of other programs' matches, parsed from their options as iptables-save prints them.

kube-proxy, Docker, Calico, Cilium and firewalld write these. Unsupported ones are reported, never guessed.
"""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS
from istio_init.model.extensions import CT_STATES, CtState
from istio_init.model.foreign import (
    AddressRange,
    AddressType,
    Assumed,
    Direction,
    MaskedAddress,
    TcpFlags,
    Undecidable,
)
from istio_init.model.ip_sets import SetMember
from istio_init.model.rules import DestinationPorts, InInterface, OutInterface, Owner, PortRange, Protocol, SourcePorts
from istio_init.model.unknown import ENTRY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from istio_init.model.foreign import ForeignPart
    from istio_init.model.ip_sets import IpSet
    from istio_init.model.packet import Side
    from istio_init.model.rules import Match
    from istio_init.model.unknown import UnknownMatch

    Part: TypeAlias = Match | ForeignPart | SetMember
    # An option, whether a ! precedes it, and its values.
    Option: TypeAlias = tuple[str, bool, list[str]]

TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}
ALL_IDS = 2**32 - 1
PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
SIDES: dict[str, Side] = {"src": "source", "dst": "destination"}

# Matches whose result depends on a count, on chance, or on the clock.
EITHER = {
    "limit": "its rate is within the limit",
    "hashlimit": "its rate is within the limit",
    "statistic": "chance, or its number, chooses it",
    "recent": "its address was seen recently",
    "time": "it is the time of day",
    "connlimit": "there are as many connections",
    "connbytes": "its connection has moved as many bytes",
    "quota": "the quota is not used up",
    "rateest": "an estimated rate is as the rule says",
    "nfacct": "its account has no quota, or one that is used up",
}
# The property that a match tests, and that a simulated packet does not have.
UNKNOWABLE = {
    "set": "whether {options} holds it", "icmp": "its ICMP type", "icmp6": "its ICMP type",
    "cgroup": "the control group of its sender", "socket": "whether there is a socket for it",
    "cpu": "the processor that handles it", "cluster": "the node of the cluster that handles it",
    "length": "its length", "ttl": "its TTL", "hl": "its hop limit", "dscp": "its DSCP", "tos": "its TOS",
    "ecn": "its congestion notification", "tcpmss": "its maximum segment size", "string": "its content",
    "u32": "its content", "mac": "its MAC address", "sctp": "its SCTP header",
    "dccp": "its DCCP header", "esp": "its ESP header", "ah": "its AH header", "ipcomp": "its IPComp header",
    "mh": "its Mobile IPv6 header", "ipv6header": "its IPv6 extension headers",
    "eui64": "whether its source is made from its sender's MAC address",
    "osf": "its sender's operating system", "realm": "the realm of its route", "devgroup": "its interface's group",
    "helper": "the helper of its connection", "connlabel": "the labels of its connection",
    "ipvs": "whether IPVS handles it",
}  # fmt: skip
# Matches that hold only for packets with an IPv6 header that a simulated one does not have.
WITH_HEADER = {
    "rt": "routing", "srh": "routing", "frag": "fragment", "hbh": "hop-by-hop options", "dst": "destination options",
}  # fmt: skip


def parts(match: UnknownMatch, ip_sets: tuple[IpSet, ...] = ()) -> tuple[Part, ...]:
    """The conditions of a match, all of which must hold; `ip_sets` are those whose members are known."""
    if match.name == "set" and match.options and (member := _membership(match.options, ip_sets)):
        return (member,)
    return _parts(match.name, match.options)


def _membership(options: str, ip_sets: tuple[IpSet, ...]) -> SetMember | None:
    """-m set with a set whose members are known; None where it looks at counters, too."""
    read = {option: (negated, values) for option, negated, values in options_of(options)}
    negated, values = read.pop("--match-set", (False, []))
    silent = {"--return-nomatch", "--update-counters", "--update-subcounters"}
    if len(values) != 2 or not read.keys() <= silent or "--return-nomatch" in read:
        return None
    if not any(each.name == values[0] for each in ip_sets):
        return None
    return SetMember(values[0], tuple(values[1].split(",")), ip_sets, negated)


@cache
def _parts(name: str, options: str | None) -> tuple[Part, ...]:
    if name in EITHER:
        return (Assumed(held=True, why=EITHER[name], either=True),)
    if name in UNKNOWABLE:
        return (Undecidable(UNKNOWABLE[name].format(options=options or "the set")),)
    if name in WITH_HEADER:
        return (Assumed(held=False, why=f"it has no {WITH_HEADER[name]} header"),)
    if name.startswith((ENTRY, "nf_tables")) and options is not None:
        return _of_entry(options)
    if options is None:
        return (Undecidable(f"-m {name} is not known to this program"),)
    try:
        return tuple(_read(name, options_of(options)))
    except (KeyError, ValueError, IndexError):
        return (Undecidable(f"-m {name} {options} is not known to this program"),)


def _of_entry(options: str) -> tuple[Part, ...]:
    """The conditions on a packet's header, as iptables-save prints them before the first -m."""
    result: list[Part] = []
    words = options.split()
    while words:
        negated = words[0] == "!"
        words = words[negated:]
        option, value = words[0], words[1] if len(words) > 1 else ""
        if option == "-f":
            result.append(Assumed(negated, "it is not a fragment" if negated else "it is a fragment"))
        elif option in {"-s", "-d"}:
            result.append(_masked("source" if option == "-s" else "destination", value, negated=negated))
        elif option == "-p":
            result.append(Protocol(PROTOCOL_NUMBERS.get(value) or int(value), negated))
        elif value == "+":
            result.append(Assumed(not negated, "each interface, and none, is in +"))
        else:
            result.append((InInterface if option == "-i" else OutInterface)(value, negated))
        words = words[1 if option == "-f" else 2 :]
    return tuple(result)


def _masked(side: Side, text: str, *, negated: bool) -> MaskedAddress:
    address, _, mask = text.partition("/")
    packed = ip_address(address).packed
    bits = len(packed) * 8
    number = (1 << bits) - (1 << bits - int(mask)) if mask.isdigit() else int(ip_address(mask))
    return MaskedAddress(side, packed, number.to_bytes(len(packed)), negated)


def options_of(text: str) -> list[Option]:
    """The options of a match or target."""
    options: list[Option] = []
    negated = False
    for word in text.split():
        if word == "!":
            negated = True
        elif word.startswith("--"):
            options.append((word, negated, []))
            negated = False
        else:
            options[-1][2].append(word)
    return options


def _read(name: str, options: list[Option]) -> Iterator[Part]:
    if name == "physdev":
        # Without a bridge there is no such interface, so only a negated match holds (physdev_mt).
        held = all(negated for _, negated, _ in options)
        yield Assumed(held, "it crosses a bridge" if held else "it does not cross a bridge")
        return
    if name == "policy":
        yield Assumed(("--pol", False, ["none"]) in options, "no IPsec policy applies to it")
        return
    if name == "rpfilter":
        inverted = any(option == "--invert" for option, _, _ in options)
        yield Assumed(not inverted, "its source is reached by the interface that it came in by")
        return
    for option, negated, values in options:
        if part := _part(name, option, values, negated=negated):
            yield part


def _part(name: str, option: str, values: list[str], *, negated: bool) -> Part | None:  # noqa: C901 (one arm an option)
    match name, option:
        case "comment", _:
            return None
        case "addrtype", "--src-type" | "--dst-type":
            return AddressType(SIDES[option[2:5]], tuple(values[0].split(",")), negated)
        case "addrtype", "--limit-iface-in" | "--limit-iface-out":
            return None
        case "iprange", "--src-range" | "--dst-range":
            low, _, high = values[0].partition("-")
            return AddressRange(SIDES[option[2:5]], ip_address(low).packed, ip_address(high or low).packed, negated)
        case "conntrack" | "state", "--ctstate" | "--state":
            states = values[0].split(",")
            return CtState(tuple(state for state in CT_STATES if state in states), negated)
        case "conntrack", "--ctdir":
            return Direction(values[0] == "REPLY")
        case "conntrack", "--ctproto":
            return Protocol(int(values[0]), negated)
        case "conntrack", _:
            return Undecidable(f"{option} {values[0]} of its connection")
        case "tcp" | "udp", "--sport":
            return SourcePorts(ports_of(values[0]), negated)
        case "tcp" | "udp", "--dport":
            return DestinationPorts(ports_of(values[0]), negated)
        case "tcp", "--tcp-flags":
            mask, compared = (sum(TCP_FLAGS[flag] for flag in value.split(",")) for value in values)
            return TcpFlags(mask, compared, negated)
        case "tcp", "--tcp-option":
            return Undecidable("its TCP options")
        case "owner", "--socket-exists":
            return Owner("uid", 0, ALL_IDS, negated)
        case "owner", "--uid-owner" | "--gid-owner":
            first, _, last = values[0].partition("-")
            return Owner("uid" if option == "--uid-owner" else "gid", int(first), int(last or first), negated)
        case "owner", "--suppl-groups":
            return Undecidable("the supplementary groups of its sender")
        case "pkttype", "--pkt-type":
            unicast = values[0] == "unicast"
            return Assumed(unicast != negated, "it is for this machine alone")
        case _:
            raise KeyError(option)


def ports_of(text: str) -> PortRange:
    """A port, or a range of them such as 1:5."""
    low, _, high = text.partition(":")
    return PortRange(int(low), int(high or low))


def assumptions(matches: tuple[Match, ...]) -> str:
    """What is assumed if these matches are said to hold, in words; empty without assumptions."""
    from istio_init.model.unknown import UnknownMatch

    all_parts = [part for match in matches if isinstance(match, UnknownMatch) for part in parts(match)]
    return " and ".join(part.why for part in all_parts if isinstance(part, Assumed) and part.either)
