"""Filter chains: a sieve of nine criteria, each of which leaves the chains that name a connection's value most exactly.

There is no way back: where the chains for a port are none for the connection, those without a port are not asked.
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

    # What a chain names of one criterion; empty where it names nothing.
    Values: TypeAlias = tuple[Any, ...]

# The criteria in the order of the sieve.
NAMES = (
    "destination_port", "prefix_ranges", "server_names", "transport_protocol", "application_protocols",
    "direct_source_prefix_ranges", "source_type", "source_prefix_ranges", "source_ports",
)  # fmt: skip
# Envoy reads neither of the two more.
KNOWN = frozenset({*NAMES, "address_suffix", "suffix_len"})
ANY_SOURCE, LOCAL, EXTERNAL = "ANY", "SAME_IP_OR_LOOPBACK", "EXTERNAL"
SOURCE_TYPES = (ANY_SOURCE, LOCAL, EXTERNAL)


class FilterChain(Record):
    """A filter chain: `number` from 1, 0 for the default one; what it names of each criterion, in the sieve's order."""

    number: int
    name: str
    node: Node
    criteria: tuple[Values, ...] = ((),) * 9
    unknown: tuple[str, ...] = ()


class Downstream(Record):
    """What a listener's filters made of a connection: addresses (the destination as it was restored) and what it says.

    `direct` is the address that the connection comes from, where a PROXY header names another.
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
    """The chain that takes a connection, None where none does, and why the others do not.

    `unclear` is why that can't be having, or empty.
    """

    chain: FilterChain | None
    others: tuple[tuple[FilterChain, str], ...]
    unclear: str = ""


def chains(listener: Listener) -> tuple[FilterChain, ...]:
    """A listener's filter chains in order, without the default one."""
    return tuple(_chain(node, number) for number, node in enumerate(listener.node.get("filter_chains").each(), 1))


def default(listener: Listener) -> FilterChain | None:
    """The chain for what no other takes."""
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
    return FilterChain(number, node.get("name").text(), node, criteria, tuple(sorted(fields.keys() - KNOWN)))


def _set(value: int | str) -> Values:
    return (value,) if value else ()


def _networks(nodes: Node) -> tuple[Network, ...]:
    return tuple(network(each) for each in nodes.each())


def _source_type(node: Node) -> str:
    found = node.enum(*SOURCE_TYPES)
    if found not in SOURCE_TYPES:
        raise node.wrong("a source type")
    return "" if found == ANY_SOURCE else found


def select(listener: Listener, connection: Downstream) -> Selection:
    """The chain of a listener that takes a connection."""
    if listener.node.get("filter_chain_matcher"):
        return Selection(None, (), "filter_chain_matcher, which is not followed, chooses the chain")
    return sieve(chains(listener), default(listener), connection)


def sieve(every: tuple[FilterChain, ...], fallback: FilterChain | None, connection: Downstream) -> Selection:
    """The chain that takes a connection of all chains, or else the default one."""
    others: list[tuple[FilterChain, str]] = []
    if unknown := next((each for each in every if each.unknown), None):
        return Selection(
            None, (), f"filter chain {unknown.number} matches by {', '.join(unknown.unknown)}, which is not followed"
        )
    left = every
    for criterion, (best, why, both) in enumerate(CRITERIA):
        named = tuple(value for chain in left for value in chain.criteria[criterion])
        unnamed = any(not chain.criteria[criterion] for chain in left)
        wished = best(named, connection)
        if both and wished is not None and wished.prefix == 0 and unnamed:
            what = network_text(wished)
            return Selection(
                None,
                tuple(others),
                f"one chain names {what}, another has no {both}: Envoy keeps one of the two by chance (envoy#7341)",
            )
        kept, having = [], ""
        for each in left:
            values = each.criteria[criterion]
            if _keeps(values, wished):
                kept.append(each)
            else:
                having = having or why(connection)
                others.append((each, _reason(having, values, wished)))
        left = tuple(kept)
    if left:
        # More than one is left only where two name the same; Envoy refuses such a listener.
        return Selection(left[0], tuple(sorted(others, key=_number)))
    return Selection(fallback, tuple(sorted(others, key=_number)))


def _number(other: tuple[FilterChain, str]) -> int:
    number: int = other[0].number
    return number


def _keeps(values: Values, wished: Any) -> bool:  # noqa: ANN401
    """Whether a chain is left: by the value that fits best, or, where none fits, by naming none."""
    return wished in values if wished is not None else not values


def _reason(having: str, values: Values, wished: Any) -> str:  # noqa: ANN401
    if not values:
        return f"names none, and others do; {having}"
    names = " or ".join(value_text(value) for value in values[:4]) + (" ..." if len(values) > 4 else "")
    closer = f", and {value_text(wished)} is closer" if hasattr(wished, "prefix") else ""
    return f"for {names}; {having}{closer}"


def value_text(value: object) -> str:
    """What a chain names, as people write it."""
    prefix = getattr(value, "prefix", None)
    return str(value) if prefix is None else network_text(value)  # type: ignore[arg-type] # a Network has one


def _equal(read: Callable[[Downstream], Any]) -> Callable[[Iterable[Any], Downstream], Any]:
    def best(values: Iterable[Any], connection: Downstream) -> Any:  # noqa: ANN401
        mine = read(connection)
        return mine if mine in set(values) else None

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
    mine = LOCAL if connection.is_local else EXTERNAL
    return mine if mine in set(values) else None


def _direct(connection: Downstream) -> bytes:
    found: bytes = connection.direct or connection.source
    return found


def _sni_text(connection: Downstream) -> str:
    return f"its SNI is {connection.sni}" if connection.sni else "it has no SNI"


def _alpn_text(connection: Downstream) -> str:
    return f"its protocols are {', '.join(connection.alpn)}" if connection.alpn else "its protocol is not known"


def _transport(connection: Downstream) -> str:
    found: str = connection.transport or RAW_BUFFER
    return found


# In the sieve's order: the value that fits best of those that chains name, what the connection has, and, of addresses,
# the field that chains may leave out: to Envoy they name 0.0.0.0/0 and ::/0.
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
