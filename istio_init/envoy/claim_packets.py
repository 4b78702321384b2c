"""Example packets and clients for the claims about rules and proxy."""

from __future__ import annotations

from istio_init.envoy import references
from istio_init.envoy.addresses import ANY
from istio_init.envoy.client import CLIENTS, HttpCall
from istio_init.model.parsers import ALL
from istio_init.verify.header_space import DESTINATION_PORT, GID, OUT, UID, intersection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.client import Client
    from istio_init.envoy.fit import FitCase
    from istio_init.envoy.listeners import Listener
    from istio_init.model.packet import Packet
    from istio_init.model.rules import Hook


HTTP, PLAIN = CLIENTS["http"], ("http", "tcp")

HOOKS: tuple[Hook, ...] = ("OUTPUT", "PREROUTING")


def first_packet(case: FitCase, hook: Hook, port: int) -> Packet | None:
    """A packet that the rules redirect to a port of Envoy; None without one."""
    packet_set = next(case.captured(hook, port), None)
    return case.packet(packet_set.cube, hook) if packet_set else None


def packets_to_port(case: FitCase, port: int) -> Iterator[Packet]:
    """A packet of each set for a port, inbound and outbound, except Envoy's own."""
    envoy, space = case.pod.envoy, case.space
    at = space.cube(
        destination_port=space.only(DESTINATION_PORT, port),
        uid=space.everything[UID] & ~space.only(UID, envoy.uid),
        gid=space.everything[GID] & ~space.only(GID, envoy.gid),
    )
    for hook in HOOKS:
        for each in case.connections_of(hook):
            if cube := intersection(each.cube, at):
                yield case.packet(cube, hook)


def caller_of(case: FitCase, listener: Listener, cluster: str) -> tuple[Packet, Client]:
    """A packet and a client whose connection goes through a listener to a cluster, if one is found."""
    packet = packet_to(case, listener)
    domains = references.domains_of(case.pod.configuration.dump, listener, cluster) or ("",)
    for client in CLIENTS.values():
        for domain in domains:
            caller = client.replace(request=HttpCall(domain))
            path = case.follow(packet, caller)[0]
            if any(each.cluster == cluster for each in path.passages):
                return packet, caller
    return packet, HTTP


def packet_to(case: FitCase, listener: Listener) -> Packet:
    """A packet from an application to a listener's address, or to any address at its port."""
    socket = listener.sockets[0]
    space = case.space
    cube = space.cube(destination_port=space.only(DESTINATION_PORT, socket.port))
    if socket.address not in ANY:
        cube = intersection(cube, space.cube(destination=space.among(1, (socket.address,)))) or cube
    application = intersection(cube, application_cube(case)) or cube
    for each in case.connections_of("OUTPUT"):
        if cube_of_application := intersection(each.cube, application):
            return case.packet(cube_of_application, "OUTPUT")
    return case.packet(next(case.connections_of("OUTPUT")).cube, "OUTPUT")


def application_cube(case: FitCase) -> tuple[int, ...]:
    """Packets from ordinary applications to other hosts, without users and groups that options exclude."""
    space, options, envoy = case.space, case.options, case.pod.envoy
    groups = options.istio_outbound_owner_groups
    excluded_groups = {
        None,
        envoy.gid,
        *options.proxy_gid,
        *options.proxy_uid,
        *options.istio_outbound_owner_groups_exclude,
    }
    excluded = [each for _, _, users in options.exclude_uids_for_ports for each in users]
    users = space.where(UID, lambda uid: uid is not None and any(low <= uid <= high for low, high in excluded))
    return space.cube(
        uid=space.everything[UID] & ~space.among(UID, {None, envoy.uid, *options.proxy_uid}) & ~users,
        gid=space.everything[GID] & ~space.among(GID, excluded_groups) if groups == ALL else space.among(GID, groups),
        out_interface=space.only(OUT, case.pod.facts.uplink),
        mark=1 << space.mark(0),
    )


def inbound_packet(case: FitCase, port: int) -> Packet:
    """An inbound packet for a port."""
    at = case.space.cube(
        destination_port=case.space.only(DESTINATION_PORT, port) or case.space.everything[DESTINATION_PORT]
    )
    sets = [*case.captured("PREROUTING", case.pod.envoy.inbound_port), *case.connections_of("PREROUTING")]
    arrival = next((cube for each in sets if (cube := intersection(each.cube, at))), sets[0].cube)
    return case.packet(arrival, "PREROUTING")
