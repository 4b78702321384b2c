"""The Router: policy rules, routes and addresses through rtnetlink.

pyroute2 could do all of this, but importing it takes ten times as long as the whole run. The layouts are those of
<linux/rtnetlink.h>, <linux/fib_rules.h> and <linux/if_addr.h>: native byte order, addresses in network order. Each
entry is written as `ip` of iproute2 writes it for routing.command(), so that `ip rule`, `ip route` and `ip addr` print
the same for both (except `nodad`, see _body).
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the functions in C are all that is needed
import _struct as struct  # struct.py only hands it on
import errno

from istio_init import errors
from istio_init.kernel.netlink.channel import ATTEMPTS, AnswerLost, RtnetlinkChannel, attribute, attributes
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from istio_init.model.routing import RoutingEntry, Verb
    from istio_init.model.rules import Family

    # An entry, and the priority of the rule or the metric of the route, which identify it for deletion.
    NumberedEntry: TypeAlias = tuple[RoutingEntry, int]

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400

RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTPROT_UNSPEC, RTPROT_BOOT = 0, 3
RTN_LOCAL = 2
RT_SCOPE_UNIVERSE, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 254, 255
RTA_OIF, RTA_PRIORITY, RTA_TABLE = 4, 6, 15
FR_ACT_TO_TBL = 1
FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 14, 15, 16, 21
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02

# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags. struct fib_rule_hdr is
# laid out alike: protocol and scope are reserved there, type is the action.
ROUTE = struct.Struct("=8BI")
ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
WORD = struct.Struct("=I")
ALL_BITS = 0xFFFFFFFF

FAMILIES: dict[int, Family] = {socket.AF_INET: IPV4, socket.AF_INET6: IPV6}
NUMBERS = {family: number for number, family in FAMILIES.items()}

# The attributes of a PolicyRule; a rule with any other selects packets by something that it does not model.
PLAIN = {FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL}
# In each PolicyRule: all bits of the mark count.
MARKED = attribute(FRA_FWMASK, WORD.pack(ALL_BITS))


class Rtnetlink:
    """Policy rules, routes and addresses of the calling thread's network namespace; see kernel.Router.

    Each call opens its own socket, because a socket belongs to the namespace in which it was opened.
    """

    def __init__(self) -> None:
        # The priorities of policy rules that were removed: they go back to their places among other programs' rules.
        self._removed: dict[RoutingEntry, int] = {}

    def read(self) -> tuple[RoutingEntry, ...]:
        """As Router.read."""
        with RtnetlinkChannel() as channel:
            return tuple(entry for entry, _ in _numbered_entries(channel))

    def replace(self, wanted: tuple[RoutingEntry, ...], existing: tuple[RoutingEntry, ...] | None = None) -> None:
        """As Router.replace."""
        if not wanted:
            return
        with RtnetlinkChannel() as channel:
            # The kernel itself refuses a duplicate route or address, so only policy rules are read before.
            there = set([rule for rule, _ in _policy_rules(channel)] if existing is None else existing)
            indexes: dict[str, int] = {}
            for entry in wanted:
                if entry not in there:
                    _add(channel, entry, indexes, self._removed.get(entry, 0))
                    there.add(entry)

    def remove(self, entries: tuple[RoutingEntry, ...]) -> None:
        """As Router.remove."""
        if not entries:
            return
        with RtnetlinkChannel() as channel:
            existing = _numbered_entries(channel)
            indexes: dict[str, int] = {}
            for unwanted in dict.fromkeys(reversed(entries)):
                for entry, priority in existing:
                    if entry == unwanted:
                        if isinstance(entry, PolicyRule):
                            self._removed[entry] = priority  # before the deletion: a signal may follow it at once
                        _delete(channel, entry, priority, indexes)

    def addresses(self) -> tuple[Address, ...]:
        """All addresses of all interfaces in the kernel's order: IPv4 first, by interface. Host bits are kept."""
        with RtnetlinkChannel() as channel:
            return tuple(_addresses(channel, {}))


def has_ipv6(addresses: tuple[Address, ...], *, dual_stack: bool) -> bool:
    """Whether IPv6 counts as in use: the first global address is IPv6, or, with `dual_stack`, any of them is.

    Loopback (127.0.0.0/8, ::1) and link-local (169.254.0.0/16, fe80::/10) addresses do not count. That is Istio's
    detection (getLocalIP over Go's net.InterfaceAddrs, which has the order of Rtnetlink.addresses). ::6 on lo does not
    count either, because a run with --enable-ipv6 adds it.
    """
    families = [address.network.family for address in addresses if not _is_local(address)]
    return IPV6 in (families if dual_stack else families[:1])


