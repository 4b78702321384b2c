"""Which rules a packet meets, in order, as the kernel itself tells of packets that bear nf_trace.

nftables sends an event for each rule that matched and for each policy that was reached (NFT_MSG_TRACE of
<linux/netfilter/nf_tables.h>: what `nft monitor trace` prints). The legacy tables log a line each, which the sysctl
net.netfilter.nf_log sends to nfnetlink_log: what the target TRACE does.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from integration.kit.nflog import NETLINK_NETFILTER, ROOM, Log, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NFNLGRP_NFTRACE = 9
MESSAGE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
TABLE, CHAIN, HANDLE, TYPE = 1, 2, 3, 4  # NFTA_TRACE_*
POLICY = 1  # NFT_TRACETYPE_*
FAMILIES = {2: "ip", 10: "ip6", 1: "inet"}

# `TRACE: nat:ISTIO_OUTPUT:rule:3 `; the number behind the last rule's is `return`'s or `policy`'s.
LINE = re.compile(r"TRACE: (\w+):(\S+):(?:rule|return|policy):(\d+) ")
LOG_GROUP = 0
SYSCTLS = ("net.netfilter.nf_log.2=nfnetlink_log", "net.netfilter.nf_log.10=nfnetlink_log")


class Event(NamedTuple):
    """A rule that was met, by its handle, or (handle 0) a policy. The family is nft's word for the table's."""

    family: str
    table: str
    chain: str
    handle: int


class NftTrace:
    """Listens to nftables' trace events in the namespace of the thread that made it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)

    def read(self) -> list[Event]:
        """What has been met since the last time, without waiting."""
        result: list[Event] = []
        while True:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return result
            result.extend(_events(data))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _events(data: bytes) -> Iterator[Event]:
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == MESSAGE:
            message = attributes(data[at + 20 : at + length])
            table, chain = (message[each].rstrip(b"\0").decode() for each in (TABLE, CHAIN))
            policy = int.from_bytes(message[TYPE]) == POLICY
            # The end of a chain is a rule, too, to some kernels: one without a handle.
            if policy or HANDLE in message:
                yield Event(FAMILIES[data[at + 16]], table, chain, 0 if policy else int.from_bytes(message[HANDLE]))
        at += length + -length % 4


class LegacyTrace:
    """Listens to the legacy tables' trace in the namespace of the thread that made it; SYSCTLS are to be set there."""

    def __init__(self) -> None:
        self._log = Log(LOG_GROUP)

    def read(self) -> list[tuple[str, str, int]]:
        """Table, chain and number of what has been met since the last time, without waiting."""
        lines = (LINE.match(each.prefix) for each in self._log.read())
        return [(line[1], line[2], int(line[3])) for line in lines if line]

    def close(self) -> None:
        """Stop listening."""
        self._log.close()
