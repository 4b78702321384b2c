"""Options as the data of a JSON object and back: how the CNI plugin keeps what ADD decided until DEL.

Only options that differ from their default are written. A range of ports is [low, high], a network its CIDR
text; every other value is what JSON has for it.
"""

from __future__ import annotations

from istio_init.formats.addresses import network_text
from istio_init.model import parsers, parsers_rare
from istio_init.model.rules import Network, PortRange
from istio_init.options.table import OPTIONS, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    from istio_init.options.table import Option

    T = TypeVar("T")

_OPTIONS = {each.field: each for each in OPTIONS}


def to_data(options: Options) -> dict[str, Any]:
    """The options that are not the default, by field, as values that JSON can hold."""
    values = ((each, getattr(options, each.field)) for each in OPTIONS)
    return {each.field: _option_data(each, value) for each, value in values if value != each.default}


def from_data(data: Mapping[str, Any]) -> Options:
    """The options of `to_data`; raises ValueError, which names the field, for anything else."""
    values: dict[str, Any] = {}
    for field, value in data.items():
        each = _OPTIONS.get(field)
        try:
            if each is None:
                raise ValueError("no such option")  # noqa: TRY301 (each error gets the field's name below)
            values[field] = _from_data(each, value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"option {field[:80]!r}: {error}") from None
    return Options(**values)


def _option_data(each: Option, value: Any) -> Any:  # noqa: ANN401 (each option has its own type)
    if each.parse is parsers.ports_of_users:
        return [parsers_rare.ports_of_users_text((entry,)) for entry in value]
    return _to_data(value)


def _to_data(value: Any) -> Any:  # noqa: ANN401 (each option has its own type)
    if isinstance(value, PortRange):
        return value.low if value.low == value.high else [value.low, value.high]
    if isinstance(value, Network):
        return network_text(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return [_to_data(entry) for entry in value]


def _from_data(each: Option, value: Any) -> object:  # noqa: ANN401 (JSON)
    if value == each.default or (value == parsers.ALL and each.parse in _WITH_ALL):
        return value
    if each.parse is parsers.loopback:
        return parsers.loopback(_typed(value, str))
    if (entry := _ENTRIES.get(each.parse)) is not None:
        return tuple(map(entry, _typed(value, list)))
    return _typed(value, bool if each.switch else type(each.default))


def _typed(value: Any, kind: type[T]) -> T:  # noqa: ANN401 (JSON)
    # Not isinstance: true is no number.
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80}: not a {kind.__name__}")
    return value


def _ports(entry: Any) -> PortRange:  # noqa: ANN401 (JSON)
    low, high = entry if isinstance(entry, list) else (entry, entry)
    return PortRange(_typed(low, int), _typed(high, int))


def _network(entry: Any) -> Network:  # noqa: ANN401 (JSON)
    return parsers.network(_typed(entry, str))


def _owner(entry: Any) -> int:  # noqa: ANN401 (JSON)
    return _typed(entry, int)


def _interface(entry: Any) -> str:  # noqa: ANN401 (JSON)
    return parsers_rare.interface(_typed(entry, str))


def _target(entry: Any) -> str:  # noqa: ANN401 (JSON)
    return _typed(entry, str)


def _ports_of_users(entry: Any) -> object:  # noqa: ANN401 (JSON)
    [value] = parsers.ports_of_users(_typed(entry, str))
    return value


# What reads an entry of a list, by the option's parser.
_ENTRIES: dict[object, Callable[[Any], object]] = {
    **dict.fromkeys((parsers.ports, parsers.all_or_ports), _ports),
    **dict.fromkeys((parsers.networks, parsers.all_or_networks, parsers.addresses), _network),
    **dict.fromkeys((parsers.owners, parsers.excluded_owner_groups, parsers.all_or_owner_groups), _owner),
    parsers.log_targets: _target,
    parsers.interfaces: _interface,
    parsers.ports_of_users: _ports_of_users,
}
_WITH_ALL = (parsers.all_or_ports, parsers.all_or_networks, parsers.all_or_owner_groups)
