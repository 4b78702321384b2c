"""Prints other programs' matches of a packet's sender, socket, device, route, processor and IPsec policy.

foreign_options.py says where from.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS, address_text, range_text
from istio_init.kernel.xtables.foreign_words import address_size, masked, negation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

# Struct xt_policy_elem: addresses and masks of 16 bytes, then numbers.
POLICY_SIZE, POLICIES = 76, 4
# IP_VS_CONN_F_DROUTE, _TUNNEL and _MASQ.
VS_METHODS = {3: "GATE", 2: "IPIP", 0: "MASQ"}


def _owner(data: bytes, _: Family) -> Iterator[str]:
    """Several conditions at once; rules.Owner has one."""
    uid, last_uid, gid, last_gid = struct.unpack_from("=4I", data)
    matched, inverted = data[16:18]
    for bit, option in (
        (4, "--socket-exists"),
        (1, f"--uid-owner {range_text(uid, last_uid)}"),
        (2, f"--gid-owner {range_text(gid, last_gid)}"),
        (8, "--suppl-groups"),
    ):
        if matched & bit:
            yield f"{negation(inverted & bit)}{option}"


def _socket(data: bytes, _: Family) -> Iterator[str]:
    flags = data[0] if data else 0
    for bit, option in ((1, "transparent"), (2, "nowildcard"), (4, "restore-skmark")):
        if flags & bit:
            yield f"--{option}"


def _cpu(data: bytes, _: Family) -> Iterator[str]:
    cpu, inverted = struct.unpack_from("=II", data)
    yield f"{negation(inverted)}--cpu {cpu}"


def _realm(data: bytes, _: Family) -> Iterator[str]:
    number, mask, inverted = struct.unpack_from("=IIB", data)
    yield f"{negation(inverted)}--realm {masked(number, mask)}"


def _devgroup(data: bytes, _: Family) -> Iterator[str]:
    flags, source, source_mask, destination, destination_mask = struct.unpack_from("=5I", data)
    if flags & 1:
        yield f"{negation(flags & 2)}--src-group {masked(source, source_mask)}"
    if flags & 4:
        yield f"{negation(flags & 8)}--dst-group {masked(destination, destination_mask)}"


def _policy(data: bytes, family: Family) -> Iterator[str]:
    flags, count = struct.unpack_from("=HH", data, POLICIES * POLICY_SIZE)
    yield f"--dir {'in' if flags & 1 else 'out'} --pol {'none' if flags & 4 else 'ipsec'}"
    yield from ["--strict"] if flags & 8 else []
    for at in range(count):
        yield from ["--next"] if at else []
        yield from _policy_part(data[at * POLICY_SIZE : (at + 1) * POLICY_SIZE], family)


def _policy_part(data: bytes, family: Family) -> Iterator[str]:
    spi, number, protocol, mode, matched, inverted = struct.unpack_from("=IIBBBB", data, 64)
    size = address_size(family)
    source, destination = (_network(data[at : at + size], data[at + 16 : at + 16 + size]) for at in (0, 32))
    for bit, option in (
        (32, f"reqid {number}"),
        (16, f"spi {spi:#x}"),
        (4, f"proto {PROTOCOLS.get(protocol, protocol)}"),
        (8, f"mode {'tunnel' if mode else 'transport'}"),
        (2, f"tunnel-dst {destination}"),
        (1, f"tunnel-src {source}"),
    ):
        if matched & bit:
            yield f"{negation(inverted & bit)}--{option}"


def _virtual_service(data: bytes, family: Family) -> Iterator[str]:
    """The struct xt_ipvs_mtinfo; every other property implies the first, --ipvs."""
    port, protocol, method, control, inverted, which = struct.unpack_from(">HBBHBB", data, 32)
    size = address_size(family)
    parts = (
        (2, f"vproto {protocol}"),
        (4, f"vaddr {_network(data[:size], data[16 : 16 + size])}"),
        (8, f"vport {port}"),
        (16, f"vdir {'REPLY' if inverted & 16 else 'ORIGINAL'}"),
        (32, f"vmethod {VS_METHODS.get(method, 'UNKNOWN')}"),
        (64, f"vportctl {control}"),
    )
    if which == 1:
        yield f"{negation(inverted & 1)}--ipvs"
    yield from (f"{negation(bit != 16 and inverted & bit)}--{option}" for bit, option in parts if which & bit)


def _network(address: bytes, mask: bytes) -> str:
    prefix = int.from_bytes(mask).bit_count()
    return address_text(address) + (f"/{prefix}" if prefix != len(mask) * 8 else "")


MATCHES: dict[tuple[str, int], Reader] = {
    ("owner", 1): _owner,
    **{("socket", revision): _socket for revision in (0, 1, 2, 3)},
    ("cpu", 0): _cpu,
    ("realm", 0): _realm,
    ("devgroup", 0): _devgroup,
    ("policy", 0): _policy,
    ("ipvs", 0): _virtual_service,
}
