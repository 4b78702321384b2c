"""Other programs' rules that take precedence over Istio's rules, each with an example packet. Pure.

It makes packets that such a rule matches, and compares their path through the table with and without that rule.
"""

from __future__ import annotations

from istio_init.formats.iptables_save import rule_text
from istio_init.model.extensions import Mark
from istio_init.model.ownership import own_rules, recognised
from istio_init.model.packet import Facts, Packet
from istio_init.model.placement import merged
from istio_init.model.routing import Address
from istio_init.model.rules import (
    TCP,
    UDP,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    Protocol,
    Rule,
    Ruleset,
    Source,
    SourcePorts,
    Table,
)
from istio_init.record import Record
from istio_init.simulate.trace import trace
from istio_init.simulate.wording import packet_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Chain, Family, Hook, Match
    from istio_init.simulate.trace_steps import Trace

HOOKS: tuple[Hook, ...] = ("PREROUTING", "OUTPUT")
# A client, the pod and a remote server: documentation addresses (RFC 5737, RFC 3849).
ENDS: dict[Family, tuple[bytes, bytes, bytes]] = {
    "ipv4": (b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x0a", b"\xcb\x00\x71\x01"),
    "ipv6": tuple(bytes.fromhex("20010db8") + bytes(11) + bytes((last,)) for last in (1, 10, 113)),  # type: ignore[dict-item]
}
# The uid of an application that is neither the proxy nor root.
APP = 1000
# The most nested jumps that are followed, and the most packets that are tried for a rule.
DEEPEST, MOST = 4, 64


class Precedence(Record):
    """Another program's rule that precedes Istio's in a chain, and a packet that would be captured without it."""

    family: Family
    table: str
    chain: Hook
    number: int
    rule: Rule
    packet: Packet

    @property
    def text(self) -> str:
        """The rule and the packet, in words."""
        return (
            f"{self.family} {self.table} {self.chain} rule {self.number}, of another program, decides before Istio's "
            f"rules: {rule_text(self.rule)} (for example {packet_text(self.packet)} is not captured)"
        )


def precedences(current: Ruleset, planned: Ruleset) -> Iterator[Precedence]:
    """Every other program's rule in a family's tables that keeps packets from Istio's rules."""
    for desired in planned.tables:
        table = current.table(desired.name)
        if table is None or table is desired:
            continue
        existing = recognised(table, desired)
        for hook in HOOKS:
            chain, planned_chain = existing.chain(hook), desired.chain(hook)
            if chain is not None and planned_chain is not None and planned_chain.rules:
                yield from _in_chain(current.family, existing, desired, chain, hook)


def precedences_after(planned: tuple[Ruleset, ...], current: tuple[Ruleset, ...]) -> Iterator[Precedence]:
    """The same, after Istio's rules are written to the current tables."""
    states = {ruleset.family: ruleset for ruleset in current}
    for desired in planned:
        current_ruleset = states.get(desired.family, Ruleset(desired.family, ()))
        tables = ((table, desired.table(table.name)) for table in current_ruleset.tables)
        after = tuple(merged(table, additions) for table, additions in tables if additions is not None)
        yield from precedences(Ruleset(desired.family, after), desired)


def _in_chain(family: Family, table: Table, planned: Table, chain: Chain, hook: Hook) -> Iterator[Precedence]:
    own = own_rules(chain)
    for at, rule in enumerate(chain.rules[: own[-1] if own else 0]):
        if at in own:
            continue
        for packet in _packets(family, table, rule, hook):
            if _captured(planned, packet) and _decides(table, packet, at, hook):
                yield Precedence(family, table.name, hook, at + 1, rule, packet)
                break


def _captured(table: Table, packet: Packet) -> bool:
    """Whether Istio's rules alone redirect the packet to the proxy or the agent."""
    after = _walk(table, packet).packet
    return after.redirected or bool(after.tproxy_port)


def _decides(table: Table, packet: Packet, at: int, hook: Hook) -> bool:
    """Whether the rule at a position, or a rule that it jumps to, decides about the packet."""
    walked = _walk(table, packet)
    in_hook = [step for step in walked.rules if step.chain == hook and step.matched is not False]
    return bool(in_hook) and in_hook[-1].matched is True and in_hook[-1].number == at + 1


def _walk(table: Table, packet: Packet) -> Trace:
    pod = Network(ENDS[packet.family][1], len(packet.destination) * 8)
    return trace(Ruleset(packet.family, (table,)), packet, Facts((Address(pod, "eth0"),)))


def _packets(family: Family, table: Table, rule: Rule, hook: Hook) -> Iterator[Packet]:
    """Packets that the rule, or a rule that it jumps to, may match."""
    count = 0
    for matches in _paths(table, rule.matches, rule, 0):
        for base in _bases(family, hook):
            packet = base
            for match in matches:
                packet = _fitted(packet, match)
            yield packet
            count += 1
            if count == MOST:
                return


def _paths(table: Table, matches: tuple[Match, ...], rule: Rule, depth: int) -> Iterator[tuple[Match, ...]]:
    chain = table.chain(rule.target.chain) if isinstance(rule.target, Jump) and depth < DEEPEST else None
    if chain is None:
        yield matches
        return
    for each in chain.rules:
        yield from _paths(table, (*matches, *each.matches), each, depth + 1)


def _bases(family: Family, hook: Hook) -> Iterator[Packet]:
    client, pod, server = ENDS[family]
    if hook == "PREROUTING":
        yield Packet(hook, TCP, client, pod, 40000, 8080, in_interface="eth0")
    else:
        yield Packet(hook, TCP, pod, server, 40000, 80, out_interface="eth0", uid=APP, gid=APP)
        yield Packet(hook, UDP, pod, server, 40000, 53, out_interface="eth0", uid=APP, gid=APP)


def _fitted(packet: Packet, match: Match) -> Packet:
    """The packet, changed so that a match holds if that is simple; simulating it shows whether it does."""
    if getattr(match, "negated", False):
        return packet
    match match:
        case Protocol():
            return packet.replace(protocol=match.number)
        case Source():
            return packet.replace(source=_within(match.network, packet.source))
        case Destination():
            return packet.replace(destination=_within(match.network, packet.destination))
        case SourcePorts():
            return packet.replace(source_port=match.ports.low)
        case DestinationPorts():
            return packet.replace(destination_port=match.ports.low)
        case InInterface():
            return packet.replace(in_interface=match.name.removesuffix("+") or "eth0")
        case OutInterface():
            return packet.replace(out_interface=match.name.removesuffix("+") or "eth0")
        case Owner():
            return packet.replace(**{match.kind: match.low})
        case Mark():
            return packet.replace(mark=match.value)
        case _:
            return packet


def _within(network: Network, address: bytes) -> bytes:
    """The address if the network contains it, else an address of the network."""
    bits = len(network.address) * 8
    if len(address) * 8 != bits:
        return address
    hosts = (1 << (bits - network.prefix)) - 1
    number, base = int.from_bytes(address, "big"), int.from_bytes(network.address, "big")
    if number & ~hosts == base:
        return address
    return (base + (1 if hosts else 0)).to_bytes(bits // 8, "big")
