"""Filter chain matching: nine criteria in order, each of which keeps the chains with the most specific match.

There is no backtracking: if no chain for a port matches the other criteria, chains without a port are not tried.
Source: Envoy's source/common/listener_manager/filter_chain_manager_impl.cc (findFilterChain and what it calls).
"""

from __future__ import annotations

from istio_init.envoy.addresses import network
from istio_init.envoy.client import RAW_BUFFER
from istio_init.formats.addresses import address_text, network_text
from istio_init.model.packet import LOOPBACKS, contains
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeAlias

    from istio_init.envoy.listeners import Listener
    from istio_init.envoy.node import Node
    from istio_init.model.rules import Network

    # A chain's values for one criterion; empty if it has none.
    Values: TypeAlias = tuple[Any, ...]

# The criteria in order.
NAMES = (
    "destination_port", "prefix_ranges", "server_names", "transport_protocol", "application_protocols",
    "direct_source_prefix_ranges", "source_type", "source_prefix_ranges", "source_ports",
)  # fmt: skip
# Envoy ignores the two further fields.
UNDERSTOOD = frozenset({*NAMES, "address_suffix", "suffix_len"})
ANY_SOURCE, LOCAL, EXTERNAL = "ANY", "SAME_IP_OR_LOOPBACK", "EXTERNAL"
SOURCE_TYPES = (ANY_SOURCE, LOCAL, EXTERNAL)


class FilterChain(Record):
    """A filter chain: `number` from 1, 0 for the default one; its values for each criterion, in order."""

    number: int
    name: str
    node: Node
    criteria: tuple[Values, ...] = ((),) * 9
    unknown: tuple[str, ...] = ()


class Downstream(Record):
    """A connection after the listener's filters: addresses (with the destination restored), transport, SNI and ALPN.

    `direct` is the peer's address if a PROXY header has another source.
    """

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    transport: str = RAW_BUFFER
    sni: str = ""
    alpn: tuple[str, ...] = ()
    direct: bytes = b""

    @property
    def is_local(self) -> bool:
        """Whether it comes from the address that it goes to, or from 127.0.0.1 or ::1 (Utility::isSameIpOrLoopback)."""
        return self.source == self.destination or self.source in LOOPBACKS.values()


class Selection(Record):
    """The chain for a connection, None if none matches, and why the others do not.

    `unclear` is why that can't be decided, or empty.
    """

    chain: FilterChain | None
    others: tuple[tuple[FilterChain, str], ...]
    unclear: str = ""


def chains(listener: Listener) -> tuple[FilterChain, ...]:
    """A listener's filter chains in order, without the default one."""
    return tuple(_chain(node, number) for number, node in enumerate(listener.node.get("filter_chains").each(), 1))


def default(listener: Listener) -> FilterChain | None:
    """The default chain, if there is one."""
    node = listener.node.get("default_filter_chain")
    return FilterChain(0, node.get("name").text(), node) if node else None


def _chain(node: Node, number: int) -> FilterChain:
    match = node.get("filter_chain_match")
    fields = match.fields()
    criteria: tuple[Values, ...] = (
        _set(match.get("destination_port").port()),
        _networks(match.get("prefix_ranges")),
        match.get("server_names").texts(),
        _set(match.get("transport_protocol").text()),
        match.get("application_protocols").texts(),
        _networks(match.get("direct_source_prefix_ranges")),
        _set(_source_type(match.get("source_type"))),
        _networks(match.get("source_prefix_ranges")),
        tuple(each.port() for each in match.get("source_ports").each()),
    )
    return FilterChain(number, node.get("name").text(), node, criteria, tuple(sorted(fields.keys() - UNDERSTOOD)))


def _set(value: int | str) -> Values:
    return (value,) if value else ()


def _networks(nodes: Node) -> tuple[Network, ...]:
    return tuple(network(each) for each in nodes.each())


def _source_type(node: Node) -> str:
    name = node.enum(*SOURCE_TYPES)
    if name not in SOURCE_TYPES:
        raise node.wrong("a source type")
    return "" if name == ANY_SOURCE else name


def select(listener: Listener, connection: Downstream) -> Selection:
    """The chain of a listener that matches a connection."""
    if listener.node.get("filter_chain_matcher"):
        return Selection(None, (), "filter_chain_matcher, which is not followed, chooses the chain")
    return sieve(chains(listener), default(listener), connection)


