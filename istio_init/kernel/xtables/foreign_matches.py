"""Prints other programs' matches of addresses, connections, TCP and rates; foreign_options.py selects the function."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.xtables.foreign_words import address_size, names, negation, quoted, set_and_sides, text_of
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

STATES = {1: "INVALID", 8: "NEW", 4: "RELATED", 2: "ESTABLISHED", 256: "UNTRACKED", 64: "SNAT", 128: "DNAT"}
STATUS = {1: "EXPECTED", 2: "SEEN_REPLY", 4: "ASSURED", 8: "CONFIRMED"}
TYPES = (
    *("UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT"),
    *("THROW", "NAT", "XRESOLVE"),
)
TCP_FLAGS = {1: "FIN", 2: "SYN", 4: "RST", 8: "PSH", 16: "ACK", 32: "URG"}
# In units of 1/10000 seconds (XT_LIMIT_SCALE), as iptables/extensions/libxt_limit.c rounds.
RATES = (("day", 10000 * 24 * 60 * 60), ("hour", 10000 * 60 * 60), ("min", 10000 * 60), ("sec", 10000))

# The first revision of -m set that compares counters, and how it does.
SET_COUNTERS = 3
SET_COMPARED = ("--{}-eq {}", "! --{}-eq {}", "--{}-lt {}", "--{}-gt {}")


def _addrtype0(data: bytes, _: Family) -> Iterator[str]:
    source, destination, invert_source, invert_destination = struct.unpack_from("=HHII", data)
    yield from _addrtypes(source, destination, bool(invert_source), bool(invert_destination))


def _addrtype1(data: bytes, _: Family) -> Iterator[str]:
    source, destination, flags = struct.unpack_from("=HHI", data)
    yield from _addrtypes(source, destination, bool(flags & 1), bool(flags & 2))
    yield from [] if not flags & 4 else ["--limit-iface-in"]
    yield from [] if not flags & 8 else ["--limit-iface-out"]


def _addrtypes(source: int, destination: int, not_source: bool, not_destination: bool) -> Iterator[str]:  # noqa: FBT001
    for side, bits, inverted in (("src", source, not_source), ("dst", destination, not_destination)):
        if bits:
            words = ",".join(name for bit, name in enumerate(TYPES) if bits >> bit & 1)
            yield f"{negation(inverted)}--{side}-type {words}"


def _conntrack(data: bytes, family: Family) -> Iterator[str]:
    """Of revision 3; see conntrack_dump in libxt_conntrack.c."""
    size = address_size(family)
    addresses = [data[at : at + 16] for at in range(0, 128, 16)]
    low_expiry, high_expiry, protocol = struct.unpack_from("=IIH", data, 128)
    ports = struct.unpack_from("=4H", data, 138)
    flags, inverted, states, status = struct.unpack_from("=4H", data, 146)
    highs = struct.unpack_from("=4H", data, 154)
    if flags & 1:
        alias = flags & 1 << 13  # XT_CONNTRACK_STATE_ALIAS
        yield f"{negation(inverted & 1)}--{'state' if alias else 'ctstate'} {names(states, STATES)}"
    if flags & 2:
        yield f"{negation(inverted & 2)}--ctproto {protocol}"
    for at, (bit, side) in enumerate(((4, "origsrc"), (8, "origdst"), (16, "replsrc"), (32, "repldst"))):
        if flags & bit:
            prefix = int.from_bytes(addresses[2 * at + 1][:size]).bit_count()
            plain = address_text(addresses[2 * at][:size])
            yield f"{negation(inverted & bit)}--ct{side} {plain}" + (f"/{prefix}" if prefix != size * 8 else "")
    for at, (bit, side) in enumerate(((256, "origsrc"), (512, "origdst"), (1024, "replsrc"), (2048, "repldst"))):
        if flags & bit:
            text = f"{ports[at]}" if ports[at] == highs[at] else f"{ports[at]}:{highs[at]}"
            yield f"{negation(inverted & bit)}--ct{side}port {text}"
    if flags & 64:
        yield f"{negation(inverted & 64)}--ctstatus {names(status, STATUS) or 'NONE'}"
    if flags & 128:
        text = f"{low_expiry}" if low_expiry == high_expiry else f"{low_expiry}:{high_expiry}"
        yield f"{negation(inverted & 128)}--ctexpire {text}"
    if flags & 4096:
        yield f"--ctdir {'REPLY' if inverted & 4096 else 'ORIGINAL'}"


def _state(data: bytes, _: Family) -> Iterator[str]:
    yield f"--state {names(struct.unpack_from('=I', data)[0], STATES)}"


def _limit(data: bytes, _: Family) -> Iterator[str]:
    period, burst = struct.unpack_from("=II", data)
    last = RATES[0]
    for rate in RATES[1:]:
        if period > rate[1] or rate[1] // period < rate[1] % period:
            break
        last = rate
    yield f"--limit {last[1] // period}/{last[0]}"
    if burst != 5:
        yield f"--limit-burst {burst}"


def _statistic(data: bytes, _: Family) -> Iterator[str]:
    mode, inverted, first, second = struct.unpack_from("=HHII", data)
    if mode == 0:
        yield f"--mode random {negation(inverted)}--probability {first / 0x80000000:.11f}"
    else:
        yield f"--mode nth {negation(inverted)}--every {first + 1} --packet {second}"


def _physdev(data: bytes, _: Family) -> Iterator[str]:
    into, out = text_of(data[0:16]), text_of(data[32:48])
    inverted, which = data[64], data[65]
    for bit, option in ((8, "is-in"), (1, f"in {into}"), (16, "is-out"), (2, f"out {out}"), (4, "is-bridged")):
        if which & bit:
            yield f"{negation(inverted & bit)}--physdev-{option}"


def _set(revision: int) -> Reader:
    """The structs xt_set_info_match_v1, _v3 and _v4: the set, and from _v3 on two counters to compare, and flags."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        yield f"{negation(data[3] & 1)}--match-set {set_and_sides(data, 0)}"
        if revision < SET_COUNTERS:
            yield from ["--return-nomatch"] if data[3] & 128 else []
            return
        layout = struct.Struct("=B7xQ" if revision == SET_COUNTERS else "=QB7x")
        compared = [layout.unpack_from(data, 8 + 16 * at) for at in (0, 1)]
        (flags,) = struct.unpack_from("=I", data, 40)
        words = ((128, "--return-nomatch"), (8, "! --update-counters"), (16, "! --update-subcounters"))
        yield from (word for bit, word in words if flags & bit)
        for name, pair in zip(("packets", "bytes"), compared, strict=True):
            operation, value = pair if revision == SET_COUNTERS else pair[::-1]
            if operation:
                yield SET_COMPARED[operation - 1].format(name, value)

    return read


