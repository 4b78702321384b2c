"""What a pod's manifest lets the container do that makes the rules, beside what the plan needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.inspect.doctor.case import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.doctor.case import Case

ROOT = 0


def pod_checks(case: Case) -> Iterator[Check]:
    """The capabilities and the user that the manifest gives to the init container; nothing where it has none."""
    pod = case.privileges
    if pod is None or case.options.skip_rule_apply:
        return
    uses = {"NET_ADMIN": "every change of rules and routing", "NET_RAW": "the legacy tables"}
    for name, why in pod.lacking.items():
        needed = name == "NET_ADMIN" or case.backend == "legacy"
        yield Check(
            f"the pod's {pod.container}: capability {name}", "fail" if needed else "warn", f"missing: {why}",
            f"needed for {uses[name]}",
            f"securityContext: {{capabilities: {{add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}}, without {name} in drop",
        )  # fmt: skip
    title = f"the pod's {pod.container}: user"
    matters = "a container's added capabilities are in force for root alone"
    remedy = "securityContext: {runAsUser: 0, runAsGroup: 0, runAsNonRoot: false} for this container"
    if pod.user not in {None, ROOT}:
        yield Check(title, "fail", f"uid {pod.user} (runAsUser)", matters, remedy)
    elif pod.root_refused:
        yield Check(title, "fail", "runAsNonRoot: true, so that the kubelet does not start it as root", matters, remedy)
    elif not pod.lacking:
        yield Check(f"the pod's {pod.container}", "ok", "its securityContext allows what the plan needs", matters)
