"""Every object in the inet tables of a namespace, as the kernel dumps it: what no listing of nft's leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from istio_init.kernel.netlink.channel import attribute, attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, NFPROTO_INET, NFT_NAME, SET_NAME, NfnetlinkChannel, name
from istio_init.kernel.nft.expressions import (
    AT_LEAST,
    AT_MOST,
    ELEMENT,
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    EXPRESSIONS,
    compare,
)
from istio_init.kernel.nft.native_encode import ELEMENTS, SET_ANONYMOUS, SET_FLAGS, SET_USERDATA
from istio_init.kernel.nft.set_intervals import members

# What it is, the table, and its attributes.
Object: TypeAlias = tuple[str, str, tuple[tuple[int, bytes], ...]]

# Attributes that differ from one making to the next: handles, and a set's implementation and size at the moment.
# NFTA_SET_DESC; nft up to 1.0.6 says the size of a set without a name in it, and newer ones do not.
SET_DESC = 9
_CHANGING = {"table": {3, 4}, "chain": {2}, "rule": {3, 6}, "set": {16, 19, 20}, "elements": set[int]()}
# NFTA_TABLE_USERDATA, in which nft 1.1.7 keeps its own version; NFTNL_UDATA_SET_KEY_TYPEOF, which 1.1 keeps for
# sets with a name; NFTA_RANGE_*, which 1.1 has where 1.0.6 compares twice.
TABLE_USERDATA, KEY_TYPEOF = 6, 3
RANGE_OPERATOR, RANGE_FROM, RANGE_TO, DATA_VALUE = 2, 3, 4, 1


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


def as_older_nft(listed: Object) -> Object:
    """An object that nft 1.1 wrote as nft 1.0.6 writes it: the three differences that nothing in a listing shows."""
    kind, table, facts = listed
    return kind, table, tuple(_older(kind, facts))


def _older(kind: str, facts: tuple[tuple[int, bytes], ...]) -> Iterator[tuple[int, bytes]]:
    for key, value in facts:
        if (kind, key) == ("set", SET_USERDATA) and not dict(facts).get(SET_FLAGS, b"\0")[-1] & SET_ANONYMOUS:
            yield key, b"".join(_notes(value))
        elif (kind, key) == ("rule", EXPRESSIONS):
            yield key, b"".join(map(_two_comparisons, members(value)))
        elif (kind, key) != ("table", TABLE_USERDATA):
            yield key, value


def _notes(userdata: bytes) -> Iterator[bytes]:
    """What nft keeps with a set that has a name, without how it was declared: kinds and lengths of a byte."""
    at = 0
    while at < len(userdata):
        end = at + 2 + userdata[at + 1]
        if userdata[at] != KEY_TYPEOF:
            yield userdata[at:end]
        at = end


def _two_comparisons(element: bytes) -> bytes:
    """An expression of a rule; a range that includes its ends as the two comparisons that mean the same."""
    parts = attributes(element)
    facts = attributes(parts.get(EXPRESSION_DATA, b""))
    if name(parts[EXPRESSION_NAME]) != "range" or any(facts[RANGE_OPERATOR]):
        return attribute(ELEMENT, element)
    low, high = (attributes(facts[each])[DATA_VALUE] for each in (RANGE_FROM, RANGE_TO))
    return compare(low, operator=AT_LEAST) + compare(high, operator=AT_MOST)
