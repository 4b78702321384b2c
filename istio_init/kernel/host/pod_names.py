"""Looks a name up as a process of a pod does: in its /etc/hosts, then at the nameservers of its resolv.conf.

The files are the process's own, read below /proc/PID/root. Queries are sent from the calling thread's network
namespace, so that DNS capture treats them as the pod's. RFC 1035 has the messages; resolv.conf(5) the order of names.
"""

from __future__ import annotations

import os
import socket
import time
from struct import Struct, error, unpack_from
from typing import TYPE_CHECKING

from istio_init.errors import KernelError, shown
from istio_init.kernel.host import container_files, resolv_conf
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS, LONGEST_HOSTS = "/etc/hosts", 1 << 20
# Seconds for one query, and for a lookup as a whole.
ONE_ANSWER, PATIENCE = 1.0, 5.0
MOST_SERVERS, MOST_DOMAINS, NDOTS, MOST_NDOTS = 3, 6, 1, 15
DNS_PORT, LONGEST_NAME, LONGEST_LABEL, LONGEST_ANSWER = 53, 253, 63, 4096
A, AAAA, IN = 1, 28, 1
SIZES = {A: 4, AAAA: 16}
HEAD = Struct("!6H")
RECURSION_DESIRED, RESPONSE, FAILURE, NO_SUCH_NAME = 0x0100, 0x8000, 0x000F, 3
POINTER = 0xC0


class ResolverFiles(Record):
    """What a process's files say of names: its hosts file's addresses, and its resolver's servers and domains."""

    hosts: dict[str, bytes]
    servers: tuple[bytes, ...]
    domains: tuple[str, ...] = ()
    ndots: int = NDOTS


class ResolvedName(Record):
    """An address of a name, and where it is from."""

    address: bytes
    source: str


def files_of(pid: int) -> ResolverFiles:
    """The files of a process. A missing file says nothing."""
    text = _text(pid, container_files.RESOLV_CONF, resolv_conf.LONGEST)
    servers, _ = resolv_conf.parse(text.encode(), container_files.RESOLV_CONF)
    domains: tuple[str, ...] = ()
    ndots = NDOTS
    for words in map(str.split, text.splitlines()):
        if words[:1] in (["search"], ["domain"]):
            domains = tuple(each.rstrip(".") for each in words[1 : 1 + MOST_DOMAINS])
        elif words[:1] == ["options"]:
            values = [each.removeprefix("ndots:") for each in words[1:] if each.startswith("ndots:")]
            ndots = min(int(values[-1]), MOST_NDOTS) if values and values[-1].isdecimal() else ndots
    addresses = tuple(each.address for each in servers[:MOST_SERVERS])
    return ResolverFiles(hosts(_text(pid, HOSTS, LONGEST_HOSTS)), addresses, domains, ndots)


def _text(pid: int, path: str, largest: int) -> str:
    try:
        return container_files.read(pid, path, largest).decode(errors="replace")
    except OSError:
        return ""


def hosts(text: str) -> dict[str, bytes]:
    """The address of each name in a hosts file; the first line with a name counts."""
    addresses: dict[str, bytes] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and (address := _packed(words[0])):
            for name in words[1:]:
                addresses.setdefault(name.lower(), address)
    return addresses


def _packed(text: str) -> bytes | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    return None


def resolve(name: str, files: ResolverFiles) -> ResolvedName:
    """An address of a name. KernelError, which says who was asked, where there is none."""
    if address := files.hosts.get(name.lower().rstrip(".")):
        return ResolvedName(address, "the pod's /etc/hosts")
    if not files.servers:
        raise KernelError(f"{shown(name)}: not in the pod's /etc/hosts, and its resolv.conf names no server")
    end = time.monotonic() + PATIENCE
    why = ""
    for candidate in candidates(name, files):
        for server in files.servers:
            place = socket.inet_ntop(socket.AF_INET if len(server) == 4 else socket.AF_INET6, server)
            try:
                address = next((each for kind in (A, AAAA) for each in _query(server, candidate, kind, end)), None)
            except OSError as failure:
                why = f"no answer from {place}: {failure.strerror or 'timed out'}"
                continue
            if address is not None:
                return ResolvedName(address, f"DNS ({place})")
            why = f"{place} has no address for it"
            break
    raise KernelError(f"{shown(name)}: can't be looked up in the pod: {why}; give the address")


def candidates(name: str, files: ResolverFiles) -> tuple[str, ...]:
    """The names that a resolver library tries, in its order."""
    if name.endswith("."):
        return (name.rstrip("."),)
    longer = tuple(f"{name}.{domain}" for domain in files.domains)
    return (name, *longer) if name.count(".") >= files.ndots else (*longer, name)


def _query(server: bytes, name: str, kind: int, end: float) -> Iterator[bytes]:
    """The addresses in a server's answer. OSError without an answer in time."""
    number = int.from_bytes(os.urandom(2))
    question = _encoded(name) + kind.to_bytes(2) + IN.to_bytes(2)
    family = socket.AF_INET if len(server) == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect((socket.inet_ntop(family, server), DNS_PORT))
        channel.send(HEAD.pack(number, RECURSION_DESIRED, 1, 0, 0, 0) + question)
        until = min(end, time.monotonic() + ONE_ANSWER)
        while True:
            channel.settimeout(max(until - time.monotonic(), 0.001))
            data = channel.recv(LONGEST_ANSWER)
            if len(data) >= HEAD.size and HEAD.unpack_from(data)[0] == number:
                return iter(answers(data, kind))


def _encoded(name: str) -> bytes:
    labels = [label.encode("idna") if not label.isascii() else label.encode() for label in name.split(".")]
    if len(name) > LONGEST_NAME or not all(0 < len(label) <= LONGEST_LABEL for label in labels):
        raise KernelError(f"{shown(name)}: not a host name")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def answers(data: bytes, kind: int) -> list[bytes]:
    """The addresses of one kind in a message; none in one that is broken, or for a name that does not exist.

    OSError where the server says that it failed.
    """
    try:
        _, flags, questions, count, _, _ = HEAD.unpack_from(data)
        if flags & FAILURE not in {0, NO_SUCH_NAME} or not flags & RESPONSE:
            raise OSError(0, f"the server failed (RCODE {flags & FAILURE})")
        at = HEAD.size
        for _ in range(questions):
            at = _after_name(data, at) + 4
        addresses = []
        for _ in range(count):
            at = _after_name(data, at)
            record, _, _, length = unpack_from("!HHIH", data, at)
            at += 10
            if record == kind and length == SIZES[kind] and at + length <= len(data):
                addresses.append(data[at : at + length])
            at += length
    except (IndexError, ValueError, error):
        return []
    return addresses


def _after_name(data: bytes, at: int) -> int:
    while data[at]:
        if data[at] & POINTER == POINTER:
            return at + 2
        at += 1 + data[at]
    return at + 1
