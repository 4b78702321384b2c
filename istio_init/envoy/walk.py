"""A connection's path through Envoy: listener, listener filters, filter chain, route or TCP proxy, cluster, endpoint.

Pure: computed from a configuration dump, the connection's arrival, and the client. path.py adds the kernel's part.
An unsupported feature is reported: as a condition if it may change the result, as an end if it decides it.
Here are the listener and the choice of a filter chain; walk_filters.py and walk_cluster.py have what follows.
"""

from __future__ import annotations

from istio_init.envoy import chains, listeners
from istio_init.envoy.client import RAW_BUFFER
from istio_init.envoy.node import plain
from istio_init.envoy.passage import Other
from istio_init.envoy.walk_filters import follow_filters, terminate_tls
from istio_init.envoy.walk_progress import Ended, Progress
from istio_init.envoy.walk_text import chain_name, criteria_text, listener_text, quoted_name
from istio_init.formats.addresses import endpoint_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.client import Client
    from istio_init.envoy.dump import Dump
    from istio_init.envoy.listeners import Detection, Listener
    from istio_init.envoy.passage import ListenerArrival, Passage


class Configuration:
    """A dump with its listeners indexed."""

    def __init__(self, dump: Dump) -> None:
        self.dump = dump
        self.listeners = listeners.Bindings(dump)


def walk(configuration: Configuration, arrival: ListenerArrival, client: Client) -> Passage:
    """The connection's path through Envoy. DumpError if the dump has a value that Envoy would reject."""
    progress = Progress(configuration.dump, client)
    try:
        _follow(progress, configuration.listeners, arrival)
    except Ended as ended:
        return progress.passage(ended.end)
    return progress.passage()


def _follow(progress: Progress, bindings: listeners.Bindings, arrival: ListenerArrival) -> None:
    listener, connection = _accept(progress, bindings, arrival)
    selection = chains.select(listener, connection)
    if selection.unclear:
        raise Ended("undecided", selection.unclear)
    others = tuple(Other(chain_name(chain), plain(why), chain.node.path) for chain, why in selection.others)
    chain = selection.chain
    if chain is None:
        progress.step("filter chain", "none", listener.node.path, others)
        what = f"no filter chain of {plain(listener.name)} is for this client (filter_chain_not_found)"
        raise Ended("closes", f"the connection is reset: {what}", "NR")
    progress.chain = chain.name
    total = len(others) + (chain.number > 0)
    place = f"chain {chain.number} of {total}" if chain.number else "the default chain, no other fits"
    progress.step("filter chain", f"{place}{quoted_name(chain.name)}{criteria_text(chain)}", chain.node.path, others)
    terminate_tls(progress, chain)
    follow_filters(progress, chain, connection)


def _accept(
    progress: Progress, bindings: listeners.Bindings, arrival: ListenerArrival
) -> tuple[Listener, chains.Downstream]:
    listener = bindings.bound(arrival.address, arrival.port)
    at = endpoint_text(arrival.address, arrival.port)
    if listener is None:
        raise Ended("closes", f"Envoy does not listen on {at}: the connection is refused")
    progress.listener = listener.name
    if arrival.transparent and not listener.transparent:
        progress.step("listener", f"{plain(listener.name)}, whose socket is not transparent", listener.node.path)
        why = f"TPROXY finds no transparent socket at port {arrival.port} and drops the packet: the client times out"
        raise Ended("hangs", why)
    restored = progress.restored = listener.restores
    address, port = (arrival.original, arrival.original_port) if restored else (arrival.address, arrival.port)
    progress.step("listener", listener_text(listener, address, port), listener.node.path)
    detected = _detect(progress, listener, port, None)
    if restored and listener.hands_on:
        target = bindings.of_destination(address, port)
        if target is not None and target is not listener:
            progress.listener = target.name
            progress.step("listener", _handoff_text(target, address, port), target.node.path)
            detected = _detect(progress, target, port, detected)
            listener = target
        elif target is None:
            progress.step(
                "listener", f"kept: no listener is for {endpoint_text(address, port)} or any address at {port}"
            )
    connection = chains.Downstream(
        arrival.source, arrival.source_port, address, port, detected.transport or RAW_BUFFER, detected.sni,
        detected.alpn,
    )  # fmt: skip
    return listener, connection


def _handoff_text(target: Listener, address: bytes, port: int) -> str:
    exact = any((socket.address, socket.port) == (address, port) for socket in target.sockets)
    where = "its address" if exact else f"any address; no listener is {endpoint_text(address, port)}"
    bound = ", a bound listener: a call to any host's port ends here" if target.bound and not exact else ""
    return f"handed on to {plain(target.name)} ({where}{bound})"


def _detect(progress: Progress, listener: Listener, port: int, before: Detection | None) -> Detection:
    detection = listeners.detect(listener, port, progress.client, before)
    for each, note in detection.notes:
        progress.step("listener filter", note, each.node.path)
        if each.name == listeners.ORIGINAL_SRC:
            progress.spoofs = each.node.get("typed_config")
    for each in listener.filters():
        if each.name == listeners.ORIGINAL_SRC and not each.is_off(port):
            progress.spoofs = each.node.get("typed_config")
            progress.step("listener filter", "original_src: Envoy will dial from the client's address", each.node.path)
    if detection.unknown:
        raise Ended("undecided", f"listener filter {plain(detection.unknown)} is not followed")
    if detection.waits:
        _waits(progress, listener, detection.waits)
    return detection


def _waits(progress: Progress, listener: Listener, inspector: str) -> None:
    seconds = listener.timeout
    if not seconds:
        why = f"{inspector} waits for the client, the client for the server, for ever (listener_filters_timeout: 0s)"
        raise Ended("hangs", why)
    if not listener.goes_on:
        raise Ended("closes", f"closed after {seconds:g} s: {inspector} waits for the client, which says nothing")
    progress.step(
        "listener filter", f"after {seconds:g} s (listener_filters_timeout) it goes on without", listener.node.path
    )
