"""Prints other programs' matches of a packet's headers and content; foreign_options.py selects the function."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.foreign_words import ALL_BITS, negation, numbers, text_of
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

SCTP_TYPES = {1: "any", 2: "all", 4: "only"}  # SCTP_CHUNK_MATCH_*
# Of each chunk: its name, and the letters of its flags from the highest bit.
_NO_FLAGS = "--------"
CHUNKS = {
    0: ("DATA", "----IUBE"), 1: ("INIT", _NO_FLAGS), 2: ("INIT_ACK", _NO_FLAGS), 3: ("SACK", _NO_FLAGS),
    4: ("HEARTBEAT", _NO_FLAGS), 5: ("HEARTBEAT_ACK", _NO_FLAGS), 6: ("ABORT", "-------T"),
    7: ("SHUTDOWN", _NO_FLAGS), 8: ("SHUTDOWN_ACK", _NO_FLAGS), 9: ("ERROR", _NO_FLAGS),
    10: ("COOKIE_ECHO", _NO_FLAGS), 11: ("COOKIE_ACK", _NO_FLAGS), 12: ("ECN_ECNE", _NO_FLAGS),
    13: ("ECN_CWR", _NO_FLAGS), 14: ("SHUTDOWN_COMPLETE", "-------T"), 64: ("I_DATA", "----IUBE"),
    128: ("ASCONF_ACK", _NO_FLAGS), 130: ("RE_CONFIG", _NO_FLAGS), 132: ("PAD", _NO_FLAGS),
    192: ("FORWARD_TSN", _NO_FLAGS), 193: ("ASCONF", _NO_FLAGS), 194: ("I_FORWARD_TSN", _NO_FLAGS),
}  # fmt: skip
CHUNK_WORDS = 64
DCCP_TYPES = ("REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC", "SYNCACK")
U32_OPERATIONS = ("&", "<<", ">>", "@")
U32_TESTS, U32_PARTS, U32_SIZE = 11, 11, 180


def _length(data: bytes, _: Family) -> Iterator[str]:
    low, high, inverted = struct.unpack_from("=HHB", data)
    yield f"{negation(inverted)}--length {numbers(low, high)}"


def _tcpmss(data: bytes, _: Family) -> Iterator[str]:
    low, high, inverted = struct.unpack_from("=HHB", data)
    yield f"{negation(inverted)}--mss {numbers(low, high)}"


def _hops(option: str) -> Reader:
    def read(data: bytes, _: Family) -> Iterator[str]:
        operator = ("--{}-eq", "! --{}-eq", "--{}-lt", "--{}-gt")[data[0]]
        yield f"{operator.format(option)} {data[1]}"

    return read


def _dscp(data: bytes, _: Family) -> Iterator[str]:
    yield f"{negation(data[1])}--dscp {data[0]:#04x}"


def _tos0(data: bytes, _: Family) -> Iterator[str]:
    yield f"{negation(data[1])}--tos {data[0]:#04x}"


def _tos1(data: bytes, _: Family) -> Iterator[str]:
    yield f"{negation(data[2])}--tos {data[1]:#04x}/{data[0]:#04x}"


def _ecn(data: bytes, _: Family) -> Iterator[str]:
    operation, inverted, ect = data[:3]
    for bit, option in ((16, "ecn-tcp-ece"), (32, "ecn-tcp-cwr"), (1, f"ecn-ip-ect {ect}")):
        if operation & bit:
            yield f"{negation(inverted & bit)}--{option}"


def _mac(data: bytes, _: Family) -> Iterator[str]:
    (inverted,) = struct.unpack_from("=I", data, 8)
    yield f"{negation(inverted)}--mac-source {data[:6].hex(':')}"


def _transport(destination: tuple[int, int], source: tuple[int, int], flags: int, inverted: int) -> Iterator[str]:
    """The ports of SCTP and DCCP."""
    for bit, option, ports in ((1, "sport", source), (2, "dport", destination)):
        if flags & bit:
            yield f"{negation(inverted & bit)}--{option} {numbers(*ports)}"


def _sctp(data: bytes, _: Family) -> Iterator[str]:
    ports = struct.unpack_from("=4H", data)
    flags, inverted = struct.unpack_from("=II", data, 284)
    yield from _transport(ports[:2], ports[2:], flags, inverted)
    if flags & 4:
        (kind,) = struct.unpack_from("=I", data, 264)
        yield f"{negation(inverted & 4)}--chunk-types {SCTP_TYPES[kind]} {_chunks(data)}"


def _chunks(data: bytes) -> str:
    words = struct.unpack_from(f"={CHUNK_WORDS}I", data, 8)
    if not any(words):
        return "NONE"
    if all(each == ALL_BITS for each in words):
        return "ALL"
    (count,) = struct.unpack_from("=i", data, 280)
    flags = {data[at]: (data[at + 1], data[at + 2]) for at in range(268, 268 + 3 * count, 3)}
    return ",".join(_chunk(number, *flags.get(number, (0, 0))) for number in range(256) if _bit(words, number))


def _bit(words: tuple[int, ...], number: int) -> int:
    return words[number // 32] >> number % 32 & 1


def _chunk(number: int, flags: int, mask: int) -> str:
    if number not in CHUNKS:
        raise ValueError("a chunk without a name")
    name, letters = CHUNKS[number]
    shown = (
        letters[7 - bit] if flags >> bit & 1 else letters[7 - bit].lower()
        for bit in range(7, -1, -1)
        if mask >> bit & 1
    )
    return f"{name}:{''.join(shown)}" if mask else name


def _dccp(data: bytes, _: Family) -> Iterator[str]:
    ports = struct.unpack_from("=4H", data)
    flags, inverted, types = struct.unpack_from("=3H", data, 8)
    yield from _transport(ports[:2], ports[2:], flags, inverted)
    if flags & 4:
        listed = [name for bit, name in enumerate(DCCP_TYPES) if types >> bit & 1]
        listed += ["INVALID"] if types >> len(DCCP_TYPES) else []
        yield f"{negation(inverted & 4)}--dccp-types {','.join(listed)}"
    if flags & 8:
        yield f"{negation(inverted & 8)}--dccp-option {data[14]}"


def _spi(option: str, inverted_at: int) -> Reader:
    """A range of IPsec's security parameter indexes."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        low, high = struct.unpack_from("=II", data)
        inverted = data[inverted_at] & 1
        if (low, high) != (0, ALL_BITS) or inverted:
            yield f"{negation(inverted)}--{option} {numbers(low, high)}"

    return read


