"""Parses a user's text: ports, networks, interfaces, ids. Each function returns a value or raises ValueError.

The error's text says why; options/table.py puts the flag and the value before it. All checks are here, so that
other code can rely on the values.
"""

from __future__ import annotations

# The C half of socket: the module around it takes as long to import as Python takes to start.
from _socket import AF_INET, AF_INET6, inet_pton

from istio_init.model.rules import IPV4, Network, PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias, TypeVar

    T = TypeVar("T")
    # A protocol's number, ports (none for all of them), and users as ranges of ids.
    PortsOfUsers: TypeAlias = tuple[int, tuple[PortRange, ...], tuple[tuple[int, int], ...]]
    Everything: TypeAlias = Literal["*"]

ALL: Everything = "*"

# The kernel's uid_t and gid_t; the highest one, (uid_t) -1, means "no id" and is refused by xt_owner.
HIGHEST_ID = 2**32 - 2
# Entries of one list, and rules that one list may make for each entry of another: far above what any mesh has. A pod's
# annotations could otherwise make the node work for minutes.
MOST_ENTRIES = 20_000
# Interfaces, users and DNS servers in a list: each makes rules in several chains.
MOST_NAMES = 64
# The mark of the proxy's own packets to the pod in TPROXY mode; the inbound mark must differ.
OUTBOUND_MARK = 1338


# What Go's strconv.ParseBool accepts.
TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def items(text: str) -> list[str]:
    """The entries of a comma list; white space around them, trailing and doubled commas don't count."""
    parts = text.split(",")
    # Without white space there is nothing to strip: split() tells that of a long list fastest.
    return list(filter(None, parts if text.split() == [text] else [part.strip() for part in parts]))


def boolean(text: str) -> bool:
    """True or false, spelled as Go's strconv.ParseBool accepts them."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError("not true or false")


def number(text: str, lowest: int, highest: int, what: str) -> int:
    """A decimal number from `lowest` to `highest`; ASCII digits alone, no leading zero."""
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and len(text) > 1):
        raise ValueError(f"not {what}: use a number from {lowest} to {highest}")
    # Python refuses to convert very long strings of digits, so their length is checked first.
    value = int(text) if len(text) <= 10 else highest + 1
    if not lowest <= value <= highest:
        raise ValueError(f"not {what}: outside of {lowest} to {highest}")
    return value


def port(text: str) -> int:
    """A TCP or UDP port, 1 to 65535."""
    return number(text, 1, 65535, "a port")


def port_range(text: str) -> PortRange:
    """One port, or a range written 4000-4003 or 4000:4003."""
    low, dash, high = text.partition(":" if ":" in text else "-")
    if not dash:
        only = port(text)
        return PortRange(only, only)
    first, last = port(low), port(high)
    if first > last:
        raise ValueError(f"the range {low}{dash}{high} ends before it begins")
    return PortRange(first, last)


def each(parse: Callable[[str], T], entries: list[str], most: int = MOST_ENTRIES) -> tuple[T, ...]:
    """The parsed entries of a comma list of at most so many different ones; the error names a bad one of several.

    Istio's program makes a rule of each entry, even if it is there twice, and so does this one. Duplicates are left out
    where there are more than `most`: the rules mean the same.
    """
    if len(entries) > most:
        entries = list(dict.fromkeys(entries))
        if len(entries) > most:
            raise ValueError(f"{len(entries)} entries, at most {most} are allowed")
    try:
        return tuple(map(parse, entries))
    except ValueError:
        if len(entries) == 1:
            raise
    for entry in entries:
        try:
            parse(entry)
        except ValueError as error:
            raise ValueError(f"entry {entry[:40]!r}: {error}") from None
    raise AssertionError("parsed differently the second time")


def ports(text: str) -> tuple[PortRange, ...]:
    """A comma list of ports and ranges; * is not one."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the ports")
    return each(port_range, entries)


def all_or_ports(text: str) -> tuple[PortRange, ...] | Everything:
    """A comma list of ports and ranges, or * alone for all of them."""
    entries = items(text)
    return ALL if is_all(entries) else each(port_range, entries)


def is_all(entries: list[str]) -> bool:
    """Whether the list is * alone; ValueError where it is * and more."""
    if ALL in entries and len(entries) > 1:
        raise ValueError("* means all and can't be combined with other entries")
    return entries == [ALL]


# Parsed prefix lengths by text and address bits: long lists have few different ones.
_lengths: dict[tuple[str, int], int] = {}


