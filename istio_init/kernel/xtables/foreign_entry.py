"""Prints headers of other programs' rules that no match of model.rules holds: masks with holes, fragments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS, address_text
from istio_init.kernel.xtables.foreign_words import negation, text_of
from istio_init.kernel.xtables.ip_header import (
    DESTINATION,
    FLAGS,
    IN,
    INVERTED,
    NOT_DESTINATION,
    NOT_IN,
    NOT_OUT,
    NOT_PROTOCOL,
    NOT_SOURCE,
    OUT,
    PROTOCOL,
    SOURCE,
    SOURCE_MASK,
)
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.ip_header import EntryLayout, Fields

FRAGMENT, NOT_FRAGMENT = 0x01, 0x20  # IPT_F_FRAG, IPT_INV_FRAG
# What 1.8.10 and later make of `! -i +`, which never matches; it is no interface's name.
NEVER = "INVAL/D"


def entry_options(data: bytes, layout: EntryLayout) -> str | None:
    """A header as iptables-save prints it; None where it has what iptables has no words for."""
    fields = list(layout.struct.unpack(data))
    named = layout.protocol_flag | layout.goto_flag | (FRAGMENT if layout.family == IPV4 else 0)
    if fields[FLAGS] & ~named or (layout.family != IPV4 and fields[PROTOCOL + 1]):
        return None  # a type of service
    return " ".join(_words(fields, layout))


def _words(fields: Fields, layout: EntryLayout) -> Iterator[str]:
    inverted = fields[INVERTED]
    for place, bit, option in ((SOURCE, NOT_SOURCE, "-s"), (DESTINATION, NOT_DESTINATION, "-d")):
        mask = fields[place + SOURCE_MASK]
        if any(mask) or inverted & bit:
            yield f"{negation(inverted & bit)}{option} {address_text(fields[place])}/{mask_text(mask)}"
    for place, bit, option in ((IN, NOT_IN, "-i"), (OUT, NOT_OUT, "-o")):
        if name := text_of(fields[place]):
            yield f"! {option} +" if name == NEVER else f"{negation(inverted & bit)}{option} {name}"
    if fields[PROTOCOL]:
        word = PROTOCOLS.get(fields[PROTOCOL], fields[PROTOCOL])
        yield f"{negation(inverted & NOT_PROTOCOL)}-p {word}"
    if layout.family == IPV4 and fields[FLAGS] & FRAGMENT:
        yield f"{negation(inverted & NOT_FRAGMENT)}-f"


def mask_text(mask: bytes) -> str:
    """A mask as a prefix length, or as an address if it has holes."""
    number, bits = int.from_bytes(mask), len(mask) * 8
    prefix = number.bit_count()
    return str(prefix) if number == (1 << bits) - (1 << bits - prefix) else address_text(mask)
