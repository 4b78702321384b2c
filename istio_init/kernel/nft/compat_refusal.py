"""What a refusal of iptables-nft's tables means, in words: which table, chain or rule, what is missing, what to do.

Imported where something has failed, and only then.
"""

from __future__ import annotations

import errno

from istio_init.errors import KernelError
from istio_init.formats.iptables_save import rule_text
from istio_init.kernel.host import denial
from istio_init.kernel.netlink.batch import MessageRun
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    FAMILIES,
    HEAD,
    NEWCHAIN,
    NEWRULE,
    NFT_NAME,
    RULE_CHAIN,
    NfnetlinkChannel,
    name,
)
from istio_init.kernel.nft import compat_modules
from istio_init.kernel.nft.compat_decode import RuleReader
from istio_init.kernel.nft.refusal_words import FULL_HOOK, explain_permission
from istio_init.kernel.xtables.refusal import module
from istio_init.kernel.xtables.required_modules import extensions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.kernel.netlink.batch import Message
    from istio_init.model.rules import Family, Rule

_LACKING = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}


def explain(refused: OSError, written: str, messages: Sequence[Message | MessageRun]) -> KernelError:
    """The error to raise; `written` are the tables that the batch was about."""
    at = getattr(refused, "at", -1)
    message = message_at(messages, at)
    what = _subject(message) if message else written
    number = refused.errno or 0
    code = errno.errorcode.get(number, str(number))
    return KernelError(f"nftables: {what}: {refused.strerror} ({code}): {_why(number, message)}", number)


def message_at(messages: Sequence[Message | MessageRun], at: int) -> Message | None:
    """One of the messages by its number, each of a run counting; None where there is none."""
    for each in messages if at >= 0 else ():
        if isinstance(each, MessageRun):
            if at < len(each):
                return each[at]
            at -= len(each)
        elif not at:
            return each
        else:
            at -= 1
    return None


def _subject(message: Message) -> str:
    """The family, table and chain that a message is about."""
    kind, _, data = message
    attrs = attributes(data[HEAD.size :])
    chain = attrs.get(CHAIN_NAME if kind in {NEWCHAIN, DELCHAIN} else RULE_CHAIN)
    return " ".join((_family(data), name(attrs[NFT_NAME]), *([name(chain)] if chain else ())))


def _family(data: bytes) -> Family:
    return next(family for family, number in FAMILIES.items() if number == data[0])


def _why(number: int, message: Message | None) -> str:
    if number in _LACKING:
        return _missing(message)
    match number:
        case errno.EPERM:
            return explain_permission(message)
        case errno.E2BIG:
            return FULL_HOOK
        case errno.ENOBUFS | errno.EMSGSIZE:
            return "the socket has no room for so many rules: raise net.core.wmem_max"
        case errno.EBUSY:
            return "rules of other programs jump to an Istio chain: see iptables-nft-save"
        case errno.EINVAL:
            return denial.explain_owners(_rules(message)) or "the kernel's log (dmesg) may say which extension refused"
        case _:
            return "nothing was written"


def _missing(message: Message | None) -> str:
    """What the kernel lacks for a message, and what to do."""
    if message is not None and message[0] == NEWCHAIN:
        return "the kernel lacks chains of this type: load the module nft_chain_nat"
    if message is not None and message[0] == NEWRULE:
        return _missing_extensions(message)
    return "the kernel lacks nftables for this family: load the module nf_tables"


def _rules(message: Message | None) -> tuple[Rule, ...]:
    """The rule that a message is about, if it is about one."""
    if message is None or message[0] != NEWRULE:
        return ()
    data = message[2]
    return (RuleReader(_family(data)).unpack(attributes(data[HEAD.size :])),)


def _missing_extensions(message: Message) -> str:
    """Which matches and targets of the rule that was refused the kernel doesn't have."""
    family, attrs = _family(message[2]), attributes(message[2][HEAD.size :])
    (rule,) = _rules(message)
    used = [extension for extension in extensions(rule, family) if compat_modules.uses_module(extension)]
    with NfnetlinkChannel() as channel:
        missing = [extension for extension in used if compat_modules.knows(channel, family, extension) is False]
    text = f"-A {name(attrs[RULE_CHAIN])} {rule_text(rule)}"
    if not missing:
        return f"the kernel lacks an extension that {text} asks for: load the module nft_compat"
    causes = [f"{kind} {each} (revision {revision})" for kind, each, revision in missing]
    modules = dict.fromkeys(["nft_compat", *(module(each) for _, each, _ in missing)])
    return (
        f"the kernel has no {' and no '.join(causes)} that nftables can use, which {text} needs: "
        f"load the modules {' and '.join(modules)}"
    )
