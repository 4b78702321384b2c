"""Processes of a pod: one of a name and a user, that listens and connects, for as long as a test wants it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from integration.kit.endpoints import ROOT, User

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

# Bound before the user changes, as a container's ports are anybody's.
PROGRAM = """
import encodings.idna, os, socket, sys
name, uid, gid, tcp, udp, to = sys.argv[1:7]
family = socket.AF_INET6 if ":" in to or socket.has_ipv6 else socket.AF_INET
held = [socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) for port in tcp.split()]
for port in udp.split():
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].bind(("0.0.0.0", int(port)))
open("/proc/self/comm", "w").write(name)
os.setgroups([])
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
if to:
    host, _, port = to.rpartition(":")
    held.append(socket.create_connection((host, int(port)), 20))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def resident(
    namespace: Namespace, name: str, user: User = ROOT, *, tcp: str = "", udp: str = "", to: str = "", mode: str = ""
) -> Iterator[int]:
    """A process in the namespace; yields its id once it listens and has connected `to` HOST:PORT."""
    words = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", PROGRAM, name, *map(str, user), tcp, udp, to]
    extra = {"ISTIO_META_INTERCEPTION_MODE": mode} if mode else {}
    process = subprocess.Popen(
        words, env={**namespace.environment, **extra}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdin
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.stdin.close()
