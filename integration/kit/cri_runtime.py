"""A container runtime as far as `cni repair` asks it, by gRPC's own library: sandboxes in a test's namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cri_api.v1.api_pb2 as api
import grpc

from istio_init.cni.node.cri import LIST, STATUS


class CriRuntime:
    """The sandboxes by their identity: the pod's name and namespace, and the path of the network namespace."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, tuple[str, str, str]] = {}
        self.annotations: dict[str, str] = {}

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
        info = json.dumps({"runtimeSpec": {"linux": {"namespaces": spaces}}})
        return api.PodSandboxStatusResponse(status=result, info={"info": info})


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
    }
    service = LIST.strip("/").partition("/")[0]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[grpc.method_handlers_generic_handler(service, methods)])
    server.add_insecure_port(f"unix://{path}")
    server.start()
    try:
        yield runtime
    finally:
        server.stop(None).wait()
