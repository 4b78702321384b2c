"""Rules, pods and packets for the page: random ones that meet each other, and what the program itself says of them."""

from __future__ import annotations

import json
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.cli.verbs import packet_flags
from istio_init.cli.verbs.subject import POD, Subject
from istio_init.draw.graph import build_graph
from istio_init.draw.highlight import highlights
from istio_init.draw.html.document import STATES
from istio_init.draw.html.model import followed
from istio_init.errors_rare import UsageError
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.masked_rule import MaskedRule
from istio_init.model.packet import Facts
from istio_init.model.parsers import network
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import (
    BUILTIN_CHAINS,
    FAMILIES,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Ruleset,
    Source,
    SourcePorts,
    Table,
    Verdict,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from istio_init.simulate.foreign_targets import effect_of
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report_json import as_json
from tests.kit.packets import Sidecar

if TYPE_CHECKING:
    from random import Random

    from istio_init.model.rules import Family, Match, TableName, Target

ADDRESSES = (
    *("10.1.2.3", "192.0.2.10", "127.0.0.1", "127.0.0.6", "198.51.100.7", "10.99.0.53", "0.0.0.1", "224.0.0.5"),
    *("255.255.255.255", "2001:db8::a", "::1", "::6", "fd99::53", "fe80::1", "feC0::1", "ff02::1", "::ffff:1.2.3.4"),
    *("2001:DB8:0:0:1::", "::1.2.3.4", "::102:304", "1:0:0:2:0:0:0:3", "64:ff9b::1.2.3.4", "0:1::", "0.0.0.0", "::"),
)
WRONG = (
    *("10.0.0", "10.0.0.1.2", "010.0.0.1", "10.0.0.256", "a", "1::2::3", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9"),
    *("1:2:3:4:5:6:7:8::", "::12345", "::1.2.3", "1.2.3.4::", "[10.0.0.1]:80", "[::1", "[::1]80", "::1]:80", "[::1]:x"),
    *("10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0.1:01", "10.0.0.1/8", "::1%lo", "[::1]:", ":", "[]"),
)
PORTS = ("", "", "0", "53", "80", "443", "4000", "15001", "15006", "15008", "15053", "65535")


# What is no question, by the field in which it is typed.
NONSENSE = {
    "from": WRONG,
    "to": WRONG,
    "interface": ("no such", "sixteen-letters1", ".", "..", "a/b", "a:b", 'a"b', "!", "eth+", "+", "ä"),
    "protocol": ("0", "256", "tpc", ""),
    "uid": ("4294967295", "-1", "01", "root of all"),
    "gid": ("4294967295", "1.5"),
    "mark": ("4294967296", "0x", "0x1ffffffff", "0x1_0", "-1", ""),
    "connmark": ("0xg", "1e3"),
}


def endpoint(chance: Random) -> str:
    """A text for --from or --to."""
    port = chance.choice(PORTS)
    if not chance.randrange(3):
        return f":{port}" if port else ""
    address = chance.choice(ADDRESSES) if chance.randrange(3) else _any_address(chance)
    return (f"[{address}]:{port}" if ":" in address else f"{address}:{port}") if port else address


def _any_address(chance: Random) -> str:
    return str(IPv4Address(chance.getrandbits(32)) if chance.randrange(2) else IPv6Address(chance.getrandbits(128)))


def question(chance: Random) -> dict[str, Any]:
    """What somebody types into the form; every tenth time one of it is nonsense."""
    state = chance.choice(("NEW", "NEW", "NEW", *STATES))
    ids = ("", "", "0", "5", "888", "1337", "-", "4294967294")
    marks = ("0", "0", "1337", "0x539", "0X53A", "0xffffffff", "4294967295")
    typed = {
        "inbound": bool(chance.randrange(2)),
        "from": endpoint(chance),
        "to": endpoint(chance),
        "protocol": chance.choice(("tcp", "tcp", "tcp", "TCP", "udp", "icmp", "58", "200")),
        "interface": chance.choice(("", "", "", "eth0", "lo", "veth1", "net1", "a.b-c_d~e!f#g")),
        "uid": chance.choice(ids),
        "gid": chance.choice(ids),
        "mark": chance.choice(marks),
        "connmark": chance.choice(marks),
        "state": state,
        "reply": state in {"ESTABLISHED", "RELATED"} and bool(chance.randrange(2)),
    }
    if not chance.randrange(10):
        field = chance.choice((*NONSENSE, "reply"))
        typed[field] = chance.choice(NONSENSE[field]) if field in NONSENSE else True
    return typed


# The parts of a way (draw/highlight.py).
HIGHLIGHTED = ("tried", "hit", "links", "reached")

_PORT_LISTS = (PortRange(53, 53), PortRange(80, 443), PortRange(15000, 15100))


FOREIGN_MATCHES = {
    "ipv4": (
        ("addrtype", "--dst-type LOCAL"), ("addrtype", "! --src-type LOCAL,MULTICAST --dst-type UNICAST"),
        ("iprange", "! --src-range 10.0.0.0-10.255.255.255"), ("iprange", "--dst-range 10.1.2.3-198.51.100.7"),
        ("statistic", "--mode random --probability 0.50000000000"), ("limit", "--limit 5/min"),
        ("conntrack", "--ctstate RELATED,ESTABLISHED --ctdir REPLY"), ("conntrack", "--ctstatus ASSURED"),
        ("tcp", "--tcp-flags SYN,RST SYN"), ("tcp", "! --tcp-flags FIN,SYN,RST,ACK SYN"),
        ("physdev", "--physdev-is-bridged"), ("physdev", "! --physdev-is-in"), ("rpfilter", "--invert"),
        ("set", "--match-set x src"), ("state", "--state NEW"), ("owner", "--uid-owner 1337 ! --gid-owner 1337"),
        ("owner", "! --socket-exists"), ("policy", "--dir in --pol ipsec"), ("policy", "--dir out --pol none"),
    ),
    "ipv6": (
        ("addrtype", "--dst-type LOCAL"), ("addrtype", "--dst-type UNICAST"), ("icmp6", "--icmpv6-type 128"),
        ("iprange", "--src-range 2001:db8::-2001:db8::ffff"), ("addrtype", "! --dst-type MULTICAST"),
        ("rt", "--rt-type 0"), ("hl", "--hl-eq 255"),
    ),
}  # fmt: skip
FOREIGN_TARGETS = {
    "ipv4": (
        ("DNAT", "--to-destination 10.9.9.9"), ("DNAT", "--to-destination 127.0.0.1:15053"),
        ("DNAT", "--to-destination :15006"), ("DNAT", "--to-destination 10.9.9.1-10.9.9.9:80"),
        ("SNAT", "--to-source 10.2.2.2:7"), ("MASQUERADE", "--random-fully"), ("REJECT", "--reject-with tcp-reset"),
        ("CONNMARK", "--set-xmark 0x1/0xff"), ("CT", "--notrack"), ("TCPMSS", "--clamp-mss-to-pmtu"),
        ("NETMAP", "--to 10.9.0.0/16"), ("NETMAP", "--to 127.0.0.1/32"), ("SYNPROXY", "--mss 1460"),
    ),
    "ipv6": (
        ("DNAT", "--to-destination fd99::53"), ("DNAT", "--to-destination [::1]:15053"), ("MASQUERADE", ""),
        ("SNAT", "--to-source fd99::53"), ("NETMAP", "--to fd99::/64"),
    ),
}  # fmt: skip


@cache
def _matches(family: Family) -> tuple[Match, ...]:
    """Matches of every kind that packets of `questions` may meet or miss."""
    networks = ("10.0.0.0/8", "192.0.2.10", "0.0.0.0/0") if family == "ipv4" else ("2001:db8::/32", "::1", "::/0")
    either = (False, True)
    names = ("lo", "eth0", "veth+")
    marks = ((0x539, 0xFFFFFFFF), (0x39, 0xFF), (0xFF000000, 0xFF000000))
    states = (("NEW",), ("INVALID", "ESTABLISHED"), ("DNAT",))
    some: tuple[Match, ...] = tuple(
        match
        for each in either
        for match in (
            *(kind(network(text), each) for kind in (Source, Destination) for text in networks),
            *(kind(name, each) for kind in (InInterface, OutInterface) for name in names),
            *(Protocol(number, each) for number in (0, 6, 17)),
            *(kind(ports, each) for kind in (SourcePorts, DestinationPorts) for ports in _PORT_LISTS),
            *(Multiport(side, _PORT_LISTS[:2], each) for side in ("sports", "dports", "ports")),
            *(Owner(kind, low, 1337, each) for kind in ("uid", "gid") for low in (0, 1337)),
            *(kind(*mark, each) for kind in (Mark, ConnMark) for mark in marks),
            *(CtState(some, each) for some in states),
        )
    )
    foreign = [UnknownMatch(name, -1, b"", options) for name, options in FOREIGN_MATCHES[family]]
    return (*some, Comment("said"), UnknownMatch("bpf", 1, b""), *foreign)


@cache
def _targets(family: Family, chains: tuple[str, ...]) -> tuple[Target, ...]:
    return (
        *(Verdict(name) for name in ("ACCEPT", "DROP", "RETURN", "RETURN", "QUEUE", "", "", "")),
        *(Jump(name, goto) for name in chains for goto in (False, True)),
        *(Redirect(PortRange(15001, high)) for high in (15001, 15001, 15002)),
        *(Tproxy(port, bytes(4 if family == "ipv4" else 16), 0x539, 0xFFFFFFFF) for port in (0, 15006)),
        *(SetMark(value, mask) for value, mask in ((0x539, 0xFFFFFFFF), (0xF0000001, 0xFF00FF00))),
        *(kind(0xFFFFFFFF, 0xFFFF0000) for kind in (SaveMark, RestoreMark)),
        *(CtZone(zone) for zone in (1, 2)),
        *(UnknownTarget(name, 0, b"") for name in ("LOG", "REJECT", "NFQUEUE", "DNAT")),
        *(UnknownTarget(name, -1, b"", options) for name, options in FOREIGN_TARGETS[family]),
    )


def _rules(chance: Random, family: Family, chains: tuple[str, ...]) -> tuple[Rule, ...]:
    """A chain's rules, which may jump to these."""
    matches, targets = _by_kind(_matches(family)), _by_kind(_targets(family, chains))
    return tuple(
        _spelled(
            tuple(chance.choice(chance.choice(matches)) for _ in range(chance.randrange(3))),
            chance.choice(chance.choice(targets)),
            chance.choice((6, 17)),
        )
        for _ in range(chance.randrange(5))
    )


def _by_kind(values: tuple[Any, ...]) -> list[list[Any]]:
    """The values, grouped by their kinds, so that each kind is as likely as any other; verdicts more often."""
    kinds: dict[type, list[Any]] = {}
    for value in values:
        kinds.setdefault(type(value), []).append(value)
    return [*kinds.values(), *[kinds[Verdict]] * 3] if Verdict in kinds else [*kinds.values()]


# Chains of a user's, and to which each of them may jump; the last is one that does the same to everything.
USERS = {"ISTIO_OUTPUT": ("A",), "A": ("ISTIO_REDIRECT",), "ISTIO_REDIRECT": ()}


def ruleset(chance: Random, family: Family) -> Ruleset:
    """Rules of every kind, wherever; also where the kernel would not take them."""
    tables = []
    several: list[tuple[TableName, str]] = [(name, end) for name in BUILTIN_CHAINS for end in ("", "", " (nft)")]
    for name, end in {each: None for each in several if not chance.randrange(3)}:
        built_in = [
            Chain(hook, _rules(chance, family, ("ISTIO_OUTPUT", "A")), chance.choice(("ACCEPT", "ACCEPT", "DROP")))
            for hook in BUILTIN_CHAINS[name]
        ]
        users = [Chain(user, _rules(chance, family, others)) for user, others in USERS.items()]
        # With an end, another backend's table of the same name.
        called: TableName = f"{name}{end}"  # type: ignore[assignment]
        tables.append(Table(called, (*built_in, *users)))
    return Ruleset(family, tuple(tables))


def _spelled(matches: tuple[Match, ...], target: Target, transport: int) -> Rule:
    """A rule that iptables has a spelling for: ports belong to a protocol that has some."""
    with_ports = (SourcePorts, DestinationPorts, Multiport, Redirect, Tproxy)
    if any(isinstance(each, with_ports) for each in (*matches, target)):
        matches = (Protocol(transport), *(match for match in matches if not isinstance(match, Protocol)))
    return Rule(matches, target)


@cache
def planned(line: str) -> Subject:
    """The plan of a command line, and the pod of `explain` where nobody says anything of it."""
    sidecar = Sidecar(line)
    recorded = [Address(Network(bytes([127, 0, 0, 1]), 8), "lo"), Address(network("::1"), "lo")]
    pod = [Address(each, "eth0") for each in POD.values()]
    facts = Facts((*recorded, *sidecar.plan.addresses, *pod), sidecar.plan.policy_rules, sidecar.plan.routes)
    return Subject(sidecar.options, sidecar.plan.rulesets, facts, sidecar.envoy, live=False)


def namespace(chance: Random) -> Subject:
    """A namespace in which anybody may have done anything."""
    own = (
        *(("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "192.0.2.10"), ("eth0", "2001:db8::a"), ("veth1", "10.1.2.3")),
        *(("eth0", "fe80::1"), ("veth1", "feC0::1"), ("eth0", "::1.2.3.4")),
    )
    addresses = tuple(
        Address(network(text).replace(prefix=8) if text == "127.0.0.1" else network(text), device)
        for device, text in chance.sample(own, chance.randrange(len(own) + 1))
    )
    rules = tuple(PolicyRule(family, 0x539, table) for family in FAMILIES for table in (133, 134))
    routes = chance.choice(((), tuple(Route(family, "lo", 134) for family in FAMILIES)))
    masked = chance.choice(((), tuple(MaskedRule(family, 0x39, 0xFF, 134) for family in FAMILIES)))
    switched = ((), ("eth0", "veth1"))
    uplink = chance.choice(("eth0", "veth1"))
    about = planned(chance.choice(("-i '*'", "-i '*' -m TPROXY", "-i '*' -u 0 -g 888")))
    return about.replace(
        rulesets=tuple(ruleset(chance, family) for family in FAMILIES),
        facts=Facts(
            addresses, rules, routes, uplink, chance.choice(switched), chance.choice(switched), masked_rules=masked
        ),
        live=True,
    )


class Prediction(NamedTuple):
    """The answer of explain, the rows, links and ends that each packet lights up, and the rows that are drawn.

    `leaves_open`: something on the path is not known, whatever it comes to.
    """

    described: dict[str, Any]
    highlights: list[dict[str, frozenset[str]]]
    drawn: set[str]
    leaves_open: bool


def agrees(expected: Prediction | None, answer: Any) -> bool:  # noqa: ANN401 (JSON)
    """Whether an answer of the scripts is the simulator's, and lights up the same of what is drawn."""
    if expected is None or answer is None:
        return expected is answer
    if expected.leaves_open:
        # The scripts end where something is not known, and do not follow it both ways.
        return answer["described"]["end"] in {"undecided", expected.described["end"]}
    lit = [{part: frozenset(keys) for part, keys in each.items()} for each in answer["highlights"]]
    drawn = [{**each, "hit": each["hit"] & expected.drawn} for each in lit]
    return bool(answer["described"] == json.loads(json.dumps(expected.described)) and drawn == expected.highlights)


def prediction(about: Subject, typed: dict[str, Any], family: Family) -> Prediction | None:
    """What `istio-init explain --output json` says of a packet, and what it lights up; None where it is nonsense."""
    request = understood(typed)
    if request is None:
        return None
    about = packet_flags.with_request(about, request, "")
    family = request.family if request.addressed else family
    ruleset, reasons = about.ruleset(family), purposes(about.options, family)
    path = follow(ruleset, packet_flags.packet(request, about, family), about.facts, about.envoy)
    drawing = build_graph(ruleset, reasons, about.envoy)
    lit = [{part: getattr(direction, part) for part in HIGHLIGHTED} for direction in highlights(path, drawing)]
    traces = [each for leg in path.legs for each in leg.traces]
    leaves_open = any(step.matched is None or _is_open(step.rule.target) for each in traces for step in each.rules)
    leaves_open |= any(each.packet.unclear for each in traces)
    return Prediction(as_json(path, reasons), lit, {row.key for box in drawing.boxes for row in box.rows}, leaves_open)


def _is_open(target: Target) -> bool:
    """Whether a target leaves open what it does, which the scripts do not follow."""
    return isinstance(target, UnknownTarget) and followed(effect_of(target)) != effect_of(target)


def understood(typed: dict[str, Any]) -> packet_flags.PacketRequest | None:
    """What was typed as the verbs parse it; None where it is nonsense."""
    flags = {
        name: typed[name] for name in ("protocol", "interface", "uid", "gid", "mark", "connmark", "state", "reply")
    }
    direction = {"outbound": not typed["inbound"], "inbound": typed["inbound"]}
    try:
        request = packet_flags.parse_request(
            packet_flags.PacketFlags(source=typed["from"], destination=typed["to"], **flags, **direction)
        )
        # The family is asked for because that raises where one address is IPv4, the other IPv6.
        return request if request.family in FAMILIES else None  # noqa: TRY300
    except UsageError:
        return None
