"""A packet at a netfilter hook, and what routing knows about the machine it is on: values only, no I/O."""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Protocol, TypeAlias

    from istio_init.model.ip_sets import IpSet
    from istio_init.model.masked_rule import MaskedRule
    from istio_init.model.routing import Address, PolicyRule, Route
    from istio_init.model.rules import Family, Hook, Network
    from istio_init.model.unclear import OpenNumber

    Side: TypeAlias = Literal["source", "destination"]

    class Lookup(Protocol):
        """A routing table that can be asked; RouteLookup asks the kernel's."""

        def sent(self, packet: Packet, *, local_source: bool) -> NextHop | None:
            """Where a packet goes that a process here sends; None where no route covers its destination."""
            ...

        def arriving(self, packet: Packet) -> NextHop | None:
            """Where a packet goes that comes in by an interface; None where there is no such interface."""
            ...


# An interface gives itself such an address as soon as it is up.
LINK_LOCAL = b"\xfe\x80"
# States in which a packet has no connection.
UNCONNECTED = frozenset({"INVALID", "UNTRACKED"})
LOOPBACKS: dict[Family, bytes] = {"ipv4": b"\x7f\0\0\1", "ipv6": bytes(15) + b"\1"}


class Packet(Record):
    """A packet at a hook, and what the kernel knows about it.

    Addresses are packed; ports are 0 for protocols without. An interface that the hook does not know is empty.
    `uid` and `gid` are None where no socket sent it. `connmark` and `zone` are its connection's; the zone is
    None until chosen. `tracked` says that connection tracking saw it at an earlier hook, `translated` which
    sides of its connection nat has decided, `redirected` whether its connection's destination was changed.
    A `reply` comes from the side that was called; only a later packet of a connection can be one. Where that
    connection was translated, `called` is the address and port that the caller had asked for. Of the `unclear` fields
    it has the lowest value that they may have.
    """

    hook: Hook
    protocol: int
    source: bytes
    destination: bytes
    source_port: int = 0
    destination_port: int = 0
    in_interface: str = ""
    out_interface: str = ""
    uid: int | None = None
    gid: int | None = None
    mark: int = 0
    ctstate: str = "NEW"
    connmark: int = 0
    zone: int | None = None
    tracked: bool = False
    translated: tuple[Side, ...] = ()
    redirected: bool = False
    tproxy_port: int = 0
    reply: bool = False
    called: tuple[bytes, int] | None = None
    unclear: tuple[OpenNumber, ...] = ()

    @property
    def family(self) -> Family:
        """The address family, by the addresses' length."""
        return "ipv4" if len(self.destination) == 4 else "ipv6"


class NextHop(Record):
    """What routing answers for a packet: delivered here where `local`, else out by `device`.

    `source` is the address that the kernel prefers as the sender's, `by` the policy rule that decided, where these are
    known; `refused` says why there is no route, or is empty.
    """

    device: str
    local: bool = False
    source: bytes | None = None
    by: PolicyRule | MaskedRule | None = None
    refused: str = ""


