"""Which Firewall and Router serve here, and the facts that options leave to the machine.

The one place outside kernel/ that names its modules; each is imported where it is needed.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.kernel.netlink.router import Rtnetlink
from istio_init.model.rules import FAMILIES, IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kernel import Firewall
    from istio_init.kernel.host.lock import XtablesLock
    from istio_init.kernel.host.netns import Namespace
    from istio_init.kernel.probe.detection import Tables
    from istio_init.log import Log
    from istio_init.model.counters import Connection, CountedInet, CountedTable, Usage
    from istio_init.options.table import Options


def tables() -> Tables:
    """Which tables stand in the calling thread's namespace."""
    from istio_init.kernel.probe import detection

    return detection.tables()


def firewall(options: Options, log: Log | None = None, found: Tables | None = None) -> Firewall:
    """The Firewall that the options ask for, or else the one that serves here; `log` is told which, and why."""
    backend, why = choose(options, found)
    if log is not None:
        log.info(f"backend: {backend} ({why})")
    return _firewall(options, backend)


def choose(options: Options, found: Tables | None = None) -> tuple[str, str]:
    """native, nft or legacy, and why; `found` is what stands here, if it has been looked for.

    InitError where the options contradict each other or the kernel can't be read.
    """
    if options.iptables_engine != "libiptc" and (options.native_nftables or options.force_iptables_binary == "nft"):
        raise InitError(f"--iptables-engine {options.iptables_engine}: writes legacy tables only; leave it out")
    if options.native_nftables:
        return "native", "--native-nftables"
    if options.force_iptables_binary:
        return options.force_iptables_binary, f"--force-iptables-binary {options.force_iptables_binary}"
    if options.iptables_engine != "libiptc":
        return "legacy", f"--iptables-engine {options.iptables_engine}"
    from istio_init.kernel.probe import detection

    return detection.decide(found or tables(), FAMILIES if options.enable_ipv6 else (IPV4,))


def _firewall(options: Options, backend: str) -> Firewall:
    """A backend's Firewall; of legacy's two, the one that the options ask for."""
    if backend == "native":
        from istio_init.kernel.nft.native import Nftables

        return Nftables()
    if backend == "nft":
        from istio_init.kernel.nft.compat import IptablesNft

        return IptablesNft()
    if options.iptables_engine == "python-iptables":
        from istio_init.kernel.xtables.python_iptables import PythonIptables

        return PythonIptables()
    from istio_init.kernel.xtables.firewall import Libiptc

    return Libiptc()


def others(options: Options, chosen: Firewall, found: Tables) -> tuple[tuple[str, Firewall], ...]:
    """The Firewalls beside `chosen` whose tables are among those found, each with its backend's name."""
    there = {"legacy": bool(found.legacy), "nft": bool(found.nft), "native": found.native}
    firewalls = ((name, _firewall(options, name)) for name, stands in there.items() if stands)
    return tuple((name, each) for name, each in firewalls if type(each) is not type(chosen))


def refuse_blindness() -> None:
    """KernelError where it may not be known which legacy tables there are: to read all would be to make them."""
    from istio_init.errors import KernelError
    from istio_init.kernel.xtables.sockopt import existing_tables

    if any(existing_tables(family) is None for family in FAMILIES):
        raise KernelError(
            "only root, or a process with the capability DAC_OVERRIDE, may know which legacy tables there are: "
            "run as root with NET_ADMIN and NET_RAW"
        )


def counted(backend: str) -> tuple[CountedTable, ...]:
    """The tables of legacy or of nft, with what their rules have counted."""
    from istio_init.kernel.probe import counters

    return counters.tables(backend)


def counted_inet() -> tuple[CountedInet, ...]:
    """Our native tables, with what their rules have counted."""
    from istio_init.kernel.probe import counters

    return counters.inet_tables()


def tracking() -> tuple[Usage | None, tuple[Connection, ...] | None]:
    """How full the table of tracked connections is, and these; None for what the kernel does not tell."""
    from istio_init.kernel.netlink import conntrack

    return conntrack.usage(), conntrack.connections()


def keep_freed_memory() -> None:
    """Have this process keep what it frees for what it needs next: for a program that ends soon, not for a library."""
    from istio_init.kernel.host import libc

    libc.keep_freed_memory()


def router() -> Rtnetlink:
    """The Router of the calling thread's namespace."""
    return Rtnetlink()


def lock(options: Options, environ: Mapping[str, str], log: Log) -> XtablesLock:
    """The lock that everyone who edits these tables takes."""
    from istio_init.kernel.host.lock import XtablesLock

    return XtablesLock(options.wait, environ.get("XTABLES_LOCKFILE", ""), namespace=options.cni_mode, waiting=log.info)


def namespace(options: Options, *, as_owner: bool = False) -> Namespace:
    """The namespace to work in, to be entered with `with`; the caller's own where the options name none.

    `as_owner` (kernel/host/netns.py) is for a process that ends afterwards, whatever user namespace it is in then.
    """
    from istio_init.kernel.host.netns import Namespace

    return Namespace(options.network_namespace, as_owner=as_owner)


def namespace_number(path: str) -> int:
    """The number by which the kernel knows the namespace at a path, 0 where there is none."""
    from istio_init.kernel.host import netns

    return netns.inode(path) if path else 0


def is_own_namespace(path: str) -> bool:
    """Whether the namespace at a path is the caller's own."""
    from istio_init.kernel.host import netns

    return bool(path) and netns.inode(path) == netns.inode()
