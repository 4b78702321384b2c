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
    from istio_init.options.table import Option, Options

# What Istio's injection always passes, in its order; whatever else is not the default comes behind.
ALWAYS = ("-p", "-z", "-u", "-m", "-i", "-x", "-b", "-d")


def arguments(options: Options) -> tuple[str, ...]:
    """The arguments of istio-iptables that mean these options where no variable of the environment says otherwise."""
    known = {f"-{each.short}": each for each in OPTIONS if each.short}
    first = [known[flag] for flag in ALWAYS]
    pairs = [(flag, text(known[flag], getattr(options, known[flag].field))) for flag in ALWAYS]
    words = [word for pair in pairs for word in pair]
    for each in OPTIONS:
        value = getattr(options, each.field)
        # The log's level is always told, as Istio does.
        if each not in first and (value != each.default or each.field == "log_output_level"):
            words += _argument(each, text(each, value))
    return tuple(words)


def _argument(each: Option, value: str) -> tuple[str, ...]:
    """One option's words: a switch alone where it is on, a short flag before its value, a long one with it."""
    if each.field == "log_output_level":
        return (f"--{each.flag}=default:{value}",)
    if each.switch and value == "true":
        return (f"--{each.flag}",)
    return (f"-{each.short}", value) if each.short and not each.switch else (f"--{each.flag}={value}",)


def checked(options: Options) -> Options:
    """Options that a program has made, each value held to what its flag takes; text, and a number alone, is parsed.

    OptionError names the field of a value that no text of its flag means.
    """
    meant = {}
    for each in OPTIONS:
        value = getattr(options, each.field)
        if value == each.default:
            continue
        try:
            parsed = each.parse(text(each, value))
        except ValueError as error:
            raise OptionError(each.field, str(value), str(error)) from None
        if parsed != value and not isinstance(value, str | int):
            raise OptionError(
                each.field, str(value), f"not what --{each.flag} takes: give its text, as on a command line"
            )
        meant[each.field] = parsed
    return options.replace(**meant)


def text(each: Option, value: object) -> str:
    """The text that the option's parser makes this value from; empty for what is unset."""
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
