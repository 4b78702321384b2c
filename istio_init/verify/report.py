"""What a proof finds: claims that packets break, rules that decide nothing."""

from __future__ import annotations

from istio_init.record import Record
from istio_init.verify.header_space import CONNMARK, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.packet import Packet
    from istio_init.model.rules import Family, Rule
    from istio_init.verify.header_space import Space
    from istio_init.verify.packet_set import Flow

ALIKE = "IPv4 and IPv6 agree"


class Fault(Record):
    """A claim that a packet breaks: what should have become of it, and what does. `known`: why Istio's rules do so."""

    claim: str
    packet: Packet
    expected: str
    found: str
    known: str = ""

    @property
    def family(self) -> Family:
        """The address family."""
        family: Family = self.packet.family
        return family


class Idle(Record):
    """A rule that decides nothing, or (without a rule) a chain that nothing reaches, and why."""

    family: Family
    table: str
    chain: str
    number: int
    rule: Rule | None
    why: str


def told(flow: Flow, space: Space) -> str:
    """What became of a flow's packets, in words."""
    changed = dict(flow.changed)
    parts = [flow.end]
    parts += [f"redirected to port {flow.redirect}"] if flow.redirect else []
    parts += [f"to the transparent socket on port {flow.tproxy}"] if flow.tproxy else []
    parts += [f"mark {space.values[MARK][changed[MARK]]:#x}"] if MARK in changed else []
    parts += [f"connection mark {space.values[CONNMARK][changed[CONNMARK]]:#x}"] if CONNMARK in changed else []
    parts += [f"conntrack zone {flow.zone}"] if flow.zone else []
    return ", ".join(parts)
