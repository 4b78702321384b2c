"""Parses a user's text: ports, networks, interfaces, ids. Each function returns a value or raises ValueError.

The error's text says why; options/table.py puts the flag and the value before it. All checks are here, so that
other code can rely on the values.
"""

from __future__ import annotations

# The C half of socket: the module around it takes as long to import as Python takes to start.
from _socket import AF_INET, AF_INET6, inet_pton

from istio_init.model.rules import IPV4, TCP, UDP, Network, PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias, TypeVar

    T = TypeVar("T")
    # A protocol's number, ports (none for all of them), and users as ranges of ids.
    PortsOfUsers: TypeAlias = tuple[int, tuple[PortRange, ...], tuple[tuple[int, int], ...]]
    Everything: TypeAlias = Literal["*"]

ALL: Everything = "*"

# The kernel's uid_t and gid_t; the highest one, (uid_t) -1, means "no id" and is refused by xt_owner.
HIGHEST_ID = 2**32 - 2
# IFNAMSIZ in <linux/if.h> less the closing NUL.
INTERFACE_NAME_BYTES = 15
# Entries of one list, and rules that one list may make for each entry of another: far above what any mesh has. A pod's
# annotations could otherwise make the node work for minutes.
MOST_ENTRIES = 20_000
# Interfaces, users and DNS servers in a list: each makes rules in several chains.
MOST_NAMES = 64
# Istio limits the included owner groups, and not the excluded ones, which are bounded here all the same.
MOST_OWNER_GROUPS, MOST_EXCLUDED_GROUPS = 64, 1000
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
    return ALL if _all(entries) else each(port_range, entries)


def _all(entries: list[str]) -> bool:
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
        raise ValueError("* is not allowed here; to capture nothing outbound leave --istio-service-cidr empty")
    return each(network, entries)


def all_or_networks(text: str) -> tuple[Network, ...] | Everything:
    """A comma list of CIDRs and addresses, or * alone for all of them."""
    entries = items(text)
    return ALL if _all(entries) else each(network, entries)


def address(text: str) -> Network:
    """One IP address of either family, without a prefix."""
    if "/" in text:
        raise ValueError("use an address, not a CIDR")
    return network(text)


def addresses(text: str) -> tuple[Network, ...]:
    """A comma list of IP addresses."""
    return each(address, items(text), MOST_NAMES)


def loopback(text: str) -> Network:
    """An IPv4 CIDR inside of 127.0.0.0/8."""
    if "," in text:
        raise ValueError("use one range, not a list")
    net = network(text)
    if net.family != IPV4 or not is_loopback(net):
        raise ValueError("not a loopback range: it must be inside 127.0.0.0/8")
    return net


def is_loopback(net: Network) -> bool:
    """Whether all of a network is loopback: inside of 127.0.0.0/8, or ::1."""
    if net.family == IPV4:
        return net.address[0] == 127 and net.prefix >= 8
    return net == Network(bytes(15) + b"\x01", 128)


def interface(text: str) -> str:
    """An interface name as the kernel allows it (dev_valid_name), or a prefix that ends in + as iptables has it."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError("not an interface name: only printable ASCII characters")
    if len(text) > INTERFACE_NAME_BYTES:
        raise ValueError(f"not an interface name: longer than {INTERFACE_NAME_BYTES} bytes")
    if text in {".", ".."} or any(character in " /:" for character in text):
        raise ValueError("not an interface name: no slash, colon or blank, and not . or ..")
    if '"' in text or text == "!":
        raise ValueError("a double quote, or a lone !, can't be used: iptables-restore would not read it back")
    if text == "+":
        raise ValueError("+ alone would be every interface")
    return text


def interfaces(text: str) -> tuple[str, ...]:
    """A comma list of interface names; * is not one, though the kernel would take it."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the interfaces; a prefix that ends in + means all that begin so")
    return each(interface, entries, MOST_NAMES)


def owner(text: str) -> int:
    """A numeric uid or gid, 0 to 2^32-2."""
    return number(text, 0, HIGHEST_ID, "a known name or a numeric id")


def owners(text: str) -> tuple[int, ...]:
    """A comma list of numeric uids or gids."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the ids")
    return each(owner, entries, MOST_NAMES)


def excluded_owner_groups(text: str) -> tuple[int, ...]:
    """A comma list of numeric gids, which Istio does not limit to 64 as it does the included ones."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the ids")
    return each(owner, entries, MOST_EXCLUDED_GROUPS)


def all_or_owner_groups(text: str) -> tuple[int, ...] | Everything:
    """A comma list of at most 64 gids, or * alone for every group."""
    entries = items(text)
    if _all(entries):
        return ALL
    if len(set(entries)) > MOST_OWNER_GROUPS:
        raise ValueError(f"{len(set(entries))} groups, at most {MOST_OWNER_GROUPS} are allowed")
    return owners(text)


