"""What Istio makes beside rules and routing, known by name: IP sets, and nftables tables of the ambient mode."""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.netlink.nfnetlink import FAMILIES, NFPROTO_INET, NfnetlinkChannel
from istio_init.kernel.xtables.set_names import set_names
from istio_init.model.inet import NAMES

_PREFIX = "istio-"
_FAMILIES = {NFPROTO_INET: "inet", FAMILIES["ipv4"]: "ip", FAMILIES["ipv6"]: "ip6"}


def named_leftovers() -> tuple[tuple[str, str], ...]:
    """What there is in the calling thread's namespace, each in words and with the command that removes it."""
    sets = ((f"IP set {name}", f"ipset destroy {name}") for name in set_names() if name.startswith(_PREFIX))
    tables = ((f"nftables table {name}", f"nft delete table {name}") for name in _tables())
    return (*tables, *sets)


def _tables() -> list[str]:
    try:
        with NfnetlinkChannel() as channel:
            there = channel.tables()
    except KernelError:
        return []
    own = {(NFPROTO_INET, name) for name in NAMES.values()}
    return [
        f"{_FAMILIES[family]} {name}"
        for family, name in there
        if name.startswith(_PREFIX) and family in _FAMILIES and (family, name) not in own
    ]
