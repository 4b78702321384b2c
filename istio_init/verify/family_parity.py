"""Checks that IPv4 and IPv6 agree: packets that differ only in the address family are treated alike.

Packets are compared for addresses that have a counterpart: the pod's own, loopback, the one that Envoy binds to, and
any that no rule and no option names. Addresses that an option names in one family only may be treated differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from istio_init.model.packet import LOOPBACKS, contains, scope
from istio_init.model.parsers import ALL
from istio_init.model.rules import FAMILIES, LOOPBACK_INTERFACE
from istio_init.planning.capture import PASSTHROUGH, loopback
from istio_init.verify.header_space import CONNMARK, DESTINATION, IN, MARK, SOURCE, intersection
from istio_init.verify.report import ALIKE, Fault, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from istio_init.model.packet import Facts
    from istio_init.model.rules import Family, Hook
    from istio_init.options.table import Options
    from istio_init.verify.header_space import Cube, Space
    from istio_init.verify.packet_set import PacketSet

    # The classes of an address by its name.
    Named: TypeAlias = dict[str, int]


class FamilyResult(Protocol):
    """The result of one family's proof: its packet sets by the hook that they started at, over a space."""

    family: Family
    space: Space
    facts: Facts
    sets: dict[Hook, list[PacketSet]]


def disagreements(one: FamilyResult, other: FamilyResult, options: Options) -> Iterator[Fault]:
    """Packets of the first family whose counterparts are treated differently, at most one a pair of addresses."""
    if not all(each.facts.is_local(LOOPBACKS[each.family]) for each in (one, other)):
        return  # captured packets pass loopback, which one family does not have
    sources = _pairs(_named(one, options, SOURCE), _named(other, options, SOURCE))
    destinations = _pairs(_named(one, options, DESTINATION), _named(other, options, DESTINATION))
    shared = _shared_interfaces(one)
    for hook, sets in one.sets.items():
        for source, other_source in sources:
            for destination, other_destination in destinations:
                here = _between(sets, source, destination, shared)
                there = _between(other.sets[hook], other_source, other_destination, shared)
                if differing := _differing(here, there):
                    cube, first, second = differing
                    expected = f"as in {other.family}: {describe(second, other.space)}"
                    yield Fault(ALIKE, one.space.packet(cube, hook), expected, describe(first, one.space))


def _shared_interfaces(result: FamilyResult) -> int:
    """The classes of interfaces with addresses of both families; REDIRECT drops packets from others."""
    devices = [{each.device for each in result.facts.addresses if each.network.family == one} for one in FAMILIES]
    return result.space.among(IN, {"", LOOPBACK_INTERFACE} | (devices[0] & devices[1]))


def _pairs(one: Named, other: Named) -> list[tuple[int, int]]:
    return [(classes, other[name]) for name, classes in one.items() if name in other]


def _named(result: FamilyResult, options: Options, dimension: int) -> Named:
    """The classes of addresses that have a counterpart in the other family, except those that an option names."""
    space, family, facts = result.space, result.family, result.facts
    named = [*options.istio_service_exclude_cidr, *options.istio_inbound_exclude_cidr, *(options.dns_servers or ())]
    named += [] if options.istio_service_cidr == ALL else options.istio_service_cidr
    mine = (each.network for each in facts.addresses if each.device == facts.uplink)
    own = (network.address for network in mine if network.family == family and not scope(network.address))
    addresses = {"pod": next(own, None)}
    if dimension == SOURCE:
        addresses["passthrough"] = PASSTHROUGH[family].address
    else:
        addresses["loopback"] = loopback(options, family).address
    classes = {"elsewhere": space.unnamed(dimension)}
    if dimension == SOURCE and any(
        each.family == family and not each.prefix for each in options.istio_inbound_exclude_cidr
    ):
        classes = {}  # the rule for every address names none
    for name, address in addresses.items():
        if (
            address
            and facts.is_local(address)
            and not any(each.family == family and contains(each, address) for each in named)
        ):
            classes[name] = space.among(dimension, (address,))
    return {name: numbers for name, numbers in classes.items() if numbers}


def _between(sets: list[PacketSet], source: int, destination: int, interfaces: int) -> list[tuple[Cube, PacketSet]]:
    """The sets' packets between addresses of these classes that arrive by these interfaces."""
    cubes = []
    for packet_set in sets:
        if packet_set.cube[SOURCE] & source and packet_set.cube[DESTINATION] & destination:
            cube = list(packet_set.cube)
            cube[SOURCE] &= source
            cube[DESTINATION] &= destination
            cube[IN] &= interfaces
            if cube[IN]:
                cubes.append((tuple(cube), packet_set))
    return cubes


def _differing(
    here: list[tuple[Cube, PacketSet]], there: list[tuple[Cube, PacketSet]]
) -> tuple[Cube, PacketSet, PacketSet] | None:
    by_outcome: dict[tuple[object, ...], list[tuple[Cube, PacketSet]]] = {}
    for counter, other in there:
        by_outcome.setdefault(_outcome(other), []).append((counter, other))
    for cube, packet_set in here:
        mine = _outcome(packet_set)
        for outcome, counters in by_outcome.items():
            for counter, other in counters if outcome != mine else ():
                # The addresses are counterparts, although their classes have other numbers.
                if both := intersection(cube, (cube[SOURCE], cube[DESTINATION], *counter[2:])):
                    return both, packet_set, other
    return None


def _outcome(packet_set: PacketSet) -> tuple[object, ...]:
    changed = dict(packet_set.changed)
    return (
        packet_set.end,
        packet_set.redirect,
        packet_set.tproxy,
        packet_set.zone,
        changed.get(MARK),
        changed.get(CONNMARK),
    )
