"""Waiting for what the kernel finishes a moment after it said yes."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import time
from collections.abc import Iterable

from integration.kit.namespace import Namespace

SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40  # <linux/sockios.h>, <linux/if.h>
RTF_LOCAL = 0x80000000  # <linux/ipv6_route.h>


def settled(namespace: Namespace) -> None:
    """Return once every IPv6 address of lo, which has to be up, has its route and is tentative no more."""
    while True:
        shown = json.loads(namespace.run("ip", "-j", "-6", "addr", "show", "dev", "lo"))
        desired = {info["local"] for link in shown for info in link.get("addr_info", ())}
        routes = json.loads(namespace.run("ip", "-j", "-6", "route", "show", "table", "local", "dev", "lo") or "[]")
        if desired <= {route["dst"] for route in routes}:
            return


def carried(interfaces: Iterable[bytes]) -> None:
    """Return once these interfaces of the calling thread's namespace send what they are given.

    The end of a wire that came up before the other drops everything, without a word, until a worker of the kernel has
    noted that the other is there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in interfaces:
            request = struct.pack("16sH14x", name, 0)
            while not struct.unpack_from("16xH", fcntl.ioctl(asking, SIOCGIFFLAGS, request))[0] & IFF_RUNNING:
                time.sleep(0.001)


def delivered(addresses: Iterable[str]) -> None:
    """Return once packets to these IPv6 addresses are delivered in the calling thread's namespace.

    Their routes are added by a worker of the kernel, even if no duplicate is searched for.
    """
    desired = {socket.inet_pton(socket.AF_INET6, each).hex() for each in addresses}
    while True:
        with open("/proc/thread-self/net/ipv6_route", encoding="ascii") as file:
            rows = [line.split() for line in file]
        if desired <= {row[0] for row in rows if row[1] == "80" and int(row[8], 16) & RTF_LOCAL}:
            return
        time.sleep(0.001)
