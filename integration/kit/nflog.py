"""Packets as the kernel logs them (nfnetlink_log), with their mark and interface, and the prefix that the rule gave."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_NETFILTER = 12
# <linux/netfilter/nfnetlink.h>, <linux/netfilter/nfnetlink_log.h>
ULOG_PACKET, ULOG_CONFIG = 0x400, 0x401
CFG_CMD, CFG_MODE, CFG_QTHRESH = 1, 2, 5
BIND, COPY_PACKET = 1, 2
PACKET_HDR, MARK, INDEV, OUTDEV, PAYLOAD, PREFIX = 1, 2, 4, 5, 9, 10
TYPE_BITS = 0x3FFF
ROOM = 1 << 22
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
HEADERS = {4: 20, 6: 40}


class Logged(NamedTuple):
    """A packet at a hook."""

    hook: str
    destination: bytes
    port: int
    mark: int
    interface: str
    prefix: str


class Log:
    """Listens to one log group of the namespace of the thread that made it."""

    def __init__(self, group: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._names = dict(socket.if_nameindex())
        for kind, value in (
            (CFG_CMD, struct.pack("B", BIND)),
            (CFG_MODE, struct.pack("!IBx", 0xFFFF, COPY_PACKET)),
            (CFG_QTHRESH, struct.pack("!I", 1)),
        ):
            self._configure(group, kind, value)

    def _configure(self, group: int, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        body = struct.pack("!BBH", 0, 0, group) + attribute
        # NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(struct.pack("=IHHII", 16 + len(body), ULOG_CONFIG, 5, 1, 0) + body)
        answer = self._socket.recv(65536)
        (number,) = struct.unpack_from("=i", answer, 16)
        if number:
            raise OSError(-number, f"nfnetlink_log configuration {kind}")

    def read(self) -> list[Logged]:
        """What has been logged since the last time, without waiting."""
        result: list[Logged] = []
        while True:
            try:
                data = self._socket.recv(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return result
            result.extend(self._messages(data))

    def _messages(self, data: bytes) -> Iterator[Logged]:
        at = 0
        while at < len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == ULOG_PACKET:
                yield self._logged(attributes(data[at + 20 : at + length]))
            at += length + -length % 4

    def _logged(self, message: dict[int, bytes]) -> Logged:
        hook = HOOKS[message[PACKET_HDR][2]]
        index = message.get(INDEV if hook in {"INPUT", "PREROUTING"} else OUTDEV, bytes(4))
        payload = message[PAYLOAD]
        version = payload[0] >> 4
        destination = payload[16:20] if version == 4 else payload[24:40]
        start = HEADERS[version]
        (port,) = struct.unpack_from("!H", payload, start + 2)
        return Logged(
            hook,
            destination,
            port,
            _number(message.get(MARK)),
            self._names.get(_number(index), ""),
            message.get(PREFIX, b"").rstrip(b"\0").decode(),
        )

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _number(value: bytes | None) -> int:
    return int.from_bytes(value) if value else 0


def attributes(data: bytes) -> dict[int, bytes]:
    """The netlink attributes that some bytes are, by their type."""
    result: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        result[kind & TYPE_BITS] = data[at + 4 : at + length]
        at += length + -length % 4
    return result
