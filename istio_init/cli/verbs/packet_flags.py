"""Flags that describe a packet, and the defaults for what they leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.verbs.output import choice
from istio_init.cli.verbs.subject import ELSEWHERE, POD, UPLINK
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats.addresses import PROTOCOLS
from istio_init.model import parsers, parsers_rare
from istio_init.model.extensions import CT_STATES
from istio_init.model.packet import Packet, connected
from istio_init.model.routing import Address
from istio_init.model.rules import FAMILIES, IPV4, IPV6, LOOPBACK_INTERFACE, TCP, UDP, Network
from istio_init.record import Record
from istio_init.runner import defaults
from istio_init.simulate.path import routed

if TYPE_CHECKING:
    from istio_init.cli.verbs.subject import Subject
    from istio_init.model.rules import Family

# Defaults: an application that is not the proxy, and ports of a client and a server.
APPLICATION_ID = 1000
CLIENT_PORT, SERVER_PORT = 40000, 80
NO_ENDPOINT = (
    "not an IP address (names are not looked up): use such as 10.1.2.3, 10.1.2.3:443, :443 or [2001:db8::3]:443"
)
STATES = tuple(state for state in CT_STATES if state not in {"SNAT", "DNAT"})


# The flags, as Typer wants them.
Outbound = Annotated[bool, typer.Option("--outbound", help="A packet that the pod sends.")]
Inbound = Annotated[bool, typer.Option("--inbound", help="A packet that the pod receives.")]
From = Annotated[str, typer.Option("--from", metavar="ADDRESS[:PORT]", help="The source.")]
To = Annotated[str, typer.Option("--to", metavar="[ADDRESS][:PORT]", help="The destination.")]
ProtocolName = Annotated[str, typer.Option(metavar="NAME|NUMBER", help="tcp, udp, icmp ... or a number.")]
Interface = Annotated[str, typer.Option(metavar="NAME", help="The interface that it arrives or leaves by.")]
Uid = Annotated[str, typer.Option(metavar="UID", help="The sender's user, outbound; - for a packet without a socket.")]
Gid = Annotated[str, typer.Option(metavar="GID", help="The sender's group, outbound. Unset: the uid.")]
Mark = Annotated[str, typer.Option(metavar="MARK", help="The packet's mark.")]
ConnMark = Annotated[str, typer.Option(metavar="MARK", help="The connection's mark.")]
State = Annotated[str, typer.Option(metavar="STATE", help="The connection's state: NEW, ESTABLISHED ...")]
Reply = Annotated[
    bool, typer.Option("--reply", help="With --state ESTABLISHED: a packet from the server to the client.")
]
PodAddress = Annotated[str, typer.Option(metavar="ADDRESSES", help="The pod's own addresses; --live reads them.")]
RunsAs = Annotated[str, typer.Option("--proxy-runs-as", metavar="UID[:GID]", help="The proxy's user and group.")]


class PacketFlags(Record):
    """The flags of a packet as text; a verb's parameter of this type takes all of them (typer_parameters.flags_of)."""

    outbound: Outbound = False
    inbound: Inbound = False
    source: From = ""
    destination: To = ""
    protocol: ProtocolName = "tcp"
    interface: Interface = ""
    uid: Uid = ""
    gid: Gid = ""
    mark: Mark = "0"
    connmark: ConnMark = "0"
    state: State = "NEW"
    reply: Reply = False


NO_FLAGS = PacketFlags()


class Endpoint(Record):
    """An address and a port from a flag; either may be missing."""

    address: bytes | None = None
    port: int | None = None


class PacketRequest(Record):
    """The packet that the flags describe; None for what they leave out."""

    inbound: bool
    source: Endpoint
    destination: Endpoint
    protocol: int
    interface: str
    uid: int | None
    gid: int | None
    mark: int
    connmark: int
    ctstate: str
    reply: bool

    @property
    def addressed(self) -> bool:
        """Whether the flags give an address, which determines the family."""
        return self.source.address is not None or self.destination.address is not None

    @property
    def family(self) -> Family:
        """The family of the addresses, IPv4 without any. UsageError if they have different families."""
        addresses = [each.address for each in (self.source, self.destination) if each.address is not None]
        families = {IPV4 if len(address) == 4 else IPV6 for address in addresses}
        if len(families) > 1:
            raise UsageError("--from, --to: one is IPv4, the other IPv6")
        return families.pop() if families else IPV4


