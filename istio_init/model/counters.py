"""What stands with what it has counted, as values: iptables' tables, inet tables, tracked connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.record import Record

if TYPE_CHECKING:
    from istio_init.model.inet import InetChain
    from istio_init.model.rules import Family, Table, TableName


class Count(Record):
    """How many packets a rule, or a chain's policy, has met, and their bytes."""

    packets: int
    bytes: int


class CountedTable(Record):
    """A table of iptables', legacy or nft, and by chain what each rule has counted; None for one without a counter.

    `policies` has what the policies of built-in chains have counted, where the kernel counts it.
    """

    family: Family
    table: Table
    counts: dict[str, tuple[Count | None, ...]]
    policies: dict[str, Count]


class CountedInet(Record):
    """One of our inet tables, each chain as it stands, and what each of its rules has counted."""

    name: TableName
    chains: tuple[tuple[InetChain, tuple[Count | None, ...]], ...]


class Usage(Record):
    """How many connections a namespace tracks, and how many it may."""

    entries: int
    limit: int


class Connection(Record):
    """One tracked connection: its protocol's number, which port answers, whether NAT chose that, and its mark."""

    protocol: int
    port: int
    redirected: bool
    mark: int
