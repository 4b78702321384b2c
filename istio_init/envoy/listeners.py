"""Listeners: the one that a connection reaches, the one that it is handed off to, and the results of listener filters.

Sources: in Envoy's source/common/listener_manager connection_handler_impl.cc (getBalancedHandlerByAddress) and
active_tcp_socket.cc (newConnection); source/extensions/filters/listener.
"""

from __future__ import annotations

from istio_init.envoy.addresses import packed
from istio_init.envoy.client import TLS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.client import Client
    from istio_init.envoy.dump import Dump
    from istio_init.envoy.node import Node

ORIGINAL_DST, ORIGINAL_SRC = "envoy.filters.listener.original_dst", "envoy.filters.listener.original_src"
TLS_INSPECTOR, HTTP_INSPECTOR = "envoy.filters.listener.tls_inspector", "envoy.filters.listener.http_inspector"
PROXY_PROTOCOL = "envoy.filters.listener.proxy_protocol"
INSPECTORS = frozenset({TLS_INSPECTOR, HTTP_INSPECTOR})
# By configuration message, since a filter may have any name.
KINDS = {
    "OriginalDst": ORIGINAL_DST,
    "OriginalSrc": ORIGINAL_SRC,
    "TlsInspector": TLS_INSPECTOR,
    "HttpInspector": HTTP_INSPECTOR,
    "ProxyProtocol": PROXY_PROTOCOL,
}
# Older names of the same filters.
LEGACY = "envoy.listener."
# Seconds, where listener_filters_timeout is missing.
DEFAULT_TIMEOUT = 15.0


class ListenerFilter(Record):
    """A listener filter: Envoy's name for it, the predicate that disables it, and its node."""

    name: str
    disabled: Node
    node: Node

    def is_off(self, port: int) -> bool:
        """Whether `filter_disabled` switches it off for a destination port."""
        return bool(self.disabled) and _holds(self.disabled, port)


class Socket(Record):
    """An address of a listener; `compatible` means that [::] accepts IPv4 as well."""

    address: bytes
    port: int
    compatible: bool = False


class Listener(Record):
    """A listener of TCP connections; `node` has its full configuration."""

    name: str
    sockets: tuple[Socket, ...]
    bound: bool
    node: Node

    @property
    def hands_on(self) -> bool:
        """Whether connections are handed off to the listener of their original destination."""
        return self.node.get("use_original_dst").flag()

    @property
    def transparent(self) -> bool:
        """Whether its socket accepts connections from TPROXY."""
        return self.node.get("transparent").flag()

    @property
    def direction(self) -> str:
        """OUTBOUND, INBOUND or UNSPECIFIED."""
        return self.node.get("traffic_direction").enum("UNSPECIFIED", "INBOUND", "OUTBOUND")

    @property
    def timeout(self) -> float:
        """Seconds that its filters wait for the client; 0 means no limit."""
        return self.node.get("listener_filters_timeout").seconds(DEFAULT_TIMEOUT)

    @property
    def goes_on(self) -> bool:
        """Whether a connection continues after that time; otherwise it is closed."""
        return self.node.get("continue_on_listener_filters_timeout").flag()

    def filters(self) -> tuple[ListenerFilter, ...]:
        """Its listener filters in order; `use_original_dst` implies original_dst at the front."""
        configured = tuple(
            ListenerFilter(_filter_name(each), each.get("filter_disabled"), each)
            for each in self.node.get("listener_filters").each()
        )
        if self.hands_on and all(each.name != ORIGINAL_DST for each in configured):
            implied = self.node.get("use_original_dst")
            return (ListenerFilter(ORIGINAL_DST, implied.replace(value=None), implied), *configured)
        return configured

    def filter(self, name: str) -> ListenerFilter | None:
        """The first filter of a name."""
        return next((each for each in self.filters() if each.name == name), None)

    @property
    def restores(self) -> bool:
        """Whether it restores the destination from before the redirection."""
        return self.filter(ORIGINAL_DST) is not None


def _filter_name(node: Node) -> str:
    kind = KINDS.get(node.get("typed_config").kind)
    name = node.get("name").text()
    if kind:
        return kind
    return f"envoy.filters.listener.{name.removeprefix(LEGACY)}" if name.startswith(LEGACY) else name


def listeners(dump: Dump) -> tuple[Listener, ...]:
    """All listeners of TCP connections that have an IP address."""
    result = []
    for node in dump.listeners:
        addresses = [node.get("address"), *(each.get("address") for each in node.get("additional_addresses").each())]
        sockets = tuple(socket for each in addresses if (socket := _socket(each)))
        if sockets and not node.get("udp_listener_config"):
            v1 = node.at("deprecated_v1", "bind_to_port").flag(True)
            result.append(Listener(_name(node, sockets[0]), sockets, node.get("bind_to_port").flag(v1), node))
    return tuple(result)


