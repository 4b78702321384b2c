"""Spells texts, numbers and masks as iptables-save does; shared by the modules of foreign_options.py."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from istio_init.kernel.xtables.set_names import set_name
from istio_init.model.rules import IPV4, range_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from istio_init.model.rules import Family

    Reader: TypeAlias = Callable[[bytes, Family], Iterator[str]]

IPV4_BYTES, IPV6_BYTES = 4, 16
ALL_BITS = 0xFFFFFFFF


def address_size(family: Family) -> int:
    """The bytes of an address."""
    return IPV4_BYTES if family == IPV4 else IPV6_BYTES


def text_of(field: bytes) -> str:
    """A field's text up to its NUL."""
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def quoted(text: str) -> str:
    """A string as xtables_save_string prints it."""
    bare = text and all(each.isascii() and (each.isalnum() or each in "_-") for each in text)
    return text if bare else '"' + "".join(f"\\{each}" if each in "\"\\'" else each for each in text) + '"'


def negation(inverted: object) -> str:
    """The ! before an option, and a blank."""
    return "! " if inverted else ""


def names(bits: int, words: dict[int, str]) -> str:
    """The words of the bits that are set."""
    return ",".join(word for bit, word in words.items() if bits & bit)


def numbers(low: int, high: int) -> str:
    """One number, or a range of them."""
    return range_text(low, high, ":")


def masked(value: int, mask: int) -> str:
    """A number and its mask, as xtables_print_val_mask prints them without names for numbers."""
    return f"{value:#x}" if mask == ALL_BITS else f"{value:#x}/{mask:#x}"


def set_and_sides(data: bytes, at: int) -> str:
    """A struct xt_set_info: the set's name, and which side of a packet each of its dimensions is."""
    number, dimensions, flags = struct.unpack_from("=HBB", data, at)
    sides = ",".join("src" if flags >> each & 1 else "dst" for each in range(1, dimensions + 1))
    return f"{set_name(number)} {sides}"


def choice(at: int, *words: str) -> Reader:
    """Prints one of these words, by the number at a place; an empty one is none."""

    def read(data: bytes, _: Family) -> Iterator[str]:
        if not (word := words[data[at]]):
            raise ValueError("not one of them")
        yield word

    return read
