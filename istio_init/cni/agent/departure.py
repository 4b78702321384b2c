"""Decides at the agent's end whether another agent follows, or the installation is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.kubernetes import FORBIDDEN, NOT_FOUND, UNAUTHORIZED
from istio_init.errors import InitError

if TYPE_CHECKING:
    from istio_init.cni.agent.kubernetes import KubernetesApi
    from istio_init.log import Log

# Status codes if the DaemonSet was deleted, or this process's account and role, which are deleted with it.
REMOVED = {UNAUTHORIZED, FORBIDDEN, NOT_FOUND}


class DaemonSetName(NamedTuple):
    """The DaemonSet whose pod this process is."""

    namespace: str
    name: str


async def is_final(api: KubernetesApi, daemonset: DaemonSetName, log: Log) -> bool:
    """Whether no other agent will follow, since the DaemonSet is gone or is being deleted.

    False where that can't be known: an entry that stays makes pods wait for the next agent, and one that goes would let
    them start without capture.
    """
    try:
        manifest = await api.get(f"/apis/apps/v1/namespaces/{daemonset.namespace}/daemonsets/{daemonset.name}")
        return bool(manifest["metadata"].get("deletionTimestamp"))
    except HttpError as error:
        if error.status in REMOVED:
            return True
        failure: Exception = error
    except (InitError, KeyError, TypeError, AttributeError) as error:
        failure = error
    log.warn(f"the DaemonSet {daemonset.namespace}/{daemonset.name} can't be looked up: {failure}")
    return False
