"""Every object in the inet tables of a namespace, as the kernel dumps it: what no listing of nft's leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, NFPROTO_INET, NFT_NAME, SET_NAME, NfnetlinkChannel, name
from istio_init.kernel.nft.native_encode import ELEMENTS
from istio_init.kernel.nft.set_intervals import members

# What it is, the table, and its attributes.
Object: TypeAlias = tuple[str, str, tuple[tuple[int, bytes], ...]]

# Attributes that differ from one making to the next: handles, and a set's implementation and size at the moment.
# NFTA_SET_DESC; nft up to 1.0.6 says the size of a set without a name in it, and newer ones do not.
SET_DESC = 9
_CHANGING = {"table": {3, 4}, "chain": {2}, "rule": {3, 6}, "set": {16, 19, 20}, "elements": set[int]()}


def inet_objects() -> list[Object]:
    """Tables, chains, sets, elements and rules of the calling thread's namespace, in the kernel's order."""
    with NfnetlinkChannel() as channel:
        return [(kind, table, tuple(sorted(_kept(kind, facts)))) for kind, table, facts in _objects(channel)]


def _kept(kind: str, facts: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """The attributes that are compared."""
    for key, value in facts.items():
        if (kind, key) == ("set", SET_DESC):
            # Without NFTA_SET_DESC_SIZE.
            yield key, b"".join(attribute(part, data) for part, data in attributes(value).items() if part != 1)
        elif key not in _CHANGING[kind]:
            yield key, value


def _objects(channel: NfnetlinkChannel) -> Iterator[tuple[str, str, dict[int, bytes]]]:
    chains = [attributes(data[HEAD.size :]) for data in channel.chains(NFPROTO_INET)]
    for data in channel.table_bodies():
        facts = attributes(data[HEAD.size :])
        table = name(facts[NFT_NAME])
        if data[0] != NFPROTO_INET:
            continue
        yield "table", table, facts
        yield from (("chain", table, chain) for chain in chains if chain[NFT_NAME] == facts[NFT_NAME])
        for each in channel.sets(NFPROTO_INET, table):
            its = attributes(each[HEAD.size :])
            yield "set", table, its
            lists = channel.elements(NFPROTO_INET, table, name(its[SET_NAME]))
            joined = b"".join(attributes(each[HEAD.size :]).get(ELEMENTS, b"") for each in lists)
            # Each hash table has an order of its own.
            yield "elements", table, dict(enumerate(sorted(members(joined))))
        for each in channel.rules(NFPROTO_INET, table):
            yield "rule", table, attributes(each[HEAD.size :])
