"""The TCP sockets of a network namespace, as /proc shows them (net/ipv4/tcp_ipv4.c, tcp4_seq_show)."""

from __future__ import annotations

import sys

from istio_init.errors import KernelError
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The calling thread's own namespace; the second is not there where the kernel has no IPv6.
FILES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
UDP_FILES = ("/proc/thread-self/net/udp", "/proc/thread-self/net/udp6")
ESTABLISHED, LISTEN = "01", "0A"  # <net/tcp_states.h>
WORD = 8  # hexadecimal digits of an address that are one number of the machine's
LOOPBACK = bytes(15) + b"\1"
MAPPED = bytes(10) + b"\xff\xff"


def connections() -> int:
    """How many connections there are with other hosts. KernelError without /proc."""
    return sum(not is_loopback(remote) for remote in remotes(_lines()))


def listening() -> frozenset[int]:
    """The ports that something in the namespace listens on. KernelError without /proc."""
    return frozenset(int(local.partition(":")[2], 16) for local, _, state in _sockets(_lines()) if state == LISTEN)


class Established(Record):
    """An established connection: address and port of both ends, the uid of the socket's owner, the socket's inode."""

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    uid: int
    inode: int = 0


def established() -> tuple[Established, ...]:
    """The established connections of the namespace. KernelError without /proc."""
    connections = []
    for line in _lines():
        _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
        if state == ESTABLISHED:
            connections.append(Established(_end(local), _end(remote), int(uid), int(inode)))
    return tuple(connections)


def bound() -> frozenset[int]:
    """The UDP ports that sockets of the namespace have. KernelError without /proc."""
    return frozenset(int(local.partition(":")[2], 16) for local, _, _ in _sockets(_lines(UDP_FILES)))


def _end(text: str) -> tuple[bytes, int]:
    address, _, port = text.partition(":")
    packed = _address(address)
    return (packed[-4:] if len(packed) == 16 and packed.startswith(MAPPED) else packed), int(port, 16)


def _lines(files: tuple[str, str] = FILES) -> Iterator[str]:
    """The lines of all sockets of both families."""
    for path in files:
        try:
            with open(path, encoding="ascii") as file:
                next(file, "")
                yield from file
        except FileNotFoundError as error:
            if path == files[0]:
                raise _unreadable(path, error) from error
        except OSError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> KernelError:
    return KernelError(f"{path}: can't be read: {error.strerror}", error.errno or 0)


def _sockets(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Local address, remote address and state of each socket."""
    for line in lines:
        _, local, remote, state, *_ = line.split()
        yield local, remote, state


def remotes(lines: Iterator[str]) -> Iterator[bytes]:
    """The remote address of each established connection, by the lines behind the heading."""
    for _, remote, state in _sockets(lines):
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
