"""Options back to text: each value as a user would write it, and the arguments that ask for all of them.

The arguments have the form of Istio's injection (manifests/charts/istio-control/istio-discovery/files/
injection-template.yaml), so that what reads a pod finds what it is used to.
"""

from __future__ import annotations

from decimal import Decimal

from istio_init.errors_rare import OptionError
from istio_init.formats.addresses import network_text, ports_text
from istio_init.model import parsers
from istio_init.model.rules import Network, PortRange
from istio_init.options.table import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from istio_init.options.table import Option, Options

# What Istio's injection always passes, in its order, and what it passes where it is set. The rest comes behind.
ALWAYS = ("-p", "-z", "-u", "-m", "-i", "-x", "-b", "-d")
WHERE_SET = (
    "istio_outbound_ports", "istio_local_outbound_ports_exclude", "kube_virt_interfaces", "istio_exclude_interfaces",
    "log_output_level", "log_as_json", "run_validation", "skip_rule_apply", "force_apply", "native_nftables",
)  # fmt: skip


def arguments(options: Options, spelled: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The arguments of istio-iptables that mean these options where no variable of the environment says otherwise.

    `spelled` are texts by field to pass as they are; such an option is passed even where it is at its default.
    """
    spelled = spelled or {}
    known = {f"-{each.short}": each for each in OPTIONS if each.short}
    by_field = {each.field: each for each in OPTIONS}
    first = [known[flag] for flag in ALWAYS]
    then = [by_field[field] for field in WHERE_SET]
    words: tuple[str, ...] = ()
    for each in [*first, *then, *(each for each in OPTIONS if each not in first and each not in then)]:
        value = getattr(options, each.field)
        # The log's level is always told, as Istio does.
        if each in first or each.field in {*spelled, "log_output_level"} or value != each.default:
            words += _argument(each, text(each, value), spelled.get(each.field))
    return words


def _argument(each: Option, value: str, spelled: str | None) -> tuple[str, ...]:
    """One option's words: a switch alone where it is on, a short flag before its value, a long one with it."""
    if each.field == "log_output_level":
        return (f"--{each.flag}={spelled if spelled is not None else f'default:{value}'}",)
    if each.switch and value == "true":
        return (f"--{each.flag}",)
    value = value if spelled is None else spelled
    return (f"-{each.short}", value) if each.short and not each.switch else (f"--{each.flag}={value}",)


def checked(options: Options) -> Options:
    """Options that a program has made, each value as its flag's parser makes it.

    A value may be that already, or text as on a command line, a number, an object of `ipaddress`, or a tuple of these.
    Raises OptionError, which names the field, for anything else, and for what the flag refuses.
    """
    values = {}
    for each in OPTIONS:
        value = getattr(options, each.field)
        if value is each.default or (type(value) is type(each.default) and value == each.default):
            continue
        try:
            values[each.field] = each.parse(_spelled(each, value))
        except (ValueError, TypeError) as error:
            raise OptionError(each.field, str(value), str(error)) from None
    return options.replace(**values)


def _spelled(each: Option, value: object) -> str:
    """A program's value as the text of its flag; TypeError for one that has none."""
    if value is None and each.default is not None:
        raise TypeError("None is no value of this option")
    if each.parse is parsers.ports_of_users and isinstance(value, tuple):
        return ";".join(map(_users_spelled, value))
    if isinstance(value, tuple):
        if any(isinstance(entry, tuple) for entry in value):
            raise TypeError("a tuple in a tuple")
        return ",".join(_spelled(each, entry) for entry in value)
    if type(value).__module__ == "ipaddress":
        spelled = str(value)
        # An address alone, where no network is taken.
        return spelled.partition("/")[0] if each.parse is parsers.addresses else spelled
    if value is None or isinstance(value, str | int | float | Network | PortRange):
        return text(each, value)
    kind = type(value).__name__
    raise TypeError(f"{kind} is not a type for it: give text as on a command line, or a tuple of entries")


def _users_spelled(entry: Any) -> str:  # noqa: ANN401 (whatever a program gives)
    """An entry of --exclude-uids-for-ports: text, or a parsed value."""
    if isinstance(entry, str):
        return entry
    try:
        return parsers.ports_of_users_text((entry,))
    except (AttributeError, TypeError, ValueError):
        raise TypeError("not PROTOCOL:PORTS:UIDS, such as tcp:443:1000") from None


def text(each: Option, value: object) -> str:
    """The text that the option's parser makes this value from; empty for what is unset."""
    if each.parse is parsers.ports_of_users and isinstance(value, tuple):
        return parsers.ports_of_users_text(value)
    if isinstance(value, tuple):
        return ",".join(text(each, entry) for entry in value)
    if isinstance(value, Network):
        spelled = network_text(value)
        return spelled.partition("/")[0] if each.parse is parsers.addresses else spelled
    if isinstance(value, PortRange):
        return ports_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # Without an exponent, which no parser takes.
        digits = f"{Decimal(repr(value)):f}"
        plain = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return f"{plain}s" if each.parse is parsers.duration else plain
    return "" if value is None else str(value)
