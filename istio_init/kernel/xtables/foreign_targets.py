"""Prints other programs' targets; foreign_options.py selects the function."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text
from istio_init.kernel.xtables.foreign_words import address_size, choice, quoted, text_of
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

EVENTS = ("new", "related", "destroy", "reply", "assured", "protoinfo", "helper", "mark", "natseqinfo", "secmark")
NFLOG_SIZE = 80  # of the struct xt_nflog_info
REJECT4 = (
    *("icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable", "echo-reply"),
    *("icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited"),
)
REJECT6 = (
    *("icmp6-no-route", "icmp6-adm-prohibited", "icmp6-not-neighbour", "icmp6-addr-unreachable"),
    *("icmp6-port-unreachable", "echo-reply", "tcp-reset", "icmp6-policy-fail", "icmp6-reject-route"),
)
# Bits of struct nf_nat_range's flags.
MAP_IPS, PROTO_SPECIFIED, PROTO_RANDOM, PERSISTENT, PROTO_RANDOM_FULLY, PROTO_OFFSET = 1, 2, 4, 8, 16, 32


def _range(data: bytes, family: Family, revision: int) -> tuple[int, str]:
    """The flags of a range of network address translation, and the range as iptables-save prints it."""
    if family == IPV4 and revision == 0:
        _, flags, low, high, first, last = struct.unpack_from("=II4s4s2s2s", data)
    else:
        size = address_size(family)
        flags, low, high, first, last = struct.unpack_from("=I16s16s2s2s", data)
        low, high = low[:size], high[:size]
    ports = [int.from_bytes(each) for each in (first, last)]
    text = ""
    if flags & MAP_IPS:
        text = address_text(low) + (f"-{address_text(high)}" if low != high else "")
        text = f"[{text}]" if family != IPV4 and flags & PROTO_SPECIFIED else text
    if flags & PROTO_SPECIFIED:
        text += f":{ports[0]}" + (f"-{ports[1]}" if ports[0] != ports[1] else "")
    if flags & PROTO_OFFSET:
        text += f"/{int.from_bytes(data[40:42])}"
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
    if prefix := text_of(data[2:32]):
        yield f"--log-prefix {quoted(prefix)}"
    if level != 4:
        yield f"--log-level {level}"
    words = ((1, "tcp-sequence"), (2, "tcp-options"), (4, "ip-options"), (8, "uid"), (32, "macdecode"))
    yield from (f"--log-{word}" for bit, word in words if flags & bit)


def _nflog(data: bytes, _: Family) -> Iterator[str]:
    length, group, threshold, flags = struct.unpack_from("=IHHH", data)
    # nftables has room for a longer prefix than the struct.
    if prefix := text_of(data[12:76] if len(data) <= NFLOG_SIZE else data[12:]):
        yield f"--nflog-prefix {quoted(prefix)}"
    if group:
        yield f"--nflog-group {group}"
    if length or flags & 1:
        yield f"--nflog-{'size' if flags & 1 else 'range'} {length}"
    if threshold:
        yield f"--nflog-threshold {threshold}"


def _tcpmss(data: bytes, _: Family) -> Iterator[str]:
    (size,) = struct.unpack_from("=H", data)
    yield "--clamp-mss-to-pmtu" if size == 0xFFFF else f"--set-mss {size}"


def _ct(revision: int) -> Reader:
    """The structs xt_ct_target_info and xt_ct_target_info_v1; with no words it is the alias NOTRACK."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        flags, zone, events, expected = struct.unpack_from("=HHII", data)
        if flags & 2:
            return
        if flags & 1:
            yield "--notrack"
        if helper := text_of(data[12:28]):
            yield f"--helper {helper}"
        if revision and (timeout := text_of(data[28:60])):
            yield f"--timeout {timeout}"
        if events:
            yield f"--ctevents {','.join(name for bit, name in enumerate(EVENTS) if events >> bit & 1)}"
        if expected:
            yield "--expevents new"
        if zone or flags & 16:
            yield f"--zone{'-orig' if flags & 4 else '-reply' if flags & 8 else ''} {'mark' if flags & 16 else zone}"

    return read


def _nfqueue(data: bytes, _: Family) -> Iterator[str]:
    first, total = struct.unpack_from("=HH", data)
    yield f"--queue-balance {first}:{first + total - 1}" if total > 1 else f"--queue-num {first}"
    (flags,) = struct.unpack_from("=H", data, 4)
    if flags & 1:
        yield "--queue-bypass"
    if flags & 2:
        yield "--queue-cpu-fanout"


def _nfqueue1(data: bytes, _: Family) -> Iterator[str]:
    first, total = struct.unpack_from("=HH", data)
    yield f"--queue-balance {first}:{first + total - 1}" if total > 1 else f"--queue-num {first}"


