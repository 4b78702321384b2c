"""What Istio makes beside its rules: IP sets, and nftables tables and policy rules of the ambient mode."""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.netlink.masked_rules import masked_rules
from istio_init.kernel.netlink.nfnetlink import FAMILIES, NFPROTO_INET, NfnetlinkChannel
from istio_init.kernel.xtables.set_names import set_names
from istio_init.model.inet import NAMES
from istio_init.model.routing import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "istio-"
# The mark and mask of ztunnel's packets: TproxyMark and TproxyMask of Istio's cni/pkg/iptables.
AMBIENT = (0x111, 0xFFF)
_FAMILIES = {NFPROTO_INET: "inet", FAMILIES["ipv4"]: "ip", FAMILIES["ipv6"]: "ip6"}


def named_leftovers() -> tuple[tuple[str, str], ...]:
    """What there is in the calling thread's namespace, each in words and with the command that removes it."""
    sets = ((f"IP set {name}", f"ipset destroy {name}") for name in set_names() if name.startswith(_PREFIX))
    tables = ((f"nftables table {name}", f"nft delete table {name}") for name in _tables())
    return (*tables, *sets, *_routing())


def _routing() -> Iterator[tuple[str, str]]:
    """The policy rules of ambient mode's redirection in pods, and the routes that they lead to."""
    for rule in masked_rules():
        if (rule.mark, rule.mask) == AMBIENT:
            flag = FLAGS[rule.family]
            words = f"policy rule {flag} fwmark {rule.mark:#x}/{rule.mask:#x} lookup {rule.table}"
            route = f"ip {flag} route del local default dev lo table {rule.table}"
            yield words, f"{rule.command.replace(' add ', ' del ')}; {route}"


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
