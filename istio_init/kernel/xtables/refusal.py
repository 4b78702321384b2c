"""What a refusal of the legacy tables means, in words: which table or rule, what the kernel said, what to do.

Imported where something has failed, and only then.
"""

from __future__ import annotations

import errno
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import KernelError
from istio_init.formats.iptables_save import rule_text
from istio_init.kernel.host import denial
from istio_init.kernel.xtables.libiptc import COMMITTING
from istio_init.kernel.xtables.required_modules import extensions
from istio_init.kernel.xtables.sockopt import NAMES, OPENING, TableSocket
from istio_init.model.rules import IPV4, Jump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from istio_init.model.rules import Family, Table

# The modules of extensions that are not named after them.
_MODULES = {"tcp": "xt_tcpudp", "udp": "xt_tcpudp", "MARK": "xt_mark", "CONNMARK": "xt_connmark"}

_NO_LEGACY = (
    "where the kernel is built without the legacy tables (CONFIG_NETFILTER_XTABLES_LEGACY, an option since Linux "
    "6.17), only nftables works"
)


def explain(error: OSError, family: Family, name: str, wanted: Table | None) -> KernelError:
    """The error to raise; `name` is the table, empty where all were read, and `wanted` what it was to become."""
    number, step = error.errno or 0, error.strerror or ""
    where = f"{family} {name}".rstrip()
    return KernelError(
        f"{where}: can't {step}: {os.strerror(number)}: {_why(number, step, family, name, wanted)}", number
    )


def _why(number: int, step: str, family: Family, name: str, wanted: Table | None) -> str:
    """The cause behind an error's number at this step, and what to do about it."""
    if step not in (OPENING, COMMITTING):
        return "libiptc takes no such chain or rule; nothing was written"
    match number:
        case errno.EPERM | errno.EACCES:
            return denial.explain_permission("NET_ADMIN", "NET_RAW")
        case errno.EAFNOSUPPORT:
            return (
                f"this kernel has no {family} (booted with ipv6.disable=1?): switch it on there, or leave it out here"
            )
        case errno.ENOPROTOOPT:
            return _no_tables(family)
        case errno.ENOENT if step == OPENING:
            module = f"{'iptable' if family == IPV4 else 'ip6table'}_{name or 'nat'}"
            return f"the kernel has no such table: load the module {module}; {_NO_LEGACY}"
        case errno.ENOENT:
            return _missing_extensions(family, wanted)
        case errno.EOPNOTSUPP:
            return "an option that a rule uses is not in this kernel (CT --zone needs CONFIG_NF_CONNTRACK_ZONES)"
        case errno.EINVAL:
            rules = (rule for chain in (wanted.chains if wanted else ()) for rule in chain.rules)
            return (
                denial.explain_owners(rules)
                or "a rule is not allowed where it stands, or has a wrong size: the kernel's log (dmesg) says which"
            )
        case errno.ELOOP:
            return "the chains jump in a loop: see the rules of others in this table"
        case errno.ENOMEM:
            return "the kernel has no memory for the table: raise the limit of the cgroup, or use fewer rules"
        case errno.EAGAIN:
            return "somebody else keeps writing to it without the xtables lock: find out who, and run again"
        case _:
            return "the kernel's log (dmesg) may say more"


def module(extension: str) -> str:
    """The kernel module that has a match or target."""
    return _MODULES.get(extension, f"xt_{extension}")


def _no_tables(family: Family) -> str:
    """Why the kernel knows nothing of a family's legacy tables."""
    try:
        # The file is there from when their module is.
        os.stat(NAMES[family])
    except OSError:
        return f"load the kernel module {'ip_tables' if family == IPV4 else 'ip6_tables'}; {_NO_LEGACY}"
    return f"the kernel has these tables, but {denial.filter_or_module()}"


def _missing_extensions(family: Family, wanted: Table | None) -> str:
    """Which matches and targets of the rules the kernel doesn't have, each with the first rule that uses it."""
    rules = [(chain.name, rule) for chain in (wanted.chains if wanted else ()) for rule in chain.rules]
    users: dict[tuple[Literal["match", "target"], str, int], str] = {}
    for chain, rule in rules:
        for extension in extensions(rule, family):
            users.setdefault(extension, f"-A {chain} {rule_text(rule)}")
    with TableSocket(family) as socket:
        missing = [extension for extension in users if not socket.knows(*extension)]
    causes = [
        f"the kernel has no {kind} {name} (revision {revision}), which {users[kind, name, revision]} asks for: "
        f"load the module {module(name)}"
        for kind, name, revision in missing
    ]
    causes += [
        f"there is no chain {rule.target.chain}, which -A {chain} {rule_text(rule)} asks for"
        for chain, rule in rules
        if not missing and isinstance(rule.target, Jump) and wanted and wanted.chain(rule.target.chain) is None
    ]
    return (
        "; ".join(causes) or "an extension that a rule of others uses is gone: the kernel's log (dmesg) may say which"
    )
