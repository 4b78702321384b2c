"""Who runs in a pod, held against the rules: the proxy must be let through, and nobody else.

The rules know the proxy by its uid or gid (`-u`, `-g`; xt_owner compares a process's own ids). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.options.cni_pod import PROXY_CONTAINER
from istio_init.options.table import PROXY_UID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.options.podspec import Container
    from istio_init.options.table import Options
    from istio_init.options.workload import RunsAs, Workload

TPROXY = "TPROXY"


def misfits(workload: Workload, options: Options, proxy_name: str = PROXY_CONTAINER) -> Iterator[str]:
    """What does not fit between a pod's users and the options of its rules, each in one line.

    Only what the manifest says counts: the user of an image is not known. Init containers that end before the proxy
    starts may run as the proxy on purpose, to reach the network: they are left out.
    """
    for container, owner in zip(workload.containers(), workload.owners(), strict=True):
        if container.name == proxy_name:
            yield from _proxy(owner, options)
        elif not container.init or container.body.get("restartPolicy") == "Always":
            yield from _other(container, owner, options)


def _other(container: Container, owner: RunsAs, options: Options) -> Iterator[str]:
    if owner.uid in options.proxy_uid:
        yield (
            f"{container.title} runs as uid {owner.uid}, the proxy's (-u): its outbound traffic bypasses the proxy; "
            "give it another runAsUser"
        )
    elif owner.gid in _groups(options):
        yield (
            f"{container.title} runs as gid {owner.gid}, the proxy's (-g): its outbound traffic bypasses the proxy; "
            "give it another runAsGroup"
        )


def _proxy(owner: RunsAs, options: Options) -> Iterator[str]:
    tproxy = options.istio_inbound_interception_mode == TPROXY
    if owner.uid is None:
        return
    if tproxy and owner.uid != 0:
        yield (
            f"{owner.container} runs as uid {owner.uid}, but TPROXY needs CAP_NET_ADMIN, which only root keeps: "
            "run it as uid 0 with the gid of -g"
        )
    gid = PROXY_UID if owner.gid is None else owner.gid
    if owner.uid not in options.proxy_uid and gid not in _groups(options):
        known = ", ".join(map(str, options.proxy_uid))
        yield (
            f"{owner.container} runs as uid {owner.uid} and gid {gid}, the rules let uid {known} and gid "
            f"{', '.join(map(str, _groups(options)))} through: its own traffic is captured again, in a loop; "
            f"set -u {owner.uid}, or its runAsUser"
        )


def _groups(options: Options) -> tuple[int, ...]:
    """The proxy's groups; without -g they have the numbers of its users."""
    return options.proxy_gid or options.proxy_uid