def _ah(data: bytes, family: Family) -> Iterator[str]:
    """Its struct has further fields for IPv6."""
    if family == IPV4:
        yield from _spi("ahspi", 8)(data, family)
        return
    length, reserved = struct.unpack_from("=IB", data, 8)
    yield from _spi("ahspi", 13)(data, family)
    if length or data[13] & 2:
        yield f"{negation(data[13] & 2)}--ahlen {length}"
    yield from ["--ahres"] if reserved else []


def _string(revision: int) -> Reader:
    def read(data: bytes, _: Family) -> Iterator[str]:
        first, last = struct.unpack_from("=HH", data)
        algorithm, length, flags = text_of(data[4:20]), data[148], data[149]
        pattern = data[20 : 20 + length]
        inverted = bool(flags) if revision == 0 else flags & 1
        if all(32 <= byte < 127 for byte in pattern) and not pattern.endswith(b"\\"):
            escaped = pattern.decode().replace("\\", "\\\\").replace('"', '\\"')
            yield f'{negation(inverted)}--string "{escaped}"'
        else:
            yield f'{negation(inverted)}--hex-string "|{pattern.hex()}|"'
        yield f"--algo {algorithm}"
        yield from [f"--from {first}"] if first else []
        yield from [f"--to {last}"] if last != 0xFFFF else []
        yield from ["--icase"] if revision and flags & 2 else []

    return read


def _u32(data: bytes, _: Family) -> Iterator[str]:
    tests, inverted = data[U32_TESTS * U32_SIZE], data[U32_TESTS * U32_SIZE + 1]
    text = "&&".join(_u32_test(data[at * U32_SIZE :]) for at in range(tests))
    yield f'{negation(inverted)}--u32 "{text}"'


def _u32_test(data: bytes) -> str:
    locations, values = data[16 * U32_PARTS], data[16 * U32_PARTS + 1]
    text = ""
    for at in range(locations):
        number, operation = struct.unpack_from("=IB", data, 8 * at)
        text += (U32_OPERATIONS[operation] if at else "") + f"{number:#x}"
    pairs = [struct.unpack_from("=II", data, 8 * U32_PARTS + 8 * at) for at in range(values)]
    return f"{text}={','.join(f'{low:#x}' if low == high else f'{low:#x}:{high:#x}' for low, high in pairs)}"


def _bpf0(data: bytes, _: Family) -> Iterator[str]:
    yield _program(data, 0)


def _bpf1(data: bytes, _: Family) -> Iterator[str]:
    (mode,) = struct.unpack_from("=H", data)
    if mode == 1:  # XT_BPF_MODE_FD_PINNED
        yield f"--object-pinned {text_of(data[8:])}"
    else:
        yield _program(data, 2)


def _program(data: bytes, at: int) -> str:
    (count,) = struct.unpack_from("=H", data, at)
    start = 4 if at == 0 else 8
    parts = (struct.unpack_from("=HBBI", data, start + 8 * place) for place in range(count))
    return f'--bytecode "{count},{",".join(" ".join(map(str, each)) for each in parts)}"'


def _osf(data: bytes, _: Family) -> Iterator[str]:
    _length, flags, log, ttl = struct.unpack_from("=4I", data, 32)
    yield f"{negation(flags & 8)}--genre {text_of(data[:32])}"
    yield from [f"--ttl {ttl}"] if flags & 2 else []
    yield from [f"--log {log}"] if flags & 4 else []


MATCHES: dict[tuple[str, int], Reader] = {
    ("length", 0): _length,
    ("tcpmss", 0): _tcpmss,
    ("ttl", 0): _hops("ttl"),
    ("hl", 0): _hops("hl"),
    ("dscp", 0): _dscp,
    ("tos", 0): _tos0,
    ("tos", 1): _tos1,
    ("ecn", 0): _ecn,
    ("mac", 0): _mac,
    ("sctp", 0): _sctp,
    ("dccp", 0): _dccp,
    ("esp", 0): _spi("espspi", 8),
    ("ipcomp", 0): _spi("ipcompspi", 8),
    ("ah", 0): _ah,
    ("string", 0): _string(0),
    ("string", 1): _string(1),
    ("u32", 0): _u32,
    ("bpf", 0): _bpf0,
    ("bpf", 1): _bpf1,
    ("eui64", 0): lambda _data, _family: iter(()),
    ("osf", 0): _osf,
}
