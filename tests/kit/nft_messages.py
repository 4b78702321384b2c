"""What the kernel would dump after a batch of native tables: for tests without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import (
    HEAD,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    SET_NAME,
    text,
    word,
)
from istio_init.kernel.nft.native_decode import meaning, read_table
from istio_init.kernel.nft.native_dump import TableDump, set_name
from istio_init.kernel.nft.native_encode import ELEMENTS, ELEMENTS_SET_ID, SET_ID, TableEncoder
from istio_init.kernel.nft.set_intervals import members

if TYPE_CHECKING:
    from istio_init.model.inet import InetTable

ANONYMOUS = "__set%d"


def dumped(table: InetTable) -> TableDump:
    """The table as its messages have it; the sets without a name are numbered as the kernel numbers them."""
    encoded = TableEncoder().encode(table)
    names = dict(enumerate(encoded.sets, 1))  # a batch numbers its sets as they come
    bodies: dict[int, list[bytes]] = {kind: [] for kind in (NEWTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM)}
    for kind, _, data in encoded.messages:
        number = {NEWSET: SET_ID, NEWSETELEM: ELEMENTS_SET_ID}.get(kind, 0)
        bodies[kind].append(_rule(data, names) if kind == NEWRULE else _set(data, number, names))
    elements: dict[str, tuple[bytes, ...]] = {set_name(data): () for data in bodies[NEWSET]}
    for data in reversed(bodies[NEWSETELEM]):  # sent ascending, and dumped descending
        elements[set_name(data)] += (_descending(data),)
    chains, rules, sets = (tuple(bodies[kind]) for kind in (NEWCHAIN, NEWRULE, NEWSET))
    return TableDump(bodies[NEWTABLE][0], chains, rules, sets, elements)


def _descending(data: bytes) -> bytes:
    listed = attributes(data[HEAD.size :])[ELEMENTS]
    return data.replace(listed, b"".join([attribute(1, each) for each in reversed([*members(listed)])]))


def _set(data: bytes, number: int, names: dict[int, str]) -> bytes:
    own = int.from_bytes(attributes(data[HEAD.size :]).get(number, b""), "big")
    return data.replace(text(SET_NAME, ANONYMOUS), text(SET_NAME, names[own])) if number else data


def _rule(data: bytes, names: dict[int, str]) -> bytes:
    for own, name in names.items():
        for inverted in (0, 1):
            rest = word(2, 1) + word(5, inverted) + word(4, own)
            data = data.replace(text(1, ANONYMOUS) + rest, text(1, name) + rest)
    return data


def read_back(table: InetTable) -> InetTable:
    """The table in the plan's terms once it was written and read."""
    return meaning(read_table(table.name, dumped(table)).table)
