"""`-m set` as cubes: the packets of a space that an IP set has, and those of which that is unknown."""

from __future__ import annotations

from istio_init.model.ip_sets import plain_sets
from istio_init.verify.header_space import DIMENSIONS, PROTOCOL, intersection, without
from istio_init.verify.packet_set import merged_cubes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.ip_sets import IpSet, SetMember
    from istio_init.verify.header_space import Cube, Space
    from istio_init.verify.set_products import Axis, Product, Region

FIELDS = {
    ("address", "src"): "source", ("address", "dst"): "destination", ("port", "src"): "source_port",
    ("port", "dst"): "destination_port", ("iface", "src"): "in_interface", ("iface", "dst"): "out_interface",
    ("mark", "src"): "mark", ("mark", "dst"): "mark",
}  # fmt: skip


class SetCubes:
    """The cubes of matches of IP sets, computed once for each set and its sides."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._cubes_by_key: dict[tuple[str, tuple[str, ...]], tuple[list[Cube], list[Cube]]] = {}
        self._bits: dict[tuple[str, int, str], list[int]] = {}

    def of(self, match: SetMember) -> tuple[list[Cube], list[Cube]]:
        """The packets for which a match holds, and those for which that is unknown, each as disjoint cubes."""
        key = match.name, match.sides
        if key not in self._cubes_by_key:
            self._cubes_by_key[key] = self._make(match)
        inside, unclear = self._cubes_by_key[key]
        if match.negated:
            return merged_cubes(without([self._space.everything], [*inside, *unclear])), unclear
        return inside, unclear

    def _make(self, match: SetMember) -> tuple[list[Cube], list[Cube]]:
        inside: list[Cube] = []
        unclear: list[Cube] = []
        for each in plain_sets(match.name, match.sets):
            shape = self._space.products.get(each.name) if each else None
            if each is None or shape is None:
                unclear = [self._space.everything]
            elif each.family in {"", self._space.family} and len(match.sides) >= each.dimensions:
                for cube, held in self._cubes(each, shape, match.sides):
                    (inside if held else unclear).append(cube)
        inside = _disjoint(inside)
        return merged_cubes(inside), merged_cubes(without(_disjoint(unclear), inside))

    def _cubes(self, ip_set: IpSet, shape: Product, sides: tuple[str, ...]) -> Iterator[tuple[Cube, bool | None]]:
        for region in shape.regions:
            limits = [*self._space.everything]
            limits[PROTOCOL] &= self._protocols(region)
            for axis, classes in zip(shape.axes, region.classes, strict=True):
                field = FIELDS[axis.kind, sides[axis.dimension]]
                limits[DIMENSIONS.index(field)] &= self._classes(ip_set.name, axis, field, classes)
            if all(limits):
                yield tuple(limits), region.held

    def _protocols(self, region: Region) -> int:
        every = self._space.everything[PROTOCOL]
        named = self._space.among(PROTOCOL, region.protocols)
        return every & ~named if region.others else named if region.protocols else every

    def _classes(self, name: str, axis: Axis, field: str, classes: int) -> int:
        """The classes of the space that are in these classes of a set's axis."""
        key = name, axis.dimension, field
        if key not in self._bits:
            bits = [0] * len(axis.covers)
            for number, value in enumerate(self._space.values[DIMENSIONS.index(field)]):
                bits[axis.class_of(value)] |= 1 << number
            self._bits[key] = bits
        return sum(each for number, each in enumerate(self._bits[key]) if classes >> number & 1)


def _disjoint(cubes: list[Cube]) -> list[Cube]:
    """The same packets, each in one cube alone."""
    result: list[Cube] = []
    for cube in cubes:
        overlapping = [each for each in result if intersection(each, cube)]
        result += without([cube], overlapping) if overlapping else [cube]
    return result
