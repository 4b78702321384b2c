"""Decodes an entry to a Rule, where a table does not have the expected entries.

A plain run knows its own rules by their bytes, and does not need this.
"""

from __future__ import annotations

from istio_init.kernel.xtables.decode_match import unpack_match, unpack_standard, unpack_target
from istio_init.kernel.xtables.encode_match import HEAD
from istio_init.kernel.xtables.encode_ports import (
    DESTINATION_INVERTED,
    HIGHEST,
    LOWEST,
    SOURCE_INVERTED,
    TCP_DATA,
    TCP_HEAD,
    UDP_DATA,
    UDP_HEAD,
    pack_ports,
)
from istio_init.kernel.xtables.encode_rule import OFFSETS, SIGNATURE
from istio_init.kernel.xtables.ip_header import (
    DESTINATION,
    DESTINATION_MASK,
    FLAGS,
    HEADER,
    IN,
    INVERTED,
    LAYOUTS,
    NO_INTERFACE,
    NOT_DESTINATION,
    NOT_IN,
    NOT_OUT,
    NOT_PROTOCOL,
    NOT_SOURCE,
    OUT,
    PROTOCOL,
    SOURCE,
    SOURCE_MASK,
    put,
)
from istio_init.model.rules import (
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    PortRange,
    Protocol,
    Rule,
    Source,
    SourcePorts,
)
from istio_init.model.unknown import UnknownMatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kernel.xtables.ip_header import EntryLayout, Fields, HeaderMatch
    from istio_init.model.rules import Family, Match, Target


class EntryReader:
    """Decodes entries of one family in the form that `pack` has; parts that many entries share are decoded once."""

    def __init__(self, family: Family) -> None:
        self._layout = LAYOUTS[family]
        self._headers: dict[bytes, tuple[Match, ...]] = {}
        self._targets: dict[tuple[bytes, bool, bool], Target] = {}

    def rule(self, entry: bytes, *, is_standard: bool) -> Rule:
        """Decode an entry.

        `is_standard` tells a target that is a verdict or a jump from an extension of that name, which its bytes
        don't. What the values can't say exactly becomes an UnknownMatch or UnknownTarget.
        """
        layout = self._layout
        fields_end = layout.struct.size
        target_offset, _ = OFFSETS.unpack_from(entry, fields_end + len(SIGNATURE))
        goto = bool(entry[layout.flags_at] & layout.goto_flag)
        target = self._target(entry[target_offset:], is_standard=is_standard, goto=goto)
        header = self._header(entry[:fields_end])
        if goto and not isinstance(target, Jump):
            header = _whole(entry[:fields_end], layout)
        matches = (*header, *_body(entry[layout.size : target_offset], header, layout.family))
        return Rule(matches, target, entry.startswith(SIGNATURE, fields_end))

    def _header(self, data: bytes) -> tuple[Match, ...]:
        matches = self._headers.get(data)
        if matches is None:
            matches = self._headers[data] = _unpack_header(data, self._layout)
        return matches

    def _target(self, element: bytes, *, is_standard: bool, goto: bool) -> Target:
        key = element, is_standard, goto
        target = self._targets.get(key)
        if target is None:
            family = self._layout.family
            target = unpack_standard(element, goto=goto) if is_standard else unpack_target(element, family)
            self._targets[key] = target
        return target


def _body(elements: bytes, header: tuple[Match, ...], family: Family) -> Iterator[Match]:
    """The matches after a header, which determines the protocol whose ports they may compare."""
    last = header[-1] if header else None
    protocol = last.number if isinstance(last, Protocol) and not last.negated else 0
    while elements:
        size, _, _ = HEAD.unpack_from(elements)
        element = elements[:size]
        if ports := _unpack_ports(protocol, element):
            yield from ports
        else:
            yield unpack_match(element, family)
        elements = elements[size:]


def _unpack_header(data: bytes, layout: EntryLayout) -> tuple[Match, ...]:
    """The matches of a header, without goto; one UnknownMatch with the whole header if other matches can't express it.

    `data` is the header up to nfcache.
    """
    fields: Fields = list(layout.struct.unpack(data))
    again: Fields = list(layout.blank)
    try:
        matches = tuple(_matches(fields, layout))
        for match in matches:
            put(match, again, layout)
    except ValueError:
        return _whole(data, layout)
    fields[FLAGS] &= ~layout.goto_flag
    return matches if again == fields else _whole(data, layout)


def _whole(data: bytes, layout: EntryLayout) -> tuple[Match]:
    """A header that other matches can't express, as one UnknownMatch."""
    from istio_init.kernel.xtables.foreign_entry import entry_options

    return (UnknownMatch(HEADER, 0, data, entry_options(data, layout)),)


def _matches(fields: Fields, layout: EntryLayout) -> Iterator[HeaderMatch]:
    """The matches that a header's fields express, in the order of iptables-save."""
    inverted = fields[INVERTED]
    if fields[SOURCE_MASK] != layout.any_address or inverted & NOT_SOURCE:
        yield Source(_network(fields, SOURCE), bool(inverted & NOT_SOURCE))
    if fields[DESTINATION_MASK] != layout.any_address or inverted & NOT_DESTINATION:
        yield Destination(_network(fields, DESTINATION), bool(inverted & NOT_DESTINATION))
    if fields[IN] != NO_INTERFACE or inverted & NOT_IN:
        yield InInterface(_name(fields[IN]), bool(inverted & NOT_IN))
    if fields[OUT] != NO_INTERFACE or inverted & NOT_OUT:
        yield OutInterface(_name(fields[OUT]), bool(inverted & NOT_OUT))
    if fields[PROTOCOL]:
        yield Protocol(fields[PROTOCOL], bool(inverted & NOT_PROTOCOL))


def _network(fields: Fields, place: int) -> Network:
    mask = int.from_bytes(fields[place + SOURCE_MASK], "big")
    if int.from_bytes(fields[place], "big") & ~mask:
        raise ValueError("an address outside of its network")
    return Network(fields[place], mask.bit_count())


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _unpack_ports(protocol: int, element: bytes) -> tuple[Match, ...]:
    """The port matches of -m tcp or -m udp; none for other matches, and for those with further conditions."""
    size = HEAD.size
    if protocol == TCP:
        head, layout = TCP_HEAD, TCP_DATA
    elif protocol == UDP:
        head, layout = UDP_HEAD, UDP_DATA
    else:
        return ()
    if element[2:6] != head[2:6] or element[size - 1] != 0 or len(element) != size + layout.size:
        return ()
    source_low, source_high, low, high, inverted = layout.unpack_from(element, size)
    source = destination = None
    if inverted & SOURCE_INVERTED or (source_low, source_high) != (LOWEST, HIGHEST):
        source = SourcePorts(PortRange(source_low, source_high), bool(inverted & SOURCE_INVERTED))
    if inverted & DESTINATION_INVERTED or (low, high) != (LOWEST, HIGHEST):
        destination = DestinationPorts(PortRange(low, high), bool(inverted & DESTINATION_INVERTED))
    if pack_ports(protocol, source, destination)[size:] != element[size:]:
        return ()
    return tuple(side for side in (source, destination) if side is not None)
