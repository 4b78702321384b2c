"""A table of nftables that belongs to a socket (`flags owner`): nobody else may change it, as firewalld's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from istio_init.kernel.netlink.batch import BatchChannel
from istio_init.kernel.netlink.channel import attribute
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    NEWCHAIN,
    NEWTABLE,
    NFT_NAME,
    NLM_F_CREATE,
    TABLE_FLAGS,
    body,
    text,
    word,
)
from istio_init.kernel.nft.native_encode import CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kit.namespace import Namespace

OWNER, PERSIST = 2, 4  # NFT_TABLE_F_*
LOCAL_OUT, ACCEPT, DROP = 3, 1, 0


@contextlib.contextmanager
def owned_table(
    namespace: Namespace, family: int, table: str, flags: int = OWNER, policy: int = ACCEPT
) -> Iterator[int]:
    """The netlink port that owns the table, until the end; in it is a chain `output` for filters, without rules."""
    head = body(family, text(NFT_NAME, table))
    hook = attribute(CHAIN_HOOK, word(1, LOCAL_OUT) + word(2, 0))
    chain = head + text(CHAIN_NAME, "output") + hook + word(CHAIN_POLICY, policy) + text(CHAIN_TYPE, "filter")
    messages = [(NEWTABLE, NLM_F_CREATE, head + word(TABLE_FLAGS, flags)), (NEWCHAIN, NLM_F_CREATE, chain)]
    with contextlib.ExitStack() as stack:

        def own() -> int:
            channel = stack.enter_context(BatchChannel())
            channel.commit(messages, channel.generation())
            return int(channel._socket.getsockname()[0])

        yield namespace.inside(own)
