"""Decodes rules of iptables-nft's tables from netlink attributes: those of compat_encode.py, and other programs'."""

from __future__ import annotations

from _struct import Struct  # the C half of struct

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import name as text_of
from istio_init.kernel.nft.compat_decode_match import CompatMatchReader, number_of, xt_element
from istio_init.kernel.nft.expressions import (
    EXPRESSION_DATA,
    EXPRESSION_NAME,
    EXPRESSIONS,
    GOTO,
    SIGNATURE,
    USERDATA,
    VERDICTS,
)
from istio_init.kernel.xtables.decode_match import unpack_target
from istio_init.model.rules import (
    Jump,
    Rule,
    Verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from istio_init.kernel.nft.compat_decode_match import Expression
    from istio_init.model.rules import Family, Target

_VERDICT_NAMES = {code: verdict for verdict, code in VERDICTS.items()}
# What may end a rule that has no target.
_CONDITIONS = {"counter", "match", "cmp", "range", "limit"}


class RuleReader:
    """Unpacks rules of one family; expressions that many have in common are taken apart once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._taken_apart: dict[bytes, Expression] = {}
        self._targets: dict[bytes, tuple[Target, int]] = {}

    def unpack(self, attrs: dict[int, bytes]) -> Rule:
        """The rule in a message's attributes.

        A comparison that iptables-nft would not write becomes an UnknownMatch of its expressions, an effect that is
        no target an UnknownTarget. Where what belongs together cannot be told, one UnknownMatch bears all conditions.
        """
        elements = list(_elements(attrs.get(EXPRESSIONS, b"")))
        target, used = self._target(elements)
        conditions = elements[: len(elements) - used]
        apart = [self._apart(each) for each in conditions]
        try:
            matches = tuple(CompatMatchReader(self._family).matches(apart, conditions))
        except (KeyError, ValueError):
            from istio_init.kernel.nft.compat_decode_rare import unread_match

            matches = (unread_match(apart, conditions),)
        return Rule(matches, target, SIGNATURE in attrs.get(USERDATA, b""))

    def _apart(self, element: bytes) -> Expression:
        parsed = self._taken_apart.get(element)
        if parsed is None:
            parsed = self._taken_apart[element] = _name(element), _data(element)
        return parsed

    def _target(self, elements: list[bytes]) -> tuple[Target, int]:
        last = elements[-1] if elements else b""
        target = self._targets.get(last)
        if target is None:
            target = self._read_target(elements)
            if target[1] == 1:
                self._targets[last] = target
        return target

    def _read_target(self, elements: list[bytes]) -> tuple[Target, int]:
        target, used = _target(elements, self._family)
        if used or not elements or _name(elements[-1]) in _CONDITIONS:
            return target, used
        from istio_init.kernel.nft.compat_decode_rare import unpack_effect

        return unpack_effect([self._apart(each) for each in elements], elements)


def counted(attrs: dict[int, bytes]) -> tuple[int, int] | None:
    """How many packets and bytes the rule of a message's attributes has met; None where it has no counter."""
    counters = (each for each in _elements(attrs.get(EXPRESSIONS, b"")) if _name(each) == "counter")
    return next((counter_numbers(_data(each)) for each in counters), None)


def counter_numbers(attrs: dict[int, bytes]) -> tuple[int, int]:
    """NFTA_COUNTER_PACKETS and NFTA_COUNTER_BYTES."""
    return int.from_bytes(attrs[2], "big"), int.from_bytes(attrs[1], "big")


def _elements(data: bytes) -> Iterator[bytes]:
    """The expressions of a list, each as its attributes."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], _ORDER)
        yield data[at + 4 : at + length]
        at += (length + 3) & ~3


_ORDER: Any = "little" if Struct("=H").pack(1) == b"\1\0" else "big"


def _name(element: bytes) -> str:
    return text_of(attributes(element)[EXPRESSION_NAME])


def _data(element: bytes) -> dict[int, bytes]:
    return attributes(attributes(element).get(EXPRESSION_DATA, b""))


def _target(elements: list[bytes], family: Family) -> tuple[Target, int]:
    """The rule's target, and how many of the last expressions it is."""
    if elements:
        kind, attrs = _name(elements[-1]), _data(elements[-1])
        if kind == "immediate":
            verdict = attributes(attributes(attrs[2]).get(2, b""))
            code = number_of(verdict[1]) if 1 in verdict else 0
            if 2 in verdict:
                return Jump(text_of(verdict[2]), code == GOTO), 1
            if 1 in verdict and code in _VERDICT_NAMES:
                return Verdict(_VERDICT_NAMES[code]), 1  # type: ignore[arg-type]
        if kind == "target":
            return unpack_target(xt_element(attrs), family), 1
    return Verdict(""), 0
