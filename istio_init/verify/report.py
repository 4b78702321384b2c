"""The results of a proof: broken invariants and dead rules."""

from __future__ import annotations

from istio_init.formats.addresses import address_text
from istio_init.record import Record
from istio_init.verify.header_space import CONNMARK, DESTINATION, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.packet import Packet
    from istio_init.model.rules import Family, Rule
    from istio_init.verify.header_space import Space
    from istio_init.verify.packet_set import PacketSet

ALIKE = "IPv4 and IPv6 agree"


class Fault(Record):
    """A packet that breaks an invariant, with its expected and actual outcome; `known_cause`: why Istio's do so."""

    invariant: str
    packet: Packet
    expected: str
    actual: str
    known_cause: str = ""

    @property
    def family(self) -> Family:
        """The address family."""
        family: Family = self.packet.family
        return family


class DeadRule(Record):
    """A rule that no packet matches, or (without a rule) a chain that none reaches, and why."""

    family: Family
    table: str
    chain: str
    number: int
    rule: Rule | None
    why: str


def describe(packet_set: PacketSet, space: Space) -> str:
    """The outcome of a set's packets, in words."""
    changed = dict(packet_set.changed)
    parts = [packet_set.end]
    parts += [f"redirected to port {packet_set.redirect}"] if packet_set.redirect else []
    parts += [f"to the transparent socket on port {packet_set.tproxy}"] if packet_set.tproxy else []
    if DESTINATION in changed and not packet_set.redirect:
        parts += [f"destination {address_text(space.values[DESTINATION][changed[DESTINATION]])}"]
    parts += [f"mark {space.values[MARK][changed[MARK]]:#x}"] if MARK in changed else []
    parts += [f"connection mark {space.values[CONNMARK][changed[CONNMARK]]:#x}"] if CONNMARK in changed else []
    parts += [f"conntrack zone {packet_set.zone}"] if packet_set.zone else []
    return f"undecided, perhaps {', '.join(parts)}" if packet_set.doubtful else ", ".join(parts)
