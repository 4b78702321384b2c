"""The packets to check: all that a pod can send or receive, as far as the kernel routes them."""

from __future__ import annotations

from istio_init.model.packet import LOOPBACKS
from istio_init.model.parsers import ALL, OUTBOUND_MARK
from istio_init.model.rules import FAMILIES, IPV6, LOOPBACK_INTERFACE, TCP, UDP, Network, PortRange
from istio_init.planning.capture import AGENT_DNS_PORT, DNS_PORT, PASSTHROUGH, loopback
from istio_init.verify.header_space import (
    BROADCAST,
    DESTINATION,
    GID,
    IN,
    MARK,
    MULTICAST,
    OUT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    STATE,
    UID,
    Boundaries,
    intersection,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.packet import Facts
    from istio_init.options.table import Options
    from istio_init.simulate.path import Proxy
    from istio_init.verify.header_space import Cube, Space

# The IPv6 destinations whose scope REDIRECT takes into account (packet.scope).
SCOPES = tuple(
    Network(bytes.fromhex(start).ljust(16, b"\0"), prefix) for start, prefix in (("fe80", 10), ("fec0", 10), ("00", 96))
)
# No packet has these addresses; a program that connects to them connects to loopback.
UNSPECIFIED = (Network(bytes(4), 32), Network(bytes(16), 128))


def boundaries(options: Options, facts: Facts, envoy: Proxy) -> Boundaries:
    """The boundaries of options and routing, whether or not rules have them as well."""
    own = tuple(Network(each.network.address, len(each.network.address) * 8) for each in facts.addresses)
    named = [*options.istio_service_exclude_cidr, *(options.dns_servers or ())]
    if options.istio_service_cidr != ALL:
        named += options.istio_service_cidr
    for family in FAMILIES:
        address = LOOPBACKS[family]
        named += [loopback(options, family), PASSTHROUGH[family], Network(address, len(address) * 8)]
    ports = [
        *options.istio_local_exclude_ports, *options.istio_outbound_ports, *options.istio_local_outbound_ports_exclude,
        *(PortRange(port, port) for port in (
            envoy.outbound_port, envoy.inbound_port, envoy.tunnel_port, DNS_PORT, AGENT_DNS_PORT, 22)),
    ]  # fmt: skip
    if options.istio_inbound_ports != ALL:
        ports += options.istio_inbound_ports
    groups = options.istio_outbound_owner_groups
    interfaces = {each.device for each in facts.addresses}
    return Boundaries(
        (*own, Network(b"\x7f\0\0\0", 8), *UNSPECIFIED, *SCOPES, *named),
        tuple(ports),
        (facts.uplink, *interfaces, *options.istio_exclude_interfaces, *options.kube_virt_interfaces),
        (envoy.uid, *options.proxy_uid),
        (
            envoy.gid, *options.proxy_gid, *options.istio_outbound_owner_groups_exclude,
            *(() if groups == ALL else groups),
        ),
        (options.istio_inbound_tproxy_mark, OUTBOUND_MARK, *(rule.mark for rule in facts.policy_rules)),
        tuple((rule.mark, rule.mask) for rule in facts.masked_rules), facts.ip_sets,
    )  # fmt: skip


def outbound(space: Space, facts: Facts) -> list[Cube]:
    """All packets that the pod can send, as disjoint cubes: to itself by lo, to remote hosts, or by lo with a mark."""
    local, own_sources = space.where(DESTINATION, facts.is_local), space.where(SOURCE, facts.is_local)
    policy = space.where(MARK, lambda mark: bool(facts.policy_route(space.family, mark)))
    lo, none = space.only(OUT, LOOPBACK_INTERFACE), space.only(OUT, "")
    away = space.everything[OUT] & ~lo & ~none
    # Packets with a loopback source leave only by lo.
    inner = space.where(SOURCE, lambda address: address[0] == 127 and len(address) == 4)
    inner |= space.only(SOURCE, LOOPBACKS[space.family])
    routes = [
        space.cube(destination=local, out_interface=lo, source=own_sources),
        space.cube(destination=local, out_interface=lo, source=space.everything[SOURCE] & ~own_sources, mark=policy),
        space.cube(
            destination=space.everything[DESTINATION] & ~local, out_interface=away,
            mark=space.everything[MARK] & ~policy, source=space.everything[SOURCE] & ~inner,
        ),
        space.cube(destination=space.everything[DESTINATION] & ~local, out_interface=lo, mark=policy),
    ]  # fmt: skip
    no_user, no_group = space.only(UID, None), space.only(GID, None)
    owners = [
        space.cube(uid=space.everything[UID] & ~no_user, gid=space.everything[GID] & ~no_group),
        space.cube(uid=no_user, gid=no_group),
    ]
    inside = [space.cube(in_interface=space.only(IN, ""))]
    return list(_all_of(routes, owners, inside, _specified(space), _ports(space), _marks(space)))


def inbound(space: Space, facts: Facts) -> list[Cube]:
    """All packets that can arrive, as disjoint cubes: unmarked, without loopback addresses, and no IPv4 martians."""
    lo, none = space.only(IN, LOOPBACK_INTERFACE), space.only(IN, "")
    inner = space.where(DESTINATION, lambda address: address[0] == 127 and len(address) == 4)
    inner |= space.only(DESTINATION, LOOPBACKS[space.family])
    outer = space.where(SOURCE, lambda address: address[0] == 127 and len(address) == 4)
    outer |= space.only(SOURCE, LOOPBACKS[space.family])
    wires = space.everything[IN] & ~lo & ~none
    # Interfaces that accept packets with the pod's own address as source (martians.py).
    trusting = wires if space.family == IPV6 else wires & space.among(IN, facts.accept_local)
    own_sources = space.where(SOURCE, facts.is_local)
    routes = [
        space.cube(
            in_interface=interfaces, out_interface=space.only(OUT, ""), source=space.everything[SOURCE] & ~sources,
            uid=space.only(UID, None), gid=space.only(GID, None), mark=1 << space.mark(0),
            destination=space.everything[DESTINATION] & ~inner,
        )
        for interfaces, sources in ((trusting, outer), (wires & ~trusting, outer | own_sources))
        if interfaces
    ]  # fmt: skip
    return list(_all_of(routes, _specified(space), _ports(space), _marks(space)))


def _specified(space: Space) -> list[Cube]:
    """Packets with valid source and destination addresses."""
    source = space.everything[SOURCE] & ~space.inside(SOURCE, (*UNSPECIFIED, *MULTICAST, *BROADCAST))
    destination = space.everything[DESTINATION] & ~space.inside(DESTINATION, UNSPECIFIED)
    every = space.inside(DESTINATION, (*MULTICAST, *BROADCAST))
    if not every:
        return [space.cube(source=source, destination=destination)]
    # TCP has no multicast or broadcast.
    tcp = space.only(PROTOCOL, TCP)
    return [
        space.cube(source=source, destination=destination & ~every),
        space.cube(source=source, destination=destination & every, protocol=space.everything[PROTOCOL] & ~tcp),
    ]


def _ports(space: Space) -> list[Cube]:
    """TCP and UDP with any ports, other protocols without ports."""
    with_ports = space.among(PROTOCOL, (TCP, UDP))
    zero = space.only(SOURCE_PORT, 0)
    rest = space.everything[PROTOCOL] & ~with_ports
    return [space.cube(protocol=with_ports), space.cube(protocol=rest, source_port=zero, destination_port=zero)]


def _marks(space: Space) -> list[Cube]:
    """Only packets of existing connections have a connection mark."""
    zero = 1 << space.mark(0)
    old = space.among(len(space.everything) - 1, ("ESTABLISHED", "RELATED"))
    return [space.cube(ctstate=old), space.cube(ctstate=space.everything[-1] & ~old, connmark=zero)]


def _all_of(*alternatives: list[Cube]) -> Iterator[Cube]:
    """The non-empty intersections of all combinations of one cube from each list."""
    combined = [*alternatives[0]]
    for cubes in alternatives[1:]:
        combined = [both for one in combined for other in cubes if (both := intersection(one, other))]
    yield from combined


def usual(cube: Cube, space: Space, facts: Facts) -> Cube:
    """The most typical part of a cube: an unmarked new connection, by the uplink or to the pod itself."""
    own = [each.network.address for each in facts.addresses if each.device == facts.uplink]
    zero, port = 1 << space.mark(0), space.everything[SOURCE_PORT] & ~space.only(SOURCE_PORT, 0)
    for preferred in (
        space.cube(ctstate=space.only(STATE, "NEW")),
        space.cube(mark=zero, connmark=zero),
        space.cube(destination=space.among(DESTINATION, own)),
        space.cube(source=space.among(SOURCE, own)),
        space.cube(in_interface=space.only(IN, facts.uplink)),
        space.cube(out_interface=space.only(OUT, facts.uplink)),
        space.cube(uid=space.everything[UID] & ~space.only(UID, None)),
        space.cube(source_port=port, destination_port=port),
    ):
        cube = intersection(cube, preferred) or cube
    return cube
