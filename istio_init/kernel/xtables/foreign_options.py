"""What other programs' matches and targets say, as iptables-save prints it: from the kernel's structs to words.

A plain run has no such rules. The layouts are those of <linux/netfilter/xt_*.h>, <linux/netfilter_ipv4/ipt_*.h> and
<linux/netfilter_ipv6/ip6t_*.h>; the spellings those of the save functions in iptables' extensions/. What is not known
here has no words, and stays bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.xtables.set_names import NONE, set_name
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from istio_init.model.rules import Family

    Reader: TypeAlias = Callable[[bytes, Family], Iterator[str]]

IPV4_BYTES, IPV6_BYTES = 4, 16
NO_TIMEOUT = 0xFFFFFFFF
STATES = {1: "INVALID", 8: "NEW", 4: "RELATED", 2: "ESTABLISHED", 64: "UNTRACKED", 128: "SNAT", 256: "DNAT"}
STATUS = {1: "EXPECTED", 2: "SEEN_REPLY", 4: "ASSURED", 8: "CONFIRMED"}
TYPES = (
    *("UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT"),
    *("THROW", "NAT", "XRESOLVE"),
)
TCP_FLAGS = {1: "FIN", 2: "SYN", 4: "RST", 8: "PSH", 16: "ACK", 32: "URG"}
REJECT4 = (
    *("icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable", "echo-reply"),
    *("icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited"),
)
REJECT6 = (
    *("icmp6-no-route", "icmp6-adm-prohibited", "icmp6-not-neighbour", "icmp6-addr-unreachable"),
    *("icmp6-port-unreachable", "echo-reply", "tcp-reset", "icmp6-policy-fail", "icmp6-reject-route"),
)
# Bits of struct nf_nat_range's flags.
MAP_IPS, PROTO_SPECIFIED, PROTO_RANDOM, PERSISTENT, PROTO_RANDOM_FULLY = 1, 2, 4, 8, 16
# In units of 1/10000 seconds (XT_LIMIT_SCALE), as iptables/extensions/libxt_limit.c rounds.
RATES = (("day", 10000 * 24 * 60 * 60), ("hour", 10000 * 60 * 60), ("min", 10000 * 60), ("sec", 10000))


def match_options(name: str, revision: int, data: bytes, family: Family = IPV4) -> str | None:
    """The options of a match; None where they are not known here."""
    return _read(_MATCHES.get((name, revision)), data, family)


def target_options(name: str, revision: int, data: bytes, family: Family) -> str | None:
    """The options of a target, which may be none; None where they are not known here."""
    return _read(_TARGETS.get((name, revision)), data, family)


def _read(reader: Reader | None, data: bytes, family: Family) -> str | None:
    if reader is None:
        return None
    try:
        return " ".join(reader(data, family))
    except (struct.error, IndexError, ValueError):
        return None  # an unexpected length: its layout is unknown


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _quoted(text: str) -> str:
    """A string as xtables_save_string prints it."""
    bare = text and all(each.isascii() and (each.isalnum() or each in "_-") for each in text)
    return text if bare else '"' + "".join(f"\\{each}" if each in "\"\\'" else each for each in text) + '"'


def _not(inverted: object) -> str:
    return "! " if inverted else ""


def _names(bits: int, names: dict[int, str]) -> str:
    return ",".join(name for bit, name in names.items() if bits & bit)


# Matches.


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
            names = ",".join(name for bit, name in enumerate(TYPES) if bits >> bit & 1)
            yield f"{_not(inverted)}--{side}-type {names}"


def _conntrack(data: bytes, family: Family) -> Iterator[str]:
    """Of revision 3; see conntrack_dump in libxt_conntrack.c."""
    size = IPV4_BYTES if family == IPV4 else IPV6_BYTES
    addresses = [data[at : at + 16] for at in range(0, 128, 16)]
    low_expiry, high_expiry, protocol = struct.unpack_from("=IIH", data, 128)
    ports = struct.unpack_from("=4H", data, 138)
    flags, inverted, states, status = struct.unpack_from("=4H", data, 146)
    highs = struct.unpack_from("=4H", data, 154)
    if flags & 1:
        alias = flags & 1 << 13  # XT_CONNTRACK_STATE_ALIAS
        yield f"{_not(inverted & 1)}--{'state' if alias else 'ctstate'} {_names(states, STATES)}"
    if flags & 2:
        yield f"{_not(inverted & 2)}--ctproto {protocol}"
    for at, (bit, side) in enumerate(((4, "origsrc"), (8, "origdst"), (16, "replsrc"), (32, "repldst"))):
        if flags & bit:
            prefix = int.from_bytes(addresses[2 * at + 1][:size]).bit_count()
            plain = address_text(addresses[2 * at][:size])
            yield f"{_not(inverted & bit)}--ct{side} {plain}" + (f"/{prefix}" if prefix != size * 8 else "")
    for at, (bit, side) in enumerate(((256, "origsrc"), (512, "origdst"), (1024, "replsrc"), (2048, "repldst"))):
        if flags & bit:
            text = f"{ports[at]}" if ports[at] == highs[at] else f"{ports[at]}:{highs[at]}"
            yield f"{_not(inverted & bit)}--ct{side}port {text}"
    if flags & 64:
        yield f"{_not(inverted & 64)}--ctstatus {_names(status, STATUS) or 'NONE'}"
    if flags & 128:
        text = f"{low_expiry}" if low_expiry == high_expiry else f"{low_expiry}:{high_expiry}"
        yield f"{_not(inverted & 128)}--ctexpire {text}"
    if flags & 4096:
        yield f"--ctdir {'REPLY' if inverted & 4096 else 'ORIGINAL'}"


def _state(data: bytes, _: Family) -> Iterator[str]:
    yield f"--state {_names(struct.unpack_from('=I', data)[0], STATES)}"


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
        yield f"--mode random {_not(inverted)}--probability {first / 0x80000000:.11f}"
    else:
        yield f"--mode nth {_not(inverted)}--every {first + 1} --packet {second}"


def _physdev(data: bytes, _: Family) -> Iterator[str]:
    into, out = _text(data[0:16]), _text(data[32:48])
    inverted, which = data[64], data[65]
    for bit, option in ((8, "is-in"), (1, f"in {into}"), (16, "is-out"), (2, f"out {out}"), (4, "is-bridged")):
        if which & bit:
            yield f"{_not(inverted & bit)}--physdev-{option}"


def _set(data: bytes, _: Family) -> Iterator[str]:
    yield f"{_not(data[3] & 1)}--match-set {_set_and_sides(data, 0)}"


def _set_and_sides(data: bytes, at: int) -> str:
    """A struct xt_set_info: the set's name, and which side of a packet each of its dimensions is."""
    number, dimensions, flags = struct.unpack_from("=HBB", data, at)
    sides = ",".join("src" if flags >> each & 1 else "dst" for each in range(1, dimensions + 1))
    return f"{set_name(number)} {sides}"


