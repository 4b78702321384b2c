"""What a refusal through libnftables means, in words: what the kernel said, what it may lack, what to do.

Imported where something has failed, and only then.
"""

from __future__ import annotations

import errno
import posix  # the C half of os

from istio_init.errors import KernelError
from istio_init.kernel.host import denial
from istio_init.model.extensions import ConnMark, CtState, CtZone, RestoreMark, SaveMark, Tproxy
from istio_init.model.rules import Redirect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.model.inet import InetTable

# libnftables has no errno of its own, only the kernel's words for one. By errno, what to do.
_REMEDIES = {
    errno.EPROTONOSUPPORT: "the kernel has no nftables: load the module nf_tables, or leave --native-nftables out",
    errno.ENOBUFS: "the socket has no room for a transaction of this size: raise net.core.wmem_max",
    errno.EMSGSIZE: "the socket has no room for a transaction of this size: raise net.core.wmem_max",
    errno.ENOMEM: "the kernel has no memory for the rules: raise the limit of the cgroup, or use fewer rules",
}
_MODULES = {
    Redirect: "nft_redir",
    Tproxy: "nft_tproxy",
    **dict.fromkeys((ConnMark, CtState, CtZone, SaveMark, RestoreMark), "nft_ct"),
}


def explain(what: str, said: str, tables: Iterable[InetTable] = ()) -> KernelError:
    """An error out of libnftables' message: `file:line: Error: Could not process rule: `, and strerror(3)'s words.

    `what` was to be done, with `tables`.
    """
    line = said.partition("\n")[0]
    words = line.partition("Error: ")[2] or line or "no reason was given"
    for number in (errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP, *_REMEDIES):
        if posix.strerror(number) in words:
            code = f"{posix.strerror(number)} ({errno.errorcode[number]})"
            return KernelError(f"nftables: can't {what}: {code}: {_remedy(number, tables)}", number)
    return KernelError(f"nftables: can't {what}: {words}; `nft --check` says the same of a rule that it can't take")


def _remedy(number: int, tables: Iterable[InetTable]) -> str:
    if number == errno.EPERM:
        return denial.explain_permission("NET_ADMIN")
    if number in _REMEDIES:
        return _REMEDIES[number]
    lacking = [each for each in dict.fromkeys(_modules(tables)) if not _loaded(each)]
    return f"the kernel lacks an nftables extension: load {', '.join(lacking or ['nf_tables'])}"


def _modules(tables: Iterable[InetTable]) -> Iterator[str]:
    """The modules beside nf_tables that have what the tables are made of."""
    for table in tables:
        if table.name == "nat":
            yield "nft_chain_nat"
        for chain in table.chains:
            for rule in chain.rules:
                yield from (_MODULES[type(each)] for each in (*rule.matches, rule.target) if type(each) in _MODULES)


def _loaded(module: str) -> bool:
    try:
        posix.stat(f"/sys/module/{module}")
    except OSError:
        return False
    return True