def parse_request(flags: PacketFlags) -> PacketRequest:
    """The request from the flags' texts; OptionError for a wrong value, UsageError for contradictory flags."""
    if flags.inbound == flags.outbound:
        raise UsageError("--outbound, --inbound: give exactly one of the two")
    start, to = endpoint("--from", flags.source), endpoint("--to", flags.destination)
    if flags.outbound and to.address is not None:
        to = to.replace(address=connected(to.address, start.address))
    request = PacketRequest(
        flags.inbound, start, to, protocol_number(flags.protocol), interface_name(flags.interface),
        account("--uid", "user", flags.uid), account("--gid", "group", flags.gid or flags.uid),
        mark_value("--mark", flags.mark), mark_value("--connmark", flags.connmark),
        choice("--state", flags.state.upper(), STATES), flags.reply,
    )  # fmt: skip
    if request.reply and request.ctstate not in {"ESTABLISHED", "RELATED"}:
        raise OptionError("--reply", request.ctstate, "only an ESTABLISHED or RELATED packet can be a reply")
    return request


def run_as(about: Subject, runs_as: str) -> Subject:
    """The subject with the proxy's ids from --proxy-runs-as; unchanged if that is empty."""
    if not runs_as:
        return about
    user, _, group = runs_as.partition(":")
    uid, gid = account("--proxy-runs-as", "user", user), account("--proxy-runs-as", "group", group or user)
    return about.replace(envoy=about.envoy.replace(uid=uid, gid=gid))


def with_request(about: Subject, request: PacketRequest, runs_as: str) -> Subject:
    """The subject with what the request implies about the pod: the proxy's ids, and the pod's own addresses."""
    about = run_as(about, runs_as)
    facts = about.facts
    address = request.destination.address
    if about.live or facts.uplink != UPLINK:
        return about
    here = request.interface or (UPLINK if request.inbound else "")
    addresses: list[Address] = []
    virtual = any(parsers_rare.interface(name) == here for name in about.options.kube_virt_interfaces)
    # Inbound packets are addressed to the pod, unless a virtual machine sends them; so are packets that leave by lo.
    local = (request.inbound and not virtual) or (not request.inbound and here == LOOPBACK_INTERFACE)
    if address is not None and local and not facts.is_local(address):
        addresses.append(Address(Network(address, len(address) * 8), here if here != LOOPBACK_INTERFACE else UPLINK))
    if here not in {"", UPLINK, LOOPBACK_INTERFACE}:
        addresses.extend(Address(POD[family], here) for family in FAMILIES)
    return about.replace(facts=facts.replace(addresses=(*addresses, *facts.addresses)))


def packet(request: PacketRequest, about: Subject, family: Family | None = None) -> Packet:
    """The packet at its first hook; of `family` if the request has no address."""
    family, facts = family or request.family, about.facts
    ports = (CLIENT_PORT, SERVER_PORT) if request.protocol in {TCP, UDP} else (0, 0)
    source_port = ports[0] if request.source.port is None else request.source.port
    destination_port = ports[1] if request.destination.port is None else request.destination.port
    away = ELSEWHERE[family]
    if request.inbound:
        interface = request.interface or facts.uplink
        own = facts.primary(interface, away) or facts.primary(facts.uplink, away) or POD[family].address
        return Packet(
            "PREROUTING", request.protocol, request.source.address or away, request.destination.address or own,
            source_port, destination_port, in_interface=interface, mark=request.mark, ctstate=request.ctstate,
            connmark=request.connmark, reply=request.reply,
        )  # fmt: skip
    destination = request.destination.address or away
    sent = Packet(
        "OUTPUT", request.protocol, request.source.address or bytes(len(destination)), destination, source_port,
        destination_port, out_interface=request.interface, uid=request.uid, gid=request.gid, mark=request.mark,
        ctstate=request.ctstate, connmark=request.connmark, reply=request.reply,
    )  # fmt: skip
    if request.source.address is None:
        sent = sent.replace(source=facts.source_for(sent))
    return sent if request.interface else routed(sent, facts).packet


