"""Rules with their packet and byte counters, and tracked connections, as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.record import Record

if TYPE_CHECKING:
    from istio_init.model.inet import InetChain
    from istio_init.model.rules import Family, Table, TableName


class Count(Record):
    """The packets that a rule, or a chain's policy, has matched, and their bytes."""

    packets: int
    bytes: int


class CountedTable(Record):
    """An iptables table, legacy or nft, with each rule's counter by chain; None for a rule without a counter.

    `policies` has the counters of built-in chains' policies, as far as the kernel keeps them.
    """

    family: Family
    table: Table
    counts: dict[str, tuple[Count | None, ...]]
    policies: dict[str, Count]


class CountedInet(Record):
    """One of istio-init's inet tables: each chain as the kernel has it, with the counters of its rules."""

    name: TableName
    chains: tuple[tuple[InetChain, tuple[Count | None, ...]], ...]


class Usage(Record):
    """The number of connections that a namespace tracks, and its limit."""

    entries: int
    limit: int


class Connection(Record):
    """One tracked connection: protocol number, the port that replies, whether NAT chose that port, and the mark."""

    protocol: int
    port: int
    redirected: bool
    mark: int
