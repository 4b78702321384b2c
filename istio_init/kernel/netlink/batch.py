"""nftables batches, which the kernel commits as a whole or not at all. Reading does not import this.

The layouts are those of <linux/netfilter/nfnetlink.h> and <linux/netfilter/nf_tables.h>, as in nfnetlink.py.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the constants in C are all that is needed
import posix as os  # the C half of os

from istio_init.kernel.netlink import channel
from istio_init.kernel.netlink.channel import HEADER, NLMSG_ERROR, NUMBER, AnswerLost
from istio_init.kernel.netlink.nfnetlink import HEAD, SUBSYSTEM, NfnetlinkChannel, word

BATCH_BEGIN, BATCH_END = 16, 17  # NFNL_MSG_*: these belong to no subsystem
BATCH_GENID = 1
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>


class BatchRefused(OSError):
    """The kernel refused a batch; `at` is the number of the message at fault, -1 for the batch itself.

    `offset` is the place in the message's body of the attribute that the kernel rejected, -1 if it did not say.
    """

    def __init__(self, number: int, extended: tuple[str, int], at: int) -> None:
        text, offset = extended
        super().__init__(number, text or os.strerror(number))
        self.at = at
        self.offset = offset - HEADER.size if offset else -1


class BatchChannel(NfnetlinkChannel):
    """An nfnetlink socket that can also write."""

    def commit(self, messages: list[tuple[int, int, bytes]], generation: int) -> None:
        """Carry out all messages (type, flags, body), or none. OSError for the first one that the kernel refuses.

        Its number is ERESTART where the rules are no longer those of `generation`. BatchRefused names the message.
        AnswerLost where it is not known whether the batch was committed: read the tables again.
        """
        first = self._sequence + 1
        last = self._sequence = first + len(messages)
        head = HEAD.pack(0, 0, socket.htons(SUBSYSTEM >> 8))
        begin = head + word(BATCH_GENID, generation)
        request = channel.NLM_F_REQUEST
        parts = [_header(BATCH_BEGIN, request, first, begin), begin]
        # There may be 10,000: nothing is called for each but what packs its header.
        pack, size = HEADER.pack, HEADER.size
        for sequence, (kind, flags, data) in enumerate(messages, first + 1):
            # The end of a batch is acknowledged since Linux 6.10 only, the last message of one by every kernel.
            all_flags = flags | request if sequence < last else flags | request | channel.NLM_F_ACK
            parts += pack(size + len(data), SUBSYSTEM | kind, all_flags, sequence, 0), data
        parts += _header(BATCH_END, request, last + 1, head), head
        self._deliver(b"".join(parts))
        try:
            self._await_answer(first)
        except BatchRefused:
            raise
        except OSError as error:
            raise self._lost(generation, error) from error
        self._sequence += 1

    def _deliver(self, batch: bytes) -> None:
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, 2 * len(batch))
            except PermissionError:
                continue  # without NET_ADMIN in the initial user namespace; the kernel's limit may be enough
        self._socket.send(batch)

    def _await_answer(self, first: int) -> None:
        """Wait for the answer to the batch: the acknowledgement of its last message, or the first refusal."""
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

    def _lost(self, generation: int, error: OSError) -> OSError | AnswerLost:
        """The error for an answer that did not arrive: the kernel's own where nothing was committed.

        Every commit changes the generation, and the kernel refuses a batch for another one.
        """
        self._sequence += 1
        if self.generation() == generation:
            return error
        text = f"nftables: the answer to a commit was lost: {error.strerror}; run again"
        return AnswerLost(text, error.errno or 0)


def after(generation: int) -> int:
    """The generation that a commit makes of one: the next number, 0 left out."""
    return (generation + 1) & 0xFFFFFFFF or 1


def _header(kind: int, flags: int, sequence: int, data: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(data), kind, flags, sequence, 0)
