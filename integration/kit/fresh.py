"""Namespaces by the hundred: a thread leaves for a new one in half a millisecond, and takes its commands along."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from integration.kit.namespace import CLONE_NEWNET
from integration.kit.threads import in_thread
from istio_init.formats.iptables_save import dump
from istio_init.kernel.host.netns import Namespace
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.model.rules import IPV4

T = TypeVar("T")

# <linux/sockios.h>, <linux/if.h>
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
_libc = ctypes.CDLL(None, use_errno=True)


def unshare() -> None:
    """Move the calling thread to a new network namespace with lo up; the one that it leaves may go."""
    if _libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def inside_new(function: Callable[[], T]) -> T:
    """What `function` returns, called in a new namespace; what it raises is raised here."""

    def work() -> T:
        unshare()
        return function()

    return in_thread(work)


def command(*argv: str, text: str | None = None) -> str:
    """The standard output of a command run in the calling thread's namespace; AssertionError where it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}\n{text or ''}"
    return done.stdout


def inode() -> int:
    """The calling thread's network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


@contextlib.contextmanager
def by_path(count: int) -> Iterator[list[str]]:
    """The paths of so many new namespaces, each with lo up."""
    opened: list[int] = []

    def work() -> None:
        for _ in range(count):
            unshare()
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(opened) == count
        yield [f"/proc/{os.getpid()}/fd/{each}" for each in opened]
    finally:
        for each in opened:
            os.close(each)


def standing(path: str) -> str:
    """The IPv4 rules of a namespace as iptables-save would print them."""
    with Namespace(path):
        return dump(Libiptc().read(IPV4))
