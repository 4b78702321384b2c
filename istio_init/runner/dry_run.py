"""--dry-run: print what would exist afterwards, and touch nothing."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import InitError
from istio_init.model.rules import FAMILIES
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
    publish(rendered(options, log), environ)


def rendered(options: Options, log: Log) -> str:
    """The text of the plan."""
    if options.network_namespace and options.enable_ipv6 is None:
        with access.namespace(options):
            options = resolve_defaults(options, log)
    else:
        options = resolve_defaults(options, log)
    families: tuple[Family, ...] = tuple(f for f in FAMILIES if options.ip_family in {f, "all"})
    if options.cleanup_only or options.skip_rule_apply:
        return ""  # no rule would be written
    if options.native_nftables:
        return dump_nftables(build(options))  # both families are in one table: there is no half of it
    return dump(build(options), families)


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
