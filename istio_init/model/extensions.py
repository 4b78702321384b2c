"""Matches and targets that a plain REDIRECT plan does not use, so such a run does not load this module.

As in rules.py: names and spellings are those of iptables-extensions(8), ports and marks are ints in host order,
addresses are packed bytes in network order.
"""

from __future__ import annotations

from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from istio_init.model.rules import PortRange

# Matches: which packets a rule applies to.


class Multiport(Record):
    """-m multiport: one of up to 15 ports; a range counts as two. `side` is sports, dports or (either) ports."""

    side: Literal["sports", "dports", "ports"]
    ports: tuple[PortRange, ...]
    negated: bool = False


class Mark(Record):
    """-m mark: the packet's mark, under the mask, is `value`."""

    value: int
    mask: int = 0xFFFFFFFF
    negated: bool = False


class ConnMark(Record):
    """-m connmark: the connection's mark, under the mask, is `value`."""

    value: int
    mask: int = 0xFFFFFFFF
    negated: bool = False


class CtState(Record):
    """-m conntrack --ctstate: the connection is in one of the states, given in the order of CT_STATES."""

    states: tuple[str, ...]
    negated: bool = False


# The order in which iptables-save prints the states of a conntrack match.
CT_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")


# Targets.


class Tproxy(Record):
    """-j TPROXY: to the transparent socket at `port` and `address` (packed; zero: the packet's own), and marked."""

    port: int
    address: bytes
    mark: int
    mask: int = 0xFFFFFFFF


class SetMark(Record):
    """-j MARK --set-xmark value/mask: mark = (mark & ~mask) ^ value."""

    value: int
    mask: int = 0xFFFFFFFF


class SaveMark(Record):
    """-j CONNMARK --save-mark: the packet's mark becomes the connection's."""

    nfmask: int = 0xFFFFFFFF
    ctmask: int = 0xFFFFFFFF


class RestoreMark(Record):
    """-j CONNMARK --restore-mark: the connection's mark becomes the packet's."""

    nfmask: int = 0xFFFFFFFF
    ctmask: int = 0xFFFFFFFF


class CtZone(Record):
    """-j CT --zone: track the packet in this conntrack zone."""

    zone: int