def _set_target(data: bytes, _: Family) -> Iterator[str]:
    """The structs xt_set_info_target_v1 to _v3: sets to add to, to delete from and to map by, flags, a timeout."""
    sets = 3 if len(data) >= 20 else 2
    flags, timeout = struct.unpack_from("=II", data, 4 * sets) if len(data) >= 4 * sets + 8 else (0, NO_TIMEOUT)
    for place, option in enumerate(("--add-set", "--del-set", "--map-set")[:sets]):
        if struct.unpack_from("=H", data, 4 * place)[0] == NONE:
            continue
        if option == "--map-set":
            raise ValueError  # with further flags for what is mapped
        yield f"{option} {_set_and_sides(data, 4 * place)}"
        if option == "--add-set" and flags & 1:
            yield "--exist"
        if option == "--add-set" and timeout != NO_TIMEOUT:
            yield f"--timeout {timeout}"


def _iprange(data: bytes, family: Family) -> Iterator[str]:
    size, flags = IPV4_BYTES if family == IPV4 else IPV6_BYTES, data[64]
    ends = [address_text(data[at : at + size]) for at in range(0, 64, 16)]
    if flags & 1:
        yield f"{_not(flags & 16)}--src-range {ends[0]}-{ends[1]}"
    if flags & 2:
        yield f"{_not(flags & 32)}--dst-range {ends[2]}-{ends[3]}"


