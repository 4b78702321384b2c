"""A packet's whole path: from hook to hook, then the connections that the proxy makes because of it.

Envoy handles a captured connection as Istio configures it: the outbound listener dials the original
destination, the inbound listener dials the app at the original destination from 127.0.0.6 (::6) or, with TPROXY,
from the client's own address and with the mark; the agent queries the original DNS server.
"""

from __future__ import annotations

from istio_init.model.packet import connected
from istio_init.model.rules import LOOPBACK_INTERFACE, TCP
from istio_init.planning.capture import AGENT_DNS_PORT, PASSTHROUGH, uses_tproxy
from istio_init.record import Record
from istio_init.simulate import martians
from istio_init.simulate.trace import trace
from istio_init.simulate.trace_steps import ChainEnd
from istio_init.simulate.unclear import current, unclear, unclear_routing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.masked_rule import MaskedRule
    from istio_init.model.packet import Facts, Packet
    from istio_init.model.routing import PolicyRule
    from istio_init.model.rules import Ruleset
    from istio_init.options.table import Options
    from istio_init.simulate.trace import HookVerdict
    from istio_init.simulate.trace_steps import RuleStep, Trace

    # The proxy's listeners; `application` is any other socket of the pod.
    Listener: TypeAlias = Literal["outbound", "inbound", "tunnel", "dns"]
    EndKind: TypeAlias = Literal[
        "outbound", "inbound", "tunnel", "dns", "application", "wire", "forwarded", "dropped", "queued", "undecided"
    ]

# The source port of the proxy's own connections, in place of the ephemeral port that the kernel would choose.
EPHEMERAL_PORT = 50000

APPLICATION = "the application"
CLIENT = "a client"
# The sender of the connection that follows when one reaches a listener of the proxy.
SENDERS: dict[str, str] = {
    "outbound": "Envoy, to the original destination",
    "inbound": "Envoy, to the application",
    "dns": "the agent, to the DNS server",
}

UNACCEPTED: dict[HookVerdict, EndKind] = {"DROP": "dropped", "QUEUE": "queued", "UNDECIDED": "undecided"}


class Proxy(Record):
    """The proxy's ports, its user and group, and the mark of its connections to the app (TPROXY mode, else 0)."""

    outbound_port: int
    inbound_port: int
    tunnel_port: int
    uid: int
    gid: int
    mark: int = 0

    def listener(self, packet: Packet) -> Listener | None:
        """The proxy's listener that receives a locally delivered packet; None for another socket of the pod."""
        port = packet.tproxy_port or packet.destination_port
        if port == AGENT_DNS_PORT:
            return "dns"
        if packet.protocol != TCP:
            return None
        if port == self.outbound_port:
            return "outbound"
        if port == self.inbound_port:
            return "inbound"
        return "tunnel" if port == self.tunnel_port else None


def proxy(options: Options) -> Proxy:
    """The proxy as Istio runs it: as the first of its ids, and in TPROXY mode as root with the proxy's group."""
    uid = options.proxy_uid[0]
    gid = options.proxy_groups[0]
    ports = (options.envoy_port, options.inbound_capture_port, options.inbound_tunnel_port)
    if uses_tproxy(options):
        return Proxy(*ports, 0, gid, options.istio_inbound_tproxy_mark)
    return Proxy(*ports, uid, gid)


class RoutingDecision(Record):
    """A routing decision between two hooks: the packet as the next hook sees it.

    `by` is the policy rule that decided, None if the destination did; `changed` whether the packet now leaves by
    another interface; `refused` why the kernel dropped it here, or empty; `unclear` why the way that it takes is not
    known, or empty.
    """

    packet: Packet
    by: PolicyRule | MaskedRule | None = None
    changed: bool = False
    refused: str = ""
    unclear: str = ""


