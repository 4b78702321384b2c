"""nftables batches, which the kernel commits as a whole or not at all. Reading does not import this.

The layouts are those of <linux/netfilter/nfnetlink.h> and <linux/netfilter/nf_tables.h>, as in nfnetlink.py.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the constants in C are all that is needed
import posix as os  # the C half of os

from istio_init.kernel.netlink import channel
from istio_init.kernel.netlink.channel import HEADER, NLMSG_ERROR, NUMBER, AnswerLost
from istio_init.kernel.netlink.nfnetlink import HEAD, SUBSYSTEM, NfnetlinkChannel, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    # Type, flags, and the body.
    Message: TypeAlias = tuple[int, int, bytes]

BATCH_BEGIN, BATCH_END = 16, 17  # NFNL_MSG_*: these belong to no subsystem
BATCH_GENID = 1
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
# Messages of a run that are put together at once. The kernel takes at most 1,024 buffers, so 512,000 such messages.
_BLOCK = 500


class BatchRefused(OSError):
    """The kernel refused a batch; `at` is the number of the message at fault, -1 for the batch itself.

    `offset` is the place in the message's body of the attribute that the kernel rejected, -1 if it did not say.
    """

    def __init__(self, number: int, extended: tuple[str, int], at: int) -> None:
        text, offset = extended
        super().__init__(number, text or os.strerror(number))
        self.at = at
        self.offset = offset - HEADER.size if offset else -1


class MessageRun:
    """Many messages of one type, whose bodies are made of pieces: each column has one piece of each body, in order.

    `sizes` are those of the messages with their headers. Where most pieces are the same few objects, 10,000 messages
    take next to no memory.
    """

    __slots__ = ("columns", "flags", "kind", "sizes")

    def __init__(self, kind: int, flags: int, sizes: list[int], *columns: list[bytes]) -> None:
        self.kind, self.flags, self.sizes, self.columns = kind, flags, sizes, columns

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, at: int) -> Message:
        return self.kind, self.flags, b"".join([column[at] for column in self.columns])


class BatchChannel(NfnetlinkChannel):
    """An nfnetlink socket that can also write."""

    def commit(self, messages: Sequence[Message | MessageRun], generation: int) -> None:
        """Carry out all messages, or none. OSError for the first one that the kernel refuses.

        Its number is ERESTART where the rules are no longer those of `generation`. BatchRefused names the message.
        AnswerLost where it is not known whether the batch was committed: read the tables again.
        """
        first = self._sequence + 1
        last = self._sequence = first + sum([len(each) if isinstance(each, MessageRun) else 1 for each in messages])
        head = HEAD.pack(0, 0, socket.htons(SUBSYSTEM >> 8))
        begin = head + word(BATCH_GENID, generation)
        request = channel.NLM_F_REQUEST
        self._deliver(
            [
                _header(BATCH_BEGIN, request, first, begin) + begin,
                *_buffers(messages, first + 1, last),
                _header(BATCH_END, request, last + 1, head) + head,
            ]
        )
        try:
            self._await_answer(first)
        except BatchRefused:
            raise
        except OSError as error:
            raise self._lost(generation, error) from error
        self._sequence += 1

    def _deliver(self, buffers: list[bytes]) -> None:
        size = sum(map(len, buffers))
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, 2 * size)
            except PermissionError:
                continue  # without NET_ADMIN in the initial user namespace; the kernel's limit may be enough
        self._socket.sendmsg(buffers)

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


def _buffers(messages: Sequence[Message | MessageRun], first: int, last: int) -> Iterator[bytes]:
    """Headers and bodies, numbered from `first` to `last`, in few buffers. The last message is to be acknowledged.

    The end of a batch is acknowledged since Linux 6.10 only, the last message of one by every kernel.
    """
    request, pack, size = channel.NLM_F_REQUEST, HEADER.pack, HEADER.size
    parts: list[bytes] = []
    sequence = first
    for message in messages:
        if isinstance(message, MessageRun):
            yield b"".join(parts)
            parts = []
            yield from _blocks(message, sequence, last)
            sequence += len(message)
        else:
            kind, flags, data = message
            all_flags = flags | request if sequence < last else flags | request | channel.NLM_F_ACK
            parts += pack(size + len(data), SUBSYSTEM | kind, all_flags, sequence, 0), data
            sequence += 1
    yield b"".join(parts)


def _blocks(run: MessageRun, sequence: int, last: int) -> Iterator[bytes]:
    """The same of a run. What is done for each of its messages is done in C, in memory that is used again."""
    kind, flags = SUBSYSTEM | run.kind, run.flags | channel.NLM_F_REQUEST
    width = 1 + len(run.columns)
    for start in range(0, len(run), _BLOCK):
        sizes = run.sizes[start : start + _BLOCK]
        count = len(sizes)
        end = start + count
        numbers = range(sequence + start, sequence + end)
        parts = [b""] * (count * width)
        parts[::width] = map(HEADER.pack, sizes, [kind] * count, [flags] * count, numbers, [0] * count)
        for place, column in enumerate(run.columns, 1):
            parts[place::width] = column[start:end]
        if sequence + end > last:
            parts[-width] = HEADER.pack(sizes[-1], kind, flags | channel.NLM_F_ACK, last, 0)
        yield b"".join(parts)


def _header(kind: int, flags: int, sequence: int, data: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(data), kind, flags, sequence, 0)