def has_address(addresses: tuple[Address, ...]) -> bool:
    """Whether there is any address that `has_ipv6` counts."""
    return not all(map(_is_local, addresses))


def _is_local(address: Address) -> bool:
    packed = address.network.address
    if address.network.family == IPV4:
        return packed[0] == 127 or packed[:2] == b"\xa9\xfe"
    own = address.device == LOOPBACK_INTERFACE and packed == bytes(15) + b"\x06"
    return own or packed == bytes(15) + b"\x01" or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)


def _add(channel: RtnetlinkChannel, entry: RoutingEntry, indexes: dict[str, int], priority: int) -> None:
    kinds = {PolicyRule: RTM_NEWRULE, Route: RTM_NEWROUTE, Address: RTM_NEWADDR}
    # EXCL refuses a duplicate route or address. A duplicate policy rule is refused only at the same priority, and the
    # kernel chooses another one each time: that is why policy rules are read before, under the lock of the run.
    flags, body = NLM_F_CREATE | NLM_F_EXCL, _body(channel, entry, "add", indexes, priority)
    for attempt in range(ATTEMPTS):
        try:
            return channel.request(kinds[type(entry)], flags, body)
        except AnswerLost:
            if _exists(channel, entry):
                return None
            if attempt == ATTEMPTS - 1:
                raise
        except OSError as refused:
            # Without permission the error is EPERM, whether the entry exists or not.
            if refused.errno in (errno.EEXIST, errno.EPERM) and _exists(channel, entry):
                return None
            raise _explained(entry, "add", refused) from refused
    raise AssertionError("the last attempt returns or raises")


def _exists(channel: RtnetlinkChannel, entry: RoutingEntry) -> bool:
    return any(entry == existing for existing, _ in _numbered_entries(channel))


