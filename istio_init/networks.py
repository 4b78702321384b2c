"""A long list of networks in columns: of 10,000, a run wants the bytes of all addresses, and not an object for each.

Imported where a list is long. It is to others what a tuple of Networks is.
"""

from __future__ import annotations

from istio_init.netfilter import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self, SupportsIndex, TypeAlias

    # For type checkers: this is what it stands in for.
    Base: TypeAlias = tuple[Network, ...]
else:
    Base = object


class Networks(Base):
    """Networks of one family: `addresses` one behind the other, as Network has each, and their `prefixes`.

    Equal to a tuple of the same networks, and hashed like it; the objects are made when somebody asks for them.
    """

    __slots__ = ("_made", "addresses", "prefixes")

    def __init__(self, addresses: bytes, prefixes: list[int]) -> None:
        self.addresses, self.prefixes = addresses, prefixes
        self._made: tuple[Network, ...] = ()

    @property
    def width(self) -> int:
        """The bytes of an address."""
        return len(self.addresses) // len(self.prefixes)

    def behind(self, first: Network) -> Self:
        """The same networks behind one more of their family."""
        return type(self)(first.address + self.addresses, [first.prefix, *self.prefixes])

    def _all(self) -> tuple[Network, ...]:
        if not self._made:
            width = self.width
            each = [self.addresses[start : start + width] for start in range(0, len(self.addresses), width)]
            self._made = Network.many(each, self.prefixes)
        return self._made

    def __len__(self) -> int:
        return len(self.prefixes)

    def __iter__(self) -> Iterator[Network]:
        return iter(self._all())

    def __getitem__(self, at: SupportsIndex | slice) -> Any:  # noqa: ANN401 (one or several)
        """One network, or a tuple of several: of few, without making all."""
        width, numbers = self.width, range(len(self.prefixes))[at]
        if isinstance(numbers, range):
            return tuple(map(self.__getitem__, numbers)) if len(numbers) < len(self) // 2 else self._all()[at]
        return Network(self.addresses[numbers * width : (numbers + 1) * width], self.prefixes[numbers])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Networks):
            return (self.addresses, self.prefixes) == (other.addresses, other.prefixes)
        return isinstance(other, tuple) and self._all() == other

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())
