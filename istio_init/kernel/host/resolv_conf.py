"""The nameservers of this machine, from resolv.conf(5)."""

from __future__ import annotations

import _socket as socket  # socket.py imports enum and selectors; inet_pton in C is all that is needed

from istio_init import errors
from istio_init.kernel.host.small_file import read_regular
from istio_init.model.rules import Network

# Bytes; far more than a resolver library reads.
LONGEST = 1 << 20
# Nameservers that count. A resolver library uses three; each makes rules in several chains.
MOST_SERVERS = 64

# ::ffff:0:0/96
MAPPED = bytes(10) + b"\xff\xff"


def nameservers(path: str = "/etc/resolv.conf") -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """The servers in the file's order, as networks of one address, and a complaint for each wrong line.

    The zone of a scoped address (fe80::1%eth0) is dropped: rules have no zones. A missing file has no servers.
    KernelError where it can't be read, is not a regular file or names too many servers.
    """
    return parse(_read(path), path)


def parse(content: bytes, path: str) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """The same for a file's content; `path` is for the complaints. KernelError where it names too many servers."""
    servers: list[Network] = []
    complaints: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        # Comments have another first word. The rest of the line is ignored, as every resolver does.
        words = line.split(None, 2)
        if words[:1] != [b"nameserver"]:
            continue
        text = words[1] if len(words) > 1 else b""
        server = _server(text)
        if server:
            servers.append(server)
        else:
            shown = errors.shown(text.decode("utf-8", "backslashreplace"))
            complaints.append(f"{path} line {number}: nameserver {shown} is not an IP address and is ignored")
    if (count := len(set(servers))) > MOST_SERVERS:
        why = f"{count} nameservers, at most {MOST_SERVERS} are allowed"
        raise errors.KernelError(f"{path}: {why}; name them: --dns-servers")
    return tuple(servers), tuple(complaints)


def _server(text: bytes) -> Network | None:
    """The address as a network of one, or None where it is none."""
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
        return read_regular(path, LONGEST)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise _error(path, error) from error


def _error(path: str, error: OSError) -> errors.KernelError:
    what = f"{path}: the nameservers can't be read: {error.strerror}; make it readable, or name them: --dns-servers"
    return errors.KernelError(what, error.errno or 0)
