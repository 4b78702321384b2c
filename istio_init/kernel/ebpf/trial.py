"""The proof that a pod is captured: one connection to nowhere from inside, which must come to the proxy's port."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; the type in C is all that is needed
import errno
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import KernelError
from istio_init.kernel.host.netns import Namespace
from istio_init.model.rules import address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import PortRange
    from istio_init.model.socket_capture import SocketCapture

# Addresses for documentation (RFC 5737, RFC 3849), which no host has.
_NOWHERE = {4: b"\xc0\x00\x02\x01", 16: b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"}


def prove(netns: str, capture: SocketCapture) -> None:
    """Dial an unassigned address; KernelError if the connection was not redirected to the proxy's port.

    A captured call is refused (or accepted) at once, as it goes to loopback. Where the options capture nothing of what
    this process sends, nothing is dialled.
    """
    target = _target(capture)
    if target is None or os.getuid() in capture.uids or os.getgid() in capture.gids or capture.groups is not None:
        return
    address, port = target
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with Namespace(netns):
        probe = socket.socket(family, socket.SOCK_STREAM)
        try:
            probe.setblocking(False)
            code = probe.connect_ex((address_text(address), port))
            if code == errno.EINPROGRESS:
                code = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                # Loopback answers before connect(2) returns; anything else is still under way.
                if code == 0 and not _connected(probe):
                    code = errno.EINPROGRESS
        finally:
            probe.close()
    if code not in {0, errno.ECONNREFUSED}:
        raise KernelError(
            f"--capture-backend ebpf: a connection from the pod was not captured ({os.strerror(code)}): "
            "is the cgroup that the programs are attached to the root of the cgroup v2 hierarchy?"
        )


def _connected(probe: socket.socket) -> bool:
    try:
        probe.getpeername()
    except OSError:
        return False
    return True


def _target(capture: SocketCapture) -> tuple[bytes, int] | None:
    """An address and a port that the options have captured; None where there is none that is certain."""
    size = next((len(each.address) for each in capture.addresses if len(each.address) == 4 or capture.ipv6), 0)
    if not size:
        return None
    address = _NOWHERE[size]
    if capture.outbound == "all" and not any(
        _contains(each.address, each.prefix, address) for each in capture.excluded_networks
    ):
        port = next((port for port in range(1, 65536) if port != 53 and not _in(port, capture.excluded_ports)), 0)
        return (address, port) if port else None
    return None


def _in(port: int, ranges: tuple[PortRange, ...]) -> bool:
    return any(each.low <= port <= each.high for each in ranges)


def _contains(network: bytes, prefix: int, address: bytes) -> bool:
    if len(network) != len(address):
        return False
    shift = len(address) * 8 - prefix
    return int.from_bytes(network, "big") >> shift == int.from_bytes(address, "big") >> shift
