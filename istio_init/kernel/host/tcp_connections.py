"""The open TCP connections of a network namespace, as /proc tells them (net/ipv4/tcp_ipv4.c, tcp4_seq_show)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from istio_init.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The calling thread's own namespace; the second is not there where the kernel has no IPv6.
FILES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
ESTABLISHED = "01"
WORD = 8  # hexadecimal digits of an address that are one number of the machine's
LOOPBACK = bytes(15) + b"\1"
MAPPED = bytes(10) + b"\xff\xff"


def connections() -> int:
    """How many there are with others: both ends of one within the namespace don't count. KernelError without /proc."""
    found = 0
    for path in FILES:
        if os.path.exists(path) or path == FILES[0]:
            try:
                with open(path, encoding="ascii") as file:
                    found += sum(not is_loopback(remote) for remote in remotes(file))
            except OSError as error:
                raise KernelError(f"{path}: can't be read: {error.strerror}", error.errno or 0) from error
    return found


def remotes(lines: Iterator[str]) -> Iterator[bytes]:
    """The other end's address of each established connection."""
    next(lines, "")
    for line in lines:
        _, _, remote, state, *_ = line.split()
        if state == ESTABLISHED:
            yield _address(remote.partition(":")[0])


def is_loopback(address: bytes) -> bool:
    """Whether an address, IPv4's in IPv6 as well, is of this host alone."""
    if address.startswith(MAPPED) and len(address) > 4:
        address = address[-4:]
    return address == LOOPBACK if len(address) > 4 else address[0] == 127


def _address(text: str) -> bytes:
    words = [bytes.fromhex(text[at : at + WORD]) for at in range(0, len(text), WORD)]
    return b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
