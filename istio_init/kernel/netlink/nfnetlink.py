"""The netlink socket of nftables: reading tables, chains and rules.

The layouts are those of <linux/netfilter/nfnetlink.h> and <linux/netfilter/nf_tables.h>: headers in native byte
order, numbers within attributes in network order.
"""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import posix  # the C half of os
from _struct import Struct  # the C half of struct

import istio_init.kernel.host.error_numbers as errno
from istio_init import errors
from istio_init.kernel.netlink import channel
from istio_init.kernel.netlink.channel import ATTEMPTS, NLMSG_ERROR, NUMBER, AnswerLost, attribute, attributes
from istio_init.model.rules import IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self, TypeVar

    from istio_init.model.rules import Family

    T = TypeVar("T")

NETLINK_NETFILTER = 12
SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, GETGEN = (*range(9), 16)
NEWSET, GETSET, NEWSETELEM, GETSETELEM = 9, 10, 12, 13
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
NFT_NAME = 1  # NFTA_TABLE_NAME; of a chain or a rule, its table's
CHAIN_NAME, RULE_CHAIN, SET_NAME = 3, 2, 2
TABLE_FLAGS, _DORMANT = 2, 1  # NFTA_TABLE_FLAGS, NFT_TABLE_F_DORMANT
GEN_ID = 1
# <linux/netlink.h>: where the socket has no room for all refusals of a batch, the first ones are kept.
NETLINK_NO_ENOBUFS = 5

NFPROTO_IPV4, NFPROTO_INET, NFPROTO_IPV6 = socket.AF_INET, 1, socket.AF_INET6
FAMILIES: dict[Family, int] = {IPV4: NFPROTO_IPV4, IPV6: NFPROTO_IPV6}

HEAD = Struct("=BBH")  # struct nfgenmsg: family, version, resource
WORD = Struct(">I")


def body(family: int, *parts: bytes) -> bytes:
    """A message without its netlink header."""
    return HEAD.pack(family, 0, 0) + b"".join(parts)


def text(kind: int, value: str) -> bytes:
    """An attribute with a name as its value."""
    return attribute(kind, value.encode(errors="surrogateescape") + b"\0")


def word(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits as its value."""
    return attribute(kind, WORD.pack(value & 0xFFFFFFFF))


def is_dormant(table: Mapping[int, bytes]) -> bool:
    """Whether a table with these attributes is switched off: its chains have no hooks."""
    return bool(int.from_bytes(table.get(TABLE_FLAGS, b""), "big") & _DORMANT)


def name(value: bytes) -> str:
    """The name in the value of an attribute."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


class NfnetlinkChannel(channel.RtnetlinkChannel):
    """An nfnetlink socket in the calling thread's network namespace; KernelError where it can't be opened."""

    def __enter__(self) -> Self:
        self._sequence = 0
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            # Connected to the kernel, the socket takes no message from another process.
            self._socket.connect((0, 0))
            for option in (channel.NETLINK_CAP_ACK, channel.NETLINK_EXT_ACK, NETLINK_NO_ENOBUFS):
                try:
                    self._socket.setsockopt(channel.SOL_NETLINK, option, 1)
                except OSError:
                    continue  # a sandbox may forbid it; without, an error says less
        except OSError as error:
            why = channel.no_socket(
                error.errno or 0, "the kernel has no nftables: load the modules nfnetlink and nf_tables"
            )
            text = f"nftables: a socket can't be opened: {error.strerror}: {why}"
            raise errors.KernelError(text, error.errno or 0) from error
        except AttributeError:
            raise errors.KernelError(channel.NEEDS_LINUX) from None
        return self

    def generation(self) -> int:
        """A number that changes whenever anyone changes nftables' rules in this namespace.

        KernelError (EPERM without NET_ADMIN, EINVAL or ENOENT without nftables in the kernel).
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._generation()
            except AnswerLost:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _generation(self) -> int:
        self._send(SUBSYSTEM | GETGEN, 0, body(0))
        for kind, _, data in self._messages():
            if kind == NLMSG_ERROR:
                number = -NUMBER.unpack_from(data)[0]
                raise errors.KernelError(f"nftables can't be read: {posix.strerror(number)}: {_remedy(number)}", number)
            generation: int = WORD.unpack(attributes(data[HEAD.size :])[GEN_ID])[0]
            return generation
        raise AssertionError("the kernel's messages have no end")

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """As RtnetlinkChannel.dump."""
        try:
            return super().dump(what, kind, body)
        except errors.KernelError as error:
            if error.errno in channel.PASSING:
                raise
            raise errors.KernelError(f"{error}: {_remedy(error.errno)}", error.errno) from error

    def consistent(self, read: Callable[[], T], generation: int | None = None) -> tuple[int, T]:
        """What `read` returns, and the generation of the rules that it belongs to.

        Reading takes several dumps: if anyone writes meanwhile, everything is read again. `generation` is the current
        one, if the caller knows it. KernelError if the rules never stay the same for long enough.
        """
        generation = self.generation() if generation is None else generation
        for _ in range(channel.ATTEMPTS):
            failure, value = None, None
            try:
                value = read()
            except errors.KernelError as error:
                failure = error  # perhaps only because what was to be read next is gone
            before, generation = generation, self.generation()
            if generation == before:
                if failure is not None:
                    raise failure
                return generation, value  # type: ignore[return-value]  # no failure, so it was read
        text = f"nftables: the rules changed during each of {channel.ATTEMPTS} attempts to read them; run again"
        raise errors.KernelError(text, errno.EINTR)

    def table_bodies(self) -> list[bytes]:
        """Every table, as the body of NFT_MSG_NEWTABLE. KernelError as `generation`."""
        return self.dump("nftables tables", SUBSYSTEM | GETTABLE, body(0))

    def tables(self) -> tuple[tuple[int, str], ...]:
        """Family (NFPROTO_*) and name of every table. KernelError as `generation`."""
        return tuple([(data[0], name(attributes(data[HEAD.size :])[NFT_NAME])) for data in self.table_bodies()])

    def chains(self, family: int) -> list[bytes]:
        """Every chain of a family, each as the body of NFT_MSG_NEWCHAIN."""
        return self.dump("nftables chains", SUBSYSTEM | GETCHAIN, body(family))

    def rules(self, family: int, table: str) -> list[bytes]:
        """Every rule of a table in order, each as the body of NFT_MSG_NEWRULE."""
        return self.dump(f"rules of {table}", SUBSYSTEM | GETRULE, body(family, text(NFT_NAME, table)))

    def sets(self, family: int, table: str) -> list[bytes]:
        """Every set and map of a table, as the body of NFT_MSG_NEWSET."""
        return self.dump(f"sets of {table}", SUBSYSTEM | GETSET, body(family, text(NFT_NAME, table)))

    def elements(self, family: int, table: str, name: str) -> list[bytes]:
        """The elements of a set, as bodies of NFT_MSG_NEWSETELEM."""
        which = body(family, text(NFT_NAME, table), text(SET_NAME, name))
        return self.dump(f"elements of {table} {name}", SUBSYSTEM | GETSETELEM, which)


def _remedy(number: int) -> str:
    if number == errno.EPERM:
        from istio_init.kernel.host import denial

        return denial.explain_permission("NET_ADMIN")
    return "the kernel has no nftables: load the module nf_tables"
