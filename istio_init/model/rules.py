"""Rulesets, tables, chains, rules, and the matches and targets of every plan, as immutable values.

Marks, zones and TPROXY are in extensions.py, which a plain run does not load.

Names and spellings are those of iptables-extensions(8). Ports and marks are ints in host order;
addresses are packed bytes in network order. Nothing here does I/O.
"""

from __future__ import annotations

# The C half of the standard library's socket: inet_ntop spells an address as iptables, nft and ip do, with no I/O.
# `import socket` or `import ipaddress` would cost a start several milliseconds for the same answer.
from _socket import AF_INET, AF_INET6, inet_ntop

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Literal, TypeAlias

    from istio_init.model.extensions import (
        ConnMark,
        CtState,
        CtZone,
        Mark,
        Multiport,
        RestoreMark,
        SaveMark,
        SetMark,
        Tproxy,
    )
    from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

    Family: TypeAlias = Literal["ipv4", "ipv6"]
    TableName: TypeAlias = Literal["raw", "mangle", "nat", "filter", "security"]
    Hook: TypeAlias = Literal["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]

IPV4: Family = "ipv4"
IPV6: Family = "ipv6"
FAMILIES: tuple[Family, ...] = (IPV4, IPV6)

TCP = 6
UDP = 17

LOOPBACK_INTERFACE = "lo"

# The built-in chains of each table in the order in which iptables-save lists them: the hooks' numbers in
# <linux/netfilter.h>. Tables are in the order in which a packet meets them.
BUILTIN_CHAINS: dict[TableName, tuple[Hook, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

# An empty chain that is in a table only while Istio's rules are moved to another backend's tables, or from there.
MOVING_CHAIN = "ISTIO_MOVING"

# The chains that Istio's rules live in, whichever table they are in.
OWN_CHAINS = frozenset(
    {
        "ISTIO_INBOUND",
        "ISTIO_REDIRECT",
        "ISTIO_IN_REDIRECT",
        "ISTIO_OUTPUT",
        "ISTIO_OUTPUT_DNS",
        "ISTIO_DIVERT",
        "ISTIO_TPROXY",
        "ISTIO_DROP",
        # Of the ambient mode's redirection, in pods and on nodes; no plan has them.
        "ISTIO_PRERT",
        "ISTIO_POSTRT",
        MOVING_CHAIN,
    }
)


class Network(Record):
    """An IPv4 or IPv6 network: `address` packed in network order (4 or 16 bytes), host bits zero; `prefix` in bits."""

    address: bytes
    prefix: int

    @property
    def family(self) -> Family:
        """The address family, by the length of the address."""
        return IPV4 if len(self.address) == 4 else IPV6


def address_text(address: bytes) -> str:
    """A packed address as text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def range_text(low: int, high: int, separator: str = "-") -> str:
    """A range of ports or ids as text; one alone as itself."""
    return str(low) if low == high else f"{low}{separator}{high}"


class PortRange(Record):
    """Ports `low` to `high`, both included, 0 to 65535."""

    low: int
    high: int


# Matches: which packets a rule applies to. Those of the entry itself come first, in the order in which
# iptables-save prints them; a Rule's matches keep that order, so that equal rules are equal values.


class Source(Record):
    """-s: the source address is in the network."""

    network: Network
    negated: bool = False


class Destination(Record):
    """-d: the destination address is in the network."""

    network: Network
    negated: bool = False


class InInterface(Record):
    """-i: the packet came in by this interface; a name that ends in + is a prefix."""

    name: str
    negated: bool = False


class OutInterface(Record):
    """-o: the packet leaves by this interface; a name that ends in + is a prefix."""

    name: str
    negated: bool = False


class Protocol(Record):
    """-p: the IP protocol by its number (IANA's: 6 is TCP, 17 UDP)."""

    number: int
    negated: bool = False


class SourcePorts(Record):
    """-m tcp|udp --sport: the source port is in the range."""

    ports: PortRange
    negated: bool = False


class DestinationPorts(Record):
    """-m tcp|udp --dport: the destination port is in the range."""

    ports: PortRange
    negated: bool = False


class Owner(Record):
    """-m owner: the sending socket's file system uid or gid is in the range `low` to `high`."""

    kind: Literal["uid", "gid"]
    low: int
    high: int
    negated: bool = False


# Targets.


class Verdict(Record):
    """-j ACCEPT, DROP, RETURN or QUEUE; an empty name is a rule without a target, which only counts."""

    name: Literal["ACCEPT", "DROP", "RETURN", "QUEUE", ""]


class Jump(Record):
    """-j CHAIN, or -g CHAIN where `goto`."""

    chain: str
    goto: bool = False


class Redirect(Record):
    """-j REDIRECT: to the machine itself, at this port (or one of the range, network address translation's choice)."""

    ports: PortRange


if TYPE_CHECKING:
    Match: TypeAlias = (
        Source
        | Destination
        | InInterface
        | OutInterface
        | Protocol
        | SourcePorts
        | DestinationPorts
        | Multiport
        | Owner
        | Mark
        | ConnMark
        | CtState
        | Comment
        | UnknownMatch
    )
    Target: TypeAlias = Verdict | Jump | Redirect | Tproxy | SetMark | SaveMark | RestoreMark | CtZone | UnknownTarget


class Rule(Record):
    """Matches, all of which must hold, and the target; `ours`: the kernel's entry carries this program's signature.

    The signature distinguishes Istio's rules in built-in chains from equal rules of other programs
    (kernel/xtables/encode_rule.py stores it); it does not make two rules different.
    """

    matches: tuple[Match, ...]
    target: Target
    ours: bool = False
    _uncompared = ("ours",)


class Run(Record):
    """Rules that differ in one value: `unit`, given for the first of the `values`, repeated for each of them.

    The values are networks (the rules' Destination) or ports (their DestinationPorts).
    """

    unit: tuple[Rule, ...]
    values: tuple[Network, ...] | tuple[PortRange, ...]

    def __len__(self) -> int:
        return len(self.unit) * len(self.values)

    def rules(self) -> Iterator[Rule]:
        """All rules, one after the other."""
        kind: Any = Destination if isinstance(self.values[0], Network) else DestinationPorts
        around = []
        for rule in self.unit:
            at, match = next((at, match) for at, match in enumerate(rule.matches) if isinstance(match, kind))
            around.append((rule.matches[:at], match.negated, rule.matches[at + 1 :], rule))
        for value in self.values:
            for before, negated, behind, rule in around:
                yield Rule((*before, kind(value, negated), *behind), rule.target, rule.ours)


class Chain(Record):
    """A chain and its rules. A built-in chain has a `policy`; in a user-defined chain it is None.

    `inserted` is the number of leading rules that go before other programs' rules, as iptables -I puts them; the
    rest are appended, as -A does. It is part of the plan only, and does not make two chains different.
    """

    name: str
    rules: tuple[Rule, ...]
    policy: str | None = None
    inserted: int = 0
    _uncompared = ("inserted",)
    __slots__ = ("parts",)

    @classmethod
    def of(cls, name: str, parts: tuple[Rule | Run, ...], policy: str | None = None, inserted: int = 0) -> Chain:
        """A chain that expands its runs when `rules` is first read: applying 10,000 ports does not need them."""
        chain, write = cls.__new__(cls), object.__setattr__
        write(chain, "name", name)
        write(chain, "policy", policy)
        write(chain, "inserted", inserted)
        write(chain, "parts", parts)
        return chain

    @property
    def count(self) -> int:
        """The number of rules."""
        count = 0
        for part in self.parts:
            count += len(part) if type(part) is Run else 1
        return count

    if TYPE_CHECKING:

        @property
        def parts(self) -> tuple[Rule | Run, ...]:
            """The rules in order, a Run counting as one part."""

    else:

        def __getattr__(self, slot):  # noqa: ANN001, ANN204 (type checkers are not to see it)
            """Fill an empty slot: `rules` from the parts, or `parts` with the rules themselves."""
            if slot not in {"rules", "parts"}:
                raise AttributeError(f"{type(self).__name__} has no {slot}")
            rules = [rule for part in self.parts for rule in _spelled(part)] if slot == "rules" else self.rules
            value = tuple(rules)
            object.__setattr__(self, slot, value)
            return value


def _spelled(part: Rule | Run) -> Iterator[Rule]:
    """The rules of a chain's part."""
    return part.rules() if isinstance(part, Run) else iter((part,))


class Table(Record):
    """A table with its chains in iptables-save's order: built-in ones by hook, then user-defined ones by name."""

    name: TableName
    chains: tuple[Chain, ...]

    @property
    def count(self) -> int:
        """The number of rules."""
        return sum([chain.count for chain in self.chains])

    def chain(self, name: str) -> Chain | None:
        """The chain of that name, or None."""
        for chain in self.chains:  # a generator for next() takes three times as long
            if chain.name == name:
                return chain
        return None


class Ruleset(Record):
    """All tables of one address family, those that exist, in the order in which a packet meets them."""

    family: Family
    tables: tuple[Table, ...]

    def table(self, name: TableName) -> Table | None:
        """The table of that name, or None."""
        for table in self.tables:
            if table.name == name:
                return table
        return None


def ordered(table: TableName, chains: dict[str, Chain]) -> tuple[Chain, ...]:
    """Chains in the kernel's order: every built-in one of the table (made empty where missing), then by name."""
    builtin = BUILTIN_CHAINS[table]
    first = [chains.get(name) or Chain(name, (), "ACCEPT") for name in builtin]
    return (*first, *(chains[name] for name in sorted(chains) if name not in builtin))


def jumps(chain: Chain) -> Iterator[str]:
    """The names of the chains that a chain's rules jump or go to."""
    for part in chain.parts:
        for rule in part.unit if isinstance(part, Run) else (part,):
            if isinstance(rule.target, Jump):
                yield rule.target.chain
