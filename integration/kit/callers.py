"""Processes of other users in a namespace, which connect and send when they are told to.

Unlike a socket that a child made (endpoints.py), the call itself is another user's: programs at a cgroup look at who
calls connect(2), netfilter at who made the socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from integration.kit.capabilities import become
from integration.kit.endpoints import FAMILY_NUMBERS, PATIENCE, Address, User, set_transparent
from integration.kit.namespace import Namespace

if TYPE_CHECKING:
    from istio_init.model.rules import Family

WAIT = "wait"
_SIZE = struct.Struct("=I")


class Call(NamedTuple):
    """A connection to make, or a datagram to send: where to, and from which address.

    With a mark, the address may be another host's.
    """

    family: Family
    to: Address
    source: str = ""
    datagram: bool = False
    mark: int = 0


class Answer(NamedTuple):
    """What the caller saw: an errno, or 0 with its own address and that of its peer."""

    code: int
    local: Address = ("", 0)
    peer: Address = ("", 0)


class Caller:
    """A process of a user in a namespace, from `with` to its end. Each connection lives until the next call."""

    def __init__(self, namespace: Namespace, user: User) -> None:
        self._namespace, self.user = namespace, user

    def __enter__(self) -> Self:
        self._ours, childs = socket.socketpair()
        self._ours.settimeout(PATIENCE * 2)
        self._child = os.fork()
        if self._child == 0:
            status = 1
            try:
                self._ours.close()
                self._namespace.enter()
                become(*self.user)
                _serve(childs)
                status = 0
            finally:
                os._exit(status)
        childs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ours.close()
        os.waitpid(self._child, 0)

    def call(self, call: Call) -> Answer:
        """Make one connection and keep it open; or send one datagram."""
        return self._do(call)

    def wait(self) -> Answer:
        """Wait for the answer to the datagram that was sent; `peer` is where it comes from."""
        return self._do(WAIT)

    def _do(self, request: object) -> Answer:
        _send(self._ours, request)
        answer = _receive(self._ours)
        assert isinstance(answer, Answer), answer
        return answer


def _serve(channel: socket.socket) -> None:
    kept: socket.socket | None = None
    while (call := _receive(channel)) is not None:
        if call == WAIT:
            assert kept is not None
            _send(channel, _answered(kept))
            continue
        if kept is not None:
            kept.close()
        assert isinstance(call, Call)
        kept = socket.socket(FAMILY_NUMBERS[call.family], socket.SOCK_DGRAM if call.datagram else socket.SOCK_STREAM)
        _send(channel, _sent(kept, call) if call.datagram else _connected(kept, call))


def _sent(client: socket.socket, call: Call) -> Answer:
    try:
        client.sendto(b"?", call.to)
    except OSError as error:
        return Answer(error.errno or 1)
    return Answer(0)


def _answered(client: socket.socket) -> Answer:
    client.settimeout(PATIENCE)
    try:
        _, peer = client.recvfrom(16)
    except OSError as error:
        return Answer(error.errno or errno.ETIMEDOUT)
    return Answer(0, peer=peer[:2])


def _connected(client: socket.socket, call: Call) -> Answer:
    client.setblocking(False)
    try:
        if call.mark:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, call.mark)
            set_transparent(client)
        if call.source:
            client.bind((call.source, 0))
        code = client.connect_ex(call.to)
    except OSError as error:
        return Answer(error.errno or 1)
    if code == errno.EINPROGRESS:
        waiting = select.poll()
        waiting.register(client, select.POLLOUT)
        code = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if waiting.poll(2000) else errno.ETIMEDOUT
    if code:
        return Answer(code)
    with contextlib.suppress(OSError):
        return Answer(0, client.getsockname()[:2], client.getpeername()[:2])
    return Answer(errno.ENOTCONN)


def _send(channel: socket.socket, value: object) -> None:
    data = pickle.dumps(value)
    channel.sendall(_SIZE.pack(len(data)) + data)


def _receive(channel: socket.socket) -> object:
    """The next value, None at the end."""
    head = channel.recv(_SIZE.size, socket.MSG_WAITALL)
    if len(head) < _SIZE.size:
        return None
    return pickle.loads(channel.recv(_SIZE.unpack(head)[0], socket.MSG_WAITALL))
