"""JSON without the module json, whose import takes longer than reading a pod's configuration; its C half is enough."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

BLANKS = " \t\n\r"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _Context:
    """The scanner's settings: JSON as in RFC 8259."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int = float, int
    parse_constant = staticmethod(_refuse_constant)


_context: Any = _Context()
_no_default: Any = None
_scan = make_scanner(_context)
_encode = make_encoder(None, _no_default, encode_basestring_ascii, None, ": ", ", ", False, False, False)


def encode(value: object) -> str:
    """One line of ASCII for a value of strings, numbers, booleans, None, lists and dicts."""
    return "".join(_encode(value, 0))


def decode(text: str) -> Any:  # noqa: ANN401 (whatever it holds)
    """The value of a JSON text; ValueError where it is not one."""
    value, end = _value(text, _skip(text, 0))
    if _skip(text, end) != len(text):
        raise ValueError(f"more than one value, the second at character {end}")
    return value


def members(text: str) -> Mapping[str, tuple[Any, str]]:
    """The members of the object that a JSON text holds: each one's value, and its text as it is there.

    ValueError where the text is no JSON, or no object. Where a name is there twice, the last one counts.
    """
    members_by_name: dict[str, tuple[Any, str]] = {}
    position = _skip(text, 0)
    if text[position : position + 1] != "{":
        raise ValueError("not a JSON object")
    position = _skip(text, position + 1)
    if text[position : position + 1] == "}":
        return _ended(text, position, members_by_name)
    while True:
        name, position = _name(text, position)
        position = _expect(text, position, ":")
        value, end = _value(text, position)
        members_by_name[name] = value, text[position:end]
        position = _skip(text, end)
        if text[position : position + 1] == "}":
            return _ended(text, position, members_by_name)
        position = _expect(text, position, ",")


def _value(text: str, position: int) -> tuple[Any, int]:
    try:
        return _scan(text, position)
    except StopIteration as stop:
        raise ValueError(f"a value is missing at character {stop.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except SystemError:
        pass
    # Older releases of CPython can raise their JSONDecodeError only if json.decoder is imported.
    import json.decoder  # noqa: F401 (for its effect)

    return _value(text, position)


def _name(text: str, position: int) -> tuple[str, int]:
    """The string that begins there, and where it ends."""
    if text[position : position + 1] != '"':
        raise ValueError(f"a name in double quotes is missing at character {position}")
    name, end = _value(text, position)
    return str(name), end


def _ended(text: str, position: int, members_by_name: dict[str, tuple[Any, str]]) -> Mapping[str, tuple[Any, str]]:
    if _skip(text, position + 1) != len(text):
        raise ValueError(f"something comes after the object, at character {position + 1}")
    return members_by_name


def _expect(text: str, position: int, sign: str) -> int:
    position = _skip(text, position)
    if text[position : position + 1] != sign:
        raise ValueError(f"{sign!r} is missing at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in BLANKS and position < len(text):
        position += 1
    return position