def _rpfilter(data: bytes, _: Family) -> Iterator[str]:
    for bit, option in ((1, "loose"), (2, "validmark"), (4, "accept-local"), (8, "invert")):
        if data[0] & bit:
            yield f"--{option}"


def _tcp(data: bytes, _: Family) -> Iterator[str]:
    *ports, option, mask, compared, inverted = struct.unpack_from("=4H4B", data)
    for at, (side, bit) in enumerate((("sport", 1), ("dport", 2))):
        low, high = ports[2 * at : 2 * at + 2]
        if (low, high) != (0, 0xFFFF) or inverted & bit:
            yield f"{_not(inverted & bit)}--{side} {low}" + (f":{high}" if low != high else "")
    if option or inverted & 8:
        yield f"{_not(inverted & 8)}--tcp-option {option}"
    if mask or inverted & 4:
        names = [_names(bits, TCP_FLAGS) if bits else "NONE" for bits in (mask, compared)]
        yield f"{_not(inverted & 4)}--tcp-flags {names[0]} {names[1]}"


def _icmp(data: bytes, family: Family) -> Iterator[str]:
    kind, low, high, inverted = data[:4]
    text = "any" if kind == 0xFF and family == IPV4 else f"{kind}" if (low, high) == (0, 0xFF) else f"{kind}/{low}"
    yield f"{_not(inverted & 1)}--{'icmp-type' if family == IPV4 else 'icmpv6-type'} {text}"


def _cgroup(data: bytes, _: Family) -> Iterator[str]:
    has_path, has_class, not_path, not_class = data[:4]
    if has_path:
        yield f"{_not(not_path)}--path {_quoted(_text(data[4:]))}"
    if has_class:
        yield f"{_not(not_class)}--cgroup {struct.unpack_from('=I', data, 4)[0]}"


def _pkttype(data: bytes, _: Family) -> Iterator[str]:
    kind, inverted = struct.unpack_from("=II", data)
    yield f"{_not(inverted)}--pkt-type {('unicast', 'broadcast', 'multicast')[kind]}"


# Targets.


def _range(data: bytes, family: Family, revision: int) -> tuple[int, str]:
    """The flags of a range of network address translation, and the range as iptables-save prints it."""
    if family == IPV4 and revision == 0:
        _, flags, low, high, first, last = struct.unpack_from("=II4s4s2s2s", data)
    else:
        size = IPV4_BYTES if family == IPV4 else IPV6_BYTES
        flags, low, high, first, last = struct.unpack_from("=I16s16s2s2s", data)
        low, high = low[:size], high[:size]
    ports = [int.from_bytes(each) for each in (first, last)]
    text = ""
    if flags & MAP_IPS:
        text = address_text(low) + (f"-{address_text(high)}" if low != high else "")
        text = f"[{text}]" if family != IPV4 and flags & PROTO_SPECIFIED else text
    if flags & PROTO_SPECIFIED:
        text += f":{ports[0]}" + (f"-{ports[1]}" if ports[0] != ports[1] else "")
    return flags, text


def _nat(option: str, revision: int) -> Reader:
    def read(data: bytes, family: Family) -> Iterator[str]:
        flags, text = _range(data, family, revision)
        if text:
            yield f"{option} {text.removeprefix(':') if option == '--to-ports' else text}"
        for bit, word in ((PROTO_RANDOM, "random"), (PROTO_RANDOM_FULLY, "random-fully"), (PERSISTENT, "persistent")):
            if flags & bit:
                yield f"--{word}"

    return read


def _reject(data: bytes, family: Family) -> Iterator[str]:
    yield f"--reject-with {(REJECT4 if family == IPV4 else REJECT6)[struct.unpack_from('=I', data)[0]]}"


