"""What the Router writes and reads: requests and answers of rtnetlink for policy rules, routes and addresses.

The layouts are those of <linux/rtnetlink.h>, <linux/fib_rules.h> and <linux/if_addr.h>. Each entry is written as `ip`
of iproute2 writes it for routing.command(), so that `ip rule`, `ip route` and `ip addr` print the same for both (except
`nodad`, see _body). A run without routing does not import this module.
"""

from __future__ import annotations

import _struct as struct  # struct.py only hands it on

import istio_init.kernel.host.error_numbers as errno
from istio_init import errors
from istio_init.kernel.netlink.channel import ATTEMPTS, AnswerLost, attribute, attributes
from istio_init.kernel.netlink.router import ADDRESS, FAMILIES, IFA_ADDRESS, IFA_LOCAL, interface_name, read_addresses
from istio_init.model.routing import Address, PolicyRule, Route
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.kernel.netlink.channel import RtnetlinkChannel
    from istio_init.model.routing import RoutingEntry, Verb

    # An entry, and the priority of the rule or the metric of the route, which identify it for deletion.
    NumberedEntry: TypeAlias = tuple[RoutingEntry, int]

RTM_NEWADDR, RTM_DELADDR = 20, 21
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
IFA_F_NODAD = 0x02

# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags. struct fib_rule_hdr is
# laid out alike: protocol and scope are reserved there, type is the action.
ROUTE = struct.Struct("=8BI")
WORD = struct.Struct("=I")
ALL_BITS = 0xFFFFFFFF

NUMBERS = {family: number for number, family in FAMILIES.items()}

# The attributes of a PolicyRule; a rule with any other selects packets by something that it does not model.
PLAIN = {FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL}
# In each PolicyRule: all bits of the mark count.
MARKED = attribute(FRA_FWMASK, WORD.pack(ALL_BITS))


def add(channel: RtnetlinkChannel, entry: RoutingEntry, indexes: dict[str, int], priority: int) -> None:
    """Add an entry that does not exist; a policy rule gets this priority, or with 0 one that the kernel chooses."""
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
    return any(entry == existing for existing, _ in numbered_entries(channel))


def delete(channel: RtnetlinkChannel, entry: RoutingEntry, priority: int, indexes: dict[str, int]) -> None:
    """Delete the entry with this priority or metric, if it still exists."""
    kinds = {PolicyRule: RTM_DELRULE, Route: RTM_DELROUTE, Address: RTM_DELADDR}
    body = _body(channel, entry, "del", indexes, priority)
    for attempt in range(ATTEMPTS):
        try:
            return channel.request(kinds[type(entry)], 0, body)
        except AnswerLost:
            if (entry, priority) not in numbered_entries(channel):
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


def numbered_entries(channel: RtnetlinkChannel) -> list[NumberedEntry]:
    """The entries of Router.read, each with its priority or metric."""
    # The kernel filters by the type; one before 4.20 does not, and sends all routes.
    local_routes = ROUTE.pack(0, 0, 0, 0, 0, 0, 0, RTN_LOCAL, 0)
    names: dict[int, str] = {}
    routes = [_route(channel, data, names) for data in channel.dump("routes", RTM_GETROUTE, local_routes)]
    on_lo = [(address, 0) for address in read_addresses(channel, names) if address.device == LOOPBACK_INTERFACE]
    return [*policy_rules(channel), *filter(None, routes), *on_lo]


def policy_rules(channel: RtnetlinkChannel) -> list[NumberedEntry]:
    """The policy rules that select packets by a mark alone, each with its priority."""
    rules = map(_policy_rule, channel.dump("policy rules", RTM_GETRULE, ROUTE.pack(*[0] * 9)))
    return list(filter(None, rules))


def _policy_rule(data: bytes) -> NumberedEntry | None:
    """The PolicyRule of an RTM_NEWRULE message; None where it selects by anything else than a mark."""
    if MARKED not in data:
        return None  # as for the kernel's own five, which need not be decoded
    number, *selectors, _table, _protocol, _scope, action, flags = ROUTE.unpack_from(data)
    attrs = attributes(data[ROUTE.size :])
    if number not in FAMILIES or any(selectors) or flags or action != FR_ACT_TO_TBL or not attrs.keys() <= PLAIN:
        return None
    words = {kind: WORD.unpack(value)[0] for kind, value in attrs.items() if len(value) == WORD.size}
    if words.get(FRA_FWMASK) != ALL_BITS or words.get(FRA_SUPPRESS_PREFIXLEN, ALL_BITS) != ALL_BITS:
        return None
    rule = PolicyRule(FAMILIES[number], words.get(FRA_FWMARK, 0), words[FRA_TABLE])
    return rule, words.get(FRA_PRIORITY, 0)


def _route(channel: RtnetlinkChannel, data: bytes, names: dict[int, str]) -> NumberedEntry | None:
    """The Route of an RTM_NEWROUTE message; None for other than local default routes, and in the kernel's tables."""
    number, dst_len, src_len, tos, _table, _protocol, _scope, kind, _flags = ROUTE.unpack_from(data)
    if number not in FAMILIES or dst_len or src_len or tos or kind != RTN_LOCAL:
        return None
    attrs = attributes(data[ROUTE.size :])
    if RTA_OIF not in attrs:
        return None
    (table,) = WORD.unpack(attrs[RTA_TABLE])
    device = interface_name(channel, WORD.unpack(attrs[RTA_OIF])[0], names)
    if table in (RT_TABLE_MAIN, RT_TABLE_LOCAL) or not device:
        return None
    return Route(FAMILIES[number], device, table), WORD.unpack(attrs.get(RTA_PRIORITY, bytes(4)))[0]


def _explained(entry: RoutingEntry, verb: Verb, refused: OSError) -> errors.KernelError:
    """The error for the user; its texts are imported only here."""
    from istio_init.kernel.netlink import refusal

    return refusal.explain(entry, verb, refused)
