"""Infers the options of an existing ruleset, chain by chain: the reverse of planning/capture.py. Pure.

Each function reads the rules of one concern where capture.py puts them. infer.py builds the plan of the result and
compares it with the rules, so another program's rule that resembles Istio's only causes a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model import parsers
from istio_init.model.extensions import CtState, Mark, Multiport, SaveMark, Tproxy
from istio_init.model.rules import (
    IPV4,
    LOOPBACK_INTERFACE,
    TCP,
    UDP,
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
    Source,
)
from istio_init.planning.capture import DNS_PORT, RETURN, SSH_PORT
from istio_init.planning.recognised_rules import TO_INBOUND, TO_OUTBOUND, Reader, has, match_of, only, ports_to, without

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from istio_init.model.rules import TableName


ANYWHERE = {"ipv4": Network(bytes(4), 0), "ipv6": Network(bytes(16), 0)}
IPV4_LOOPBACK = Network(b"\x7f\0\0\1", 32)
# Any address of the other family: a list that names loopback there, or a server there, shows in no rule of this one.
UNSEEN_LOOPBACK = Network(bytes(15) + b"\1", 128)
UNSEEN_SERVER = Network(bytes.fromhex("20010db8") + bytes(11) + b"\x35", 128)


def proxy_ports(reader: Reader) -> Iterator[tuple[str, Any]]:
    """The proxy's listeners, as far as rules name them."""
    for field, chain in (("envoy_port", "ISTIO_REDIRECT"), ("inbound_capture_port", "ISTIO_IN_REDIRECT")):
        for rule in reader.chain("nat", chain):
            if isinstance(rule.target, Redirect):
                yield field, rule.target.ports.low
    if not any(isinstance(rule.target, Redirect) for rule in reader.chain("nat", "ISTIO_IN_REDIRECT")):
        for rule in reader.chain("mangle", "ISTIO_TPROXY"):
            if isinstance(rule.target, Tproxy):
                yield "inbound_capture_port", rule.target.port


def calls_to_itself(reader: Reader) -> tuple[Rule, ...]:
    """The rules by which the proxy's calls to its own pod are captured: one for each of its ids."""
    before, _ = reader.outbound()
    return tuple(rule for rule in before if rule.target == Jump("ISTIO_IN_REDIRECT") and has(rule, Owner))


def release(reader: Reader) -> Iterator[tuple[str, Any]]:
    """Whose rules they are, 1.13's or later ones, and the tunnel's port, which the latter leave alone."""
    calls = calls_to_itself(reader)
    tunnels = [match_of(r, DestinationPorts).ports.low for r in calls if has(r, DestinationPorts, negated=True)]
    several = [match_of(r, Multiport).ports for r in calls if has(r, Multiport, negated=True)]
    groups = [r for r in calls if match_of(r, Owner).kind == "gid"]
    if groups and not any(has(r, DestinationPorts, negated=True) for r in groups):
        yield "compat_version", "1.13"
        return
    first = next(iter(ports_to(reader.chain("nat", "ISTIO_INBOUND"), RETURN)), None)
    in_groups = [match_of(r, DestinationPorts).ports.low for r in groups if has(r, DestinationPorts, negated=True)]
    if in_groups or tunnels:
        yield "inbound_tunnel_port", (in_groups or tunnels)[0]
    elif several:
        yield "inbound_tunnel_port", next((p.low for p in several[0] if p.low != DNS_PORT), DNS_PORT)
    elif first:
        yield "inbound_tunnel_port", first.low


def owners(reader: Reader) -> Iterator[tuple[str, Any]]:
    """The proxy's ids, and the groups and users that are not captured."""
    before, _ = reader.outbound()
    calls = [match_of(rule, Owner) for rule in calls_to_itself(reader)]
    users = tuple(each.low for each in calls if each.kind == "uid")
    groups = tuple(each.low for each in calls if each.kind == "gid")
    if users:
        yield "proxy_uid", users
    if groups != users:
        yield "proxy_gid", groups
    returning = [rule for rule in before if rule.target == RETURN]
    alone = [match_of(rule, Owner) for rule in returning if only(rule, Owner)]
    excluded = without((each.low for each in alone if each.kind == "gid" and each.low == each.high), *groups)
    if excluded:
        yield "istio_outbound_owner_groups_exclude", excluded
    for rule in returning:
        if all(isinstance(m, Owner) and m.kind == "gid" and m.negated for m in rule.matches):
            yield "istio_outbound_owner_groups", tuple(m.low for m in rule.matches if isinstance(m, Owner))
    if entries := tuple(_ports_of_users(returning)):
        yield "exclude_uids_for_ports", entries


