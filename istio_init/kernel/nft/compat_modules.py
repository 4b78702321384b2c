"""Which x_tables extensions nftables can use here, as iptables-nft's rules do: by a query to the kernel's nft_compat.

The question is that of <linux/netfilter/nf_tables_compat.h>; putting it loads the extension's
module, where there is one.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from istio_init.kernel.netlink.nfnetlink import FAMILIES, body, text, word

if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel
    from istio_init.model.rules import Family

    Kind: TypeAlias = Literal["match", "target"]
    # An extension's kind, name and revision.
    Extension: TypeAlias = tuple[Kind, str, int]

COMPAT_GET = 11 << 8  # NFNL_SUBSYS_NFT_COMPAT, NFNL_MSG_COMPAT_GET
_NAME, _REVISION, _TYPE = 1, 2, 3  # NFTA_COMPAT_*
# Matches that iptables-nft writes as native expressions.
_NATIVE = {"tcp", "udp", "mark"}


def uses_module(extension: Extension) -> bool:
    """Whether iptables-nft's rules use the x_tables module of this extension."""
    kind, name, _ = extension
    return kind == "target" or name not in _NATIVE


def knows(channel: NfnetlinkChannel, family: Family, extension: Extension) -> bool | None:
    """Whether the kernel has it; None where asking is not allowed (it takes NET_ADMIN)."""
    kind, name, revision = extension
    question = text(_NAME, name) + word(_REVISION, revision) + word(_TYPE, int(kind == "target"))
    try:
        channel.request(COMPAT_GET, 0, body(FAMILIES[family], question))
    except OSError as refused:
        return None if refused.errno == errno.EPERM else False
    return True
