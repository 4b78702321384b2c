"""--dry-run: prints the rules that a run would write, and changes nothing."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import InitError
from istio_init.model.rules import FAMILIES, IPV4, IPV6
from istio_init.planning.plan import build
from istio_init.planning.preview import dump, dump_nftables
from istio_init.runner import access
from istio_init.runner.defaults import resolve_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.log import Log
    from istio_init.model.rules import Family
    from istio_init.options.table import Options


def preview(options: Options, environ: Mapping[str, str], log: Log) -> None:
    """Print the plan, and write it to the file that DRY_RUN_FILE_PATH names."""
    publish(render(options, log), environ)


def render(options: Options, log: Log) -> str:
    """The text of the plan."""
    requested_ipv6 = options.enable_ipv6
    if options.network_namespace and options.enable_ipv6 is None:
        with access.namespace(options):
            options = resolve_defaults(options, log)
    else:
        options = resolve_defaults(options, log)
    families: tuple[Family, ...] = tuple(f for f in FAMILIES if options.ip_family in {f, "all"})
    if options.cleanup_only or options.skip_rule_apply:
        return ""  # no rule would be written
    if options.native_nftables:
        return dump_nftables(build(options))  # both families are in one table, so --ip-family can't select
    _name_families(options, families, log, detected=requested_ipv6 is None)
    return dump(build(options), families)


def _name_families(options: Options, families: tuple[Family, ...], log: Log, *, detected: bool) -> None:
    """Log which families are printed, if that depends on this machine, or if none is printed."""
    if IPV6 not in families:
        return
    if not options.enable_ipv6:
        if IPV4 not in families:
            why = "the namespace has no IPv6 address; --enable-ipv6" if detected else "--no-enable-ipv6"
            log.warn(f"--ip-family ipv6: nothing is printed: {why}")
    elif detected:
        log.info(
            "IPv6 rules are printed, since the namespace has an IPv6 address; --no-enable-ipv6 omits them, and "
            "--ip-family ipv4 or ipv6 prints one family, for iptables-restore or ip6tables-restore"
        )


def publish(text: str, environ: Mapping[str, str]) -> None:
    """Print the text, and write it to the file that DRY_RUN_FILE_PATH names."""
    if path := environ.get("DRY_RUN_FILE_PATH", ""):
        _write_file(path, text)
    _print(text)


def _write_file(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise InitError(
            f"DRY_RUN_FILE_PATH: {path!r}: can't be written: {error}; name a file in a writable directory"
        ) from error


def _print(text: str) -> None:
    """All of the text to standard output, or an InitError."""
    data = text.encode()
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        raise InitError(f"standard output: can't be written: {os.strerror(error.errno or 0)}") from error