def _ports_of_users(rules: list[Rule]) -> Iterator[parsers.PortsOfUsers]:
    """Entries of --exclude-uids-for-ports: consecutive rules of one protocol and user are one."""
    entries: list[tuple[int, list[PortRange], tuple[int, int]]] = []
    for rule in rules:
        if not (only(rule, Protocol, DestinationPorts, Owner) or only(rule, Protocol, Owner)):
            continue
        owner, protocol = match_of(rule, Owner), match_of(rule, Protocol).number
        if owner.kind != "uid" or protocol not in {TCP, UDP}:
            continue
        users = owner.low, owner.high
        ports = [match_of(rule, DestinationPorts).ports] if has(rule, DestinationPorts) else []
        if entries and ports and entries[-1][1] and entries[-1][::2] == (protocol, users):
            entries[-1][1].extend(ports)
        else:
            entries.append((protocol, ports, users))
    for protocol, numbers, users in entries:
        yield protocol, tuple(numbers), (users,)


def marks(reader: Reader) -> Iterator[tuple[str, Any]]:
    """How inbound traffic is captured, and TPROXY's mark."""
    if not reader.tproxy:
        return
    yield "istio_inbound_interception_mode", "TPROXY"
    named = [rule.target.mark for rule in reader.chain("mangle", "ISTIO_TPROXY") if isinstance(rule.target, Tproxy)]
    named += [
        match_of(rule, Mark).value for rule in reader.marking if isinstance(rule.target, SaveMark) and has(rule, Mark)
    ]
    if named:
        yield "istio_inbound_tproxy_mark", named[0]


def inbound(reader: Reader, *, release_113: bool, tunnel: int) -> Iterator[tuple[str, Any]]:
    """What is captured inbound, and what is not."""
    rules = reader.inbound
    table: TableName = "mangle" if reader.tproxy else "nat"
    entered = any(rule.target == Jump("ISTIO_INBOUND") for rule in reader.chain(table, "PREROUTING"))
    capturing = [rule for rule in rules if rule.target in TO_INBOUND]
    everything = any(only(rule, Protocol) for rule in capturing)
    # A chain that packets enter and that has lost its rules: Istio's injection captures all ports.
    emptied = entered and not capturing
    listed = tuple(port for target in TO_INBOUND for port in ports_to(capturing, target))
    if everything or emptied:
        yield "istio_inbound_ports", parsers.ALL
        ports = [SSH_PORT] if release_113 else [] if reader.tproxy else [tunnel]
        excluded = without(ports_to(rules, RETURN), *(PortRange(port, port) for port in ports))
        yield "istio_local_exclude_ports", excluded
    elif listed:
        yield "istio_inbound_ports", listed


def excluded_sources(reader: Reader) -> tuple[Network, ...]:
    """The sources whose inbound traffic is not captured."""
    returning = (rule for rule in reader.inbound if rule.target == RETURN)
    return tuple(
        match_of(rule, Source).network if rule.matches else ANYWHERE[reader.family]
        for rule in returning
        if not rule.matches or only(rule, Source)
    )


def outbound_ports(reader: Reader) -> Iterator[tuple[str, Any]]:
    """Ports that are captured, or not, for every destination, and IPv4's loopback range."""
    before, after = reader.outbound()
    yield "istio_local_outbound_ports_exclude", ports_to(before, RETURN)
    yield "istio_outbound_ports", ports_to(after, TO_OUTBOUND)


