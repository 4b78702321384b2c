"""A pod with a sidecar that says where each connection was meant to go, and an app that dials."""

from __future__ import annotations

import json
from typing import Any

import yaml

from integration.cluster.node import KubernetesNode
from integration.containers.conftest import BASE

# The sidecar: it answers each connection with its own port and the original destination, and each query with its port.
WITNESS = """
import os, socket, struct, threading
transparent = os.getuid() == 0  # as TPROXY's sidecar runs
def serve(port, family):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        listener.setsockopt(*((0, 19, 1) if family == socket.AF_INET else (41, 75, 1)))
    if family == socket.AF_INET6:
        listener.setsockopt(41, socket.IPV6_V6ONLY, 1)
    listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        try:
            if transparent and port == 15006:
                address, number = connection.getsockname()[:2]
                address = socket.inet_pton(family, address)
            elif family == socket.AF_INET:
                number, address = struct.unpack_from("!2xH4s", connection.getsockopt(0, 80, 16))
            else:
                number, address = struct.unpack_from("!2xH4x16s", connection.getsockopt(41, 80, 28))
            text = f"{port} {socket.inet_ntop(family, address)} {number}"
        except OSError as error:
            text = f"{port} {error}"
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
        connection.close()
def answer():
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 15053))
    while True:
        resolver.sendto(b"15053", resolver.recvfrom(1000)[1])
threading.Thread(target=answer).start()
for port in (15001, 15006):
    for family in (socket.AF_INET, socket.AF_INET6):
        threading.Thread(target=serve, args=(port, family)).start()
"""
# The app: it serves its name at port 8080 and dials what it is told to.
APP = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)"
ASK = """
import json, socket, sys, time
def ask(address, port):
    end = time.monotonic() + 60
    while True:
        try:
            connection = socket.create_connection((address, port), 5)
            break
        except ConnectionRefusedError:  # by a program that has started, and does not listen yet
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    return connection.recv(200).decode(errors="replace")
"""
DIAL = f"{ASK}print(ask(sys.argv[1], int(sys.argv[2])))"
DIAL_EACH = f"{ASK}print(json.dumps({{each: ask(each, int(sys.argv[1])) for each in sys.argv[2:]}}))"
# A query to the pod's own nameserver, once.
QUERY = """
import socket
[server] = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.settimeout(5)
sender.sendto(b"query", (server, 53))
print(sender.recv(1000).decode())
"""
ELSEWHERE = ("203.0.113.9", 443)
ELSEWHERE_IPV6 = ("2001:db8::9", 443)


def sidecar(**fields: object) -> dict[str, Any]:
    """The sidecar's container, with further fields of its specification."""
    return {**container("istio-proxy", WITNESS, 1337), **fields}


def container(name: str, program: str, uid: int) -> dict[str, Any]:
    """A container that runs a Python program as a user."""
    return {
        "name": name,
        "image": BASE,
        "command": ["python3", "-c", program],
        "securityContext": {
            "runAsUser": uid,
            "runAsGroup": uid,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def pod(
    name: str,
    *,
    init: list[dict[str, Any]] | None = None,
    containers: list[dict[str, Any]] | None = None,
    **metadata: dict[str, str],
) -> str:
    """A pod with app and sidecar, or with these containers, as YAML; `init` are its init containers."""
    spec = {
        "terminationGracePeriodSeconds": 0,
        "initContainers": init or [],
        "containers": containers or [container("app", APP, 1000), sidecar()],
    }
    result = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}
    text: str = yaml.safe_dump(result)
    return text


def dial(node: KubernetesNode, namespace: str, name: str, to: tuple[str, int]) -> str:
    """What the app of a pod is answered by whom it dials."""
    command = ["python3", "-c", DIAL, to[0], str(to[1])]
    return node.kubectl("-n", namespace, "exec", name, "-c", "app", "--", *command).strip()


def dial_in(node: KubernetesNode, namespace: str, name: str, port: int = 8080) -> str:
    """What the node is answered by a pod."""
    return node.run("python3", "-c", DIAL, address(node, namespace, name), str(port)).strip()


def answering(node: KubernetesNode, namespace: str) -> dict[str, str]:
    """The sidecar's port that answers the node, for each pod of a namespace by the pod's name."""
    pods = node.get("-n", namespace, "pods")["items"]
    names = {str(each["status"]["podIP"]): str(each["metadata"]["name"]) for each in pods}
    answers = json.loads(node.run("python3", "-c", DIAL_EACH, "8080", *names))
    return {names[address]: answer.split()[0] for address, answer in answers.items()}


def first_lines(node: KubernetesNode, namespace: str, count: int) -> dict[str, str]:
    """The first line that the app of each pod of a namespace writes, by the pod's name, once so many have written."""
    lines: dict[str, str] = {}
    logs = ("logs", "--selector=!none", "--container=app", "--prefix", "--tail=-1")

    def all_have_written() -> bool:
        for line in node.kubectl("-n", namespace, *logs).splitlines():
            name, _, text = line.partition("/app] ")
            lines.setdefault(name.removeprefix("[pod/"), text)
        return len(lines) == count

    node.until(all_have_written, "the first line of each app")
    return lines


def address(node: KubernetesNode, namespace: str, name: str) -> str:
    """A pod's IPv4 address."""
    status = node.get("-n", namespace, "pod", name)["status"]
    return str(status["podIP"])


def container_id(node: KubernetesNode, namespace: str, name: str, container: str) -> str:
    """The runtime's id of a pod's container."""
    status = node.get("-n", namespace, "pod", name)["status"]
    [result] = [each["containerID"] for each in status["containerStatuses"] if each["name"] == container]
    return str(result).rpartition("://")[2]


def status_of(node: KubernetesNode, namespace: str, name: str, kind: str = "initContainerStatuses") -> dict[str, Any]:
    """The state of a pod's first container of a kind."""
    document: dict[str, Any] = json.loads(
        node.kubectl("-n", namespace, "get", "pod", name, f"-o=jsonpath={{.status.{kind}[0]}}")
    )
    return document
