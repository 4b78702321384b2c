"""Connections that are older than the rules: netfilter translates a connection when it is opened, and not later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import followed, inbound, is_captured, outbound
from istio_init.planning.capture import uses_tproxy

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import OpenConnection, Situation
    from istio_init.simulate.path import PacketPath

MOST_SHOWN = 3
ROOT = 0


def connected_before(about: Situation) -> Cause | None:
    """Connections that the app opened before the rules were made."""
    old = [each for each in about.connections if not _came_in(about, each) and _is_old_call_out(about, each)]
    if not old:
        return None
    first = old[0]
    packet = outbound(about.facts, first.remote[0], first.remote[1], (first.uid, first.uid))
    return Cause(
        "connected-before",
        "connections that are open bypass the sidecar; new ones are captured",
        f"the rules were made after the app connected: {_count(old)} from before",
        tuple(
            f"{endpoint_text(*each.local)} -> {endpoint_text(*each.remote)}, uid {each.uid}: not redirected"
            for each in old[:MOST_SHOWN]
        ),
        ("restart the app's container, or close the connections: ss -K dst " + address_text(first.remote[0]),),
        followed(about, packet),
    )


def accepted_before(about: Situation) -> Cause | None:
    """Connections that the app accepted before the rules were made."""
    old = [each for each in about.connections if _came_in(about, each) and _is_old_call_in(about, each)]
    if not old:
        return None
    first = old[0]
    ends = f"src {address_text(first.local[0])} sport = :{first.local[1]}"
    return Cause(
        "accepted-before",
        "inbound connections that are open bypass the sidecar; new ones are captured",
        f"the rules were made after the app accepted connections: {_count(old)} from before",
        tuple(
            f"{endpoint_text(*each.remote)} -> {endpoint_text(*each.local)}, uid {each.uid}: not redirected"
            for each in old[:MOST_SHOWN]
        ),
        (f"restart the app's container, or close the connections: ss -K {ends}",),
        _as_new(about, first),
    )


def _count(old: list[OpenConnection]) -> str:
    return f"{len(old)} open connection{'s' * (len(old) > 1)}"


def _came_in(about: Situation, each: OpenConnection) -> bool:
    return each.local[1] in (about.listening or ())


def _may_be_old(about: Situation, each: OpenConnection) -> bool:
    """Whether a connection with another host is the app's own, and nothing has redirected it."""
    if each.redirected or not about.backends or about.listening is None or about.facts.is_local(each.remote[0]):
        return False
    if each.owner is not None:
        return not each.owner.is_proxy
    # With TPROXY Envoy runs as root.
    return each.uid not in about.options.proxy_uid and not (uses_tproxy(about.options) and each.uid == ROOT)


def _is_old_call_out(about: Situation, each: OpenConnection) -> bool:
    if not _may_be_old(about, each) or each.uid in about.options.proxy_uid:
        return False
    packet = outbound(about.facts, *each.remote, (each.uid, each.uid)).replace(source_port=each.local[1])
    return is_captured(followed(about, packet))


def _is_old_call_in(about: Situation, each: OpenConnection) -> bool:
    options = about.options
    if not _may_be_old(about, each) or each.local[1] in {options.inbound_capture_port, options.envoy_port}:
        return False
    if uses_tproxy(options) and each.mark == options.istio_inbound_tproxy_mark:
        # Envoy's connection to the app, which has the client's address.
        return False
    return is_captured(_as_new(about, each))


def _as_new(about: Situation, each: OpenConnection) -> PacketPath:
    """The path of the packet that would open an accepted connection now."""
    packet = inbound(about.facts, each.remote[0], each.local[1])
    return followed(about, packet.replace(source_port=each.remote[1], destination=each.local[0]))