class Leg(Record):
    """One connection's packet: its sender, its first state, the hooks it passes, its end, and its final state."""

    sender: str
    packet: Packet
    passed: tuple[Trace | RoutingDecision, ...]
    end: EndKind
    arrived: Packet

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The hooks, without routing decisions."""
        return tuple(each for each in self.passed if not isinstance(each, RoutingDecision))

    @property
    def refused(self) -> str:
        """Why the kernel dropped the packet whatever the rules; empty if it did not."""
        last = self.passed[-1]
        return last.refused if isinstance(last, RoutingDecision) else ""

    @property
    def unclear(self) -> str:
        """Why routing could not be followed, or who receives the packet; empty if both are known."""
        last = self.passed[-1]
        if isinstance(last, RoutingDecision):
            return last.unclear
        port = unclear(self.arrived, "destination_port") if self.end == "undecided" else None
        return f"its port may be one of the proxy's: {port.why}" if port and last.outcome == "ACCEPT" else ""

    @property
    def policy(self) -> ChainEnd | None:
        """The end of the chain whose policy dropped the packet; None if no policy did."""
        last = self.passed[-1]
        end = last.steps[-1] if not isinstance(last, RoutingDecision) and last.steps else None
        return end if isinstance(end, ChainEnd) and end.policy == "DROP" and self.end == "dropped" else None

    @property
    def decisive(self) -> RuleStep | None:
        """The rule that decided the end: the last one that changed the packet, else the last one that let it pass."""
        decisive_steps = [step for each in self.traces if (step := each.decisive)]
        deciding = [step for step in decisive_steps if step.matched is None or step.after != step.before or step.drops]
        return deciding[-1] if deciding else decisive_steps[-1] if decisive_steps else None


class PacketPath(Record):
    """All legs in order; `loop` is the listener that the path reaches twice, or empty."""

    legs: tuple[Leg, ...]
    loop: str = ""

    @property
    def end(self) -> EndKind:
        """The end of the last leg."""
        last: Leg = self.legs[-1]
        return last.end


def follow(ruleset: Ruleset, packet: Packet, facts: Facts, envoy: Proxy) -> PacketPath:
    """The path of the packet and of the connections that the proxy makes because of it."""
    sender = APPLICATION if packet.hook == "OUTPUT" else CLIENT
    legs: list[Leg] = []
    following: Packet | None = packet
    while following is not None:
        leg = travel(ruleset, following, facts, envoy, sender)
        if leg.end in SENDERS and leg.end in {each.end for each in legs}:
            return PacketPath((*legs, leg), leg.end)
        legs.append(leg)
        following, sender = proxy_packet(leg, facts, envoy), SENDERS.get(leg.end, "")
    return PacketPath(tuple(legs))


def travel(ruleset: Ruleset, packet: Packet, facts: Facts, envoy: Proxy, sender: str) -> Leg:
    """One packet's path from its first hook to where it is delivered, sent or dropped."""
    if packet.hook == "PREROUTING" and (why := martians.at_the_door(packet)):
        return Leg(sender, packet, (RoutingDecision(packet, refused=why),), "dropped", packet)
    passed: list[Trace | RoutingDecision] = []
    if facts.lookup and packet.hook == "OUTPUT" and (why := facts.sent(packet).refused):
        return Leg(sender, packet, (RoutingDecision(packet, refused=why),), "dropped", packet)
    current = packet
    while True:
        hook_trace = trace(ruleset, current, facts)
        passed.append(hook_trace)
        if hook_trace.outcome != "ACCEPT":
            return Leg(sender, packet, tuple(passed), UNACCEPTED[hook_trace.outcome], hook_trace.packet)
        if hook_trace.hook == "INPUT":
            return Leg(sender, packet, tuple(passed), _receiver(hook_trace.packet, envoy), hook_trace.packet)
        if hook_trace.hook == "POSTROUTING" and hook_trace.packet.out_interface != LOOPBACK_INTERFACE:
            forwarded = any(isinstance(each, RoutingDecision) and each.packet.hook == "FORWARD" for each in passed)
            return Leg(sender, packet, tuple(passed), "forwarded" if forwarded else "wire", hook_trace.packet)
        decision = _decision(hook_trace, facts, from_here=packet.hook == "OUTPUT")
        passed.append(decision)
        if decision.refused or decision.unclear:
            return Leg(sender, packet, tuple(passed), "dropped" if decision.refused else "undecided", decision.packet)
        current = decision.packet


