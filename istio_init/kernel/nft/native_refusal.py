"""Explains a batch of native tables that the kernel refused: which rule, set or chain, why, and what to do.

Imported only after a failure.
"""

from __future__ import annotations

import errno
import posix  # the C half of os

from istio_init.errors import KernelError, shown
from istio_init.formats.nft.listing import rule_text
from istio_init.kernel.netlink.channel import ATTRIBUTE, attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    HEAD,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    SET_NAME,
    name,
)
from istio_init.kernel.nft.expressions import EXPRESSION_NAME, EXPRESSIONS
from istio_init.kernel.nft.native_dump import DELSET, DELSETELEM
from istio_init.kernel.nft.refusal_words import FULL_HOOK, explain_permission
from istio_init.model.inet import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.kernel.netlink.batch import Message
    from istio_init.kernel.nft.native_encode import Subject
    from istio_init.model.rules import TableName

# The kernel's answers to something that it does not have.
_LACKING = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}
_REMEDIES = {
    errno.ENOBUFS: "the socket has no room for a transaction of this size: raise net.core.wmem_max",
    errno.EMSGSIZE: "the socket has no room for a transaction of this size: raise net.core.wmem_max",
    errno.EBUSY: "something in the table still needs it (`nft list ruleset`): --cleanup-only removes all of the table",
    errno.E2BIG: FULL_HOOK,
    errno.ENOMEM: "the kernel has no memory for the rules: raise the limit of the cgroup, or use fewer rules",
}
# The modules of expressions that nf_tables itself does not have, by the kernel's configuration.
_MODULES = {
    "ct": "nft_ct",
    "redir": "nft_redir",
    "tproxy": "nft_tproxy",
    "counter": "nf_tables",
    "lookup": "nf_tables",
}
# What is removed before a table is written anew, and the attribute that names it.
_REMOVALS = {DELCHAIN: ("chain", CHAIN_NAME), DELSET: ("set", SET_NAME), DELSETELEM: ("elements of set", SET_NAME)}
_KINDS = {NEWCHAIN: "chain", NEWSET: "set", NEWSETELEM: "set"}


def explain(
    refused: OSError, names: Iterable[TableName], messages: Sequence[Message], subjects: Sequence[Subject]
) -> KernelError:
    """The error to raise for a batch that was to write the tables `names`."""
    at, offset = getattr(refused, "at", -1), getattr(refused, "offset", -1)
    number = refused.errno or 0
    code = errno.errorcode.get(number, str(number))
    if 0 <= at < len(messages):
        message = messages[at]
        what = describe(subjects[at], message[0]) + _removed(message)
        element = _expression_at(message, offset)
    else:
        message, what, element = None, f"tables {', '.join(NAMES[each] for each in names)}", ""
    reason = f"{element}: {refused.strerror}" if element else refused.strerror
    return KernelError(f"nftables: can't write {what}: {reason} ({code}): {_remedy(number, message, element)}", number)


def describe(subject: Subject, kind: int = NEWRULE) -> str:
    """What a message is about, in words."""
    table, within, number, rule = subject
    if rule is not None:
        return f"inet {table} {within} rule {number} {shown(rule_text(rule, {}), 200)}"
    return f"inet {table} {_KINDS.get(kind, '')} {within}" if within else f"table inet {table}"


def _removed(message: Message) -> str:
    if message[0] not in _REMOVALS:
        return ""
    word, key = _REMOVALS[message[0]]
    return f", removing {word} {shown(name(attributes(message[2][HEAD.size :])[key]))}"


def _remedy(number: int, message: Message | None, element: str) -> str:
    if number == errno.EPERM:
        return explain_permission(message)
    if number in _REMEDIES:
        return _REMEDIES[number]
    if number not in _LACKING or (message is not None and message[0] in _REMOVALS):
        return "nothing was written; the kernel's log (dmesg) may say more"
    if message is None or message[0] not in {NEWCHAIN, NEWRULE}:
        return "the kernel has no nftables for this: load the module nf_tables, or leave --native-nftables out"
    if message[0] == NEWCHAIN:
        modules = ["nft_chain_nat"] if b"nat\0" in message[2] else ["nf_tables"]
    else:
        used = [element] if element else list(_names(message))
        modules = [_MODULES[each] for each in dict.fromkeys(used) if each in _MODULES]
    lacking = [each for each in dict.fromkeys(modules) if not _is_loaded(each)]
    return f"the kernel lacks an nftables extension: load {', '.join(lacking or modules or ['nf_tables'])}"


def _elements(message: Message) -> Iterator[tuple[int, int, str]]:
    """The expressions of a rule's message: where each begins and ends in the message's body, and its name."""
    if message[0] != NEWRULE:
        return
    data, at = message[2], HEAD.size
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if kind & 0x3FFF == EXPRESSIONS:
            break
        at += (length + 3) & ~3
    end, at = at + length, at + ATTRIBUTE.size
    while at + ATTRIBUTE.size <= end:
        length = ATTRIBUTE.unpack_from(data, at)[0]
        yield at, at + length, name(attributes(data[at + ATTRIBUTE.size : at + length])[EXPRESSION_NAME])
        at += (length + 3) & ~3


def _names(message: Message) -> Iterator[str]:
    return (each for _, _, each in _elements(message))


def _expression_at(message: Message, offset: int) -> str:
    """The name of the expression that an offset in a message's body is in; empty if there is none."""
    return next((each for begin, end, each in _elements(message) if begin <= offset < end), "")


def _is_loaded(module: str) -> bool:
    try:
        posix.stat(f"/sys/module/{module}")
    except OSError:
        return False
    return True