def sieve(every: tuple[FilterChain, ...], fallback: FilterChain | None, connection: Downstream) -> Selection:
    """The chain that matches a connection, else the default one."""
    others: list[tuple[FilterChain, str]] = []
    if unknown := next((each for each in every if each.unknown), None):
        return Selection(
            None, (), f"filter chain {unknown.number} matches by {', '.join(unknown.unknown)}, which is not followed"
        )
    remaining = every
    for criterion, (best, why, both) in enumerate(CRITERIA):
        named = tuple(value for chain in remaining for value in chain.criteria[criterion])
        unnamed = any(not chain.criteria[criterion] for chain in remaining)
        best_value = best(named, connection)
        if both and best_value is not None and best_value.prefix == 0 and unnamed:
            what = network_text(best_value)
            return Selection(
                None,
                tuple(others),
                f"one chain names {what}, another has no {both}: Envoy keeps one of the two by chance (envoy#7341)",
            )
        matching, fact = [], ""
        for each in remaining:
            values = each.criteria[criterion]
            if _keeps(values, best_value):
                matching.append(each)
            else:
                fact = fact or why(connection)
                others.append((each, _reason(fact, values, best_value)))
        remaining = tuple(matching)
    if remaining:
        # Several remain only if they have the same criteria, which Envoy rejects.
        return Selection(remaining[0], tuple(sorted(others, key=_number)))
    return Selection(fallback, tuple(sorted(others, key=_number)))


def _number(other: tuple[FilterChain, str]) -> int:
    number: int = other[0].number
    return number


def _keeps(values: Values, best_value: Any) -> bool:  # noqa: ANN401
    """Whether a chain remains: it has the best value or, if no value matches, no value."""
    return best_value in values if best_value is not None else not values


def _reason(fact: str, values: Values, best_value: Any) -> str:  # noqa: ANN401
    if not values:
        return f"names none, and others do; {fact}"
    names = " or ".join(value_text(value) for value in values[:4]) + (" ..." if len(values) > 4 else "")
    closer = f", and {value_text(best_value)} is closer" if hasattr(best_value, "prefix") else ""
    return f"for {names}; {fact}{closer}"


def value_text(value: object) -> str:
    """A criterion's value as text."""
    prefix = getattr(value, "prefix", None)
    return str(value) if prefix is None else network_text(value)  # type: ignore[arg-type] # a Network has one


def _equal(read: Callable[[Downstream], Any]) -> Callable[[Iterable[Any], Downstream], Any]:
    def best(values: Iterable[Any], connection: Downstream) -> Any:  # noqa: ANN401
        value = read(connection)
        return value if value in set(values) else None

    return best


def _closest(read: Callable[[Downstream], bytes]) -> Callable[[Iterable[Network], Downstream], Network | None]:
    def best(values: Iterable[Network], connection: Downstream) -> Network | None:
        address = read(connection)
        holding = [each for each in values if len(each.address) == len(address) and contains(each, address)]
        return max(holding, key=lambda each: each.prefix) if holding else None

    return best


def _server_name(values: Iterable[str], connection: Downstream) -> str | None:
    """The exact name, else the longest wildcard (*.example.com)."""
    names, sni = {*values}, connection.sni.lower()
    if sni in names and sni:
        return sni
    dot = sni.find(".", 1)
    while 0 < dot < len(sni) - 1:
        if f"*{sni[dot:]}" in names:
            return f"*{sni[dot:]}"
        dot = sni.find(".", dot + 1)
    return None


def _first_alpn(values: Iterable[str], connection: Downstream) -> str | None:
    names = {*values}
    return next((each for each in connection.alpn if each in names), None)


def _source_kind(values: Iterable[str], connection: Downstream) -> str | None:
    kind = LOCAL if connection.is_local else EXTERNAL
    return kind if kind in set(values) else None


def _direct(connection: Downstream) -> bytes:
    address: bytes = connection.direct or connection.source
    return address


def _sni_text(connection: Downstream) -> str:
    return f"its SNI is {connection.sni}" if connection.sni else "it has no SNI"


def _alpn_text(connection: Downstream) -> str:
    return f"its protocols are {', '.join(connection.alpn)}" if connection.alpn else "its protocol is not known"


def _transport(connection: Downstream) -> str:
    transport: str = connection.transport or RAW_BUFFER
    return transport


# For each criterion in order: a function for the best value among the chains', the connection's value as text, and, for
# addresses, the field that chains may omit: Envoy treats such chains like 0.0.0.0/0 and ::/0.
CRITERIA: tuple[tuple[Callable[[Any, Downstream], Any], Callable[[Downstream], str], str], ...] = (
    (_equal(lambda each: each.destination_port), lambda each: f"its port is {each.destination_port}", ""),
    (
        _closest(lambda each: each.destination),
        lambda each: f"it goes to {address_text(each.destination)}",
        "prefix_ranges",
    ),
    (_server_name, _sni_text, ""),
    (_equal(_transport), lambda each: f"its transport is {_transport(each)}", ""),
    (_first_alpn, _alpn_text, ""),
    (_closest(_direct), lambda each: f"it comes from {address_text(_direct(each))}", "direct_source_prefix_ranges"),
    (_source_kind, lambda each: f"its source is {'local' if each.is_local else 'external'}", ""),
    (
        _closest(lambda each: each.source),
        lambda each: f"it comes from {address_text(each.source)}",
        "source_prefix_ranges",
    ),
    (_equal(lambda each: each.source_port), lambda each: f"its source port is {each.source_port}", ""),
)
