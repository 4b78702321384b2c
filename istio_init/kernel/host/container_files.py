"""Files of a running container, read from the node through /proc/PID/root.

The container decides what its paths lead to: an absolute symbolic link below /proc/PID/root would be followed from the
reader's own root. openat2(2) with RESOLVE_IN_ROOT (Linux 5.6) follows it from the container's.
"""

from __future__ import annotations

import os
from struct import pack
from typing import TYPE_CHECKING

from istio_init.errors import KernelError
from istio_init.kernel.host import resolv_conf
from istio_init.kernel.host.libc import Pointer, byref, function, get_errno, library
from istio_init.kernel.host.small_file import OPEN_FLAGS, regular_content

if TYPE_CHECKING:
    from istio_init.model.rules import Network

RESOLV_CONF = "/etc/resolv.conf"
# The same number on every architecture (<asm-generic/unistd.h>).
_OPENAT2 = 437
# <linux/openat2.h>: refuse links such as those in /proc/PID/fd; resolve all others within the container's root.
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10


def nameservers(pid: int) -> tuple[Network, ...]:
    """The nameservers in the resolv.conf of the container that this process is in.

    KernelError where it has no such file, names no server, or can't be read.
    """
    place = f"process {pid}: {RESOLV_CONF}"
    try:
        content = read(pid, RESOLV_CONF, resolv_conf.LONGEST)
    except OSError as error:
        why = f"the pod's nameservers can't be read: {error.strerror}; name them: --dns-servers"
        raise KernelError(f"{place}: {why}", error.errno or 0) from error
    servers, complaints = resolv_conf.parse(content, place)
    if not servers:
        raise KernelError(complaints[0] if complaints else f"{place}: no nameserver in it; name them: --dns-servers")
    return servers


def read(pid: int, path: str, largest: int) -> bytes:
    """A regular file of at most `largest` bytes, by its absolute path in the container of a process. OSError."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        return regular_content(_open_below(root, path), largest)
    finally:
        os.close(root)


def _open_below(root: int, path: str) -> int:
    # struct open_how: flags, mode, resolve.
    how = bytearray(pack("=QQQ", OPEN_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS))
    syscall = function(library(None), "syscall")
    descriptor: int = syscall(_OPENAT2, root, path.encode(), byref(Pointer.from_buffer(how)), len(how))
    if descriptor < 0:
        failed = get_errno()
        raise OSError(failed, os.strerror(failed))
    return descriptor
