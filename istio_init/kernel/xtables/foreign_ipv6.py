"""Prints other programs' matches of IPv6 extension headers and prefix translation; foreign_options.py selects these."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.xtables.foreign_words import ALL_BITS, negation, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

# The bits of struct ip6t_ipv6header_info, in iptables' order; the names are those of /etc/protocols, if it has one.
IPV6_HEADERS = (
    *((128, "hop-by-hop"), (64, "ipv6-opts"), (32, "ipv6-route"), (16, "ipv6-frag"), (8, "ah"), (4, "esp")),
    *((2, "ipv6-nonxt"), (1, "protocol")),
)
LONGEST = 16  # IP6T_RT_HOPS and IP6T_OPTS_OPTSNR
ANY_LENGTH = 0xFF
# Of segment routing: the flag's bit, the option, and the place of its number.
SEGMENTS = (
    *((0, "next-hdr", 0), (1, "hdr-len-eq", 1), (2, "hdr-len-gt", 1), (3, "hdr-len-lt", 1), (4, "segs-left-eq", 2)),
    *((5, "segs-left-gt", 2), (6, "segs-left-lt", 2), (7, "last-entry-eq", 3), (8, "last-entry-gt", 3)),
    *((9, "last-entry-lt", 3), (10, "tag", 4)),
)
SEGMENT_IDS = ((11, "psid", 8), (12, "nsid", 24), (13, "lsid", 40))


def _routing(data: bytes, _: Family) -> Iterator[str]:
    kind, low, high, length = struct.unpack_from("=4I", data)
    flags, inverted = data[16:18]
    if flags & 1:
        yield f"{negation(inverted & 1)}--rt-type {kind}"
    if (low, high) != (0, ALL_BITS) or inverted & 2:
        yield f"{negation(inverted & 2)}--rt-segsleft {numbers(low, high)}"
    if flags & 4:
        yield f"{negation(inverted & 4)}--rt-len {length}"
    yield from ["--rt-0-res"] if flags & 8 else []
    yield from ["--rt-0-addrs"] if flags & 16 else []
    starts = range(20, 20 + 16 * min(data[276], LONGEST), 16)
    yield from [",".join(address_text(data[at : at + 16]) for at in starts)] if starts else []
    yield from ["--rt-0-not-strict"] if flags & 32 else []


def _fragment(data: bytes, _: Family) -> Iterator[str]:
    low, high, length = struct.unpack_from("=3I", data)
    flags, inverted = data[12:14]
    if (low, high) != (0, ALL_BITS) or inverted & 1:
        yield f"{negation(inverted & 1)}--fragid {numbers(low, high)}"
    if flags & 2:
        yield f"{negation(inverted & 2)}--fraglen {length}"
    for bit, option in ((4, "fragres"), (8, "fragfirst"), (16, "fragmore"), (32, "fraglast")):
        if flags & bit:
            yield f"--{option}"


def _headers(data: bytes, _: Family) -> Iterator[str]:
    listed = ",".join(name for bit, name in IPV6_HEADERS if data[0] & bit)
    yield f"{negation(data[1])}--header {listed or 'NONE'}"
    if data[2]:
        yield "--soft"


def _options(name: str) -> Reader:
    """The struct ip6t_opts: a length, and options by type and length in one number each."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        length, flags, inverted = struct.unpack_from("=IBB", data)
        if flags & 1:
            yield f"{negation(inverted & 1)}--{name}-len {length}"
        yield from [f"--{name}-opts"] if flags & 2 else []
        pairs = [(each >> 8, each & 0xFF) for each in struct.unpack_from(f"={LONGEST}H", data, 6)[: data[38]]]
        words = [f"{kind}" if size == ANY_LENGTH else f"{kind}:{size}" for kind, size in pairs]
        yield from [",".join(words)] if words else []

    return read


def _mobility(data: bytes, _: Family) -> Iterator[str]:
    low, high, inverted = data[:3]
    if (low, high) != (0, 0xFF) or inverted & 1:
        yield f"{negation(inverted & 1)}--mh-type {numbers(low, high)}"


def _segment_routing(revision: int) -> Reader:
    """The structs ip6t_srh and ip6t_srh1."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        values = struct.unpack_from("=4BH", data)
        flags, inverted = struct.unpack_from("=HH", data, 104 if revision else 6)
        for bit, option, place in SEGMENTS:
            if flags >> bit & 1:
                yield f"{negation(inverted >> bit & 1)}--srh-{option} {values[place]}"
        for bit, option, at in SEGMENT_IDS if revision else ():
            if flags >> bit & 1:
                prefix = int.from_bytes(data[at + 48 : at + 64]).bit_count()
                yield f"{negation(inverted >> bit & 1)}--srh-{option} {address_text(data[at : at + 16])}/{prefix}"

    return read


def _prefixes(data: bytes, _: Family) -> Iterator[str]:
    """The struct ip6t_npt_tginfo."""
    for at, option in enumerate(("--src-pfx", "--dst-pfx")):
        address, prefix = data[16 * at : 16 * at + 16], data[32 + at]
        if any(address) or prefix:
            yield f"{option} {address_text(address)}/{prefix}"


MATCHES: dict[tuple[str, int], Reader] = {
    ("rt", 0): _routing,
    ("frag", 0): _fragment,
    ("ipv6header", 0): _headers,
    ("dst", 0): _options("dst"),
    ("hbh", 0): _options("hbh"),
    ("mh", 0): _mobility,
    ("srh", 0): _segment_routing(0),
    ("srh", 1): _segment_routing(1),
}
TARGETS: dict[tuple[str, int], Reader] = {("DNPT", 0): _prefixes, ("SNPT", 0): _prefixes}
