"""Names of IP sets: rules hold the number of a set, which is valid in their network namespace only."""

from __future__ import annotations

import struct

from istio_init.kernel.xtables.sockopt import StepError, TableSocket
from istio_init.model.rules import IPV4

# <linux/netfilter/ipset/ip_set.h>: SO_IP_SET, and the operation by which extensions of iptables ask for a name.
_OPTION, _BY_INDEX = 83, 7
# ip_set_max, unless a program has made more than that many.
_MOST = 256
# struct ip_set_req_get_set: operation, version, and a union of the number and the name.
_REQUEST = struct.Struct("=II32s")
# Kernels before 4.20 speak version 6 alone; each refuses what is newer than itself.
_VERSIONS = (7, 6)
# IPSET_INVALID_ID: no set.
NONE = 0xFFFF


def set_name(number: int) -> str:
    """The name of a set in the calling thread's namespace; # and its number where the kernel does not tell."""
    try:
        with TableSocket(IPV4) as socket:
            return _name(socket, number) or f"#{number}"
    except StepError:
        return f"#{number}"


def set_names() -> tuple[str, ...]:
    """The names of the sets in the calling thread's namespace; none where the kernel does not tell."""
    try:
        with TableSocket(IPV4) as socket:
            if _name(socket, 0) is None:
                return ()
            return tuple(name for number in range(_MOST) if (name := _name(socket, number)))
    except StepError:
        return ()


def _name(socket: TableSocket, number: int) -> str | None:
    """A set's name, empty where there is no such set; None where the kernel does not answer."""
    for version in _VERSIONS:
        request = bytearray(_REQUEST.pack(_BY_INDEX, version, struct.pack("=H", number)))
        if socket.ask(_OPTION, request):
            name: bytes = _REQUEST.unpack(request)[2]
            return name.partition(b"\0")[0].decode("ascii", "replace")
    return None
