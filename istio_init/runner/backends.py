"""Chooses the backend, and finds other backends that already have tables in this namespace.

Each backend's module is imported only where it is chosen.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.model.rules import FAMILIES, IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.kernel import Firewall
    from istio_init.kernel.probe.detection import Tables
    from istio_init.log import Log
    from istio_init.options.table import Options


def tables() -> Tables:
    """The tables that exist in the calling thread's namespace."""
    from istio_init.kernel.probe import detection

    return detection.tables()


def firewall(options: Options, log: Log | None = None, present: Tables | None = None) -> Firewall:
    """The Firewall that the options select, else the detected one; logs the choice and the reason."""
    backend, why = choose(options, present)
    if log is not None:
        log.info(f"backend: {backend} ({why})")
    return _firewall(options, backend)


def choose(options: Options, present: Tables | None = None) -> tuple[str, str]:
    """The backend (native, nft or legacy) and the reason; `present` are the existing tables, if already read.

    InitError if the options contradict each other or the kernel can't be read.
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

    return detection.decide(present or tables(), FAMILIES if options.enable_ipv6 else (IPV4,))


def _firewall(options: Options, backend: str) -> Firewall:
    """The Firewall of a backend; for legacy, that of --iptables-engine."""
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


def others(options: Options, chosen: Firewall, present: Tables) -> tuple[tuple[str, Firewall], ...]:
    """The Firewalls of other backends that have tables here, each with its backend's name."""
    return tuple((name, each) for name, each in existing(options, present) if type(each) is not type(chosen))


def existing(options: Options, present: Tables) -> tuple[tuple[str, Firewall], ...]:
    """The Firewalls of all backends that have tables here, each with its backend's name."""
    exist = {"legacy": bool(present.legacy), "nft": bool(present.nft), "native": present.native}
    return tuple((name, _firewall(options, name)) for name, exists in exist.items() if exists)


def require_readable_tables() -> None:
    """KernelError if the legacy tables can't be listed: reading one that does not exist would create it."""
    from istio_init.errors import KernelError
    from istio_init.kernel.xtables.table_names import existing_tables

    if any(existing_tables(family) is None for family in FAMILIES):
        raise KernelError(
            "listing the legacy tables requires root or CAP_DAC_OVERRIDE: run as root with NET_ADMIN and NET_RAW"
        )