def _netmap(data: bytes, family: Family) -> Iterator[str]:
    size = address_size(family)
    low, high = (data[8:12], data[12:16]) if family == IPV4 else (data[4:20], data[20:36])
    kept = int.from_bytes(low) ^ int.from_bytes(high) ^ (1 << size * 8) - 1
    prefix = kept.bit_count()
    if kept != (1 << size * 8) - (1 << size * 8 - prefix):
        raise ValueError("a mask with holes")
    yield f"--to {address_text(low)}/{prefix}"


def _hops(option: str) -> Reader:
    def read(data: bytes, _: Family) -> Iterator[str]:
        yield f"--{option}-{('set', 'inc', 'dec')[data[0]]} {data[1]}"

    return read


def _tee(data: bytes, family: Family) -> Iterator[str]:
    yield f"--gateway {address_text(data[: address_size(family)])}"
    if interface := text_of(data[16:32]):
        yield f"--oif {interface}"


def _strip(data: bytes, _: Family) -> Iterator[str]:
    words = struct.unpack_from("=8I", data)
    if listed := [str(number) for number in range(256) if words[number // 32] >> number % 32 & 1]:
        yield f"--strip-options {','.join(listed)}"


def _ecn(data: bytes, _: Family) -> Iterator[str]:
    operation, ect, bits = data[:3]
    echo, reduced = bits & 1, bits >> 1 & 1
    if operation == 48 and not bits & 3:
        yield "--ecn-tcp-remove"
        return
    for bit, option in ((16, f"ecn-tcp-ece {echo}"), (32, f"ecn-tcp-cwr {reduced}"), (1, f"ecn-ip-ect {ect}")):
        if operation & bit:
            yield f"--{option}"


def _synproxy(data: bytes, _: Family) -> Iterator[str]:
    options, scale, size = struct.unpack_from("=BBH", data)
    words = ((4, "sack-perm"), (8, "timestamp"), (2, f"wscale {scale}"), (1, f"mss {size}"), (16, "ecn"))
    yield from (f"--{word}" for bit, word in words if options & bit)


def _idletimer(data: bytes, revision: int) -> Iterator[str]:
    (timeout,) = struct.unpack_from("=I", data)
    yield f"--timeout {timeout} --label {text_of(data[4:32])}"
    yield from ["--alarm"] if revision and data[33] & 1 else []


def _light(data: bytes, _: Family) -> Iterator[str]:
    """The struct xt_led_info: the trigger's name behind "netfilter-", whether it blinks always, a delay in ms.

    iptables-save prints an endless delay as -1.
    """
    name = text_of(data[:27]).removeprefix("netfilter-").replace("\\", "\\\\").replace('"', '\\"')
    (delay,) = struct.unpack_from("=i", data, 28)
    yield f'--led-trigger-id "{name}"'
    yield from [f"--led-delay {delay}"] if delay else []
    yield from ["--led-always-blink"] if data[27] else []


TARGETS: dict[tuple[str, int], Reader] = {
    **{("DNAT", revision): _nat("--to-destination", revision) for revision in (0, 1, 2)},
    **{("SNAT", revision): _nat("--to-source", revision) for revision in (0, 1, 2)},
    ("MASQUERADE", 0): _nat("--to-ports", 0),
    ("REDIRECT", 0): _nat("--to-ports", 0),
    ("REJECT", 0): _reject,
    ("LOG", 0): _log,
    ("NFLOG", 0): _nflog,
    ("TCPMSS", 0): _tcpmss,
    ("CT", 0): _ct(0),
    ("CT", 1): _ct(1),
    ("CT", 2): _ct(1),
    ("NFQUEUE", 3): _nfqueue,
    ("NFQUEUE", 0): _nfqueue1,
    ("NFQUEUE", 1): _nfqueue1,
    ("NETMAP", 0): _netmap,
    ("TTL", 0): _hops("ttl"),
    ("HL", 0): _hops("hl"),
    ("TEE", 0): _tee,
    ("TEE", 1): _tee,
    ("TCPOPTSTRIP", 0): _strip,
    ("ECN", 0): _ecn,
    ("CHECKSUM", 0): choice(0, "", "--checksum-fill"),
    ("AUDIT", 0): choice(0, "--type accept", "--type drop", "--type reject"),
    ("SYNPROXY", 0): _synproxy,
    ("IDLETIMER", 0): lambda data, _: _idletimer(data, 0),
    ("IDLETIMER", 1): lambda data, _: _idletimer(data, 1),
    ("LED", 0): _light,
    ("TRACE", 0): lambda _data, _family: iter(()),
}