def _log(data: bytes, _: Family) -> Iterator[str]:
    level, flags = data[:2]
    if prefix := _text(data[2:32]):
        yield f"--log-prefix {_quoted(prefix)}"
    if level != 4:
        yield f"--log-level {level}"
    words = ((1, "tcp-sequence"), (2, "tcp-options"), (4, "ip-options"), (8, "uid"), (32, "macdecode"))
    yield from (f"--log-{word}" for bit, word in words if flags & bit)


def _nflog(data: bytes, _: Family) -> Iterator[str]:
    length, group, threshold, flags = struct.unpack_from("=IHHH", data)
    if prefix := _text(data[12:76]):
        yield f"--nflog-prefix {_quoted(prefix)}"
    if group:
        yield f"--nflog-group {group}"
    if length:
        yield f"--nflog-{'size' if flags & 1 else 'range'} {length}"
    if threshold:
        yield f"--nflog-threshold {threshold}"


def _tcpmss(data: bytes, _: Family) -> Iterator[str]:
    (size,) = struct.unpack_from("=H", data)
    yield "--clamp-mss-to-pmtu" if size == 0xFFFF else f"--set-mss {size}"


def _connmark(data: bytes, _: Family) -> Iterator[str]:
    mark, mask, _nfmask = struct.unpack_from("=III", data)
    if data[12] == 0:
        yield f"--set-xmark {mark:#x}/{mask:#x}"


def _ct(data: bytes, _: Family) -> Iterator[str]:
    flags, zone, events, expected = struct.unpack_from("=HHII", data)
    if flags & 1:
        yield "--notrack"
        return
    if helper := _text(data[12:28]):
        yield f"--helper {helper}"
    if events or expected:
        raise ValueError  # by name only in iptables' own table
    if zone or flags & 12:
        yield f"--zone{'-orig' if flags & 4 else '-reply' if flags & 8 else ''} {'mark' if flags & 16 else zone}"


def _nfqueue(data: bytes, _: Family) -> Iterator[str]:
    first, total = struct.unpack_from("=HH", data)
    yield f"--queue-balance {first}:{first + total - 1}" if total > 1 else f"--queue-num {first}"
    (flags,) = struct.unpack_from("=H", data, 4)
    if flags & 1:
        yield "--queue-bypass"
    if flags & 2:
        yield "--queue-cpu-fanout"


_MATCHES: dict[tuple[str, int], Reader] = {
    ("addrtype", 0): _addrtype0,
    ("addrtype", 1): _addrtype1,
    ("conntrack", 3): _conntrack,
    ("state", 0): _state,
    ("limit", 0): _limit,
    ("statistic", 0): _statistic,
    ("physdev", 0): _physdev,
    **{("set", revision): _set for revision in (1, 2, 3, 4)},
    ("iprange", 1): _iprange,
    ("rpfilter", 0): _rpfilter,
    ("tcp", 0): _tcp,
    ("icmp", 0): _icmp,
    ("icmp6", 0): _icmp,
    ("cgroup", 1): _cgroup,
    ("cgroup", 2): _cgroup,
    ("pkttype", 0): _pkttype,
}
_TARGETS: dict[tuple[str, int], Reader] = {
    **{("DNAT", revision): _nat("--to-destination", revision) for revision in (0, 1, 2)},
    **{("SNAT", revision): _nat("--to-source", revision) for revision in (0, 1, 2)},
    ("MASQUERADE", 0): _nat("--to-ports", 0),
    ("REDIRECT", 0): _nat("--to-ports", 0),
    ("REJECT", 0): _reject,
    ("LOG", 0): _log,
    ("NFLOG", 0): _nflog,
    ("TCPMSS", 0): _tcpmss,
    ("CONNMARK", 1): _connmark,
    ("CONNMARK", 2): _connmark,
    ("CT", 1): _ct,
    ("CT", 2): _ct,
    ("NFQUEUE", 3): _nfqueue,
    **{("SET", revision): _set_target for revision in (1, 2, 3)},
}
