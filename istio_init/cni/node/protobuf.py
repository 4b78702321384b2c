"""Protocol Buffers as bytes on a wire, for the few messages of the CRI: https://protobuf.dev/programming-guides/encoding/.

Fields are known by their numbers. All reading raises ValueError for what is no message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# A varint has no more bytes: 64 bits, seven in each.
LONGEST_VARINT = 10


class Message:
    """A message that was read: for each field the values that it was given, in order."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def number(self, field: int) -> int:
        """A number or a truth; 0 where the field is not there."""
        value = self._fields.get(field, [0])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {field} is no number")  # noqa: TRY004 (a message's fault, not a caller's)
        return value

    def text(self, field: int) -> str:
        """A string; empty where the field is not there."""
        return (self._bytes(field) or [b""])[-1].decode()

    def message(self, field: int) -> Message:
        """A message in the message; one without fields where it is not there."""
        # Where it is there twice, the two are one: each field of the later counts.
        return Message(b"".join(self._bytes(field)))

    def messages(self, field: int) -> list[Message]:
        """Each message of a repeated field."""
        return [Message(data) for data in self._bytes(field)]

    def pairs(self, field: int) -> dict[str, str]:
        """A map of strings."""
        return {pair.text(1): pair.text(2) for pair in self.messages(field)}

    def _bytes(self, field: int) -> list[bytes]:
        values = self._fields.get(field, [])
        found = [value for value in values if isinstance(value, bytes)]
        if len(found) < len(values):
            raise ValueError(f"field {field} is no text and no message")
        return found


def text(field: int, value: str) -> bytes:
    """A string, to be part of a message."""
    data = value.encode()
    return _varint(field << 3 | BYTES) + _varint(len(data)) + data


def truth(field: int, *, value: bool) -> bytes:
    """A bool, to be part of a message."""
    return _varint(field << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:
                value, at = _read_varint(data, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _read_varint(data, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"unknown kind of field {kind}")
        if size > len(data) - at:
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(data[at : at + LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise ValueError("it ends in the middle of a number")
