"""A resolver outside of the pod and the sidecar's agent inside, with as much of DNS (RFC 1035) as they need."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from integration.kit.endpoints import PATIENCE, Address

HEADER = struct.Struct("!6H")  # id, flags, and how many questions, answers, authorities, additional records
RECORD = struct.Struct("!3HIH")  # name (a pointer), type, class, seconds to live, length of what follows
LENGTH = struct.Struct("!H")  # before each message over TCP
RESPONSE, RECURSION, POINTER_TO_NAME = 0x8180, 0x0100, 0xC00C
IN = 1
TYPES = {socket.AF_INET: 1, socket.AF_INET6: 28}  # A and AAAA

Answer = Callable[[bytes], bytes]


def question(name: str, family: socket.AddressFamily, identity: int = 4711) -> bytes:
    """The query for a name's address."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return HEADER.pack(identity, RECURSION, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", TYPES[family], IN)


def response(query: bytes, family: socket.AddressFamily, address: str) -> bytes:
    """The answer to a query with one question: one address."""
    packed = socket.inet_pton(family, address)
    head = HEADER.pack(HEADER.unpack_from(query)[0], RESPONSE, 1, 1, 0, 0)
    record = RECORD.pack(POINTER_TO_NAME, TYPES[family], IN, 60, len(packed))
    return head + query[HEADER.size :] + record + packed


def address_in(message: bytes, query: bytes, family: socket.AddressFamily) -> str:
    """The address in an answer to the query; AssertionError where it is none."""
    assert message[:2] == query[:2], "the answer is to another query"
    packed = message[len(query) + RECORD.size :]
    return socket.inet_ntop(family, packed)


def ask(client: socket.socket, server: Address, query: bytes) -> bytes:
    """Send a query by a client's socket, of either kind, and return the answer. The client is closed."""
    with client:
        client.settimeout(PATIENCE)
        client.connect(server)
        if client.type == socket.SOCK_DGRAM:
            client.send(query)
            return client.recv(4096)
        client.sendall(LENGTH.pack(len(query)) + query)
        return _received(client)


def _received(connection: socket.socket) -> bytes:
    (length,) = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))
    return connection.recv(length, socket.MSG_WAITALL)


class Nameserver:
    """Answers queries on a UDP socket and on a listening TCP socket from `with` to its end; closes both.

    `asked` are the clients so far.
    """

    def __init__(self, udp: socket.socket, tcp: socket.socket, answer: Answer) -> None:
        self.clients = list[Address]()
        self._udp, self._tcp, self._answer = udp, tcp, answer
        self._threads = [threading.Thread(target=each) for each in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in (self._udp, self._tcp):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # a UDP socket says that it isn't connected, and wakes its reader all the same
        for thread in self._threads:
            thread.join()
        for each in (self._udp, self._tcp):
            each.close()

    def _serve_udp(self) -> None:
        while True:
            query, client = self._udp.recvfrom(4096)
            if not query:
                return
            self.clients.append(client[:2])
            self._udp.sendto(self._answer(query), client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, client = self._tcp.accept()
            except OSError:
                return
            with connection:
                self.clients.append(client[:2])
                message = self._answer(_received(connection))
                connection.sendall(LENGTH.pack(len(message)) + message)
