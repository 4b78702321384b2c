"""The effects of other programs' targets on a packet, as in the kernel's extensions."""

from __future__ import annotations

from istio_init.errors import assert_never
from istio_init.model.foreign import (
    AnyMark,
    ChangeSets,
    Fixed,
    MapAddress,
    MapPrefix,
    NoTrack,
    SetConnMark,
    ToSelf,
    Translate,
)
from istio_init.model.inet import interval
from istio_init.model.packet import LOOPBACKS, UNCONNECTED
from istio_init.model.rules import TCP, UDP
from istio_init.model.unclear import ALL_BITS, OpenNumber
from istio_init.simulate.unclear import marked, set_field, with_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Facts, Packet
    from istio_init.model.rules import Network

    # A field of a packet and its new value.
    Change: TypeAlias = tuple[str, OpenNumber | int | bytes]

HIGHEST_PORT = 65535


def apply(effect: ForeignTarget, packet: Packet, facts: Facts) -> tuple[Packet, str]:
    """The effect of another program's target on a packet."""
    match effect:
        case Fixed(answer):
            return packet, answer
        case SetConnMark(value, mask):
            if packet.ctstate in UNCONNECTED:
                return packet, "CONTINUE"
            return marked(packet, "connmark", value, mask), "CONTINUE"
        case AnyMark() | ChangeSets():
            return _unclear_after(effect, packet), "CONTINUE"
        case NoTrack():
            return packet if packet.tracked else packet.replace(ctstate="UNTRACKED"), "CONTINUE"
        case Translate(side, address, _, own):
            if own and (address := facts.masquerade(packet.out_interface, packet.destination)) is None:
                return packet, "DROP"
            last = address if own else effect.last_address
            ends: list[Change] = [(side, _chosen(side, address, last))] if address else []
            translated = with_values(packet, *ends, *_chosen_port(effect, packet))
            return translated.replace(redirected=packet.redirected or side == "destination"), "ACCEPT"
        case ToSelf(low, high):
            return to_self(packet, facts, low, high)
        case MapPrefix(side, network):
            return with_values(packet, (side, OpenNumber(side, *interval(network), "prefix translation"))), "CONTINUE"
        case MapAddress(network):
            side = "source" if packet.hook in {"INPUT", "POSTROUTING"} else "destination"
            mapped = _mapped(getattr(packet, side), network)
            return packet.replace(**{side: mapped}, redirected=packet.redirected or side == "destination"), "ACCEPT"
        case _:
            assert_never(effect)


def _unclear_after(effect: AnyMark | ChangeSets, packet: Packet) -> Packet:
    if isinstance(effect, AnyMark):
        field, low, high = effect.field, effect.low, effect.high
        if (effect.tracked or field == "connmark") and packet.ctstate in UNCONNECTED:
            return packet
        return with_values(packet, (field, low if low == high else OpenNumber(field, low, high, effect.where)))
    changed = [OpenNumber(set_field(name), 0, 0, "-j SET changes it") for name in effect.names]
    changed += [OpenNumber("mark", 0, ALL_BITS, "an IP set has it")] if effect.mark else []
    fields = {each.field for each in changed}
    return packet.replace(unclear=(*(each for each in packet.unclear if each.field not in fields), *changed))


def _chosen(field: str, low: bytes | int, high: bytes | int | None) -> OpenNumber | int | bytes:
    """A value of a field, or one that the kernel chooses from a range."""
    first, last = (int.from_bytes(each) if isinstance(each, bytes) else each for each in (low, high or low))
    return low if first == last else OpenNumber(field, first, last, "the kernel chooses it")


def _chosen_port(effect: Translate, packet: Packet) -> list[Change]:
    """The port of a translated side; none where it stays."""
    field = f"{effect.side}_port"
    if packet.protocol not in {TCP, UDP}:
        return []
    if effect.port:
        return [(field, _chosen(field, effect.port, effect.last_port))]
    return [(field, OpenNumber(field, 1, HIGHEST_PORT, "the kernel chooses it"))] if effect.random else []


def _mapped(address: bytes, network: Network) -> bytes:
    """An address in another network, with its own host part."""
    hosts = (1 << len(address) * 8 - network.prefix) - 1
    mapped = int.from_bytes(network.address) & ~hosts | int.from_bytes(address) & hosts
    return mapped.to_bytes(len(address))


def to_self(packet: Packet, facts: Facts, port: int, last_port: int) -> tuple[Packet, str]:
    """To the machine itself, at a port or one of a range; port 0 is the one that the packet has."""
    if packet.hook == "OUTPUT":
        address: bytes | None = LOOPBACKS[packet.family]
    else:
        address = facts.primary(packet.in_interface, packet.destination)
    if address is None:
        return packet, "DROP"
    ends: list[Change] = [("destination", address)]
    ends += [("destination_port", _chosen("destination_port", port, last_port))] if port else []
    return with_values(packet, *ends).replace(redirected=True), "ACCEPT"