def _socket(node: Node) -> Socket | None:
    socket = node.get("socket_address")
    if not socket or socket.get("protocol").enum("TCP", "UDP") == "UDP":
        return None
    address = packed(socket.get("address").text())
    if address is None:
        return None
    compatible = address == bytes(16) and socket.get("ipv4_compat").flag()
    return Socket(address, socket.get("port_value").port(), compatible)


def _name(node: Node, socket: Socket) -> str:
    """A listener's name, or its port if it has none, as Istio's 15090 and 15021."""
    return node.get("name").text() or f"(no name, port {socket.port})"


class Bindings:
    """Listeners by address."""

    def __init__(self, dump: Dump) -> None:
        self.all = listeners(dump)
        self._bound: dict[tuple[bytes, int], Listener] = {}
        self._any: dict[tuple[bytes, int], Listener] = {}
        for listener in self.all:
            for socket in listener.sockets:
                for address in (socket.address, *((bytes(4),) if socket.compatible else ())):
                    self._any.setdefault((address, socket.port), listener)
                    if listener.bound:
                        self._bound.setdefault((address, socket.port), listener)

    def bound(self, address: bytes, port: int) -> Listener | None:
        """The listener whose socket accepts connections to this address."""
        return self._bound.get((address, port)) or self._bound.get((bytes(len(address)), port))

    def of_destination(self, address: bytes, port: int) -> Listener | None:
        """The listener for an original destination: the exact address, else any address."""
        return self._any.get((address, port)) or self._any.get((bytes(len(address)), port))

    def named(self, name: str) -> Listener | None:
        """The first listener of a name."""
        return next((each for each in self.all if each.name == name), None)


def _holds(node: Node, port: int) -> bool:
    """A ListenerFilterChainMatchPredicate, for a destination port."""
    if node.get("any_match").flag():
        return True
    if within := node.get("destination_port_range"):
        return within.get("start").number() <= port < within.get("end").number()
    if some := node.get("or_match"):
        return any(_holds(each, port) for each in some.get("rules").each())
    if every := node.get("and_match"):
        return all(_holds(each, port) for each in every.get("rules").each())
    return bool(inner := node.get("not_match")) and not _holds(inner, port)


class Detection(Record):
    """The results of listener filters: transport, SNI, ALPN, and a note for each filter.

    `waits` is the inspector that waits for a silent client, or empty.
    """

    transport: str
    sni: str
    alpn: tuple[str, ...]
    notes: tuple[tuple[ListenerFilter, str], ...]
    waits: str = ""
    unknown: str = ""


def detect(listener: Listener, port: int, client: Client, before: Detection | None = None) -> Detection:
    """The results of a listener's filters for a client and a port; `before` are those of an earlier listener."""
    transport, sni, alpn = (before.transport, before.sni, before.alpn) if before else ("", "", ())
    notes: list[tuple[ListenerFilter, str]] = []
    waits = unknown = ""
    for each in listener.filters():
        name = each.name
        short = name.removeprefix("envoy.filters.listener.")
        if each.is_off(port):
            notes.append((each, f"{short}: off for port {port} (filter_disabled)"))
        elif name in INSPECTORS and client.application == "silence":
            waits = waits or short
            notes.append((each, f"{short}: waits for the client, which says nothing before the server does"))
        elif name == TLS_INSPECTOR and client.transport == TLS:
            transport, sni, alpn = TLS, client.sni.lower(), client.alpn
            offered = f", ALPN {', '.join(alpn)}" if alpn else ", no ALPN"
            notes.append((each, f"{short}: tls, {f'SNI {sni}' if sni else 'no SNI'}{offered}"))
        elif name == TLS_INSPECTOR:
            notes.append((each, f"{short}: no TLS"))
        elif name == HTTP_INSPECTOR and transport == TLS:
            notes.append((each, f"{short}: not asked, it is TLS"))
        elif name == HTTP_INSPECTOR and client.transport != TLS and client.is_http:
            alpn = (client.application,)
            notes.append((each, f"{short}: {client.application}"))
        elif name == HTTP_INSPECTOR:
            notes.append((each, f"{short}: not HTTP"))
        elif name not in {ORIGINAL_DST, ORIGINAL_SRC}:
            unknown = unknown or short
            notes.append((each, f"{short}: not followed"))
    return Detection(transport, sni, alpn, tuple(notes), waits, unknown)
