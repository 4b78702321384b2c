"""What refusals of iptables-nft's tables and of native ones have in common, in words.

Imported where something has failed, and only then.
"""

from __future__ import annotations

from istio_init.errors import KernelError
from istio_init.kernel.host import denial
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import (
    HEAD,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_NAME,
    NfnetlinkChannel,
    name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.kernel.netlink.batch import Message

# MAX_HOOK_COUNT in the kernel's net/netfilter/core.c.
FULL_HOOK = (
    "the hook has 1,024 chains already, as many as the kernel allows: `nft list hooks` shows them; remove tables that "
    "are no longer needed"
)
_TABLE_OWNER = 7  # NFTA_TABLE_OWNER, which is there where a socket owns the table
_WORDS = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}


def explain_permission(message: Message | None) -> str:
    """Why the kernel says EPERM to a message about a table: the table belongs to another, or what denial.py knows."""
    if message is not None and (port := _owner(message[2])):
        table = f"{_WORDS[message[2][0]]} {_table(message[2])}"
        return (
            f"the table {table} has an owner (flags owner), the program with the netlink port {port} (mostly its "
            "process id), and nobody else may change it: stop that program, and run again"
        )
    return denial.explain_permission("NET_ADMIN")


def _owner(data: bytes) -> int:
    """The netlink port that owns the table which a message is about; 0 where none does, or it can't be read."""
    try:
        with NfnetlinkChannel() as channel:
            same = [each for each in channel.table_bodies() if (each[0], _table(each)) == (data[0], _table(data))]
    except KernelError:
        return 0
    return int.from_bytes(attributes(same[0][HEAD.size :]).get(_TABLE_OWNER, b""), "big") if same else 0


def _table(data: bytes) -> str:
    return name(attributes(data[HEAD.size :])[NFT_NAME])
