"""What the manifest that the options of the running verb come from says of its pod: who runs in it, and may do what."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_init.options.privileges import Privileges
    from istio_init.options.workload import RunsAs

# Set for each verb before it runs: empty without --from-pod.
pod_owners: ContextVar[tuple[RunsAs, ...]] = ContextVar("pod_owners", default=())
# Those of the init container that makes the rules; None where none does, and without --from-pod.
pod_privileges: ContextVar[Privileges | None] = ContextVar("pod_privileges", default=None)