class Facts(Record):
    """What routing knows: all addresses, by interface as the kernel lists them, policy routes, and the `uplink`.

    The uplink is the interface by which everything leaves that is for somewhere else, unless `lookup` knows better.
    `accept_local` and `route_localnet` are the interfaces for which these switches of net.ipv4.conf are on; none by
    default.
    """

    addresses: tuple[Address, ...]
    policy_rules: tuple[PolicyRule, ...] = ()
    routes: tuple[Route, ...] = ()
    uplink: str = "eth0"
    accept_local: tuple[str, ...] = ()
    route_localnet: tuple[str, ...] = ()
    lookup: Lookup | None = None
    others_last: bool = False
    masked_rules: tuple[MaskedRule, ...] = ()
    ip_sets: tuple[IpSet, ...] = ()

    def sent(self, packet: Packet) -> NextHop:
        """Where a packet goes that a process here sends: local destinations first, then policy routes."""
        local = self.is_local(packet.destination)
        rule = None if local else self.policy_route(packet.family, packet.mark)
        if self.lookup and (answer := self.lookup.sent(packet, local_source=self.is_local(packet.source))):
            return answer.replace(by=rule if answer.local else None)
        if local or rule:
            return NextHop("lo", local=True, by=rule)
        if self.lookup and self._has_network(packet.family):
            return NextHop("", refused="the kernel has no route for it: Network is unreachable")
        return NextHop(packet.out_interface if packet.out_interface not in {"", "lo"} else self.uplink)

    def arriving(self, packet: Packet) -> NextHop:
        """Where a packet goes that came in from outside: here by its destination or its mark, or onward."""
        local = self.is_local(packet.destination)
        rule = None if local else self.policy_route(packet.family, packet.mark)
        if self.lookup and (answer := self.lookup.arriving(packet)):
            return answer.replace(by=rule if answer.local else None)
        return NextHop("", local=True, by=rule) if local or rule else NextHop(self.uplink)

    def is_local(self, address: bytes) -> bool:
        """Whether the kernel delivers packets to this address here: an interface's own, or in lo's IPv4 networks."""
        return any(_owns(each, address) for each in self.addresses)

    def _has_network(self, family: Family) -> bool:
        """Whether an interface has an address of the family, beside loopback and link-local ones: a network is set up.

        Before that, as in a namespace in which no plugin ran yet, packets are taken to leave by the uplink.
        """
        return any(
            each.network.family == family and each.device != "lo" and not each.network.address.startswith(LINK_LOCAL)
            for each in self.addresses
        )

    def policy_route(self, family: Family, mark: int) -> PolicyRule | MaskedRule | None:
        """The policy rule by which a marked packet counts as local, whatever its destination; None without one."""
        tables = {route.table for route in self.routes if route.family == family}
        for rule in self.policy_rules:
            if (rule.family, rule.mark) == (family, mark) and rule.table in tables:
                return rule
        for masked in self.masked_rules:
            if (masked.family, masked.mark) == (family, mark & masked.mask) and masked.table in tables:
                return masked
        return None

    def source_for(self, packet: Packet) -> bytes:
        """The source that the kernel gives a packet whose own is not set yet."""
        answer = self.lookup.sent(packet, local_source=False) if self.lookup else None
        return (answer and answer.source) or self.source(packet.destination)

    def source(self, destination: bytes) -> bytes:
        """The source that the kernel gives a packet: its local route's, or an address of the uplink.

        IPv6: a local destination itself. IPv4: the first address of the network that it is of on its interface
        (fib_add_ifaddr), 127.0.0.1 for all of 127.0.0.0/8.
        """
        owners = [each for each in self.addresses if _owns(each, destination)]
        if owners:
            return destination if len(destination) == 16 else self._first(_closest(owners, destination))
        return self.primary(self.uplink, destination) or LOOPBACKS["ipv4" if len(destination) == 4 else "ipv6"]

    def _first(self, own: Address) -> bytes:
        """The first address of an address' network on its interface."""
        alike = (each for each in self.addresses if _same_network(each, own))
        return next(each.network.address for each in alike)

    def masquerade(self, interface: str, destination: bytes) -> bytes | None:
        """The source that MASQUERADE gives what leaves by an interface: its own address, or else any of another one.

        Loopback addresses don't count (inet_select_addr, ipv6_dev_get_saddr). None where there is no address.
        """
        own = [each for each in self.addresses if each.device == interface]
        every = (each.network.address for each in (*own, *self.addresses))
        fitting = (address for address in every if len(address) == len(destination))
        return next(
            (each for each in fitting if each != LOOPBACKS["ipv6"] and (len(each) == 16 or each[0] != 127)), None
        )

    def primary(self, interface: str, destination: bytes) -> bytes | None:
        """The address that REDIRECT chooses for what came in by an interface; None where it has none that fits.

        IPv4: the interface's first (nf_nat_redirect_ipv4). IPv6: the first, but for a destination of a narrower
        scope the first of that scope (nf_nat_redirect_ipv6).
        """
        own = (each.network.address for each in self.addresses if each.device == interface)
        fitting = (address for address in own if len(address) == len(destination))
        narrow = scope(destination)
        return next((address for address in fitting if narrow in {"", scope(address)}), None)


def scope(address: bytes) -> str:
    """The scope of an IPv6 address as REDIRECT compares it (__ipv6_addr_type); empty for all others."""
    if len(address) == 4:
        return ""
    if address[0] == 0xFE and address[1] & 0xC0:
        return {0x80: "link", 0xC0: "site"}.get(address[1] & 0xC0, "")
    if not any(address[:12]) and any(address[12:]):
        return "loopback" if int.from_bytes(address) == 1 else "compatible"
    return ""


def _owns(own: Address, address: bytes) -> bool:
    network = own.network
    if own.device == "lo" and len(address) == len(network.address) == 4:
        return contains(network, address)
    return network.address == address


def _closest(owners: list[Address], address: bytes) -> Address:
    """Of those that make an address local the one with the most specific route: that address, or else lo's network."""
    return max(owners, key=lambda own: 32 if own.network.address == address else own.network.prefix)


def _same_network(one: Address, other: Address) -> bool:
    """Whether two addresses are of one network, on one interface."""
    shapes = {(each.device, each.network.family, each.network.prefix) for each in (one, other)}
    return len(shapes) == 1 and contains(one.network, other.network.address)


def connected(destination: bytes, source: bytes | None = None) -> bytes:
    """Where a socket, bound to `source` or not, connects to: the unspecified address means loopback.

    IPv4: or the address that the socket is bound to (ip_route_output_key). IPv6: always ::1 (tcp_v6_connect).
    """
    if any(destination):
        return destination
    if len(destination) == 16:
        return LOOPBACKS["ipv6"]
    return source if source and len(source) == 4 and any(source) else LOOPBACKS["ipv4"]


def contains(network: Network, address: bytes) -> bool:
    """Whether a network holds a packed address of its family."""
    host_bits = len(network.address) * 8 - network.prefix
    return int.from_bytes(network.address) >> host_bits == int.from_bytes(address) >> host_bits


def is_named(pattern: str, interface: str) -> bool:
    """Whether an interface is meant by a name that may end in +; a hook that knows no interface has an empty one."""
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern
