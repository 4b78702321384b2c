"""The IP sets of the calling thread's network namespace, as `ipset save` prints them.

The layouts are those of <linux/netfilter/ipset/ip_set.h>; numbers within attributes are in network order.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.formats.addresses import PROTOCOLS, address_text
from istio_init.kernel.netlink.channel import ATTRIBUTE, NLA_TYPE_MASK, attribute, attributes
from istio_init.kernel.netlink.nfnetlink import HEAD, NFPROTO_IPV6, NfnetlinkChannel, body, name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIST = 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
# IPSET_ATTR_*: of a set, and of its header and each of its members.
PROTOCOL, SETNAME, TYPENAME, FAMILY, DATA, ADT = 1, 2, 3, 5, 7, 8
IP, IP_TO, CIDR, PORT, PORT_TO, PROTO, CADT_FLAGS, MARK, MARKMASK = 1, 2, 3, 4, 5, 7, 8, 10, 11
ETHER, NAME, IP2, CIDR2, IFACE = 17, 18, 20, 21, 23
NETMASK, BITMASK = 20, 12  # of the header
PHYSDEV, NOMATCH = 2, 4  # IPSET_FLAG_*
VERSION = 6


def saved_sets() -> str:
    """The lines; none where the kernel has no IP sets, or does not tell."""
    try:
        with NfnetlinkChannel() as channel:
            messages = channel.dump("IP sets", LIST, body(0, attribute(PROTOCOL, bytes([VERSION]))))
    except KernelError:
        return ""
    created: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for data in messages:
        facts = attributes(data[HEAD.size :])
        set_name, kind = name(facts[SETNAME]), name(facts.get(TYPENAME, b""))
        # A large set comes in several messages, of which only the first has a header.
        if kind:
            created[set_name] = f"create {set_name} {kind}{_options(facts)}"
        dimensions = created[set_name].split()[2].partition(":")[2].split(",")
        some = members.setdefault(set_name, [])
        some += [f"add {set_name} {_member(dimensions, attributes(each))}" for each in _each(facts.get(ADT, b""))]
    # A set comes before the lists that it is in.
    names = sorted(created, key=lambda each: " list:set" in created[each])
    return "".join(f"{line}\n" for each in names for line in (created[each], *members[each]))


def _each(data: bytes) -> Iterator[bytes]:
    """The nested members of a list, all of which have one type."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if kind & NLA_TYPE_MASK == DATA:
            yield data[at + ATTRIBUTE.size : at + length]
        at += max((length + 3) & ~3, ATTRIBUTE.size)


def _options(facts: dict[int, bytes]) -> str:
    header = attributes(facts.get(DATA, b""))
    family = " family inet6" if facts.get(FAMILY) == bytes([NFPROTO_IPV6]) else ""
    netmask = f" netmask {header[NETMASK][0]}" if NETMASK in header else ""
    return f"{family}{netmask}{' bitmask' if BITMASK in header else ''}{' markmask' if MARKMASK in header else ''}"


def _member(dimensions: list[str], facts: dict[int, bytes]) -> str:
    addresses = iter(((IP, IP_TO, CIDR), (IP2, None, CIDR2)))
    flags = int.from_bytes(facts.get(CADT_FLAGS, b""))
    text = ",".join(_part(each, facts, addresses, physical=bool(flags & PHYSDEV)) for each in dimensions)
    return text + (" nomatch" if flags & NOMATCH else "")


def _part(
    dimension: str, facts: dict[int, bytes], addresses: Iterator[tuple[int, int | None, int]], *, physical: bool
) -> str:
    match dimension:
        case "ip" | "net":
            low, high, prefix = next(addresses)
            text = _address(facts[low])
            if high is not None and high in facts:
                return f"{text}-{_address(facts[high])}"
            return f"{text}/{facts[prefix][0]}" if prefix in facts else text
        case "port":
            protocol = facts.get(PROTO, b"\0")[0]
            ports = [str(int.from_bytes(facts[each])) for each in (PORT, PORT_TO) if each in facts]
            return (f"{PROTOCOLS.get(protocol, protocol)}:" if protocol else "") + "-".join(ports)
        case "iface":
            return ("physdev:" if physical else "") + name(facts[IFACE])
        case "set":
            return name(facts[NAME])
        case "mark":
            return f"{int.from_bytes(facts[MARK]):#x}"
        case _:
            return facts.get(ETHER, b"").hex(":")


def _address(data: bytes) -> str:
    [packed] = attributes(data).values()
    return address_text(packed)
