"""Options back to text: each value as a user would write it, and the arguments that ask for all of them.

The arguments have the form of Istio's injection (manifests/charts/istio-control/istio-discovery/files/
injection-template.yaml), so that what reads a pod finds what it is used to.
"""

from __future__ import annotations

from decimal import Decimal

from istio_init.formats.addresses import network_text, ports_text
from istio_init.model import parsers, parsers_rare
from istio_init.model.rules import Network, PortRange
from istio_init.options.table import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.options.table import Option, Options

# What Istio's injection always passes, in its order, and what it passes where it is set. The rest comes behind.
ALWAYS = ("-p", "-z", "-u", "-m", "-i", "-x", "-b", "-d")
WHERE_SET = (
    "istio_outbound_ports", "istio_local_outbound_ports_exclude", "kube_virt_interfaces", "istio_exclude_interfaces",
    "log_output_level", "log_as_json", "run_validation", "skip_rule_apply", "force_apply", "native_nftables",
)  # fmt: skip


def arguments(options: Options, as_written: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The arguments of istio-iptables that mean these options where no variable of the environment says otherwise.

    `as_written` are texts by field to pass as they are; such an option is passed even where it is at its default.
    """
    as_written = as_written or {}
    by_short = {f"-{each.short}": each for each in OPTIONS if each.short}
    by_field = {each.field: each for each in OPTIONS}
    first = [by_short[flag] for flag in ALWAYS]
    then = [by_field[field] for field in WHERE_SET]
    words: tuple[str, ...] = ()
    for each in [*first, *then, *(each for each in OPTIONS if each not in first and each not in then)]:
        value = getattr(options, each.field)
        # The log's level is always told, as Istio does.
        if each in first or each.field in {*as_written, "log_output_level"} or value != each.default:
            words += _argument(each, text(each, value), as_written.get(each.field))
    return words


def _argument(each: Option, value: str, as_written: str | None) -> tuple[str, ...]:
    """One option's words: a switch alone where it is on, a short flag before its value, a long one with it."""
    if each.field == "log_output_level":
        return (f"--{each.flag}={as_written if as_written is not None else f'default:{value}'}",)
    if each.switch and value == "true":
        return (f"--{each.flag}",)
    value = value if as_written is None else as_written
    return (f"-{each.short}", value) if each.short and not each.switch else (f"--{each.flag}={value}",)


def text(each: Option, value: object) -> str:
    """The text that the option's parser makes this value from; empty for what is unset."""
    if each.parse is parsers.ports_of_users and isinstance(value, tuple):
        return parsers_rare.ports_of_users_text(value)
    if isinstance(value, tuple):
        return ",".join(text(each, entry) for entry in value)
    if isinstance(value, Network):
        as_written = network_text(value)
        return as_written.partition("/")[0] if each.parse is parsers.addresses else as_written
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
