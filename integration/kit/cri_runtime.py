"""A container runtime as far as repair and diagnose ask it, by gRPC's own library: sandboxes in a test's namespaces.

What it adds to a status is what containerd and CRI-O add. CRI-O adds nothing to that of a sandbox without a process of
its own (server/sandbox_status.go, createSandboxInfo), and to a container's its process, its specification and the
sandbox (server/container_status.go, containerInfo).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cri_api.v1.api_pb2 as api
import grpc

from istio_init.cni.node.cri import CONTAINER, CONTAINERS, LIST, STATUS


class CriRuntime:
    """The sandboxes by their identity: the pod's name and namespace, and the path of the network namespace.

    With `without_process` it is CRI-O as it is by default. `processes` are the command line and the environment of each
    container, by its sandbox's identity and its name; `process_ids` are those of sandboxes.
    """

    def __init__(self) -> None:
        self.sandboxes: dict[str, tuple[str, str, str]] = {}
        self.annotations: dict[str, str] = {}
        self.without_process = False
        self.process_ids: dict[str, int] = {}
        self.processes: dict[tuple[str, str], tuple[list[str], list[str]]] = {}

    def list(self, _request: Any, _context: Any) -> Any:  # noqa: ANN401 (protobuf's)
        """ListPodSandbox."""
        items = [
            api.PodSandbox(
                id=identity,
                metadata=api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace=namespace),
                state=api.SANDBOX_READY,
            )
            for identity, (name, namespace, _) in self.sandboxes.items()
        ]
        return api.ListPodSandboxResponse(items=items)

    def status(self, request: Any, _context: Any) -> Any:  # noqa: ANN401
        """PodSandboxStatus, verbose."""
        *_, path = self.sandboxes[request.pod_sandbox_id]
        linux = api.LinuxPodSandboxStatus(namespaces=api.Namespace(options=api.NamespaceOption(network=api.POD)))
        result = api.PodSandboxStatus(state=api.SANDBOX_READY, linux=linux, annotations=self.annotations)
        spaces = [{"type": "network", "path": path}]
        number = self.process_ids.get(request.pod_sandbox_id, 0)
        about = {} if self.without_process else {"pid": number, "runtimeSpec": {"linux": {"namespaces": spaces}}}
        return api.PodSandboxStatusResponse(status=result, info={"info": json.dumps(about)})

    def containers(self, request: Any, _context: Any) -> Any:  # noqa: ANN401
        """ListContainers, of one sandbox."""
        sandbox = request.filter.pod_sandbox_id
        listed = [
            api.Container(
                id=f"{identity}/{name}", pod_sandbox_id=identity, metadata=api.ContainerMetadata(name=name),
                state=api.CONTAINER_EXITED,
            )
            for identity, name in self.processes
            if identity == sandbox
        ]  # fmt: skip
        return api.ListContainersResponse(containers=listed)

    def container(self, request: Any, _context: Any) -> Any:  # noqa: ANN401
        """ContainerStatus, verbose."""
        sandbox, _, name = request.container_id.partition("/")
        words, environment = self.processes[sandbox, name]
        *_, path = self.sandboxes[sandbox]
        about = {
            "sandboxID": sandbox,
            "pid": 0,
            "runtimeSpec": {
                "process": {"args": words, "env": environment},
                "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": path}]},
            },
            "privileged": False,
        }
        return api.ContainerStatusResponse(info={"info": json.dumps(about)})


@contextmanager
def cri_runtime(path: Path) -> Iterator[CriRuntime]:
    """The runtime, on a socket at a path."""
    runtime = CriRuntime()

    def method(call: Any, kind: Any) -> Any:  # noqa: ANN401
        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=kind.FromString, response_serializer=lambda answer: answer.SerializeToString()
        )

    methods = {
        LIST.rpartition("/")[2]: method(runtime.list, api.ListPodSandboxRequest),
        STATUS.rpartition("/")[2]: method(runtime.status, api.PodSandboxStatusRequest),
        CONTAINERS.rpartition("/")[2]: method(runtime.containers, api.ListContainersRequest),
        CONTAINER.rpartition("/")[2]: method(runtime.container, api.ContainerStatusRequest),
    }
    service = LIST.strip("/").partition("/")[0]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[grpc.method_handlers_generic_handler(service, methods)])
    server.add_insecure_port(f"unix://{path}")
    server.start()
    try:
        yield runtime
    finally:
        server.stop(None).wait()
