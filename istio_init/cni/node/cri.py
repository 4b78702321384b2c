"""The pods of a node, as its container runtime lists them through the CRI (cri.proto has the messages).

The CRI does not say where a sandbox's network namespace is; runtimes add it to a verbose status, as JSON. CRI-O does so
only if the sandbox has a process of its own, which it leaves out by default (drop_infra_ctr): a container says it then.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

from istio_init.errors import InitError, shown
from istio_init.kernel.host.grpc import NOT_FOUND, GrpcError
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from google.protobuf.message import Message

    from istio_init.cni.node.cri_pb2 import PodSandbox, PodSandboxStatusResponse
    from istio_init.kernel.host.grpc import GrpcChannel

Answer = TypeVar("Answer", bound="Message")

# crictl's variable, and the sockets on which runtimes listen by default.
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
CONTAINERS, CONTAINER = "/runtime.v1.RuntimeService/ListContainers", "/runtime.v1.RuntimeService/ContainerStatus"


class Sandbox(Record):
    """A pod's sandbox. `netns` is the path of its network namespace, and `pid` a process in it.

    They are empty and 0 if the runtime does not name them. `host` is true for a pod that uses the node's network.
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


def endpoint(socket: str, environ: Mapping[str, str], root: str = "") -> str:
    """The path of the runtime's socket: the one that is given, or the variable's, or a usual one that exists.

    Raises InitError if there is none, or if it is not a socket on this machine.
    """
    named = socket or environ.get(VARIABLE, "")
    if named:
        path = named.removeprefix("unix://")
        if not path.startswith("/"):
            raise InitError(f"{'--cri-socket' if socket else VARIABLE}: {shown(named)}: not the path of a unix socket")
        return path
    usual = next((path for path in SOCKETS if os.path.exists(f"{root}{path}")), None)
    if usual is None:
        raise InitError("no container runtime's socket found in the usual places: name it with --cri-socket")
    return f"{root}{usual}"


def sandboxes(channel: GrpcChannel) -> Iterator[Sandbox]:
    """All sandboxes, those of ended pods included, by namespace and name; raises GrpcError if the runtime fails."""
    messages = _messages()
    request = messages.ListPodSandboxRequest()
    answer = _call(channel, LIST, request, messages.ListPodSandboxResponse)
    listed = [_listed(item) for item in answer.items]
    for sandbox in sorted(listed, key=lambda each: (each.namespace, each.name, each.identity)):
        # Sandboxes that are not ready have no network any more, and there may be hundreds.
        yield _placed(channel, _with_status(channel, sandbox)) if sandbox.ready else sandbox


def _listed(item: PodSandbox) -> Sandbox:
    return Sandbox(
        item.id, item.metadata.name, item.metadata.namespace, item.metadata.uid,
        ready=item.state == _messages().SANDBOX_READY, annotations=dict(item.annotations),
    )  # fmt: skip


def _with_status(channel: GrpcChannel, sandbox: Sandbox) -> Sandbox:
    """A sandbox with its status; one that has been removed since it was listed is not ready."""
    messages = _messages()
    request = messages.PodSandboxStatusRequest(pod_sandbox_id=sandbox.identity, verbose=True)
    try:
        answer = _call(channel, STATUS, request, messages.PodSandboxStatusResponse)
    except GrpcError as error:
        if error.status == NOT_FOUND:
            return sandbox.replace(ready=False)
        raise
    return status(sandbox, answer)


def _placed(channel: GrpcChannel, sandbox: Sandbox) -> Sandbox:
    """A sandbox with the namespace that its containers name, if its own status names none."""
    if not sandbox.ready or sandbox.host or sandbox.netns or sandbox.pid:
        return sandbox
    for _, identity in _containers(channel, sandbox.identity):
        netns, pid = place(_container_info(channel, identity))
        if netns or pid:
            return sandbox.replace(netns=netns, pid=pid)
    return sandbox


def _containers(channel: GrpcChannel, sandbox: str) -> list[tuple[str, str]]:
    """The name and the identity of each container of a pod, those included that have ended."""
    messages = _messages()
    request = messages.ListContainersRequest(filter=messages.ContainerFilter(pod_sandbox_id=sandbox))
    listed = _call(channel, CONTAINERS, request, messages.ListContainersResponse).containers
    return [(each.metadata.name, each.id) for each in listed]


def _container_info(channel: GrpcChannel, identity: str) -> str:
    """The JSON in a container's verbose status; empty for one that has been removed since it was listed."""
    messages = _messages()
    request = messages.ContainerStatusRequest(container_id=identity, verbose=True)
    try:
        answer = _call(channel, CONTAINER, request, messages.ContainerStatusResponse)
    except GrpcError as error:
        if error.status == NOT_FOUND:
            return ""
        raise
    return str(answer.info.get("info", ""))


def status(sandbox: Sandbox, answer: PodSandboxStatusResponse) -> Sandbox:
    """A sandbox with what the runtime's answer says about it."""
    messages, state = _messages(), answer.status
    netns, pid = place(answer.info.get("info", ""))
    return sandbox.replace(
        ready=state.state == messages.SANDBOX_READY,
        host=state.linux.namespaces.options.network == messages.NODE,
        annotations=dict(state.annotations), netns=netns, pid=pid,
    )  # fmt: skip


def started_as(channel: GrpcChannel, sandbox: str, names: tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    """The command line and the environment of a pod's container with one of these names, also of one that has ended.

    None if the runtime has no such container, or does not say; GrpcError if it fails.
    """
    by_name = dict(_containers(channel, sandbox))
    identity = next((by_name[name] for name in names if name in by_name), None)
    if identity is None:
        return None
    process = _inside(_document(_container_info(channel, identity)), "runtimeSpec", "process")
    words, variables = _texts(_inside(process, "args")), _texts(_inside(process, "env"))
    return (words, variables) if words else None


def _texts(value: Any) -> list[str]:  # noqa: ANN401 (JSON)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _document(info: str) -> Any:  # noqa: ANN401 (JSON)
    try:
        return json.loads(info) if info else {}
    except ValueError:
        return {}


def place(info: str) -> tuple[str, int]:
    """The network namespace's path and a process's id in the JSON that containerd and CRI-O add to a status.

    Both have the sandbox's runtime specification (OCI) there.
    """
    document = _document(info)
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


def parsed(kind: type[Answer], method: str, data: bytes) -> Answer:
    """The message in a runtime's answer; raises GrpcError if it is no such message."""
    from google.protobuf.message import DecodeError

    try:
        message: Answer = kind.FromString(data)
    except DecodeError as error:
        why = shown(str(error))[1:-1]
        raise GrpcError(f"the runtime's {method.rpartition('/')[2]}: its answer can't be decoded: {why}") from error
    return message


def _call(channel: GrpcChannel, method: str, request: Message, kind: type[Answer]) -> Answer:
    return parsed(kind, method, channel.call(method, request.SerializeToString()))


def _messages() -> ModuleType:
    """The generated messages: imported where a runtime is asked, since no other command needs protobuf."""
    try:
        from istio_init.cni.node import cri_pb2
    except Exception as error:
        # Not ImportError alone: protobuf has an error of its own for a release that is too old.
        raise InitError(f"asking the runtime needs protobuf: pip install 'protobuf>=6.31,<8' ({error})") from error
    return cri_pb2
