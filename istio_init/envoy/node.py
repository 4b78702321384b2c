"""A place in a configuration dump: its JSON value, and the path to it.

Protobuf's JSON has two spellings of a field (filter_chains, filterChains), and writes 64-bit numbers, and some
others, as text; a Node hides these differences.
"""

from __future__ import annotations

from istio_init.errors import InitError, shown
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Characters of a name or value that are printed at most.
LONGEST = 120


class DumpError(InitError):
    """A configuration dump that can't be read; the message says where and why."""


class Node(Record):
    """A value in a dump, None if it is missing; `path` is its location, such as configs[3].listeners[0]."""

    value: Any
    path: str = ""

    def get(self, name: str) -> Node:
        """A field by its name in snake_case; a Node without a value if it is missing or null."""
        if self.value is None:
            return self
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        value = self.value.get(name)
        if value is None and "_" in name:
            value = self.value.get(_camel(name))
        return Node(value, f"{self.path}.{name}" if self.path else name)

    def at(self, *names: str) -> Node:
        """The nested field at these names."""
        node = self
        for name in names:
            node = node.get(name)
        return node

    def __bool__(self) -> bool:
        """Whether there is a value; an empty object is one."""
        return self.value is not None

    def each(self) -> Iterator[Node]:
        """The entries of a list; none if it is missing."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for number, value in enumerate(self.value):
            yield Node(value, f"{self.path}[{number}]")

    def fields(self) -> dict[str, Node]:
        """The fields that have a value, by their name in snake_case."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        values = {_snake(name): value for name, value in self.value.items() if value is not None}
        return {name: Node(value, f"{self.path}.{name}") for name, value in values.items()}

    def text(self, default: str = "") -> str:
        """A string."""
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(each.text() for each in self.each())

    def number(self, default: int = 0) -> int:
        """An integer, which may be written as text."""
        value = self.value
        if value is None:
            return default
        if isinstance(value, str) and len(value) <= 20 and value.removeprefix("-").isdecimal():
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong("a number")
        return value

    def port(self, default: int = 0) -> int:
        """A port."""
        number = self.number(default)
        if not 0 <= number <= 65535:
            raise self.wrong("a port")
        return number

    def flag(self, default: bool = False) -> bool:  # noqa: FBT001, FBT002 (a field's default)
        """A boolean."""
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def enum(self, *names: str) -> str:
        """The name of an enumeration value, which may be a number in the dump; the first name if missing."""
        value = self.value
        if value is None:
            return names[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return names[value] if 0 <= value < len(names) else str(value)
        return self.text()

    def seconds(self, default: float) -> float:
        """A duration as protobuf writes it: 0.200s."""
        if self.value is None:
            return default
        text = self.text()
        try:
            return float(text.removesuffix("s"))
        except ValueError:
            raise self.wrong("a duration") from None

    @property
    def kind(self) -> str:
        """The name of the message in `@type`, without its package; empty if it is missing."""
        kind = self.value.get("@type") if isinstance(self.value, dict) else None
        return kind.rpartition(".")[2] if isinstance(kind, str) else ""

    def wrong(self, expected: str) -> DumpError:
        """The error for a value of the wrong type."""
        return DumpError(
            f"{self.path or 'the dump'}: {clipped(self.value)}: not {expected}; is this Envoy's configuration dump?"
        )


def clipped(value: object) -> str:
    """A value of the dump for output: one line, escaped, cut."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return shown(str(value), LONGEST)


def plain(name: str) -> str:
    """A name from the dump for output, quoted only if it has unprintable characters."""
    text = name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."
    return text if text.isprintable() else repr(text)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _snake(name: str) -> str:
    if name.islower():
        return name
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
