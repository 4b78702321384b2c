"""Connection tracking in a namespace: how full its table is, and the connections in it, by ctnetlink.

The layouts are those of <linux/netfilter/nfnetlink_conntrack.h>: numbers in network order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, NfnetlinkChannel, body
from istio_init.model.counters import Connection, Usage
from istio_init.model.rules import TCP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    # Address and port of the sender, then of the receiver.
    Flow: TypeAlias = tuple[bytes, int, bytes, int]
    # Whether its destination was changed, and its mark.
    Treatment: TypeAlias = tuple[bool, int]

# Files of the calling thread's network namespace.
COUNT, LIMIT = (f"/proc/sys/net/netfilter/nf_conntrack_{name}" for name in ("count", "max"))

_GET = (1 << 8) | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_ORIGINAL, _REPLY, _STATUS, _MARK = 1, 2, 3, 8  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_MARK
_ADDRESSES, _DESTINATION_PORT = 1, 3  # CTA_TUPLE_IP, CTA_PROTO_DST_PORT
_PROTOCOL, _NUMBER, _SOURCE_PORT = 2, 1, 2  # CTA_TUPLE_PROTO, CTA_PROTO_NUM, CTA_PROTO_SRC_PORT
_DESTINATION_CHANGED = 1 << 5  # IPS_DST_NAT in <linux/netfilter/nf_conntrack_common.h>


def usage() -> Usage | None:
    """The size and the limit of the calling thread's conntrack table; None where connections are not tracked."""
    try:
        return Usage(_number(COUNT), _number(LIMIT))
    except OSError:
        return None


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def connections() -> tuple[Connection, ...] | None:
    """All tracked connections of the calling thread's namespace; None where they can't be read."""
    try:
        with NfnetlinkChannel() as channel:
            return tuple(_connections(channel))
    except KernelError:
        return None


def flows() -> dict[Flow, Treatment] | None:
    """How each tracked TCP connection is treated, by where it came from and went to; None if unreadable."""
    treatments: dict[Flow, Treatment] = {}
    try:
        with NfnetlinkChannel() as channel:
            for data in channel.dump("tracked connections", _GET, body(0)):
                attrs = attributes(data[HEAD.size :])
                sides = attributes(attrs[_ORIGINAL])
                addresses, transport = attributes(sides[_ADDRESSES]), attributes(sides[_PROTOCOL])
                if transport[_NUMBER][0] == TCP:
                    ends = [addresses.get(v4) or addresses[v6] for v4, v6 in ((1, 3), (2, 4))]
                    ports = [int.from_bytes(transport[each], "big") for each in (_SOURCE_PORT, _DESTINATION_PORT)]
                    changed = int.from_bytes(attrs[_STATUS], "big") & _DESTINATION_CHANGED
                    mark = int.from_bytes(attrs.get(_MARK, b""), "big")
                    treatments[ends[0], ports[0], ends[1], ports[1]] = bool(changed), mark
    except KernelError:
        return None
    return treatments


def _connections(channel: NfnetlinkChannel) -> Iterator[Connection]:
    for data in channel.dump("tracked connections", _GET, body(0)):
        attrs = attributes(data[HEAD.size :])
        transport = attributes(attributes(attrs[_REPLY])[_PROTOCOL])
        yield Connection(
            transport[_NUMBER][0],
            int.from_bytes(transport.get(_SOURCE_PORT, b""), "big"),
            bool(int.from_bytes(attrs[_STATUS], "big") & _DESTINATION_CHANGED),
            int.from_bytes(attrs.get(_MARK, b""), "big"),
        )
