"""Checks whether the node supports capture by eBPF with these options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.doctor.case import Check
from istio_init.planning.socket_capture import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.doctor.case import Case

NAME = "capture by eBPF"


def ebpf_checks(case: Case) -> Iterator[Check]:
    """The kernel, the options, and other programs at the node's cgroup; no check without --capture-backend ebpf."""
    if case.node is None:
        return
    problems = [*refusals(case.options), *([case.node.refusal] if case.node.refusal else [])]
    for problem in problems:
        yield Check(NAME, "fail", problem, "--capture-backend ebpf", "use --capture-backend iptables")
    if not problems:
        yield Check(NAME, "ok", "the kernel loads all programs", "--capture-backend ebpf")
    if case.node.others:
        yield Check(
            f"{NAME}: neighbours",
            "warn",
            f"other programs at the root cgroup: {', '.join(case.node.others)}",
            "one that runs first and rewrites a service's address hides it from the proxy",
            "with Cilium: socketLB.hostNamespaceOnly=true",
        )