def network(text: str) -> Network:
    """A CIDR of either family, host bits masked off as the kernel does; a bare address is its /32 or /128."""
    address, slash, prefix = text.partition("/")
    try:
        packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the text
        raise ValueError("not an IP address or CIDR, such as 10.0.0.0/8 or 2001:db8::/32") from None
    bits = len(packed) * 8
    if not slash:
        return Network(packed, bits)
    length = _lengths.get((prefix, bits))
    if length is None:
        length = _lengths[prefix, bits] = _length(prefix, bits)
    # Usually no host bit is set.
    return Network(masked(packed, length) if packed[length >> 3 :].strip(b"\0") else packed, length)


def _length(text: str, bits: int) -> int:
    """A prefix length of an address of so many bits."""
    return number(text, 0, bits, "a prefix length")


def masked(address: bytes, prefix: int) -> bytes:
    """A packed address with all bits behind the prefix cleared."""
    host_bits = len(address) * 8 - prefix
    return (int.from_bytes(address) >> host_bits << host_bits).to_bytes(len(address))


def networks(text: str) -> tuple[Network, ...]:
    """A comma list of CIDRs and addresses; * is not one."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the networks; every one is 0.0.0.0/0,::/0")
    return each(network, entries)


def all_or_networks(text: str) -> tuple[Network, ...] | Everything:
    """A comma list of CIDRs and addresses, or * alone for all of them."""
    entries = items(text)
    return ALL if is_all(entries) else each(network, entries)


def address(text: str) -> Network:
    """One IP address of either family, without a prefix."""
    if "/" in text:
        raise ValueError("use an address, not a CIDR")
    return network(text)


def addresses(text: str) -> tuple[Network, ...]:
    """A comma list of IP addresses."""
    return each(address, items(text), MOST_NAMES)


def is_loopback(net: Network) -> bool:
    """Whether all of a network is loopback: inside of 127.0.0.0/8, or ::1."""
    if net.family == IPV4:
        return net.address[0] == 127 and net.prefix >= 8
    return net == Network(bytes(15) + b"\x01", 128)


def owner(text: str) -> int:
    """A numeric uid or gid, 0 to 2^32-2."""
    return number(text, 0, HIGHEST_ID, "a known name or a numeric id")


def owners(text: str) -> tuple[int, ...]:
    """A comma list of numeric uids or gids."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the ids")
    return each(owner, entries, MOST_NAMES)


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that accepts only these words, its `choices`; ValueError for others."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"unknown: use {' or '.join(choice or 'nothing' for choice in choices)}")
        return text

    parse.choices = choices  # type: ignore[attr-defined]
    return parse


MODES = ("REDIRECT", "TPROXY")


def interception_mode(text: str) -> str:
    """REDIRECT or TPROXY; empty means REDIRECT."""
    return one_of(*MODES)(text or MODES[0])


LOG_LEVELS = ("none", "fatal", "error", "warn", "info", "debug")


def log_level(text: str) -> str:
    """The level that Istio's `scope:level,...` gives to the default scope; other scopes are accepted and ignored."""
    default_level = "info"
    for entry in items(text):
        scope, colon, level = entry.rpartition(":")
        if level not in LOG_LEVELS:
            raise ValueError(f"unknown level {level[:20]!r}: use {', '.join(LOG_LEVELS)}")
        if not colon or scope in {"default", "all"}:
            default_level = level
    return default_level


def anything(text: str) -> str:
    """Any text: Istio's injection passes the flag, and it has no effect here."""
    return text


def _rare(name: str) -> Any:  # noqa: ANN401 (the parser of that name)
    """A parser in parsers_rare.py, which is imported when it gets its first text."""

    def parse(text: str) -> object:
        from istio_init.model import parsers_rare

        return getattr(parsers_rare, name)(text)

    return parse


loopback: Callable[[str], Network] = _rare("loopback")
interfaces: Callable[[str], tuple[str, ...]] = _rare("interfaces")
all_or_owner_groups: Callable[[str], tuple[int, ...] | Everything] = _rare("all_or_owner_groups")
excluded_owner_groups: Callable[[str], tuple[int, ...]] = _rare("excluded_owner_groups")
ports_of_users: Callable[[str], tuple[PortsOfUsers, ...]] = _rare("ports_of_users")
mark: Callable[[str], int] = _rare("mark")
typed_port: Callable[[str], int] = _rare("typed_port")
route_table: Callable[[str], int] = _rare("route_table")
duration: Callable[[str], float] = _rare("duration")
seconds: Callable[[str], float] = _rare("seconds")
path: Callable[[str], str] = _rare("path")
log_targets: Callable[[str], tuple[str, ...]] = _rare("log_targets")
