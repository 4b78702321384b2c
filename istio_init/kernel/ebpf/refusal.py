"""Why a kernel does not capture by eBPF, and the first thing that one which is too old lacks."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
from _struct import unpack

from istio_init.errors import KernelError

_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, Linux 5.14


def refusal(error: OSError) -> KernelError:
    """Why the kernel refused to install or attach, and what to do."""
    number = error.errno or 0
    reason = f"--capture-backend ebpf: the kernel refuses: {error.strerror}"
    if number == errno.EPERM:
        return KernelError(f"{reason}: that needs the capabilities BPF and NET_ADMIN on the node", number)
    release = os.uname().release
    if number == errno.ENOPROTOOPT:
        return KernelError(
            f"--capture-backend ebpf: Linux {release} is too old: it has no cookies of network namespaces "
            "(bpf_get_netns_cookie), which 5.15 has; use --capture-backend iptables",
            number,
        )
    if number in {errno.EINVAL, errno.ENOSYS, errno.E2BIG}:
        return KernelError(
            f"{reason}: Linux {release} may be too old, it takes 5.15 or newer; use --capture-backend iptables", number
        )
    return KernelError(reason, number)


def netns_cookie() -> int:
    """The cookie of the network namespace that the calling thread is in; KernelError if there is none."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        cookie: int = unpack("<Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    except OSError as error:
        raise refusal(error) from error
    finally:
        probe.close()
    return cookie
