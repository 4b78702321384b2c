"""Parses the texts that few command lines have: durations, marks, interfaces, groups, ports of users.

Each function returns a value or raises ValueError, as those in parsers.py do, which imports this module with the first
such text.
"""

from __future__ import annotations

from istio_init.model.parsers import (
    ALL,
    MOST_ENTRIES,
    MOST_NAMES,
    OUTBOUND_MARK,
    all_or_ports,
    each,
    is_all,
    is_loopback,
    items,
    network,
    number,
    owner,
    owners,
)
from istio_init.model.rules import IPV4, TCP, UDP, Network, range_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.parsers import Everything, PortsOfUsers

# IFNAMSIZ in <linux/if.h> less the closing NUL.
INTERFACE_NAME_BYTES = 15
# Istio limits the included owner groups, and not the excluded ones, which are bounded here all the same.
MOST_OWNER_GROUPS, MOST_EXCLUDED_GROUPS = 64, 1000


def loopback(text: str) -> Network:
    """An IPv4 CIDR inside of 127.0.0.0/8."""
    if "," in text:
        raise ValueError("use one range, not a list")
    net = network(text)
    if net.family != IPV4 or not is_loopback(net):
        raise ValueError("not a loopback range: it must be inside 127.0.0.0/8")
    return net


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


def excluded_owner_groups(text: str) -> tuple[int, ...]:
    """A comma list of numeric gids, which Istio does not limit to 64 as it does the included ones."""
    entries = items(text)
    if ALL in entries:
        raise ValueError("* is not allowed here, list the ids")
    return each(owner, entries, MOST_EXCLUDED_GROUPS)


def all_or_owner_groups(text: str) -> tuple[int, ...] | Everything:
    """A comma list of at most 64 gids, or * alone for every group."""
    entries = items(text)
    if is_all(entries):
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
        port_list = ",".join([range_text(each.low, each.high) for each in numbers])
        user_list = ",".join([range_text(*each) for each in users])
        texts.append(f"{'tcp' if protocol == TCP else 'udp'}:{port_list or ALL}:{user_list}")
    return ";".join(texts)


def typed_port(text: str) -> int:
    """A port of a flag that is a number in Istio's program: decimal, or 0x, 0o, 0b and a leading 0 as Go has them."""
    base = {"0x": 16, "0o": 8, "0b": 2}.get(text[:2].lower())
    if base is None:
        base = 8 if len(text) > 1 and text[0] == "0" else 10
    try:
        # Python would take white space and a sign as well.
        value = int(text, base) if text[:1].isdigit() and text == text.strip() and len(text) <= 20 else -1
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError("not a port: use a number from 1 to 65535")
    if not 1 <= value <= 65535:
        raise ValueError("not a port: outside of 1 to 65535")
    return value


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


def log_targets(text: str) -> tuple[str, ...]:
    """A comma list of where log lines go: stdout, stderr, or files' paths."""
    return each(path, items(text))
