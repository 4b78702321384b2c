"""Error texts of the legacy tables: which table or rule, the kernel's answer, what to do. Imported after a failure."""

from __future__ import annotations

import errno
import posix as os  # built in: the error that is explained may be that no file can be opened

from istio_init.errors import KernelError
from istio_init.formats.iptables_save import rule_text
from istio_init.kernel.host import denial
from istio_init.kernel.xtables.required_modules import extensions
from istio_init.kernel.xtables.sockopt import COMMITTING, OPENING, StepError, TableSocket
from istio_init.kernel.xtables.table_names import NAMES
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


def explain(error: StepError, family: Family, name: str, desired: Table | None) -> KernelError:
    """The error to raise. `name` is the table, empty if all were read; `desired` is what was to be written."""
    where, why = f"{family} {name}".rstrip(), _why(error.errno, error.step, family, name, desired)
    return KernelError(f"{where}: can't {error.step}: {os.strerror(error.errno)}: {why}", error.errno)


def _why(number: int, step: str, family: Family, name: str, desired: Table | None) -> str:
    """The cause of an error number at this step, and what to do."""
    if step not in (OPENING, COMMITTING):
        return "libiptc rejected the chain or rule; nothing was written"
    match number:
        case errno.EPERM | errno.EACCES:
            return denial.explain_permission("NET_ADMIN", "NET_RAW")
        case errno.EAFNOSUPPORT:
            return f"this kernel has no {family} (booted with ipv6.disable=1?): enable it, or use --no-enable-ipv6"
        case errno.ENOPROTOOPT:
            return _no_tables(family)
        case errno.ENOENT if step == OPENING:
            module = f"{'iptable' if family == IPV4 else 'ip6table'}_{name or 'nat'}"
            return f"the kernel has no such table: load the module {module}; {_NO_LEGACY}"
        case errno.ENOENT:
            return _missing_extensions(family, desired)
        case errno.EOPNOTSUPP:
            return "an option that a rule uses is not in this kernel (CT --zone needs CONFIG_NF_CONNTRACK_ZONES)"
        case errno.EINVAL:
            rules = (rule for chain in (desired.chains if desired else ()) for rule in chain.rules)
            return (
                denial.explain_owners(rules)
                or "a rule is not allowed in its chain, or has a wrong size: the kernel's log (dmesg) says which"
            )
        case errno.ELOOP:
            return "the chains jump in a loop: see the other programs' rules in this table"
        case errno.ENOMEM:
            return "the kernel has no memory for the table: raise the limit of the cgroup, or use fewer rules"
        case errno.EAGAIN:
            return "another program keeps writing to it without the xtables lock: find it, and run again"
        case _:
            return "the kernel's log (dmesg) may say more"


def module(extension: str) -> str:
    """The kernel module that has a match or target."""
    return _MODULES.get(extension, f"xt_{extension}")


def _no_tables(family: Family) -> str:
    """Why the kernel does not have the legacy tables of a family."""
    try:
        # The file exists once their module is loaded.
        os.stat(NAMES[family])
    except OSError:
        return f"load the kernel module {'ip_tables' if family == IPV4 else 'ip6_tables'}; {_NO_LEGACY}"
    return f"the kernel has these tables, but {denial.filter_or_module()}"


def _missing_extensions(family: Family, desired: Table | None) -> str:
    """Which matches and targets of the rules the kernel does not have, each with the first rule that uses it."""
    rules = [(chain.name, rule) for chain in (desired.chains if desired else ()) for rule in chain.rules]
    users: dict[tuple[Literal["match", "target"], str, int], str] = {}
    for chain, rule in rules:
        for extension in extensions(rule, family):
            users.setdefault(extension, f"-A {chain} {rule_text(rule)}")
    with TableSocket(family) as socket:
        missing = [extension for extension in users if not socket.knows(*extension)]
    causes = [
        f"the kernel has no {kind} {name} (revision {revision}), which {users[kind, name, revision]} uses: "
        f"load the module {module(name)}"
        for kind, name, revision in missing
    ]
    causes += [
        f"there is no chain {rule.target.chain}, which -A {chain} {rule_text(rule)} jumps to"
        for chain, rule in rules
        if not missing and isinstance(rule.target, Jump) and desired and desired.chain(rule.target.chain) is None
    ]
    return (
        "; ".join(causes)
        or "an extension that another program's rule uses is gone: the kernel's log (dmesg) may name it"
    )