def loopback(reader: Reader) -> Network:
    """The range that counts as the pod's own loopback."""
    ranges = [m.network for r in calls_to_itself(reader) for m in r.matches if isinstance(m, Destination) and m.negated]
    _, after = reader.outbound()
    alone = [match_of(r, Destination).network for r in after if r.target == RETURN and only(r, Destination)]
    if ranges:
        return ranges[0]
    own = IPV4_LOOPBACK if reader.family == IPV4 else UNSEEN_LOOPBACK
    return alone[0] if alone and parsers.is_loopback(alone[0]) else own


def excluded_destinations(reader: Reader) -> tuple[Network, ...]:
    """The destinations that are not captured, without loopback."""
    _, after = reader.outbound()
    named = _destinations(reader, after, RETURN)
    return without(named, loopback(reader))


def captured_destinations(reader: Reader) -> tuple[Network, ...]:
    """The destinations that are captured; a network of all addresses for every destination."""
    return _destinations(reader, reader.outbound()[1], TO_OUTBOUND)


def _destinations(reader: Reader, rules: tuple[Rule, ...], target: object) -> tuple[Network, ...]:
    return tuple(
        match_of(rule, Destination).network if rule.matches else ANYWHERE[reader.family]
        for rule in rules
        if rule.target == target and (not rule.matches or only(rule, Destination))
    )


def spares_own_calls(reader: Reader) -> bool:
    """Whether the app's calls to its own pod are left alone, which -i with a loopback range ends."""
    before, _ = reader.outbound()
    return any(
        rule.target == RETURN and OutInterface(LOOPBACK_INTERFACE) in rule.matches and has(rule, Owner, negated=True)
        for rule in before
    )


def excluded_interfaces(reader: Reader) -> tuple[str, ...]:
    """The interfaces that are excluded outbound; those that are so inbound, too, are --istio-exclude-interfaces."""
    leaving = _interfaces(reader.chain("nat", "OUTPUT"), OutInterface, RETURN)
    coming = _interfaces(reader.chain("nat", "PREROUTING"), InInterface, RETURN)
    return tuple(name for name in leaving if name in coming)


def virtual_machines(reader: Reader, excluded: tuple[str, ...]) -> tuple[str, ...]:
    """The interfaces whose incoming traffic is outbound: each was inserted before those behind it in the list."""
    coming = _interfaces(reader.chain("nat", "PREROUTING"), InInterface, RETURN)
    return without(reversed(coming), *reversed(excluded))


def captured_machines(reader: Reader) -> tuple[str, ...]:
    """The same by the rules that capture their traffic, which exist where something is captured outbound."""
    rules = reader.chain("nat", "PREROUTING")
    names = (
        match_of(rule, InInterface).name for rule in rules if rule.target == TO_OUTBOUND and has(rule, InInterface)
    )
    return tuple(dict.fromkeys(reversed(tuple(names))))


def _interfaces(rules: tuple[Rule, ...], kind: type[InInterface | OutInterface], target: object) -> tuple[str, ...]:
    return tuple(match_of(rule, kind).name for rule in rules if rule.target == target and only(rule, kind))


def drops_invalid(reader: Reader) -> bool:
    """Whether invalid packets are dropped."""
    return any(rule.target == Jump("ISTIO_DROP") and has(rule, CtState) for rule in reader.marking)


def captures_dns(reader: Reader) -> bool:
    """Whether queries are captured."""
    entered = any(rule.target == Jump("ISTIO_OUTPUT_DNS") for rule in reader.chain("raw", "OUTPUT"))
    return entered or bool(reader.chain("nat", "ISTIO_OUTPUT_DNS"))


def captures_all_dns(reader: Reader) -> bool:
    """Whether queries to any server are captured."""
    return any(isinstance(rule.target, Redirect) and not has(rule, Destination) for rule in _queries(reader))


def servers(reader: Reader) -> tuple[Network, ...]:
    """The servers whose queries are captured."""
    named = (match_of(rule, Destination).network for rule in _queries(reader) if has(rule, Destination))
    return tuple(dict.fromkeys(named))


def _queries(reader: Reader) -> tuple[Rule, ...]:
    return reader.chain("nat", "ISTIO_OUTPUT_DNS")
