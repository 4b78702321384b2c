"""The meaning of other programs' targets, parsed from their options as iptables-save prints them."""

from __future__ import annotations

import re
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from istio_init.model.foreign import (
    AnyMark,
    ChangeSets,
    Fixed,
    MapAddress,
    MapPrefix,
    NoTrack,
    SetConnMark,
    ToSelf,
    Translate,
)
from istio_init.model.parsers import network
from istio_init.model.rules import Network, PortRange
from istio_init.model.unclear import ALL_BITS
from istio_init.simulate.foreign import options_of, ports_of

if TYPE_CHECKING:
    from typing import Literal

    from istio_init.model.foreign import ForeignTarget
    from istio_init.model.packet import Side
    from istio_init.model.unknown import UnknownTarget

# Targets that do not change what happens to the packet afterwards, as far as it is simulated.
PASSING = {
    "nf_tables log": "is logged",
    "LOG": "is logged", "NFLOG": "is logged", "ULOG": "is logged", "AUDIT": "is logged", "TRACE": "is traced",
    "TCPMSS": "continues, with another maximum segment size", "TCPOPTSTRIP": "loses TCP options",
    "CHECKSUM": "gets its checksum", "CLASSIFY": "gets a class for traffic control", "DSCP": "gets a DSCP",
    "TOS": "gets a TOS", "TTL": "gets a TTL", "HL": "gets a hop limit", "TEE": "is copied",
    "RATEEST": "is counted", "SECMARK": "gets a security mark", "CONNSECMARK": "gets a security mark",
    "IDLETIMER": "restarts a timer", "ECN": "gets its congestion notification", "LED": "blinks a light",
}  # fmt: skip

# A mark of which formats/nft/mark_values.py knows no more.
_OPEN_MARK = re.compile(r"(meta|ct) mark set hash mod (\d+) offset (\d+)")
TRACKED = "options for connection tracking"


def effect_of(target: UnknownTarget) -> ForeignTarget:
    """What a target does to a packet; Fixed with the answer UNDECIDED if that is unknown."""
    return _effect(target.name, target.options)


@cache
def _effect(name: str, options: str | None) -> ForeignTarget:
    if name in PASSING:
        return Fixed("CONTINUE", PASSING[name])
    if name == "REJECT":
        words = (options or "").removeprefix("--reject-with ")
        return Fixed("DROP", f"is rejected with {words}" if words else "is rejected")
    if name == "NFQUEUE":
        return Fixed("QUEUE", "is passed to a program")
    if name == "SYNPROXY":
        return Fixed("UNDECIDED", "-j SYNPROXY answers in the listener's place")
    unknown = Fixed("UNDECIDED", f"-j {name}{f' {options}' if options else ''} is not known to this program")
    if options is None:
        return unknown
    if name == "nftables" and (match := _OPEN_MARK.fullmatch(options)):
        low = int(match[3])
        return AnyMark("mark" if match[1] == "meta" else "connmark", low, low + int(match[2]) - 1, "a hash or chance")
    try:
        return _parsed(name, options) or unknown
    except (KeyError, ValueError, IndexError):
        return unknown


def _parsed(name: str, options: str) -> ForeignTarget | None:
    values = {option: values for option, _, values in options_of(options)}
    match name:
        case "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT":
            return _translation(name, values)
        case "CONNMARK" | "HMARK" | "SET":
            return _marking(name, values)
        case "CT":
            return _tracking(values)
        case "NETMAP":
            address, _, prefix = values["--to"][0].partition("/")
            packed = ip_address(address).packed
            return MapAddress(Network(packed, int(prefix) if prefix else len(packed) * 8))
        case "DNPT" | "SNPT":
            return MapPrefix("destination" if name == "DNPT" else "source", network(values["--dst-pfx"][0]))
        case "NOTRACK":
            return NoTrack()
        case _:
            return None


def _translation(name: str, values: dict[str, list[str]]) -> ForeignTarget:
    """Network address translation that connection tracking remembers."""
    if name == "DNAT":
        return _endpoint("destination", values["--to-destination"][0])
    random = "--random" in values or "--random-fully" in values
    if name == "SNAT":
        return _endpoint("source", values["--to-source"][0]).replace(random=random)
    ports = ports_of(values["--to-ports"][0].replace("-", ":")) if "--to-ports" in values else PortRange(0, 0)
    if name == "REDIRECT":
        return ToSelf(ports.low, ports.high)
    return Translate("source", None, ports.low, own=True, last_port=ports.high, random=random)


def _marking(name: str, values: dict[str, list[str]]) -> ForeignTarget | None:
    """What gives marks, or changes IP sets, which may give marks."""
    if name == "SET":
        names = tuple(values[each][0] for each in ("--add-set", "--del-set") if each in values)
        return ChangeSets(names, mark="--map-mark" in values)
    if name == "HMARK":
        first = int(values.get("--hmark-offset", ["0"])[0])
        last = first + int(values["--hmark-mod"][0]) - 1
        low, high = (first, last) if last <= ALL_BITS else (0, ALL_BITS)
        return AnyMark("mark", low, high, "a hash", tracked="--hmark-tuple" in values)
    if any(option.endswith("-shift-mark") for option in values):
        field: Literal["mark", "connmark"] = "mark" if "--restore-mark" in values else "connmark"
        return AnyMark(field, 0, ALL_BITS, "bits that are shifted", tracked=True)
    if "--set-xmark" not in values:
        return None
    value, _, mask = values["--set-xmark"][0].partition("/")
    return SetConnMark(int(value, 16), int(mask or "0xffffffff", 16))


def _tracking(values: dict[str, list[str]]) -> ForeignTarget | None:
    """-j CT; None with a zone, of which model.rules has the simple kind."""
    if "--notrack" in values or not values:
        return NoTrack()
    if any(option.startswith("--zone") for option in values):
        return None
    return Fixed("CONTINUE", f"gets {'a connection tracking helper' if '--helper' in values else TRACKED}")


def _endpoint(side: Side, text: str) -> Translate:
    """ADDRESS or ADDRESS-ADDRESS, optionally with :PORT or :PORT-PORT; an IPv6 address is in brackets."""
    if text.startswith("["):
        addresses, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") > 1:
        addresses, ports = text, ""
    else:
        addresses, _, ports = text.partition(":")
    low, _, high = addresses.partition("-")
    first, _, last = ports.partition("/")[0].partition("-")
    ends = [ip_address(each).packed if each else None for each in (low, high or low)]
    return Translate(side, ends[0], int(first or 0), last_address=ends[1], last_port=int(last or first or 0))