def _iprange(data: bytes, family: Family) -> Iterator[str]:
    size, flags = address_size(family), data[64]
    ends = [address_text(data[at : at + size]) for at in range(0, 64, 16)]
    if flags & 1:
        yield f"{negation(flags & 16)}--src-range {ends[0]}-{ends[1]}"
    if flags & 2:
        yield f"{negation(flags & 32)}--dst-range {ends[2]}-{ends[3]}"


def _rpfilter(data: bytes, _: Family) -> Iterator[str]:
    for bit, option in ((1, "loose"), (2, "validmark"), (4, "accept-local"), (8, "invert")):
        if data[0] & bit:
            yield f"--{option}"


def _ports(ports: Sequence[int], inverted: int) -> Iterator[str]:
    for at, (side, bit) in enumerate((("sport", 1), ("dport", 2))):
        low, high = ports[2 * at : 2 * at + 2]
        if (low, high) != (0, 0xFFFF) or inverted & bit:
            yield f"{negation(inverted & bit)}--{side} {low}" + (f":{high}" if low != high else "")


def _udp(data: bytes, _: Family) -> Iterator[str]:
    *ports, inverted = struct.unpack_from("=4HB", data)
    yield from _ports(ports, inverted)


def _tcp(data: bytes, _: Family) -> Iterator[str]:
    *ports, option, mask, compared, inverted = struct.unpack_from("=4H4B", data)
    yield from _ports(ports, inverted)
    if option or inverted & 8:
        yield f"{negation(inverted & 8)}--tcp-option {option}"
    if mask or inverted & 4:
        flags = [names(bits, TCP_FLAGS) if bits else "NONE" for bits in (mask, compared)]
        yield f"{negation(inverted & 4)}--tcp-flags {flags[0]} {flags[1]}"


def _icmp(data: bytes, family: Family) -> Iterator[str]:
    kind, low, high, inverted = data[:4]
    every = (low, high) == (0, 0xFF)
    text = "any" if (kind, every, family) == (0xFF, True, IPV4) else f"{kind}" if every else f"{kind}/{low}"
    yield f"{negation(inverted & 1)}--{'icmp-type' if family == IPV4 else 'icmpv6-type'} {text}"


def _cgroup(data: bytes, _: Family) -> Iterator[str]:
    has_path, has_class, not_path, not_class = data[:4]
    if has_path:
        yield f"{negation(not_path)}--path {quoted(text_of(data[4:]))}"
    if has_class:
        yield f"{negation(not_class)}--cgroup {struct.unpack_from('=I', data, 4)[0]}"


def _pkttype(data: bytes, _: Family) -> Iterator[str]:
    kind, inverted = struct.unpack_from("=II", data)
    yield f"{negation(inverted)}--pkt-type {('unicast', 'broadcast', 'multicast')[kind]}"


MATCHES: dict[tuple[str, int], Reader] = {
    ("addrtype", 0): _addrtype0,
    ("addrtype", 1): _addrtype1,
    ("conntrack", 3): _conntrack,
    ("state", 0): _state,
    ("limit", 0): _limit,
    ("statistic", 0): _statistic,
    ("physdev", 0): _physdev,
    **{("set", revision): _set(revision) for revision in (1, 2, 3, 4)},
    ("iprange", 1): _iprange,
    ("rpfilter", 0): _rpfilter,
    ("tcp", 0): _tcp,
    ("udp", 0): _udp,
    ("icmp", 0): _icmp,
    ("icmp6", 0): _icmp,
    ("cgroup", 1): _cgroup,
    ("cgroup", 2): _cgroup,
    ("pkttype", 0): _pkttype,
}
