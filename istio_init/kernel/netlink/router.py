"""The Router: policy rules, routes and addresses through rtnetlink.

pyroute2 could do all of this, but importing it takes ten times as long as the whole run. Every run reads the addresses,
which are here; routing_messages.py has the rest. The layouts are those of <linux/if_addr.h>: native byte order,
addresses in network order.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the functions in C are all that is needed
import _struct as struct  # struct.py only hands it on

from istio_init import errors
from istio_init.kernel.netlink.channel import RtnetlinkChannel, attributes
from istio_init.model.routing import Address, PolicyRule
from istio_init.model.rules import IPV4, IPV6, LOOPBACK_INTERFACE, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Family


RTM_GETADDR = 22
IFA_ADDRESS, IFA_LOCAL = 1, 2

ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg: family, prefixlen, flags, scope, index

FAMILIES: dict[int, Family] = {socket.AF_INET: IPV4, socket.AF_INET6: IPV6}


class Rtnetlink:
    """Policy rules, routes and addresses of the calling thread's network namespace; see kernel.Router.

    Each call opens its own socket, because a socket belongs to the namespace in which it was opened.
    """

    def __init__(self) -> None:
        # The priorities of policy rules that were removed: they go back to their places among other programs' rules.
        self._removed: dict[RoutingEntry, int] = {}

    def read(self) -> tuple[RoutingEntry, ...]:
        """As Router.read."""
        from istio_init.kernel.netlink.routing_messages import numbered_entries

        with RtnetlinkChannel() as channel:
            return tuple(entry for entry, _ in numbered_entries(channel))

    def replace(self, desired: tuple[RoutingEntry, ...], existing: tuple[RoutingEntry, ...] | None = None) -> None:
        """As Router.replace."""
        if not desired:
            return
        from istio_init.kernel.netlink.routing_messages import add, policy_rules

        with RtnetlinkChannel() as channel:
            # The kernel itself refuses a duplicate route or address, so only policy rules are read before.
            there = set([rule for rule, _ in policy_rules(channel)] if existing is None else existing)
            indexes: dict[str, int] = {}
            for entry in desired:
                if entry not in there:
                    add(channel, entry, indexes, self._removed.get(entry, 0))
                    there.add(entry)

    def remove(self, entries: tuple[RoutingEntry, ...]) -> None:
        """As Router.remove."""
        if not entries:
            return
        from istio_init.kernel.netlink.routing_messages import delete, numbered_entries

        with RtnetlinkChannel() as channel:
            existing = numbered_entries(channel)
            indexes: dict[str, int] = {}
            for unwanted in dict.fromkeys(reversed(entries)):
                for entry, priority in (each for each in existing if each[0] == unwanted):
                    if isinstance(entry, PolicyRule):
                        self._removed[entry] = priority  # before the deletion: a signal may follow it at once
                    delete(channel, entry, priority, indexes)

    def addresses(self) -> tuple[Address, ...]:
        """All addresses of all interfaces in the kernel's order: IPv4 first, by interface. Host bits are kept."""
        with RtnetlinkChannel() as channel:
            return tuple(read_addresses(channel, {}))


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


def read_addresses(channel: RtnetlinkChannel, names: dict[int, str]) -> Iterator[Address]:
    """All addresses of all interfaces, as Rtnetlink.addresses; `names` caches the names of interfaces."""
    for data in channel.dump("addresses", RTM_GETADDR, ADDRESS.pack(0, 0, 0, 0, 0)):
        number, prefix, _flags, _scope, index = ADDRESS.unpack_from(data)
        attrs = attributes(data[ADDRESS.size :])
        # On a point-to-point link ADDRESS is the peer's; LOCAL, where it is given, is the interface's.
        packed = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS)
        if number in FAMILIES and packed and (device := interface_name(channel, index, names)):
            yield Address(Network(packed, prefix), device)


def interface_name(channel: RtnetlinkChannel, index: int, names: dict[int, str]) -> str:
    """The interface's name, cached; empty where the interface was deleted since the dump, with its addresses."""
    if index not in names:
        try:
            names[index] = channel.interface_name(index)
        except OSError as error:
            text = f"the name of interface {index} can't be read: {error.strerror}; run again"
            raise errors.KernelError(text, error.errno or 0) from error
    return names[index]
