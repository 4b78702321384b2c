"""Causes at the sockets that captured calls come to: the sidecar's listeners, and those of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.formats.addresses import endpoint_text
from istio_init.inspect.diagnose.case import Cause
from istio_init.inspect.diagnose.packets import calls_in, calls_out
from istio_init.planning.capture import uses_tproxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diagnose.case import Resident, ServerSocket, Situation
    from istio_init.model.rules import Family
    from istio_init.simulate.path import PacketPath

    End = tuple[str, int, PacketPath]
MOST_SHOWN = 3


def spared(about: Situation, who: Resident | None) -> bool:
    """Whether a process is the sidecar, by its name or by the ids that the rules spare; unknown ones count as such."""
    options = about.options
    if who is None or who.is_proxy:
        return True
    return who.uid in options.proxy_uid or who.gid in (options.proxy_gid or options.proxy_uid)


def _at(about: Situation, port: int) -> tuple[ServerSocket, ...]:
    return tuple(each for each in about.listeners if each.port == port)


def _ends(about: Situation, family: Family) -> Iterator[End]:
    """Where captured calls of a family come to: the direction, the port, and a call."""
    ways = (
        ("outbound", about.options.envoy_port, calls_out(about, family)),
        ("inbound", about.options.inbound_capture_port, calls_in(about, family)),
    )
    for direction, port, path in ways:
        if path is not None and path.legs[0].end == direction:
            yield direction, port, path


def port_taken(about: Situation) -> Cause | None:
    """Another program than the sidecar at a port that captured calls come to."""
    for direction, port, path in _ends(about, about.families[0]):
        other = next((each.owner for each in _at(about, port) if not spared(about, each.owner)), None)
        if other is not None:
            return Cause(
                "port-taken",
                f"{direction} calls do not reach the sidecar",
                f"another program than the sidecar listens on port {port}: {other.text}",
                (
                    f"the rules lead {direction} calls to port {port}",
                    f"{other.text} has uid {other.uid}, gid {other.gid}",
                ),
                (f"have the app listen on another port than {port}; Istio reserves 15000 to 15090 for the sidecar",),
                path,
            )
    return None


def proxy_stopped(about: Situation) -> Cause | None:
    """A sidecar that a signal or a debugger holds."""
    held = next((each for each in about.proxies if each.stopped), None)
    if held is None or not about.backends:
        return None
    return Cause(
        "proxy-stopped",
        "captured calls hang",
        f"the sidecar is stopped by a signal or a debugger: {held.text}",
        (f"its state in /proc/{held.pid}/status is T",),
        (f"kill -CONT {held.pid}, or restart the container istio-proxy",),
        calls_out(about, about.families[0]),
    )


def proxy_busy(about: Situation) -> Cause | None:
    """A sidecar that accepts no connections: those that wait fill the queue of its listener."""
    for direction, port, path in _ends(about, about.families[0]):
        for each in _at(about, port):
            if each.most and each.waiting > each.most:
                return Cause(
                    "proxy-busy",
                    f"{direction} calls hang",
                    f"the sidecar accepts no connections: the queue of port {port} is full",
                    (f"{each.waiting} connections wait for accept(2) on port {port}, of {each.most} that may",),
                    ("look at the sidecar: kubectl logs POD -c istio-proxy; is it out of CPU, or deadlocked?",),
                    path,
                )
    return None


def proxy_address(about: Situation) -> Cause | None:
    """A sidecar that listens, but not at the address that captured calls are redirected to."""
    for family in about.families:
        for direction, port, path in _ends(about, family):
            arrived = path.legs[0].arrived
            listeners = _at(about, port)
            if not listeners or any(each.takes(arrived.destination) for each in listeners):
                continue
            where = ", ".join(sorted({endpoint_text(each.address, port) for each in listeners}))
            version = family.replace("ip", "IP")
            called = "their own destination" if arrived.tproxy_port else endpoint_text(arrived.destination, port)
            return Cause(
                "proxy-address",
                f"{direction} calls by {version} are refused: they are captured, and nobody takes them",
                f"the sidecar listens on {where} only, and captured {direction} calls come to {called}",
                (f"no listener of port {port} takes {called}",),
                (
                    "dual-stack: ISTIO_DUAL_STACK=true for the proxy too, or make the rules with --enable-ipv6=false"
                    if family == "ipv6"
                    else "have the sidecar listen on all addresses (0.0.0.0), as Istio configures it",
                ),
                path,
            )
    return None


def not_transparent(about: Situation) -> Cause | None:
    """TPROXY, and a listener that takes connections to its own addresses only."""
    if not uses_tproxy(about.options):
        return None
    for direction, port, path in _ends(about, about.families[0]):
        listeners = [each for each in _at(about, port) if each.transparent is not None]
        if path.legs[0].arrived.tproxy_port and listeners and not any(each.transparent for each in listeners):
            return Cause(
                "not-transparent",
                f"{direction} calls are dropped",
                "the rules use TPROXY, and the sidecar's listener is not transparent: it is configured for REDIRECT",
                (f"no socket of port {port} has IP_TRANSPARENT",),
                (
                    "set sidecar.istio.io/interceptionMode: TPROXY for the proxy too, which needs CAP_NET_ADMIN",
                    "or make the rules with -m REDIRECT",
                ),
                path,
            )
    return None


def app_at_loopback(about: Situation) -> Cause | None:
    """An application whose only listeners are on the loopback address: the sidecar calls the pod's own address."""
    own = [each for each in about.listeners if each.owner is not None and not spared(about, each.owner)]
    path = calls_in(about, about.families[0])
    if not own or path is None or not all(each.is_local for each in own):
        return None
    listed = ", ".join(sorted({endpoint_text(each.address, each.port) for each in own})[:MOST_SHOWN])
    return Cause(
        "app-at-loopback",
        "inbound calls are refused: the sidecar does not reach the app",
        f"the app listens on the loopback address only: {listed}",
        tuple(_listens(each) for each in own[:MOST_SHOWN]),
        ("have the app listen on the pod's address or on all (0.0.0.0, ::): the sidecar calls the pod's own address",),
        path,
    )


def _listens(each: ServerSocket) -> str:
    who = each.owner.text if each.owner else "a process that /proc does not show"
    return f"{who} listens on {endpoint_text(each.address, each.port)}"


def nobody_listens(about: Situation, address: bytes, port: int, path: PacketPath) -> Cause | None:
    """No application at the port that a call comes in for."""
    if about.listening is None or not about.listeners:
        return None
    there = _at(about, port)
    if any(each.takes(address) for each in there):
        return None
    called = endpoint_text(address, port)
    if not there:
        return Cause(
            "app-not-listening", "this call is refused by the app's side", f"nobody listens on port {port} in the pod",
            (f"the call is for {called}",), ("start the app, or name its port in the Service's targetPort",), path,
        )  # fmt: skip
    return Cause(
        "app-at-loopback", "this call is refused by the app's side",
        f"the app listens on {endpoint_text(there[0].address, port)} only, and the call is for {called}",
        tuple(map(_listens, there[:MOST_SHOWN])),
        ("have the app listen on the pod's address or on all (0.0.0.0, ::): the sidecar calls the pod's own address",),
        path,
    )  # fmt: skip
