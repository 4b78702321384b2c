"""Sets of packets that were treated alike so far; a set is split where its packets are treated differently.

Changes that rules make to packets are kept next to the cube, as one class for the whole set; if a change differs
within a set, the set is split first.
"""

from __future__ import annotations

from operator import itemgetter

from istio_init.record import Record
from istio_init.verify.header_space import (
    CONNMARK,
    DESTINATION,
    DESTINATION_PORT,
    GID,
    IN,
    MARK,
    OUT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    STATE,
    UID,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.verify.header_space import Cube

# Connection tracking decides whether nat sees a packet.
CONNECTIONLESS, LATER, FIRST_ONE, ICMP_ERROR = "connectionless", "later", "first", "icmp error"


# The dimensions in the order in which cubes are merged: first those that long lists of rules split.
MERGING = (DESTINATION_PORT, DESTINATION, SOURCE_PORT, SOURCE, GID, UID, IN, OUT, MARK, CONNMARK, STATE, PROTOCOL)


# All dimensions but one.
OTHERS = [itemgetter(*(other for other in range(len(MERGING)) if other != each)) for each in range(len(MERGING))]


class PacketSet(Record):
    """Packets that were treated alike so far, as they started; `changed` is (dimension, class) for each change.

    `kind` is one of the four above. `zone` is the same as a packet's; `redirect` and `tproxy` are the ports that they
    were redirected to, or 0; `nat` has the sides that nat has decided; `end` is where they ended: delivered, wire,
    forwarded, dropped, queued, undecided, or empty while they are in transit. `doubtful`: a rule has or has not matched
    them, which cannot be told.
    """

    cube: Cube
    kind: str
    changed: tuple[tuple[int, int], ...] = ()
    zone: int | None = None
    tracked: bool = False
    redirect: int = 0
    tproxy: int = 0
    nat: tuple[str, ...] = ()
    end: str = ""
    doubtful: bool = False

    def now(self, dimension: int) -> int:
        """The classes that the packets are in now."""
        for changed, number in self.changed:
            if changed == dimension:
                return 1 << number
        classes: int = self.cube[dimension]
        return classes

    def having(self, *changes: tuple[int, int]) -> PacketSet:
        """The same packets with these dimensions changed."""
        dimensions = {dimension for dimension, _ in changes}
        kept = tuple(each for each in self.changed if each[0] not in dimensions)
        changed = tuple(sorted((*kept, *changes)))
        return PacketSet(
            self.cube, self.kind, changed, self.zone, self.tracked, self.redirect, self.tproxy, self.nat, self.end,
            self.doubtful,
        )  # fmt: skip

    def of(self, cube: Cube) -> PacketSet:
        """Other packets in the same state; the same as replace(cube=...), in a third of the time."""
        return PacketSet(
            cube, self.kind, self.changed, self.zone, self.tracked, self.redirect, self.tproxy, self.nat, self.end,
            self.doubtful,
        )  # fmt: skip

    def part(self, dimension: int, classes: int) -> Iterator[PacketSet]:
        """The part whose packets are now in some classes of a dimension, if any."""
        now = self.now(dimension)
        here = now & classes
        if here == now:
            yield self
        elif here:
            yield self.of((*self.cube[:dimension], here, *self.cube[dimension + 1 :]))


def bits(classes: int) -> Iterator[int]:
    """The numbers of the classes in a set."""
    while classes:
        lowest = classes & -classes
        yield lowest.bit_length() - 1
        classes ^= lowest


# Merging fewer sets than this is not worth its time.
FEW = 8


def merged(sets: list[PacketSet]) -> list[PacketSet]:
    """The same packets in fewer sets: sets in the same state that differ in one dimension are merged."""
    if len(sets) < FEW:
        return sets
    by_state: dict[tuple[object, ...], tuple[PacketSet, list[Cube]]] = {}
    for packet_set in sets:
        state = (
            packet_set.kind,
            packet_set.changed,
            packet_set.zone,
            packet_set.tracked,
            packet_set.redirect,
            packet_set.tproxy,
            packet_set.nat,
            packet_set.end,
            packet_set.doubtful,
        )
        by_state.setdefault(state, (packet_set, []))[1].append(packet_set.cube)
    return [
        first if len(cubes) == 1 else first.of(cube)
        for first, cubes in by_state.values()
        for cube in merged_cubes(cubes)
    ]


def merged_cubes(cubes: list[Cube]) -> list[Cube]:
    """The same packets in fewer cubes, still disjoint."""
    for dimension in MERGING:
        # Disjoint cubes that are all equal in this dimension can't differ in it alone.
        if len({cube[dimension] for cube in cubes}) == 1:
            continue
        classes_by_rest: dict[Cube, int] = {}
        others = OTHERS[dimension]
        for cube in cubes:
            rest = others(cube)
            classes_by_rest[rest] = classes_by_rest.get(rest, 0) | cube[dimension]
        cubes = [(*rest[:dimension], classes, *rest[dimension:]) for rest, classes in classes_by_rest.items()]
    return cubes
