"""One run with --capture-backend ebpf: capture a pod's namespace from the node, or stop capturing it."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import time

from istio_init.errors import InitError, KernelError
from istio_init.formats.addresses import network_text
from istio_init.kernel.ebpf import layouts, pods
from istio_init.kernel.ebpf.installation import Installation, root_cgroup
from istio_init.kernel.ebpf.user_ids import translated
from istio_init.kernel.host.netns import Namespace
from istio_init.kernel.host.tcp_connections import listening
from istio_init.kernel.netlink.router import Rtnetlink
from istio_init.model.ownership import own_part
from istio_init.model.rules import FAMILIES
from istio_init.planning.plan import build
from istio_init.planning.socket_capture import FLAG, refuse, socket_capture
from istio_init.record import Record
from istio_init.runner import backends
from istio_init.runner.defaults import resolve_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.log import Log
    from istio_init.model.routing import RoutingEntry
    from istio_init.model.rules import Ruleset
    from istio_init.model.socket_capture import SocketCapture
    from istio_init.options.table import Options

# With this sysctl, Envoy's replies carry its listener's mark, which TPROXY's route needs (net/ipv4/tcp_input.c).
_MARK_ACCEPTED = "/proc/sys/net/ipv4/tcp_fwmark_accept"


class CaptureRequest(Record):
    """The desired state of one namespace: the options with defaults resolved, the capture, the routing."""

    options: Options
    capture: SocketCapture
    routing: tuple[RoutingEntry, ...]


def perform(options: Options, environ: Mapping[str, str], log: Log, begin: float) -> None:
    """Run in the namespace that the options name; InitError on failure.

    After a failure, a namespace that was not captured before is not captured, and its routing is unchanged.
    """
    refuse(options)
    if options.dry_run:
        _preview(options, environ, log)
        return
    installation = Installation(root_cgroup())
    try:
        if not options.skip_rule_apply:
            summary = _clean(options, installation) if options.cleanup_only else _capture(options, installation, log)
            log.info(f"{summary} in {(time.monotonic() - begin) * 1000:.1f} ms")
    finally:
        installation.close()
    if options.run_validation and not options.cleanup_only:
        from istio_init.runner.validation import validate

        with Namespace(options.network_namespace):
            validate(resolve_defaults(options, log), log)


def request(options: Options, log: Log) -> CaptureRequest:
    """The desired state of the namespace that the options name, with its addresses."""
    with Namespace(options.network_namespace):
        options = resolve_defaults(options, log)
        addresses = tuple(each.network for each in Rtnetlink().addresses())
    return CaptureRequest(options, socket_capture(options, addresses), build(options).routing)


def _preview(options: Options, environ: Mapping[str, str], log: Log) -> None:
    """Print the capture as JSON, with the pod's addresses if a namespace is named."""
    from istio_init.formats.socket_capture import dump
    from istio_init.runner.dry_run import publish

    nothing = options.cleanup_only or options.skip_rule_apply
    publish("" if nothing else dump(request(options, log).capture), environ)


def _capture(options: Options, installation: Installation, log: Log) -> str:
    capture = add(options, installation, log)
    return f"captured by eBPF (addresses: {', '.join(map(network_text, capture.addresses))})"


def _clean(options: Options, installation: Installation) -> str:
    return "cleaned up" if remove(options, installation) else "not captured by eBPF; nothing to clean up"


def add(options: Options, installation: Installation, log: Log) -> SocketCapture:
    """Capture the namespace that the options name; returns the capture. InitError leaves the namespace unchanged."""
    cookie = pods.cookie_of(options.network_namespace)  # first: a kernel without cookies is left as it is
    requested = request(options, log)
    pods.collect(installation)
    if not pods.is_captured(installation, cookie):
        _refuse_others(requested)
    capture = translated(options.network_namespace, requested.capture)
    with Namespace(options.network_namespace):
        added = _route(requested)
    try:
        pods.add(installation, options.network_namespace, capture)
    except BaseException:
        with Namespace(options.network_namespace):
            Rtnetlink().remove(added)
        raise
    return requested.capture


def _refuse_others(requested: CaptureRequest) -> None:
    """InitError if a namespace that is not captured yet has Istio rules, or a proxy that already listens."""
    with Namespace(requested.options.network_namespace):
        present = backends.tables()
        for backend, firewall in backends.existing(requested.options, present):
            for family in FAMILIES:
                _refuse_rules(backend, firewall.read(family))
        busy = listening() & {requested.capture.outbound_port, requested.capture.inbound_port}
    if busy:
        raise InitError(
            f"{FLAG}: port {min(busy)}: the proxy is already listening; connections to its present listeners would "
            "lose their destination; start the proxy after the pod's network is set up"
        )


def _refuse_rules(backend: str, ruleset: Ruleset) -> None:
    for table in ruleset.tables:
        if own_part(table):
            raise InitError(
                f"{FLAG}: the {ruleset.family} table {table.name} ({backend}) has Istio rules: the pod would be "
                "captured twice; remove them first: --cleanup-only --capture-backend iptables"
            )


def _route(requested: CaptureRequest) -> tuple[RoutingEntry, ...]:
    """Add ::6 and the routing for TPROXY; returns the entries that did not exist before."""
    router = Rtnetlink()
    existing = router.read()
    router.replace(requested.routing, existing)
    if requested.capture.tproxy:
        _accept_mark()
    return tuple(entry for entry in requested.routing if entry not in existing)


def _accept_mark() -> None:
    try:
        descriptor = os.open(_MARK_ACCEPTED, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"1")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError(f"{_MARK_ACCEPTED}: {error.strerror}: TPROXY with {FLAG} requires the value 1") from error


def remove(options: Options, installation: Installation) -> bool:
    """Stop capturing the namespace that the options name; returns whether it was captured.

    TPROXY's routing is removed as well; ::6 stays on lo, since open connections of the proxy may use it.
    """
    was_captured = pods.remove(installation, pods.cookie_of(options.network_namespace))
    if was_captured:
        with Namespace(options.network_namespace):
            plan = build(options.replace(enable_ipv6=True))
            Rtnetlink().remove((*plan.routes, *plan.policy_rules, *plan.spare))
    return was_captured


def collect() -> None:
    """Remove the node's data of namespaces that no longer exist."""
    installation = Installation(root_cgroup())
    try:
        pods.collect(installation)
    finally:
        installation.close()


def differences(options: Options, installation: Installation, log: Log) -> tuple[str, ...]:
    """How the capture of a namespace differs from the options; empty if it does not."""
    refuse(options)
    capture = translated(options.network_namespace, request(options, log).capture)
    cookie = pods.cookie_of(options.network_namespace)
    with installation.lock():
        if home := layouts.home_of(installation.home, cookie):
            return tuple(f"{each} is not attached, or missing ({home})" for each in layouts.missing(home, cookie))
        if not installation.installed:
            return ("capture by eBPF is not installed on this node",)
        missing = installation.missing_links(dns=capture.dns != "none")
        deviations = pods.describe(capture, cookie, pods.read(installation, cookie))
    return (*(f"the program {each} is not attached at the node's cgroup" for each in missing), *deviations)
