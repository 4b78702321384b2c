"""Prints other programs' targets that mark a packet or its connection; foreign_options.py selects the function."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.foreign_words import choice, set_and_sides, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.foreign_words import Reader
    from istio_init.model.rules import Family

NO_TIMEOUT = 0xFFFFFFFF
NONE = 0xFFFF  # IPSET_INVALID_ID
# Of SET: the flag for a member that is there already, and those of what the member's data becomes.
EXIST = 1
MAPPED = ((1 << 8, "--map-mark"), (1 << 9, "--map-prio"), (1 << 10, "--map-queue"))
SHIFTS = ("left", "right")


def _set(data: bytes, _: Family) -> Iterator[str]:
    """The structs xt_set_info_target_v1 to _v3: sets to add to, to delete from and to map by, flags, a timeout."""
    sets = 3 if len(data) >= 20 else 2
    flags, timeout = struct.unpack_from("=II", data, 4 * sets) if len(data) >= 4 * sets + 8 else (0, NO_TIMEOUT)
    for place, option in enumerate(("--add-set", "--del-set", "--map-set")[:sets]):
        if struct.unpack_from("=H", data, 4 * place)[0] == NONE:
            continue
        yield f"{option} {set_and_sides(data, 4 * place)}"
        if option == "--add-set":
            yield from ["--exist"] if flags & EXIST else []
            yield from [f"--timeout {timeout}"] if timeout != NO_TIMEOUT else []
    yield from (word for bit, word in MAPPED if flags & bit)


def _connmark(revision: int) -> Reader:
    """The structs xt_connmark_tginfo1 and 2, of which the second may shift the mark."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        mark, ctmask, nfmask = struct.unpack_from("=III", data)
        right, bits, mode = data[12:15] if revision > 1 else (0, 0, data[12])
        if mode == 0:
            yield f"--set-xmark {mark:#x}/{ctmask:#x}"
        else:
            yield f"--{('save', 'restore')[mode - 1]}-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"
        yield from [f"--{SHIFTS[right]}-shift-mark {bits}"] if bits else []

    return read


def _classify(data: bytes, _: Family) -> Iterator[str]:
    (priority,) = struct.unpack_from("=I", data)
    yield f"--set-class {priority >> 16:04x}:{priority & 0xFFFF:04x}"


def _security(at: int) -> Reader:
    """The structs xt_secmark_target_info and _v1: the mode, and at `at` the context."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        if data[0] != 1:  # SECMARK_MODE_SEL
            raise ValueError("another mode")
        yield f"--selctx {text_of(data[at : at + 256])}"

    return read


def _hexadecimal(option: str, *, mask: bool) -> Reader:
    def read(data: bytes, _: Family) -> Iterator[str]:
        yield f"--{option} {data[0]:#04x}" + (f"/{data[1]:#04x}" if mask else "")

    return read


def _hash_mark(data: bytes, _: Family) -> Iterator[str]:
    """The struct xt_hmark_info; its flags tell which fields were given."""
    flags, protocols, random, modulus, offset = struct.unpack_from("=IHxxIII", data, 40)
    masks = [f"{int.from_bytes(data[at : at + 16]).bit_count()}" for at in (0, 16)]
    ports = [f"{int.from_bytes(data[at : at + 2]):#06x}" for at in (32, 34, 36, 38)]
    indexes = [f"{int.from_bytes(data[at : at + 4]):#010x}" for at in (32, 36)]
    # In iptables-save's order: the flag's bit, the option, its value.
    parts = (
        (0, "src-prefix", masks[0]), (1, "dst-prefix", masks[1]), (6, "sport-mask", ports[0]),
        (7, "dport-mask", ports[1]), (3, "spi-mask", indexes[0]), (4, "sport", ports[2]), (5, "dport", ports[3]),
        (2, "spi", indexes[1]), (8, "proto-mask", f"{protocols:#04x}"), (9, "rnd", f"{random:#010x}"),
        (10, "mod", str(modulus)), (11, "offset", str(offset)), (12, "tuple", "ct"),
    )  # fmt: skip
    yield from (f"--hmark-{option} {value}" for bit, option, value in parts if flags >> bit & 1)


TARGETS: dict[tuple[str, int], Reader] = {
    **{("SET", revision): _set for revision in (1, 2, 3)},
    ("CONNMARK", 1): _connmark(1),
    ("CONNMARK", 2): _connmark(2),
    ("CLASSIFY", 0): _classify,
    ("CONNSECMARK", 0): choice(0, "", "--save", "--restore"),
    ("SECMARK", 0): _security(8),
    ("SECMARK", 1): _security(1),
    ("DSCP", 0): _hexadecimal("set-dscp", mask=False),
    ("TOS", 0): _hexadecimal("set-tos", mask=False),
    ("TOS", 1): _hexadecimal("set-tos", mask=True),
    ("HMARK", 0): _hash_mark,
}
