"""The pods of a node, as its container runtime tells them through the CRI.

The messages: https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto. Where a sandbox's network
namespace is, the CRI itself does not say; runtimes tell it beside, in the JSON of a verbose status.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from istio_init.cni.node import protobuf
from istio_init.cni.node.protobuf import Message
from istio_init.errors import InitError, shown
from istio_init.kernel.host.grpc import NOT_FOUND, GrpcError
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.kernel.host.grpc import GrpcChannel

# crictl's variable, and where runtimes listen if nobody has told them otherwise.
VARIABLE = "CONTAINER_RUNTIME_ENDPOINT"
SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
)
LIST, STATUS = "/runtime.v1.RuntimeService/ListPodSandbox", "/runtime.v1.RuntimeService/PodSandboxStatus"
# enum NamespaceMode and enum PodSandboxState.
NODE, READY = 2, 0


class Sandbox(Record):
    """A pod's sandbox. `netns` is the path of its network namespace, and `pid` a process in it.

    They are empty and 0 where the runtime does not tell. `host` is a pod that uses the node's network.
    """

    identity: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    ready: bool = False
    host: bool = False
    annotations: Mapping[str, str] = {}
    netns: str = ""
    pid: int = 0


def endpoint(given: str, environ: Mapping[str, str], root: str = "") -> str:
    """The path of the runtime's socket: the one that is given, or the variable's, or one that is there.

    InitError where there is none, or where the runtime is not on this machine.
    """
    named = given or environ.get(VARIABLE, "")
    if named:
        path = named.removeprefix("unix://")
        if not path.startswith("/"):
            raise InitError(f"{'--cri-socket' if given else VARIABLE}: {shown(named)}: not the path of a unix socket")
        return path
    found = next((path for path in SOCKETS if os.path.exists(f"{root}{path}")), None)
    if found is None:
        raise InitError("no container runtime's socket is where it usually is: name it with --cri-socket")
    return f"{root}{found}"


def sandboxes(channel: GrpcChannel) -> Iterator[Sandbox]:
    """All sandboxes, of pods that have ended as well, by namespace and name; GrpcError where the runtime fails."""
    answer = _message(channel, LIST, b"")
    try:
        listed = [_listed(item) for item in answer.messages(1)]
    except ValueError as error:
        raise _unclear(LIST, error) from error
    for sandbox in sorted(listed, key=lambda each: (each.namespace, each.name, each.identity)):
        # What is not ready has no network any more, and may be hundreds.
        yield _told(channel, sandbox) if sandbox.ready else sandbox


def _listed(item: Message) -> Sandbox:
    """A PodSandbox."""
    about = item.message(2)
    return Sandbox(
        item.text(1), about.text(1), about.text(3), about.text(2),
        ready=item.number(3) == READY, annotations=item.pairs(6),
    )  # fmt: skip


def _told(channel: GrpcChannel, sandbox: Sandbox) -> Sandbox:
    """What the runtime tells of a sandbox besides; one that has been removed meanwhile is not ready."""
    try:
        answer = _message(channel, STATUS, protobuf.text(1, sandbox.identity) + protobuf.truth(2, value=True))
    except GrpcError as error:
        if error.status == NOT_FOUND:
            return sandbox.replace(ready=False)
        raise
    try:
        return status(sandbox, answer)
    except ValueError as error:
        raise _unclear(STATUS, error) from error


def status(sandbox: Sandbox, answer: Message) -> Sandbox:
    """A sandbox with what a PodSandboxStatusResponse says; ValueError for what is no such message."""
    told = answer.message(1)
    options = told.message(6).message(1).message(2)
    netns, pid = place(answer.pairs(2).get("info", ""))
    return sandbox.replace(
        ready=told.number(3) == READY, host=options.number(1) == NODE, annotations=told.pairs(8), netns=netns, pid=pid
    )


def place(info: str) -> tuple[str, int]:
    """The network namespace's path and a process' id in what containerd and CRI-O tell beside a status.

    Both have the sandbox's runtime specification (OCI) there.
    """
    try:
        document: Any = json.loads(info) if info else {}
    except ValueError:
        document = {}
    spaces = _inside(document, "runtimeSpec", "linux", "namespaces")
    listed = spaces if isinstance(spaces, list) else []
    path = next((_inside(each, "path") for each in listed if _inside(each, "type") == "network"), "")
    pid = _inside(document, "pid")
    return path if isinstance(path, str) else "", pid if isinstance(pid, int) and pid > 0 else 0


def _inside(document: Any, *names: str) -> Any:  # noqa: ANN401 (JSON)
    """A member of JSON objects one in the other; None where it is not there."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _message(channel: GrpcChannel, method: str, request: bytes) -> Message:
    try:
        return Message(channel.call(method, request))
    except ValueError as error:
        raise _unclear(method, error) from error


def _unclear(method: str, error: ValueError) -> GrpcError:
    return GrpcError(f"the runtime's {method.rpartition('/')[2]}: its answer can't be understood: {error}")
