"""The nameservers of this machine, from resolv.conf(5)."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; inet_pton in C is all that is needed
import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init import errors
from istio_init.model.rules import Network

# Nothing that a resolver library would read is longer than this many bytes.
LONGEST = 1 << 20
_AT_ONCE = 1 << 16  # mostly all of it, and no more than the allocator has at hand

# ::ffff:0:0/96
MAPPED = bytes(10) + b"\xff\xff"


def nameservers(path: str = "/etc/resolv.conf") -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """The servers in the file's order, as networks of one address each, and a complaint for each line that is wrong.

    The zone of a scoped address (fe80::1%eth0) is left out: rules know no zones. A missing file has no
    servers. KernelError where there is one that can't be read.
    """
    servers: list[Network] = []
    complaints: list[str] = []
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        # Comments have another first word. What follows the address is ignored, as every resolver does.
        words = line.split(None, 2)
        if words[:1] != [b"nameserver"]:
            continue
        text = words[1] if len(words) > 1 else b""
        server = _server(text)
        if server:
            servers.append(server)
        else:
            shown = errors.shown(text.decode("utf-8", "backslashreplace"))
            complaints.append(f"{path} line {number}: nameserver {shown} is no IP address and is passed over")
    return tuple(servers), tuple(complaints)


def _server(text: bytes) -> Network | None:
    """The address as a network of its own, or None where it is none."""
    address, _, _zone = text.partition(b"%")
    family = socket.AF_INET6 if b":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address.decode("ascii"))
    except (OSError, ValueError):
        return None
    # Queries to an IPv4-mapped address are IPv4 packets.
    packed = packed.removeprefix(MAPPED) if len(packed) == 16 else packed
    return Network(packed, 8 * len(packed))


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise _error(path, error) from error
    try:
        content = b""
        while len(content) <= LONGEST and (chunk := os.read(descriptor, _AT_ONCE)):
            content += chunk
    except OSError as error:
        raise _error(path, error) from error
    finally:
        os.close(descriptor)
    return content


def _error(path: str, error: OSError) -> errors.KernelError:
    what = f"{path}: the nameservers can't be read: {error.strerror}; make it readable, or name them: --dns-servers"
    return errors.KernelError(what, error.errno or 0)
