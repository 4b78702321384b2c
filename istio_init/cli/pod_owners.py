"""Who runs in the pod whose manifest the options of the running verb come from."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_init.options.workload import RunsAs

# Set for each verb before it runs: empty without --from-pod.
pod_owners: ContextVar[tuple[RunsAs, ...]] = ContextVar("pod_owners", default=())
