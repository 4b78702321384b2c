"""Compares the users of a pod's containers with the options: only the proxy may match the rules for the proxy.

The rules identify the proxy by its uid or gid (`-u`, `-g`; xt_owner compares a process's own ids). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.options.annotations import STATUS
from istio_init.options.cni_pod import PROXY_CONTAINER
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.table import PROXY_UID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.options.podspec import Container
    from istio_init.options.table import Options
    from istio_init.options.workload import RunsAs, Workload

TPROXY = "TPROXY"


def matches_proxy(options: Options, uid: int | None, gid: int | None) -> bool:
    """Whether the rules of these options take a process with these ids for the proxy."""
    return uid in options.proxy_uid or gid in options.proxy_groups


def misfits(workload: Workload, options: Options, proxy_name: str = PROXY_CONTAINER) -> Iterator[str]:
    """The containers whose user does not fit the options, each in one line.

    A container counts if the manifest gives its user; an image's user is unknown. Init containers that end before the
    proxy starts are left out: they may run as the proxy on purpose, to reach the network.
    """
    injected = STATUS in workload.annotations or any(map(workload.init_container, (INIT, VALIDATION)))
    for container, owner in zip(workload.residents(), workload.owners(), strict=True):
        if container.name == proxy_name:
            # The injection adds the group; without one the runtime takes the user's own, root's if the image has none.
            usual = PROXY_UID if owner.uid == PROXY_UID or not injected else 0
            yield from _proxy(owner, usual if owner.gid is None else owner.gid, options)
        elif not container.init or container.body.get("restartPolicy") == "Always":
            yield from _other(container, owner, options)


def _other(container: Container, owner: RunsAs, options: Options) -> Iterator[str]:
    if owner.uid in options.proxy_uid:
        yield (
            f"{container.title} runs as uid {owner.uid}, the proxy's (-u): its outbound traffic bypasses the proxy; "
            "give it another runAsUser"
        )
    elif owner.gid in options.proxy_groups:
        yield (
            f"{container.title} runs as gid {owner.gid}, the proxy's (-g): its outbound traffic bypasses the proxy; "
            "give it another runAsGroup"
        )


def _proxy(owner: RunsAs, gid: int, options: Options) -> Iterator[str]:
    tproxy = options.istio_inbound_interception_mode == TPROXY
    if owner.uid is None:
        return
    if tproxy and owner.uid != 0:
        yield (
            f"{owner.container} runs as uid {owner.uid}, but TPROXY needs CAP_NET_ADMIN, which only root keeps: "
            "run it as uid 0 with the gid of -g"
        )
    if not matches_proxy(options, owner.uid, gid):
        users = ", ".join(map(str, options.proxy_uid))
        yield (
            f"{owner.container} runs as uid {owner.uid} and gid {gid}, the rules let uid {users} and gid "
            f"{', '.join(map(str, options.proxy_groups))} through: its own traffic is captured again, in a loop; "
            f"set {f'-g {gid}, or its runAsGroup' if tproxy else f'-u {owner.uid}, or its runAsUser'}"
        )
