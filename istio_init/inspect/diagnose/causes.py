"""The causes, in the order in which a person would look; each is a function from a situation to a cause or None.

The first that holds is the answer: a later one may be its consequence. The others are named beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.diagnose import (
    capture_causes,
    choice_causes,
    connection_causes,
    listener_causes,
    place_causes,
    proxy_causes,
    rule_causes,
    setting_causes,
    table_causes,
)
from istio_init.inspect.diagnose.packets import is_captured

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.inspect.diagnose.case import Cause, Situation

# Nothing else is worth a look where one of these holds.
ALONE: tuple[Callable[[Situation], Cause | None], ...] = (
    place_causes.host_network,
    place_causes.node_namespace,
    place_causes.mode_none,
    place_causes.not_captured_by_choice,
    place_causes.empty_namespace,
    place_causes.never_ran,
    table_causes.made_twice,
)
# The last of each list below: DNS, what was chosen so, and calls from before the rules.
_LAST: tuple[Callable[[Situation], Cause | None], ...] = (
    proxy_causes.dns,
    proxy_causes.other_nameserver,
    choice_causes.excluded_destinations,
    choice_causes.excluded_outbound_ports,
    choice_causes.excluded_inbound_ports,
    choice_causes.root_spared,
    choice_causes.excluded_owners,
    listener_causes.app_at_loopback,
    connection_causes.connected_before,
    connection_causes.accepted_before,
)
# Kinds of faults; then what was chosen so; then what is left.
FAULTS: tuple[Callable[[Situation], Cause | None], ...] = (
    rule_causes.loopback_down,
    place_causes.two_backends,
    place_causes.other_backend,
    setting_causes.no_route,
    table_causes.dormant_table,
    rule_causes.flushed_chain,
    table_causes.untracked,
    rule_causes.foreign_table,
    rule_causes.foreign_rule,
    table_causes.refused_call,
    rule_causes.older_istio,
    setting_causes.ipv6_disabled,
    rule_causes.missing_route,
    setting_causes.taken_mark,
    table_causes.lost_mark,
    rule_causes.marked_sources,
    rule_causes.tracking_full,
    listener_causes.proxy_stopped,
    proxy_causes.proxy_identity,
    proxy_causes.app_as_proxy,
    rule_causes.uncaptured_ipv6,
    choice_causes.excluded_interface,
    choice_causes.virtual_machine_interface,
    setting_causes.inner_network,
    choice_causes.second_network,
    setting_causes.no_forwarding,
    listener_causes.port_taken,
    proxy_causes.proxy_ports,
    listener_causes.proxy_address,
    listener_causes.not_transparent,
    listener_causes.proxy_busy,
    *_LAST,
)
# The same for a pod that is captured by eBPF, in which there are no rules.
CAPTURE_ALONE = (*ALONE[:5], capture_causes.not_configured)
CAPTURE_FAULTS: tuple[Callable[[Situation], Cause | None], ...] = (
    setting_causes.no_route,
    capture_causes.program_missing,
    capture_causes.inbound_detached,
    capture_causes.other_options,
    rule_causes.missing_route,
    listener_causes.proxy_stopped,
    proxy_causes.proxy_identity,
    proxy_causes.app_as_proxy,
    rule_causes.uncaptured_ipv6,
    setting_causes.inner_network,
    listener_causes.port_taken,
    proxy_causes.proxy_ports,
    listener_causes.proxy_busy,
    *_LAST,
)
# Causes that say that the options leave calls alone.
LEFT_OUT = frozenset({"excluded-cidr", "not-included", "excluded-port"})


def causes(about: Situation) -> tuple[Cause, ...]:
    """All causes, the one that explains most first; none of a pod that is well."""
    by_capture = about.by_capture
    for look in CAPTURE_ALONE if by_capture else ALONE:
        if cause := look(about):
            return (cause,)
    holding = (cause for look in (CAPTURE_FAULTS if by_capture else FAULTS) if (cause := look(about)))
    faults = tuple(each for each in holding if not _is_contradicted(each))
    if by_capture:
        return faults
    rest = None if faults else rule_causes.changed_rules(about) or rule_causes.not_captured(about)
    return (rest,) if rest else faults


def _is_contradicted(cause: Cause) -> bool:
    """Whether what the options leave out is captured all the same: the rules are then not those of the options."""
    return cause.name in LEFT_OUT and cause.path is not None and is_captured(cause.path)
