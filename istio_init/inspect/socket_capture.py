"""Compares a live namespace with the requested capture by eBPF. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.kernel.ebpf import layouts, pods
from istio_init.kernel.ebpf.installation import ALL_HOOKS, Installation, root_cgroup, trial_load
from istio_init.kernel.ebpf.links import is_attached
from istio_init.kernel.ebpf.syscall import attached_programs
from istio_init.record import Record
from istio_init.runner import socket_capture

if TYPE_CHECKING:
    from istio_init.inspect.state import Conformance
    from istio_init.log import Log
    from istio_init.model.socket_capture import SocketCapture
    from istio_init.options.table import Options


class SocketInspection(Record):
    """The requested capture, whether it is in place, how it differs, and the node's counters by name (pods.COUNTS)."""

    capture: SocketCapture
    conformance: Conformance
    findings: tuple[str, ...]
    counts: dict[str, int]


def inspect(options: Options, log: Log) -> SocketInspection:
    """Compare the namespace that the options name. InitError if it can't be read or an option is not supported."""
    installation = Installation(root_cgroup())
    try:
        capture = socket_capture.request(options, log).capture
        cookie = pods.cookie_of(options.network_namespace)
        elsewhere = layouts.home_of(installation.home, cookie)
        if not (installation.installed or elsewhere):
            return SocketInspection(capture, "absent", ("capture by eBPF is not installed on this node",), {})
        differences = socket_capture.differences(options, installation, log)
        captured = elsewhere or pods.is_captured(installation, cookie)
        state: Conformance = "drifted" if differences and captured else "absent" if differences else "in place"
        counts = pods.counts(installation) if installation.installed else {}
        return SocketInspection(capture, state, differences, counts)
    finally:
        installation.close()


class NodeSupport(Record):
    """Whether this node supports capture by eBPF: the refusal (empty if it does), and other BPF programs.

    `others` are the hooks at the root cgroup, by section, to which other programs are attached as well.
    """

    refusal: str
    others: tuple[str, ...]


def node_support() -> NodeSupport:
    """Load the programs without attaching them, and list those attached at the root cgroup."""
    from istio_init.errors import InitError

    try:
        cgroup = root_cgroup()
        trial_load()
        return NodeSupport("", _others(cgroup))
    except InitError as error:
        return NodeSupport(str(error), ())


def _others(cgroup: str) -> tuple[str, ...]:
    import os

    homes = layouts.homes(Installation(cgroup).directory)
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tuple(
            section
            for section, (_, attach_type) in ALL_HOOKS.items()
            if len(attached_programs(descriptor, attach_type)) > sum(_is_attached(each, section) for each in homes)
        )
    except OSError:
        return ()  # the process may not query other programs
    finally:
        os.close(descriptor)


def _is_attached(home: str, section: str) -> bool:
    return is_attached(f"{home}/links/{section.rpartition('/')[2]}")