def form_values(request: PacketRequest, flags: PacketFlags) -> dict[str, Any]:
    """The request as values of the page's form; source, destination and protocol as the user wrote them."""
    uid, gid = ("-" if number is None else str(number) for number in (request.uid, request.gid))
    return {
        "way": "inbound" if request.inbound else "outbound",
        "from": flags.source,
        "to": flags.destination,
        "protocol": flags.protocol,
        "interface": request.interface,
        "uid": "" if uid == str(APPLICATION_ID) else uid,
        "gid": "" if gid == uid else gid,
        "mark": hex(request.mark) if request.mark else "0",
        "connmark": hex(request.connmark) if request.connmark else "0",
        "state": request.ctstate,
        "reply": request.reply,
    }


def form_defaults() -> dict[str, Any]:
    """The defaults for the page's script, the same as those of the functions above."""
    return {
        "application_id": APPLICATION_ID,
        "elsewhere": {family: address.hex() for family, address in ELSEWHERE.items()},
        "no_endpoint": NO_ENDPOINT,
        "client_port": CLIENT_PORT,
        "server_port": SERVER_PORT,
        "uplink": UPLINK,
        "pod": {
            family: {"address": network.address.hex(), "prefix": network.prefix} for family, network in POD.items()
        },
    }


def endpoint(flag: str, text: str) -> Endpoint:
    """ADDRESS, ADDRESS:PORT, :PORT, or [ADDRESS]:PORT for IPv6; OptionError for anything else."""
    address, port = _split(text)
    try:
        parsed = parsers.address(address).address if address else None
    except ValueError:
        raise OptionError(flag, text, NO_ENDPOINT) from None
    try:
        return Endpoint(parsed, parsers.number(port, 0, 65535, "a port") if port else None)
    except ValueError as error:
        raise OptionError(flag, text, str(error)) from None


def _split(text: str) -> tuple[str, str]:
    """An endpoint's address and port as text; with unbalanced brackets the whole text, which is no address."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        right = ":" in address and (not port or port.startswith(":")) and text.count("]") == 1
        return (address, port[1:]) if right else (text, "")
    if text.count(":") > 1:
        return text, ""
    address, _, port = text.partition(":")
    return address, port


def protocol_number(text: str) -> int:
    """A protocol's number, from the number or its name."""
    numbers = {name: number for number, name in PROTOCOLS.items()}
    if text.lower() in numbers:
        return numbers[text.lower()]
    try:
        return parsers.number(text, 1, 255, "a protocol")
    except ValueError as error:
        raise OptionError("--protocol", text, str(error)) from None


def interface_name(interface: str) -> str:
    """An interface's name, empty where none is given."""
    try:
        if interface.endswith("+"):
            raise ValueError("a packet uses one interface: give its full name")  # noqa: TRY301
        return parsers_rare.interface(interface) if interface else ""
    except ValueError as error:
        raise OptionError("--interface", interface, str(error)) from None


def account(flag: str, kind: str, text: str) -> int | None:
    """The id from a number or a name; an application's if the text is empty, None for `-`."""
    if text == "-":
        return None
    if not text:
        return APPLICATION_ID
    number = defaults.account(kind, text)
    try:
        return parsers.owner(text) if number is None else number
    except ValueError as error:
        raise OptionError(flag, text, str(error)) from None


def mark_value(flag: str, text: str) -> int:
    """A mark, decimal or hexadecimal with 0x, zero allowed."""
    try:
        if text[:2].lower() == "0x" and len(text) <= 10 and text.isalnum():
            return int(text, 16)
        return parsers.number(text, 0, 2**32 - 1, "a mark")
    except ValueError:
        raise OptionError(flag, text, "not a mark: use a number from 0 to 4294967295, or 0x0 to 0xffffffff") from None