def _delete(channel: RtnetlinkChannel, entry: RoutingEntry, priority: int, indexes: dict[str, int]) -> None:
    kinds = {PolicyRule: RTM_DELRULE, Route: RTM_DELROUTE, Address: RTM_DELADDR}
    body = _body(channel, entry, "del", indexes, priority)
    for attempt in range(ATTEMPTS):
        try:
            return channel.request(kinds[type(entry)], 0, body)
        except AnswerLost:
            if (entry, priority) not in _numbered_entries(channel):
                return None
            if attempt == ATTEMPTS - 1:
                raise
        except OSError as refused:
            # The kernel's errors for a rule, a route or an address that does not exist.
            if refused.errno in (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
                return None
            raise _explained(entry, "del", refused) from refused
    raise AssertionError("the last attempt returns or raises")


def _body(
    channel: RtnetlinkChannel, entry: RoutingEntry, verb: Verb, indexes: dict[str, int], priority: int = 0
) -> bytes:
    """The request without its header; `priority` keeps the kernel from deleting a similar entry.

    `indexes` caches the numbers of interfaces.
    """
    match entry:
        case PolicyRule():
            head = ROUTE.pack(NUMBERS[entry.family], 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
            # Without the mask, the kernel takes a mark as all of its bits, but 0 as no bits: any mark at all.
            words = {FRA_TABLE: entry.table, FRA_FWMARK: entry.mark, FRA_FWMASK: ALL_BITS}
            return head + _words(words | ({FRA_PRIORITY: priority} if priority else {}))
        case Route():
            # IPv6's routes have no scope. A deletion means the route of any scope, whichever program made it.
            scope = RT_SCOPE_HOST if entry.family == IPV4 else RT_SCOPE_UNIVERSE
            scope, protocol = (scope, RTPROT_BOOT) if verb == "add" else (RT_SCOPE_NOWHERE, RTPROT_UNSPEC)
            head = ROUTE.pack(NUMBERS[entry.family], 0, 0, 0, 0, protocol, scope, RTN_LOCAL, 0)
            words = {RTA_TABLE: entry.table, RTA_OIF: _index(channel, entry, entry.device, verb, indexes)}
            return head + _words(words | ({RTA_PRIORITY: priority} if priority else {}))
        case Address():
            packed, family = entry.network.address, NUMBERS[entry.network.family]
            index = _index(channel, entry, entry.device, verb, indexes)
            # Even on lo an IPv6 address is tentative until a kernel thread has run, and can't be bound to meanwhile:
            # a proxy that starts early would do without ::6, and loop. `ip` has the word nodad for this flag.
            flags = IFA_F_NODAD if entry.network.family == IPV6 and verb == "add" else 0
            head = ADDRESS.pack(family, entry.network.prefix, flags, RT_SCOPE_UNIVERSE, index)
            return head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        case _:
            errors.assert_never(entry)


def _words(values: dict[int, int]) -> bytes:
    return b"".join(attribute(kind, WORD.pack(value)) for kind, value in values.items())


def _index(channel: RtnetlinkChannel, entry: RoutingEntry, device: str, verb: Verb, indexes: dict[str, int]) -> int:
    if device not in indexes:
        try:
            indexes[device] = channel.interface_index(device)
        except OSError as error:
            raise _explained(entry, verb, error) from error
    return indexes[device]


def _numbered_entries(channel: RtnetlinkChannel) -> list[NumberedEntry]:
    """The entries of Router.read, each with its priority or metric."""
    # The kernel filters by the type; one before 4.20 does not, and sends all routes.
    local_routes = ROUTE.pack(0, 0, 0, 0, 0, 0, 0, RTN_LOCAL, 0)
    names: dict[int, str] = {}
    routes = [_route(channel, data, names) for data in channel.dump("routes", RTM_GETROUTE, local_routes)]
    on_lo = [(address, 0) for address in _addresses(channel, names) if address.device == LOOPBACK_INTERFACE]
    return [*_policy_rules(channel), *filter(None, routes), *on_lo]


def _policy_rules(channel: RtnetlinkChannel) -> list[NumberedEntry]:
    rules = map(_policy_rule, channel.dump("policy rules", RTM_GETRULE, ROUTE.pack(*[0] * 9)))
    return list(filter(None, rules))


def _policy_rule(data: bytes) -> NumberedEntry | None:
    """The PolicyRule of an RTM_NEWRULE message; None where it selects by anything else than a mark."""
    if MARKED not in data:
        return None  # as for the kernel's own five, which need not be decoded
    number, *selectors, _table, _protocol, _scope, action, flags = ROUTE.unpack_from(data)
    said = attributes(data[ROUTE.size :])
    if number not in FAMILIES or any(selectors) or flags or action != FR_ACT_TO_TBL or not said.keys() <= PLAIN:
        return None
    words = {kind: WORD.unpack(value)[0] for kind, value in said.items() if len(value) == WORD.size}
    if words.get(FRA_FWMASK) != ALL_BITS or words.get(FRA_SUPPRESS_PREFIXLEN, ALL_BITS) != ALL_BITS:
        return None
    rule = PolicyRule(FAMILIES[number], words.get(FRA_FWMARK, 0), words[FRA_TABLE])
    return rule, words.get(FRA_PRIORITY, 0)


def _route(channel: RtnetlinkChannel, data: bytes, names: dict[int, str]) -> NumberedEntry | None:
    """The Route of an RTM_NEWROUTE message; None for other than local default routes, and in the kernel's tables."""
    number, dst_len, src_len, tos, _table, _protocol, _scope, kind, _flags = ROUTE.unpack_from(data)
    if number not in FAMILIES or dst_len or src_len or tos or kind != RTN_LOCAL:
        return None
    said = attributes(data[ROUTE.size :])
    if RTA_OIF not in said:
        return None
    (table,) = WORD.unpack(said[RTA_TABLE])
    device = _name(channel, WORD.unpack(said[RTA_OIF])[0], names)
    if table in (RT_TABLE_MAIN, RT_TABLE_LOCAL) or not device:
        return None
    return Route(FAMILIES[number], device, table), WORD.unpack(said.get(RTA_PRIORITY, bytes(4)))[0]


def _addresses(channel: RtnetlinkChannel, names: dict[int, str]) -> Iterator[Address]:
    for data in channel.dump("addresses", RTM_GETADDR, ADDRESS.pack(0, 0, 0, 0, 0)):
        number, prefix, _flags, _scope, index = ADDRESS.unpack_from(data)
        said = attributes(data[ADDRESS.size :])
        # On a point-to-point link ADDRESS is the peer's; LOCAL, where it is given, is the interface's.
        packed = said.get(IFA_LOCAL) or said.get(IFA_ADDRESS)
        if number in FAMILIES and packed and (device := _name(channel, index, names)):
            yield Address(Network(packed, prefix), device)


def _name(channel: RtnetlinkChannel, index: int, names: dict[int, str]) -> str:
    """The interface's name, cached; empty where the interface was deleted since the dump, with its addresses."""
    if index not in names:
        try:
            names[index] = channel.interface_name(index)
        except OSError as error:
            text = f"the name of interface {index} can't be read: {error.strerror}; run again"
            raise errors.KernelError(text, error.errno or 0) from error
    return names[index]


def _explained(entry: RoutingEntry, verb: Verb, refused: OSError) -> errors.KernelError:
    """The error for the user; its texts are imported only here."""
    from istio_init.kernel.netlink import refusal

    return refusal.explain(entry, verb, refused)
