"""Options that a Python program makes: their values' types are checked, and each flag's parser reads its value."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from istio_init.errors_rare import OptionError
from istio_init.model import parsers, parsers_rare
from istio_init.model.rules import Network, PortRange
from istio_init.options.arguments import text
from istio_init.options.table import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from istio_init.options.table import Option, Options

_ADDRESSES = (Network, IPv4Address, IPv6Address)
_RANGES = (*_ADDRESSES, IPv4Network, IPv6Network)
# The types of a value or, in LISTS, of each of its entries. Every field takes text as well, and most nothing else.
TYPES: dict[Callable[[str], object], tuple[type, ...]] = {
    parsers.boolean: (bool, int),
    **dict.fromkeys((parsers.port, parsers.typed_port, parsers.mark, parsers.route_table), (int,)),
    **dict.fromkeys((parsers.duration, parsers.seconds), (int, float)),
    **dict.fromkeys((parsers.ports, parsers.all_or_ports), (int, PortRange)),
    **dict.fromkeys((parsers.owners, parsers.all_or_owner_groups, parsers.excluded_owner_groups), (int,)),
    **dict.fromkeys((parsers.networks, parsers.all_or_networks, parsers.loopback), _RANGES),
    parsers.addresses: _ADDRESSES,
    parsers.ports_of_users: (tuple,),
}
# The parsers of lists: a program may give a tuple of entries.
LISTS = frozenset(
    {
        parsers.ports, parsers.all_or_ports, parsers.owners, parsers.all_or_owner_groups,
        parsers.excluded_owner_groups, parsers.networks, parsers.all_or_networks, parsers.addresses,
        parsers.interfaces, parsers.log_targets, parsers.ports_of_users,
    }
)  # fmt: skip
_WORDS: dict[type, str] = {
    int: "an int", float: "a float", bool: "a bool", PortRange: "a PortRange", tuple: "a tuple of entries",
    Network: "a Network", IPv4Network: "an ipaddress network",
}  # fmt: skip


def checked(options: Options) -> Options:
    """Options that a program has made, each value as its flag's parser makes it.

    A value may be that already, text as on a command line, or of one of TYPES; a list's may be a tuple of these.
    Raises OptionError, which names the field, for another type, and for what the flag refuses.
    """
    values = {}
    for each in OPTIONS:
        value = getattr(options, each.field)
        if value is each.default:
            continue
        try:
            values[each.field] = each.parse(_as_text(each, value))
        except (ValueError, TypeError) as error:
            raise OptionError(each.field, _shown(value), str(error)) from None
    return options.replace(**values)


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (whatever a program's class does)
        return type(value).__name__


def _as_text(each: Option, value: object) -> str:
    """A program's value as the text of its flag; TypeError for one of another type."""
    if value is None and each.default is None:
        return ""
    if isinstance(value, tuple) and each.parse in LISTS:
        entries = [_entry(each, entry) for entry in value]
        return (";" if each.parse is parsers.ports_of_users else ",").join(entries)
    if each.parse is parsers.ports_of_users and not isinstance(value, str):
        raise _wrong_type(each, value)
    return _entry(each, value)


def _entry(each: Option, value: Any) -> str:  # noqa: ANN401 (whatever a program gives)
    """One value, or one entry of a list, as text."""
    if isinstance(value, str):
        return str(value)
    types = TYPES.get(each.parse, ())
    # A bool is an int, and means no number.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise _wrong_type(each, value)
    if isinstance(value, tuple | PortRange | Network):
        return _parsable(each, value)
    if isinstance(value, int | float):
        return text(each, value)
    # An address alone, where no network is taken.
    return str(value).partition("/")[0] if each.parse is parsers.addresses else str(value)


def _parsable(each: Option, value: Any) -> str:  # noqa: ANN401 (its fields may hold anything)
    """The text of a value that a parser has made; TypeError for one that no parser makes."""
    parsed: object = None
    expected: object = value
    try:
        if isinstance(value, tuple):
            as_written = parsers_rare.ports_of_users_text((value,))
            (parsed,) = parsers_rare.ports_of_users(as_written)
        elif isinstance(value, PortRange):
            as_written = text(each, value)
            parsed = parsers.port_range(as_written)
        else:
            as_written = text(each, value)
            # An address within its network is taken, as it is from text.
            parsed, expected = parsers.network(as_written).prefix, value.prefix
    except (AttributeError, TypeError, ValueError, OSError):
        parsed = None
    # Equal numbers of other types, such as 6.0, differ in how they are written.
    if repr(parsed) != repr(expected):
        raise TypeError("not a value that this option has: give text as on a command line")
    return as_written


def _wrong_type(each: Option, value: object) -> TypeError:
    types = TYPES.get(each.parse, ())
    words = ["text", *(word for kind, word in _WORDS.items() if kind in types and kind is not tuple)]
    words += ["an ipaddress address"] if IPv4Address in types else []
    words += ["a tuple of these"] if each.parse in LISTS else []
    taken = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return TypeError(f"{type(value).__name__} is not a type for it: give {taken}")
