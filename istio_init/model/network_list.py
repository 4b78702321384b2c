"""A long list of networks, parsed and kept in columns: a run wants the bytes of all addresses, not an object for each.

Imported where a list is long. It is to others what a tuple of Networks is.
"""

from __future__ import annotations

# The C half of socket: the module around it takes as long to import as Python takes to start.
from _socket import AF_INET, AF_INET6, inet_pton
from itertools import repeat

from istio_init.model.rules import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Self, SupportsIndex, TypeAlias, TypeVar

    T = TypeVar("T")

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


def hosts(entries: Sequence[str]) -> tuple[Network, ...]:
    """The Networks of a list of addresses, all of one family; OSError or ValueError where it isn't that."""
    joined = _addresses(entries)
    return Networks(joined, [len(joined) // len(entries) * 8] * len(entries))


def _addresses(entries: Sequence[str]) -> bytes:
    """The packed addresses, one behind the other."""
    return b"".join(map(inet_pton, repeat(AF_INET6 if ":" in entries[0] else AF_INET), entries))


def cidrs(entries: Sequence[str], length: Callable[[str, int], int]) -> tuple[Network, ...]:
    """The same of CIDRs and addresses, step by step for all of them, host bits masked off.

    `length` parses a prefix length of so many bits.
    """
    texts, suffixes = _halves(entries)
    joined = _addresses(texts)
    width = len(joined) // len(texts)
    lengths = {suffix: length(suffix[1:], width * 8) for suffix in set(suffixes)}
    # The bits behind each prefix, of all addresses as one number: mostly there is nothing to be masked.
    behind = {suffix: ((1 << width * 8 - length) - 1).to_bytes(width) for suffix, length in lengths.items()}
    rest = int.from_bytes(b"".join(_each(behind, suffixes)))
    if int.from_bytes(joined) & rest:
        joined = (int.from_bytes(joined) & ~rest).to_bytes(len(joined))
    return Networks(joined, _each(lengths, suffixes))


def _halves(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before the slash of each entry, and the slash with what is behind it; for an address, all of its bits.

    Of entries that are neither, something is not an address that should be one, or not a suffix.
    """
    if "/" in entries[0]:
        # No entry has a comma. Where all end alike, that with its comma takes them apart.
        suffix = entries[0][entries[0].index("/") :]
        *texts, _ = f"{','.join(entries)},".split(f"{suffix},")
        if len(texts) == len(entries):
            return texts, [suffix] * len(texts)
    whole = "/128" if ":" in entries[0] else "/32"
    entries = [entry if "/" in entry else entry + whole for entry in entries]
    # An entry has a slash by now; where it has two, a suffix comes where the next address should be.
    parts = ",".join(entries).replace("/", ",/").split(",")
    return parts[::2], parts[1::2]


def _each(known: Mapping[str, T], texts: list[str]) -> list[T]:
    """What is known of each text; mostly all are the same one."""
    return [*known.values()] * len(texts) if len(known) == 1 else list(map(known.__getitem__, texts))
