"""Processes of a pod: one of a name and a user, that listens and connects, for as long as a test wants it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from integration.kit.endpoints import ROOT, User

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

# Bound before the user changes, as a container's ports are anybody's. Every connection is accepted.
PROGRAM = """
import encodings.idna, json, os, socket, sys, threading
said = json.loads(sys.argv[1])
held = []
def serve(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if said["transparent"]:
        server.setsockopt(socket.SOL_IP, 19, 1)
    server.bind((host, port))
    server.listen(said["backlog"])
    return server
def accept(server):
    while True:
        held.append(server.accept()[0])
for each in said["tcp"].split():
    host, _, port = each.rpartition(":")
    held.append(serve(host.strip("[]") or "::", int(port)))
servers = tuple(held)
for port in said["udp"].split():
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].bind(("0.0.0.0", int(port)))
open("/proc/self/comm", "w").write(said["name"])
os.setgroups([])
os.setresgid(*[said["gid"]] * 3)
os.setresuid(*[said["uid"]] * 3)
if said["to"]:
    host, _, port = said["to"].rpartition(":")
    held.append(socket.create_connection((host, int(port)), 20))
for server in servers if said["accepts"] else ():
    threading.Thread(target=accept, args=(server,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def resident(
    namespace: Namespace,
    name: str,
    user: User = ROOT,
    *,
    tcp: str = "",
    udp: str = "",
    to: str = "",
    mode: str = "",
    transparent: bool = False,
    accepts: bool = True,
    backlog: int = 16,
) -> Iterator[int]:
    """A process in the namespace; yields its id once it listens and has connected `to` HOST:PORT.

    `tcp` are ports, or ADDRESS:PORT, that it listens on, `udp` ports. `mode` is the interception mode that its
    environment has. `transparent` sets IP_TRANSPARENT; without `accepts`, connections stay in the listener's queue.
    """
    uid, gid = user
    message = json.dumps({
        "name": name, "uid": uid, "gid": gid, "tcp": tcp, "udp": udp, "to": to, "transparent": transparent,
        "accepts": accepts, "backlog": backlog,
    })  # fmt: skip
    words = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", PROGRAM, message]
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