def ports_of_users(text: str) -> tuple[PortsOfUsers, ...]:
    """Entries PROTOCOL:PORTS:UIDS, separated by semicolons: tcp or udp, ports or *, users by id or range of ids."""
    entries = each(_ports_of_users, [entry for part in text.split(";") if (entry := part.strip())])
    if (count := sum(max(len(numbers), 1) * len(users) for _, numbers, users in entries)) > MOST_ENTRIES:
        raise ValueError(f"{count} pairs of a port and a user, at most {MOST_ENTRIES} are allowed")
    return entries


def _ports_of_users(text: str) -> PortsOfUsers:
    parts = text.split(":")
    protocol = {"tcp": TCP, "udp": UDP}.get(parts[0].strip())
    if len(parts) != 3 or protocol is None:
        raise ValueError("not PROTOCOL:PORTS:UIDS, such as tcp:443,8000-8100:1000 (PROTOCOL is tcp or udp)")
    numbers, users = all_or_ports(parts[1].strip()), each(_owner_range, items(parts[2]))
    if not numbers or not users:
        raise ValueError("it needs at least one port, or *, and at least one user")
    return protocol, () if numbers == ALL else numbers, users


def _owner_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first = owner(low)
    last = owner(high) if dash else first
    if first > last:
        raise ValueError(f"the range {text} ends before it begins")
    return first, last


def ports_of_users_text(entries: tuple[PortsOfUsers, ...]) -> str:
    """What ports_of_users() makes the entries of."""
    texts = []
    for protocol, numbers, users in entries:
        parts = (",".join([_range(*pair) for pair in pairs]) for pairs in ([(n.low, n.high) for n in numbers], users))
        port_list, user_list = parts
        texts.append(f"{'tcp' if protocol == TCP else 'udp'}:{port_list or ALL}:{user_list}")
    return ";".join(texts)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def mark(text: str) -> int:
    """A packet mark, 1 to 2^32-1, decimal or hexadecimal with 0x; not 1338, which the rules use themselves."""
    value = _hexadecimal(text[2:]) if text[:2].lower() == "0x" else number(text, 1, 2**32 - 1, "a mark")
    if value == OUTBOUND_MARK:
        raise ValueError(f"{OUTBOUND_MARK} marks the proxy's own packets to the pod; choose another")
    return value


def _hexadecimal(digits: str) -> int:
    if (
        not 1 <= len(digits) <= 8
        or any(digit not in "0123456789abcdefABCDEF" for digit in digits)
        or not int(digits, 16)
    ):
        raise ValueError("not a mark: use a number from 1 to 4294967295, or 0x1 to 0xffffffff")
    return int(digits, 16)


def route_table(text: str) -> int:
    """A routing table's number, 1 to 2^32-1, without the kernel's own 253 to 255 (default, main, local)."""
    table = number(text, 1, 2**32 - 1, "a routing table")
    if 253 <= table <= 255:
        raise ValueError("tables 253 to 255 are the kernel's own (default, main, local); choose another")
    return table


# Go's time.ParseDuration; the values are seconds.
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """A Go duration (500ms, 5s, 1m30s) in seconds; more than zero, at most a day."""
    wrong = ValueError("not a duration: use numbers with units, such as 500ms, 5s or 1m30s")
    rest, seconds = text.removeprefix("+"), 0.0
    if not rest or len(rest) > 64:
        raise wrong
    while rest:
        unit_start = next((n for n, character in enumerate(rest) if character not in "0123456789."), len(rest))
        amount, rest = rest[:unit_start], rest[unit_start:]
        unit_end = next((n for n, character in enumerate(rest) if character in "0123456789."), len(rest))
        unit, rest = rest[:unit_end], rest[unit_end:]
        if unit not in _UNITS or amount.count(".") > 1 or not amount.strip("."):
            raise wrong
        seconds += float(amount) * _UNITS[unit]
    if not 0 < seconds <= 86400:
        raise ValueError("out of range: more than zero, at most 24h")
    return seconds


def seconds(text: str) -> float:
    """A number of seconds, 0 to 86400, fractions allowed."""
    whole, _, fraction = text.partition(".")
    digits = whole + fraction
    if not (digits.isascii() and digits.isdigit()) or len(text) > 16 or float(text) > 86400:
        raise ValueError("not a number of seconds from 0 to 86400")
    return float(text)


def path(text: str) -> str:
    """A file's path, or nothing."""
    if "\0" in text or len(text) >= 4096:
        raise ValueError("not a path: it holds a NUL or is longer than 4095 characters")
    return text


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


def log_targets(text: str) -> tuple[str, ...]:
    """A comma list of where log lines go: stdout, stderr, or files' paths."""
    return each(path, items(text))


def anything(text: str) -> str:
    """Any text: Istio's injection passes the flag, and it has no effect here."""
    return text
