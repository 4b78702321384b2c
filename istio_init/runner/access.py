"""Access to the kernel for one run: the network namespace, its lock and its router.

Each function imports its kernel module when it is called, so that a start imports only what it uses.
"""

from __future__ import annotations

from istio_init.kernel.netlink.router import Rtnetlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kernel.host.lock import XtablesLock
    from istio_init.kernel.host.netns import Namespace, Pinned
    from istio_init.log import Log
    from istio_init.options.table import Options


def keep_freed_memory() -> None:
    """Keep freed memory in the process for reuse; for programs that end soon, not for libraries."""
    from istio_init.kernel.host import libc

    libc.keep_freed_memory()


def require_descriptors() -> None:
    """KernelError unless enough files can be opened to write the rules and to roll back."""
    from istio_init.kernel.host import process

    process.require_descriptors()


def router() -> Rtnetlink:
    """The router of the calling thread's namespace."""
    return Rtnetlink()


def lock(options: Options, environ: Mapping[str, str], log: Log) -> XtablesLock:
    """The lock that every program takes before it edits these tables."""
    from istio_init.kernel.host.lock import XtablesLock

    return XtablesLock(options.wait, environ.get("XTABLES_LOCKFILE", ""), namespace=options.cni_mode, waiting=log.info)


def namespace(options: Options, *, as_owner: bool = False) -> Namespace:
    """The namespace of the options as a context manager; the caller's own if they name none.

    `as_owner` (kernel/host/netns.py) is for a process that ends afterwards: it may leave it in another user namespace.
    """
    from istio_init.kernel.host.netns import Namespace

    return Namespace(options.network_namespace, as_owner=as_owner)


def pinned(path: str) -> Pinned:
    """A context manager that keeps a path bound to its present namespace, even if the file is replaced meanwhile."""
    from istio_init.kernel.host.netns import Pinned

    return Pinned(path)


def namespace_number(path: str) -> int:
    """The inode number of the namespace at a path, 0 for an empty path. KernelError if it can't be read."""
    from istio_init.kernel.host import netns

    return netns.inode(path) if path else 0


def is_own_namespace(path: str) -> bool:
    """Whether the namespace at a path is the caller's own."""
    from istio_init.kernel.host import netns

    return bool(path) and netns.inode(path) == netns.inode()
