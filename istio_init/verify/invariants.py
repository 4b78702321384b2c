"""The invariants of options: which packets must be captured and which not, stated independently of the rules.

An Invariant is a set of packets with the permitted outcomes. In a list of invariants, the first that contains a packet
applies: the proxy's own traffic comes first, then exclusions, then captured traffic. Nothing here depends on a rule or
a chain.
"""

from __future__ import annotations

from istio_init.model import parsers
from istio_init.model.packet import is_named
from istio_init.model.rules import LOOPBACK_INTERFACE, TCP, UDP, PortRange
from istio_init.planning.capture import (
    AGENT_DNS_PORT,
    DNS_PORT,
    PASSTHROUGH,
    SSH_PORT,
    captures_dns,
    captures_tcp_only,
    loopback,
    uses_tproxy,
)
from istio_init.record import Record
from istio_init.verify.header_space import (
    DESTINATION,
    DESTINATION_PORT,
    GID,
    IN,
    OUT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    UID,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.options.table import Options
    from istio_init.verify.header_space import Cube, Space

# The outcomes of a packet.
DIRECT, OUTBOUND, INBOUND, DNS = "direct", "outbound", "inbound", "dns"
ONCE = (DIRECT, INBOUND)


def zone_name(zone: int | None) -> str:
    """The name of a conntrack zone."""
    return f"conntrack zone {zone}"


class Invariant(Record):
    """A set of packets and its permitted outcomes; `known_cause` says why Istio's own rules break it, if they do."""

    name: str
    cube: Cube
    expected: tuple[object, ...]
    known_cause: str = ""


class Invariants:
    """The invariants of some options over a space."""

    def __init__(self, options: Options, space: Space) -> None:
        self._options, self._space = options, space
        self._tcp, self._udp = space.only(PROTOCOL, TCP), space.only(PROTOCOL, UDP)
        self._lo = space.only(OUT, LOOPBACK_INTERFACE)
        loopbacks = space.inside(DESTINATION, [loopback(options, space.family)])
        self._loopback, self._elsewhere = loopbacks, space.everything[DESTINATION] & ~loopbacks
        self._old = options.compat_version == "1.13"
        self._uids = options.proxy_uid
        self._gids = options.proxy_groups

    def outbound(self) -> Iterator[Invariant]:
        """New connections that the pod makes, without a mark."""
        cube, options = self._space.cube, self._options
        if captures_tcp_only(options):
            every = self._space.everything[PROTOCOL]
            yield Invariant("only TCP enters ISTIO_OUTPUT (1.13)", cube(protocol=every & ~self._tcp), (DIRECT,))
        yield Invariant(
            "traffic of an excluded interface is not captured (-c)", cube(out_interface=self._excluded(OUT)), (DIRECT,)
        )
        if uses_tproxy(options):
            yield from self._tproxy_self_calls()
        excluded = self._space.ports(DESTINATION_PORT, options.istio_local_outbound_ports_exclude)
        both = self._tcp | self._udp
        yield Invariant(
            "an excluded outbound port is not captured (-o)", cube(protocol=both, destination_port=excluded), (DIRECT,)
        )
        source = self._space.inside(SOURCE, [PASSTHROUGH[self._space.family]])
        yield Invariant("Envoy reaches its own app", cube(source=source, out_interface=self._lo), (DIRECT,))
        yield from self._proxy_traffic()
        yield from self._app_self_calls()
        yield from self._users()
        yield from self._groups()
        if captures_dns(options) and (servers := self._servers(DESTINATION)):
            queries = cube(protocol=both, destination_port=self._port(DNS_PORT), destination=servers)
            yield Invariant("DNS queries go to the agent (--redirect-dns)", queries, (DNS,))
        yield from self._captured()

    def _captured(self) -> Iterator[Invariant]:
        """Excluded and captured destinations: the options -x, -q and -i."""
        cube, options, space = self._space.cube, self._options, self._space
        yield Invariant("traffic to loopback is not captured", cube(destination=self._loopback), (DIRECT,))
        excluded = space.inside(DESTINATION, options.istio_service_exclude_cidr)
        yield Invariant("an excluded destination is not captured (-x)", cube(destination=excluded), (DIRECT,))
        listed = space.ports(DESTINATION_PORT, options.istio_outbound_ports)
        yield Invariant(
            "a listed port goes to Envoy (-q)", cube(protocol=self._tcp, destination_port=listed), (OUTBOUND,)
        )
        included = space.everything[DESTINATION]
        if options.istio_service_cidr != parsers.ALL:
            included = space.inside(DESTINATION, options.istio_service_cidr)
        yield Invariant(
            "outbound TCP goes to Envoy unless it is excluded (-i)", cube(protocol=self._tcp, destination=included),
            (OUTBOUND,),
        )  # fmt: skip
        yield Invariant("nothing else is captured outbound", space.everything, (DIRECT,))

    def _proxy_traffic(self) -> Iterator[Invariant]:
        """The proxy's own traffic: never to its outbound listener, and at most once to its inbound one."""
        cube, space = self._space.cube, self._space
        away = space.everything[OUT] & ~self._lo
        owners = ({"uid": space.among(UID, self._uids)}, {"gid": space.among(GID, self._gids)})
        for owner in owners:
            name = "the proxy's own traffic to the world is never captured"
            yield Invariant(name, cube(out_interface=away, **owner), (DIRECT,))
        spared = 0 if self._old else self._port(self._options.inbound_tunnel_port)
        if captures_dns(self._options):
            spared |= self._port(DNS_PORT)
        ports = space.everything[DESTINATION_PORT] & ~spared
        own_calls = cube(
            out_interface=self._lo, destination=self._elsewhere, protocol=self._tcp, destination_port=ports,
            uid=space.among(UID, self._uids[:1]),
        )  # fmt: skip
        yield Invariant("the proxy's calls to its own pod are inbound", own_calls, (INBOUND,))
        for owner in owners:
            calls = cube(out_interface=self._lo, destination=self._elsewhere, protocol=self._tcp, **owner)
            yield Invariant("the proxy's calls to its own pod never come to the outbound listener", calls, ONCE)
            yield Invariant(
                "the proxy's calls to loopback are not captured", cube(out_interface=self._lo, **owner), (DIRECT,)
            )

    def _tproxy_self_calls(self) -> Iterator[Invariant]:
        """With TPROXY, the proxy's calls to its pod to an excluded port, which still carry the mark."""
        space = self._space
        for owner in ({"uid": space.among(UID, self._uids)}, {"gid": space.among(GID, self._gids)}):
            excluded = space.ports(DESTINATION_PORT, self._options.istio_local_outbound_ports_exclude)
            calls = space.cube(
                out_interface=self._lo,
                destination=self._elsewhere,
                protocol=self._tcp,
                destination_port=excluded,
                **owner,
            )
            yield Invariant("the proxy's calls to its own pod never come to the outbound listener", calls, ONCE)

    def _app_self_calls(self) -> Iterator[Invariant]:
        """The app's calls to its own pod, unless -i has a loopback range."""
        if self._names_loopback():
            return
        name, over_lo = "the app's calls to its own pod are not captured", {"out_interface": self._lo}
        if captures_dns(self._options):
            rest = self._space.everything[DESTINATION_PORT] & ~self._port(DNS_PORT)
            over_lo |= {"protocol": self._tcp, "destination_port": rest}
        yield Invariant(name, self._space.cube(**over_lo), (DIRECT,))

    def _names_loopback(self) -> bool:
        named = self._options.istio_service_cidr
        return named != parsers.ALL and any(map(parsers.is_loopback, named))

    def _users(self) -> Iterator[Invariant]:
        space = self._space
        for protocol, to, uids in self._excluded_users():
            packets = space.cube(protocol=space.only(PROTOCOL, protocol), destination_port=to, uid=uids)
            yield Invariant("a user's traffic to excluded ports is not captured", packets, (DIRECT,))

    def _excluded_users(self) -> Iterator[tuple[int, int, int]]:
        """Of each --exclude-uids-for-ports the protocol, and the classes of its ports and uids."""
        space = self._space
        for protocol, ports, users in self._options.exclude_uids_for_ports:
            uids = space.where(UID, lambda uid: uid is not None and any(low <= uid <= high for low, high in users))  # noqa: B023 (called at once)
            yield protocol, space.ports(DESTINATION_PORT, ports) if ports else space.everything[DESTINATION_PORT], uids

    def _groups(self) -> Iterator[Invariant]:
        included, space = self._options.istio_outbound_owner_groups, self._space
        if included == parsers.ALL:
            excluded = space.among(GID, self._options.istio_outbound_owner_groups_exclude)
            yield Invariant("an excluded group's traffic is not captured", space.cube(gid=excluded), (DIRECT,))
            return
        others = space.everything[GID] & ~space.among(GID, included)
        yield Invariant("traffic of groups that are not listed is not captured", space.cube(gid=others), (DIRECT,))

    def inbound(self) -> Iterator[Invariant]:
        """New connections from outside to the pod."""
        cube, options, space = self._space.cube, self._options, self._space
        yield from self._virtual_machines()
        yield Invariant(
            "traffic of an excluded interface is not captured (-c)", cube(in_interface=self._excluded(IN)), (DIRECT,)
        )
        every = space.everything[PROTOCOL]
        yield Invariant("only TCP is captured inbound", cube(protocol=every & ~self._tcp), (DIRECT,))
        if options.istio_inbound_ports:
            sources = space.inside(SOURCE, options.istio_inbound_exclude_cidr)
            yield Invariant("an excluded source is not captured", cube(source=sources), (DIRECT,))
        if not (uses_tproxy(options) or self._old):
            tunnel = self._port(options.inbound_tunnel_port)
            yield Invariant("the tunnel's port is not captured (-e)", cube(destination_port=tunnel), (DIRECT,))
        if options.istio_inbound_ports != parsers.ALL:
            ports = space.ports(DESTINATION_PORT, options.istio_inbound_ports)
            yield Invariant("a listed inbound port goes to Envoy (-b)", cube(destination_port=ports), (INBOUND,))
            yield Invariant("no other inbound port is captured (-b)", space.everything, (DIRECT,))
            return
        ssh = (PortRange(SSH_PORT, SSH_PORT),) if self._old else ()
        excluded = space.ports(DESTINATION_PORT, (*options.istio_local_exclude_ports, *ssh))
        yield Invariant("an excluded inbound port is not captured (-d)", cube(destination_port=excluded), (DIRECT,))
        yield Invariant("inbound TCP goes to Envoy unless it is excluded (-b)", space.everything, (INBOUND,))

    def _virtual_machines(self) -> Iterator[Invariant]:
        options, space = self._options, self._space
        interfaces = space.where(IN, lambda name: any(is_named(each, name) for each in options.kube_virt_interfaces))
        destinations = space.everything[DESTINATION]
        if options.istio_service_cidr != parsers.ALL:
            destinations = space.inside(DESTINATION, options.istio_service_cidr)
        captured = space.cube(in_interface=interfaces, protocol=self._tcp, destination=destinations)
        yield Invariant("a virtual machine's traffic is outbound (-k)", captured, (OUTBOUND,))
        # TPROXY captures in mangle, whose rules do not distinguish virtual machines.
        spared = ONCE if uses_tproxy(options) else (DIRECT,)
        yield Invariant("a virtual machine's traffic is not inbound (-k)", space.cube(in_interface=interfaces), spared)

    def passthrough(self) -> Iterator[Invariant]:
        """Envoy's connections to the app in TPROXY mode: by lo, with the mark, from the client's address."""
        name, space = "Envoy's connections to the app are not captured again", self._space
        if captures_dns(self._options):
            why = (
                "the rule for the proxy's group has no exception for port 53: with TPROXY and DNS capture the pod "
                "can't serve DNS over TCP"
            )
            yield Invariant(name, space.cube(destination_port=self._port(DNS_PORT)), (DIRECT,), why)
        if self._names_loopback() and 0 not in self._uids:
            why = (
                "the rules for the app's calls to its own pod are left out if -i has a loopback range, so that the "
                "rule for the proxy's group captures these connections"
            )
            yield Invariant(name, space.everything, (DIRECT,), why)
        yield Invariant(name, space.everything, (DIRECT,))

    def zones(self) -> Iterator[Invariant]:
        """The conntrack zones of outbound packets: the agent's own queries differ from the app's."""
        space, name = self._space, "each leg of a DNS query has its own conntrack zone"
        if captures_dns(self._options):
            agent = space.only(SOURCE_PORT, AGENT_DNS_PORT)
            for owner in ({"uid": space.among(UID, self._uids)}, {"gid": space.among(GID, self._gids)}):
                yield Invariant(
                    name,
                    space.cube(protocol=self._udp, destination_port=self._port(DNS_PORT), **owner),
                    (zone_name(1),),
                )
                yield Invariant(name, space.cube(protocol=self._udp, source_port=agent, **owner), (zone_name(2),))
            if servers := self._servers(DESTINATION):
                query = {"protocol": self._udp, "destination_port": self._port(DNS_PORT), "destination": servers}
                for protocol, to, uids in self._excluded_users():
                    if protocol == UDP and to & self._port(DNS_PORT):
                        yield Invariant(name, space.cube(**query, uid=uids), (zone_name(1),))
                yield Invariant(name, space.cube(**query), (zone_name(2),))
        yield Invariant("nothing else has a conntrack zone", space.everything, (zone_name(0),))

    def answer_zones(self) -> Iterator[Invariant]:
        """The conntrack zones of inbound packets."""
        space = self._space
        if captures_dns(self._options) and (servers := self._servers(SOURCE)):
            answer = space.cube(protocol=self._udp, source_port=space.only(SOURCE_PORT, DNS_PORT), source=servers)
            yield Invariant("each leg of a DNS query has its own conntrack zone", answer, (zone_name(1),))
        yield Invariant("nothing else has a conntrack zone", space.everything, (zone_name(0),))

    def _servers(self, dimension: int) -> int:
        if self._options.capture_all_dns:
            return self._space.everything[dimension]
        return self._space.inside(dimension, self._options.dns_servers or ())

    def _excluded(self, dimension: int) -> int:
        names = self._options.istio_exclude_interfaces
        return self._space.where(dimension, lambda name: bool(name) and any(is_named(each, name) for each in names))

    def _port(self, port: int) -> int:
        return self._space.ports(DESTINATION_PORT, (PortRange(port, port),))
