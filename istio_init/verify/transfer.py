"""The effect of targets on packet sets; a set is split if a target treats its packets differently."""

from __future__ import annotations

from itertools import product

from istio_init.errors import assert_never
from istio_init.model.extensions import (
    CtZone,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
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
from istio_init.model.packet import LOOPBACKS, contains
from istio_init.model.rules import LOOPBACK_INTERFACE, Jump, Redirect, Verdict
from istio_init.model.unknown import UnknownTarget
from istio_init.simulate.foreign_targets import effect_of
from istio_init.verify.header_space import (
    CONNMARK,
    DESTINATION,
    DESTINATION_PORT,
    IN,
    MARK,
    OUT,
    SOURCE,
    SOURCE_PORT,
    STATE,
)
from istio_init.verify.packet_set import CONNECTIONLESS, PacketSet, bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Facts
    from istio_init.model.rules import Hook, Network, Target
    from istio_init.verify.header_space import Space


HIGHEST_PORT = 65535


class Transfer:
    """The targets over a space."""

    def __init__(self, space: Space, facts: Facts) -> None:
        self._space, self._facts = space, facts

    def act(self, target: Target, packet_set: PacketSet, hook: Hook) -> Iterator[tuple[PacketSet, str]]:
        """The effect of a target on a packet set, split if it treats the packets differently."""
        match target:
            case Verdict(name):
                yield packet_set, name or "CONTINUE"
            case Redirect():
                yield from self._redirect(target, packet_set, hook)
            case Tproxy(port, _, value, mask):
                for part, mark in self._marked(packet_set, value, mask):
                    for number in bits(part.now(DESTINATION_PORT)) if not port else (None,):
                        at = part if number is None else next(part.part(DESTINATION_PORT, 1 << number))
                        socket = port if number is None else self._space.values[DESTINATION_PORT][number]
                        yield at.having((MARK, mark)).replace(tproxy=socket), "ACCEPT"
            case SetMark(value, mask):
                for part, mark in self._marked(packet_set, value, mask):
                    yield part.having((MARK, mark)), "CONTINUE"
            case SaveMark() | RestoreMark():
                yield from ((part, "CONTINUE") for part in self._connection_mark(target, packet_set))
            case CtZone(zone):
                chosen = packet_set.tracked or packet_set.zone is not None
                yield packet_set if chosen else packet_set.replace(zone=zone), "CONTINUE"
            case UnknownTarget():
                yield from self._foreign(effect_of(target), packet_set, hook)
            case Jump():
                raise AssertionError(f"{target}: Reachability follows jumps")
            case _:
                assert_never(target)

    def _redirect(self, target: Redirect, packet_set: PacketSet, hook: Hook) -> Iterator[tuple[PacketSet, str]]:
        for part, number in self._ports(packet_set, target.ports.low, target.ports.high):
            yield from self._redirect_to(part, number, hook)

    def _redirect_to(self, packet_set: PacketSet, port_class: int, hook: Hook) -> Iterator[tuple[PacketSet, str]]:
        """To the machine itself, at the port that represents a class."""
        port = (DESTINATION_PORT, port_class)
        there = packet_set.replace(redirect=self._space.values[DESTINATION_PORT][port_class])
        if hook == "OUTPUT":
            loopback = self._space.number(DESTINATION, LOOPBACKS[self._space.family])
            yield there.having(port, (DESTINATION, loopback)), "ACCEPT"
            return
        for interface in bits(packet_set.now(IN)):
            by_address: dict[bytes | None, int] = {}
            for number in bits(packet_set.now(DESTINATION)):
                destination = self._space.values[DESTINATION][number]
                address = self._facts.primary(self._space.values[IN][interface], destination)
                by_address[address] = by_address.get(address, 0) | 1 << number
            parts = tuple(there.part(IN, 1 << interface))
            for address, classes in by_address.items():
                pieces = [piece for part in parts for piece in part.part(DESTINATION, classes)]
                if address is None:
                    yield from ((piece.replace(redirect=0), "DROP") for piece in pieces)
                else:
                    new = (DESTINATION, self._space.number(DESTINATION, address))
                    yield from ((piece.having(port, new), "ACCEPT") for piece in pieces)

    def _foreign(self, effect: ForeignTarget, packet_set: PacketSet, hook: Hook) -> Iterator[tuple[PacketSet, str]]:
        """The effect of another program's target on a packet set."""
        match effect:
            case Fixed(answer):
                yield packet_set, answer
            case SetConnMark(value, mask):
                yield from ((part, "CONTINUE") for part in self._with_connection_mark(packet_set, value, mask))
            case MapAddress(network):
                yield from ((part, "ACCEPT") for part in self._mapped(packet_set, network, hook))
            case NoTrack():
                untracked = (STATE, self._space.number(STATE, "UNTRACKED"))
                changed = packet_set.having(untracked).replace(kind=CONNECTIONLESS)
                yield packet_set if packet_set.tracked else changed, "CONTINUE"
            case Translate():
                yield from self._translated(effect, packet_set)
            case ToSelf(low, high):
                for part, number in self._ports(packet_set, low, high):
                    yield from self._redirect_to(part, number, hook)
            case MapPrefix(side, network):
                dimension = SOURCE if side == "source" else DESTINATION
                for number in bits(self._space.inside(dimension, (network,))):
                    yield packet_set.having((dimension, number)), "CONTINUE"
            case AnyMark() | ChangeSets():
                yield from ((part, "CONTINUE") for part in self._any_mark(effect, packet_set))
            case _:
                assert_never(effect)

    def _any_mark(self, effect: AnyMark | ChangeSets, packet_set: PacketSet) -> Iterator[PacketSet]:
        """A set once for each class of the marks that its packets may get."""
        if isinstance(effect, ChangeSets):
            marks = [(MARK, number) for number in bits(self._space.everything[MARK])] if effect.mark else []
        elif packet_set.kind == CONNECTIONLESS and (effect.tracked or effect.field == "connmark"):
            marks = []
        else:
            dimension = MARK if effect.field == "mark" else CONNMARK
            marks = [(dimension, number) for number in self._space.marks(effect.low, effect.high)]
        yield from (packet_set.having(mark) for mark in marks) if marks else (packet_set,)

    def _ports(self, packet_set: PacketSet, low: int, high: int) -> Iterator[tuple[PacketSet, int]]:
        """A set once for each class of destination ports in a range; port 0 is the one that its packets have."""
        if low:
            yield from ((packet_set, number) for number in bits(self._space.between(DESTINATION_PORT, low, high)))
            return
        for number in bits(packet_set.now(DESTINATION_PORT)):
            yield from ((part, number) for part in packet_set.part(DESTINATION_PORT, 1 << number))

    def _translated(self, effect: Translate, packet_set: PacketSet) -> Iterator[tuple[PacketSet, str]]:
        """A set with another address, port or both on one side, once for each class of what the kernel may choose."""
        address_at, port_at = (SOURCE, SOURCE_PORT) if effect.side == "source" else (DESTINATION, DESTINATION_PORT)
        addresses: list[tuple[int, int] | None] = [None]
        ports: list[tuple[int, int] | None] = [None]
        if effect.address:
            ends = [int.from_bytes(each) for each in (effect.address, effect.last_address or effect.address)]
            addresses = [(address_at, each) for each in bits(self._space.between(address_at, *ends))]
        # Another source port counts if the packet comes back.
        back = effect.random and packet_set.now(OUT) & self._space.only(OUT, LOOPBACK_INTERFACE)
        if effect.port or back:
            ends = [effect.port, effect.last_port] if effect.port else [1, HIGHEST_PORT]
            ports = [(port_at, each) for each in bits(self._space.between(port_at, *ends))]
        for changes in product(addresses, ports):
            part = packet_set.having(*(each for each in changes if each))
            if effect.own:
                yield from self._masqueraded(part)
            else:
                yield part if effect.side == "source" else part.replace(redirect=self._local_port(*changes)), "ACCEPT"

    def _local_port(self, address: tuple[int, int] | None, port: tuple[int, int] | None) -> int:
        """The port of a new destination if it is here, which counts as a redirection; else 0."""
        if address and not self._facts.is_local(self._space.values[DESTINATION][address[1]]):
            return 0
        return self._space.values[DESTINATION_PORT][port[1]] if port else 0

    def _mapped(self, packet_set: PacketSet, network: Network, hook: Hook) -> Iterator[PacketSet]:
        """A set whose packets may get each address of a network, on the side that the hook translates."""
        source = hook in {"INPUT", "POSTROUTING"}
        dimension = SOURCE if source else DESTINATION
        for number, address in enumerate(self._space.values[dimension]):
            if contains(network, address):
                part = packet_set.having((dimension, number))
                yield part if source else part.replace(redirect=0)

    def _masqueraded(self, packet_set: PacketSet) -> Iterator[tuple[PacketSet, str]]:
        """A set with another source, which depends on the interface."""
        nothing = bytes(4 if self._space.family == "ipv4" else 16)
        for number in bits(packet_set.now(OUT)):
            source = self._facts.masquerade(self._space.values[OUT][number], nothing)
            for part in packet_set.part(OUT, 1 << number):
                if source is None:
                    yield part, "DROP"
                else:
                    yield part.having((SOURCE, self._space.number(SOURCE, source))), "ACCEPT"

    def _with_connection_mark(self, packet_set: PacketSet, value: int, mask: int) -> Iterator[PacketSet]:
        """A set, split by the class of its new connection mark."""
        if packet_set.kind == CONNECTIONLESS:
            yield packet_set
            return
        for number in bits(packet_set.now(CONNMARK)):
            new = self._space.mark((self._space.values[CONNMARK][number] & ~mask) ^ value)
            for part in packet_set.part(CONNMARK, 1 << number):
                yield part.having((CONNMARK, new))

    def _marked(self, packet_set: PacketSet, value: int, mask: int) -> Iterator[tuple[PacketSet, int]]:
        """A set, split by the class of its new mark."""
        by_mark: dict[int, int] = {}
        for number in bits(packet_set.now(MARK)):
            mark = self._space.mark((self._space.values[MARK][number] & ~mask) ^ value)
            by_mark[mark] = by_mark.get(mark, 0) | 1 << number
        for mark, classes in by_mark.items():
            for part in packet_set.part(MARK, classes):
                yield part, mark

    def _connection_mark(self, target: SaveMark | RestoreMark, packet_set: PacketSet) -> Iterator[PacketSet]:
        """A set, split by marks, with the connection's mark saved or restored; unchanged without a connection."""
        if packet_set.kind == CONNECTIONLESS:
            yield packet_set
            return
        marks = self._space.values[MARK]
        saving = isinstance(target, SaveMark)
        for one in bits(packet_set.now(MARK)):
            for other in bits(packet_set.now(CONNMARK)):
                mark, connmark = marks[one], marks[other]
                if saving:
                    new = CONNMARK, self._space.mark((connmark & ~target.ctmask) ^ (mark & target.nfmask))
                else:
                    new = MARK, self._space.mark((mark & ~target.nfmask) ^ (connmark & target.ctmask))
                for part in packet_set.part(MARK, 1 << one):
                    for piece in part.part(CONNMARK, 1 << other):
                        yield piece.having(new)
