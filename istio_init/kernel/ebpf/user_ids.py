"""Ids of a pod's user namespace as the initial user namespace counts them: the programs see those.

A pod with `hostUsers: false` has a user namespace of its own, in which the proxy's 1337 is another id on the node.
"""

from __future__ import annotations

import fcntl
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import KernelError
from istio_init.kernel.host.netns import CLONE_NEWUSER, GET_USERNS, OWN_USER, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.socket_capture import SocketCapture

_MAP_BYTES = 1 << 16  # the kernel takes at most 340 lines of some 30 bytes


def translated(netns: str, capture: SocketCapture) -> SocketCapture:
    """The capture with its users and groups as the node counts them; KernelError where one is not mapped."""
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(descriptor, GET_USERNS)
    finally:
        os.close(descriptor)
    try:
        if os.fstat(owner).st_ino == os.stat(OWN_USER).st_ino:
            return capture
        users, groups = (_extents(owner, kind) for kind in ("uid", "gid"))
    finally:
        os.close(owner)
    return capture.replace(
        uids=_mapped("--proxy-uid", capture.uids, users),
        gids=_mapped("--proxy-gid", capture.gids, groups),
        groups=None if capture.groups is None else _mapped("--istio-outbound-owner-groups", capture.groups, groups),
        excluded_groups=_mapped("--istio-outbound-owner-groups-exclude", capture.excluded_groups, groups),
    )


def _extents(owner: int, kind: str) -> list[tuple[int, int, int]]:
    """A user namespace's id map: first id inside, first outside, count. Read by a child, which can't leave it again."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            setns(owner, CLONE_NEWUSER)
            file = os.open(f"/proc/self/{kind}_map", os.O_RDONLY)
            os.write(writing, os.read(file, _MAP_BYTES))
        finally:
            os._exit(0)  # noqa: SLF001 (that is its name)
    os.close(writing)
    text = b""
    while chunk := os.read(reading, _MAP_BYTES):
        text += chunk
    os.close(reading)
    os.waitpid(child, 0)
    lines = (line.split() for line in text.splitlines())
    return [(int(inner), int(outer), int(size)) for inner, outer, size in lines]


def _mapped(flag: str, ids: tuple[int, ...], extents: list[tuple[int, int, int]]) -> tuple[int, ...]:
    outside = []
    for each in ids:
        outer = [outer + each - inner for inner, outer, size in extents if inner <= each < inner + size]
        if not outer:
            raise KernelError(
                f"{flag}: {each}: not mapped in the pod's user namespace; use an id that the pod can have"
            )
        outside.append(outer[0])
    return tuple(outside)
