"""Capture by eBPF of one pod, as the node's maps, pins and links show it. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import InitError
from istio_init.inspect.diagnose.case import SocketCaptureState
from istio_init.kernel.ebpf import pods, read_layout
from istio_init.kernel.ebpf.installation import Installation, root_cgroup
from istio_init.kernel.ebpf.user_ids import translated
from istio_init.planning.captured_options import options_of
from istio_init.runner import socket_capture
from istio_init.runner.defaults import resolve_defaults

if TYPE_CHECKING:
    from istio_init.kernel.ebpf.pods import PodState
    from istio_init.log import Log
    from istio_init.options.table import Options


def installed() -> Installation | None:
    """This node's installation; None where capture by eBPF is not installed, or this process can't look into it."""
    try:
        installation = Installation(root_cgroup())
        is_there = installation.installed
    except (InitError, OSError):
        return None
    return installation if is_there else None


def state(netns: str) -> SocketCaptureState | None:
    """What the node holds of the pod with this network namespace; None where it holds nothing of it."""
    installation = installed()
    if installation is None:
        return None
    try:
        cookie = pods.cookie_of(netns)
        with installation.lock():
            pod = pods.read(installation, cookie)
            if not pod.value and not pod.inbound_attached:
                return None
            options = _options(pod)
            missing = installation.missing_links(dns=options is not None and options.redirect_dns)
        counts = pods.counts(installation)
    except (InitError, OSError):
        return None
    finally:
        installation.close()
    return SocketCaptureState(bool(pod.value), pod.inbound_attached, tuple(missing), options, counts)


def _options(pod: PodState) -> Options | None:
    """The options that the pod's entry speaks of; None without an entry."""
    return options_of(read_layout.capture(pod.value, pod.members)) if pod.value else None


def differences(options: Options, log: Log) -> tuple[str, ...]:
    """How what the node holds of a pod differs from these options; empty if it does not, or if that can't be known."""
    installation = installed()
    if installation is None:
        return ()
    try:
        capture = socket_capture.request(resolve_defaults(options, log), log).capture
        desired = translated(options.network_namespace, capture)
        cookie = pods.cookie_of(options.network_namespace)
        with installation.lock():
            return pods.describe(desired, cookie, pods.read(installation, cookie))
    except (InitError, OSError):
        return ()
    finally:
        installation.close()
