"""The users and privileges of the pod's containers, from the manifest that the current verb reads its options from."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_init.options.privileges import Privileges
    from istio_init.options.workload import RunsAs

# Set before a verb runs; empty without --from-pod.
pod_owners: ContextVar[tuple[RunsAs, ...]] = ContextVar("pod_owners", default=())
# The privileges of the init container that applies the rules; None without one, and without --from-pod.
pod_privileges: ContextVar[Privileges | None] = ContextVar("pod_privileges", default=None)