def _receiver(packet: Packet, envoy: Proxy) -> EndKind:
    """Who receives a locally delivered packet; undecided if its port is one of several, and one is the proxy's."""
    ports = None if packet.tproxy_port else unclear(packet, "destination_port")
    own = (envoy.outbound_port, envoy.inbound_port, envoy.tunnel_port, AGENT_DNS_PORT)
    if ports and any(ports.within(port, port) is not False for port in own):
        return "undecided"
    return envoy.listener(packet) or "application"


def _decision(hook_trace: Trace, facts: Facts, *, from_here: bool) -> RoutingDecision:
    """The routing decision after a hook that accepted a packet; `from_here` for one that the pod sent."""
    packet = hook_trace.packet
    if hook_trace.hook == "PREROUTING":
        # A packet that returns over lo keeps its route (skb_valid_dst in ip_rcv_finish_core).
        return RoutingDecision(packet.replace(hook="INPUT")) if from_here else _arriving(packet, facts)
    if hook_trace.hook == "OUTPUT":
        before, sent = hook_trace.before, packet.replace(hook="POSTROUTING")
        deciding = ("destination", "mark")
        same = [current(packet, field) for field in deciding] == [current(before, field) for field in deciding]
        return RoutingDecision(sent) if same else routed(sent, facts)
    if hook_trace.hook == "FORWARD":
        return RoutingDecision(packet.replace(hook="POSTROUTING", in_interface=""))
    # Over lo the packet keeps its mark and its connection, and loses its socket.
    back = packet.replace(hook="PREROUTING", in_interface=LOOPBACK_INTERFACE, out_interface="", uid=None, gid=None)
    return RoutingDecision(back)


def _arriving(packet: Packet, facts: Facts) -> RoutingDecision:
    """An incoming packet: delivered locally by its destination, its mark or a socket, else forwarded."""
    if why := martians.by_routing(packet, facts):
        return RoutingDecision(packet, refused=why)
    if not packet.tproxy_port and (why := unclear_routing(packet, facts)):
        return RoutingDecision(packet, unclear=why)
    hop = facts.arriving(packet)
    if hop.local or packet.tproxy_port:
        return RoutingDecision(packet.replace(hook="INPUT"), hop.by)
    if hop.refused:
        return RoutingDecision(packet, refused=hop.refused)
    return RoutingDecision(packet.replace(hook="FORWARD", out_interface=hop.device))


def routed(packet: Packet, facts: Facts) -> RoutingDecision:
    """The routing decision for a packet that the pod sends: the interface that it leaves by."""
    if why := unclear_routing(packet, facts):
        return RoutingDecision(packet, unclear=why)
    hop = facts.sent(packet)
    changed = packet.out_interface != hop.device
    return RoutingDecision(packet.replace(out_interface=hop.device), hop.by, changed, hop.refused)


def proxy_packet(leg: Leg, facts: Facts, envoy: Proxy) -> Packet | None:
    """The first packet of the connection that the proxy makes because of one that reached it; None without one.

    As Istio configures it, Envoy closes a connection to a listener's own port, since it would dial itself.
    """
    start = leg.packet
    if leg.end not in SENDERS or start.destination_port == (leg.arrived.tproxy_port or leg.arrived.destination_port):
        return None
    bound, mark = None, 0
    if leg.end == "inbound":
        bound = start.source if envoy.mark else PASSTHROUGH[start.family].address
        mark = envoy.mark
    destination = connected(start.destination, bound)
    following = start.replace(
        hook="OUTPUT", source=bound or start.source, destination=destination, source_port=EPHEMERAL_PORT,
        in_interface="", uid=envoy.uid, gid=envoy.gid, mark=mark, ctstate="NEW", connmark=0, zone=None, tracked=False,
        translated=(), redirected=False, unclear=(),
    )  # fmt: skip
    following = following if bound else following.replace(source=facts.source_for(following))
    return routed(following, facts).packet
