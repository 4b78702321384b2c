"""Batches of nftables' that the kernel takes whole or not at all; whoever only looks needs none of this.

The layouts are those of <linux/netfilter/nfnetlink.h> and <linux/netfilter/nf_tables.h>, as in nfnetlink.py.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the constants in C are all that is needed
import posix as os  # the C half of os

from istio_init.kernel.netlink import channel
from istio_init.kernel.netlink.channel import HEADER, NLMSG_ERROR, NUMBER
from istio_init.kernel.netlink.nfnetlink import HEAD, SUBSYSTEM, NfnetlinkChannel, word

BATCH_BEGIN, BATCH_END = 16, 17  # NFNL_MSG_*: these belong to no subsystem
BATCH_GENID = 1
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>


class BatchChannel(NfnetlinkChannel):
    """An nfnetlink socket that writes, too."""

    def commit(self, messages: list[tuple[int, int, bytes]], generation: int) -> None:
        """Have all messages (type, flags, body) done, or none. OSError says the first that the kernel would not do.

        Its number is ERESTART where the rules are no longer those of `generation`. A BatchRefused knows the message.
        """
        self._sequence += 1
        first = self._sequence
        head = HEAD.pack(0, 0, socket.htons(SUBSYSTEM >> 8))
        parts = [_message(BATCH_BEGIN, channel.NLM_F_REQUEST, first, head + word(BATCH_GENID, generation))]
        for kind, flags, data in messages:
            self._sequence += 1
            # The end of a batch is acknowledged since Linux 6.10 only, the last message of one by every kernel.
            acknowledged = channel.NLM_F_ACK if self._sequence == first + len(messages) else 0
            wanted = flags | channel.NLM_F_REQUEST | acknowledged
            parts.append(_message(SUBSYSTEM | kind, wanted, self._sequence, data))
        parts.append(_message(BATCH_END, channel.NLM_F_REQUEST, self._sequence + 1, head))
        self._deliver(b"".join(parts))
        self._settled(first)
        self._sequence += 1

    def _deliver(self, batch: bytes) -> None:
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, 2 * len(batch))
            except PermissionError:
                continue  # without NET_ADMIN in the first user namespace; the kernel's limit may do
        self._socket.send(batch)

    def _settled(self, first: int) -> None:
        """Wait for the kernel's word on the batch: the one that acknowledges its last message, or the first refusal."""
        last = self._sequence
        while True:
            data = self._socket.recv(channel.BUFFER)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                message = data[offset + HEADER.size : offset + length]
                if kind == NLMSG_ERROR and first <= sequence <= last:
                    if number := -NUMBER.unpack_from(message)[0]:
                        extended = channel.extended(flags, message)
                        raise BatchRefused(number, extended, sequence - first - 1)
                    if sequence == last:
                        return
                offset += (length + 3) & ~3


class BatchRefused(OSError):
    """The kernel refused a batch; `at` is the number of the message that it refused, -1 for the batch itself.

    `offset` is where in the message's body the attribute is that the kernel rejected, -1 if it did not say.
    """

    def __init__(self, number: int, extended: tuple[str, int], at: int) -> None:
        words, offset = extended
        super().__init__(number, words or os.strerror(number))
        self.at = at
        self.offset = offset - HEADER.size if offset else -1


def _message(kind: int, flags: int, sequence: int, data: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(data), kind, flags, sequence, 0) + data
