"""What other programs' matches and targets mean to a packet, as values that simulate/foreign.py makes.

None of Istio's rules has these: a plain run loads none of them.
"""

from __future__ import annotations

from istio_init.model.rules import Network, Table
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.packet import Side
    from istio_init.model.rules import Hook


class HookedTable(Table):
    """A base chain of another program's nftables table, called as its hook, and the chains that it may jump to.

    `kind` is the base chain's type: filter, nat or route. Lower priorities come first.
    """

    hook: Hook
    priority: int
    kind: str


class AddressType(Record):
    """-m addrtype: the address of a side is of one of these types, such as LOCAL or MULTICAST."""

    side: Side
    types: tuple[str, ...]
    negated: bool = False


class AddressRange(Record):
    """-m iprange: the address of a side is from `low` to `high`, both included."""

    side: Side
    low: bytes
    high: bytes
    negated: bool = False


class MaskedAddress(Record):
    """-s or -d with a mask that has holes: the address of a side, under the mask, is `address`."""

    side: Side
    address: bytes
    mask: bytes
    negated: bool = False


class TcpFlags(Record):
    """-m tcp --tcp-flags: of the flags in `mask` those in `compared` are set (bits of the TCP header)."""

    mask: int
    compared: int
    negated: bool = False


class Direction(Record):
    """-m conntrack --ctdir: the packet goes as its connection's first one, or, with `reply`, the other way."""

    reply: bool
    negated: bool = False


class Assumed(Record):
    """A match that is taken to hold, or not to, because of `why`; with `either`, it may as well be the other way."""

    held: bool
    why: str
    either: bool = False


class Undecidable(Record):
    """A match of which this program cannot say whether it holds; `why` names what it looks at."""

    why: str


class Translate(Record):
    """-j DNAT, SNAT, MASQUERADE: one side of the connection gets another address, port or both.

    `address` is packed, None for the own one (the same, or for MASQUERADE, `own`, that of the interface it leaves by);
    port 0 is the own one, too. With `last_address` and `last_port` the kernel chooses from a range; with `random` also
    a port that no range names.
    """

    side: Side
    address: bytes | None
    port: int
    own: bool = False
    last_address: bytes | None = None
    last_port: int = 0
    random: bool = False


class ToSelf(Record):
    """-j REDIRECT with the port that the packet has (both 0), or with one that the kernel chooses from a range."""

    port: int
    last_port: int


class MapPrefix(Record):
    """-j DNPT, SNPT: one side's address gets another prefix, and what keeps the checksum; no connection is tracked."""

    side: Side
    network: Network


class AnyMark(Record):
    """A target that gives the packet, or its connection, a mark from `low` to `high` that no rule determines.

    With `tracked` it does so only for a packet that has a connection; `where` is what the mark comes from.
    """

    field: Literal["mark", "connmark"]
    low: int
    high: int
    where: str
    tracked: bool = False


class ChangeSets(Record):
    """-j SET: what is in these IP sets changes; with `mark` the packet's mark becomes one that a set has."""

    names: tuple[str, ...]
    mark: bool = False


class MapAddress(Record):
    """-j NETMAP: the network part of one side's address is replaced; the hook says which side."""

    network: Network


class Fixed(Record):
    """A target that always has the same answer (an Answer of simulate/trace.py), and what it does in words."""

    answer: str
    words: str


class SetConnMark(Record):
    """-j CONNMARK --set-xmark value/mask: connection mark = (connection mark & ~mask) ^ value."""

    value: int
    mask: int


class NoTrack(Record):
    """-j CT --notrack: connection tracking leaves the packet alone."""


if TYPE_CHECKING:
    # A part of a match that has no counterpart in model.rules.
    ForeignPart: TypeAlias = AddressType | AddressRange | MaskedAddress | TcpFlags | Direction | Assumed | Undecidable
    ForeignTarget: TypeAlias = (
        Translate | ToSelf | MapAddress | MapPrefix | Fixed | SetConnMark | AnyMark | ChangeSets | NoTrack
    )
