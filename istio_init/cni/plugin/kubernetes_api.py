"""A pod from the Kubernetes API, through its own client: where the runtime hands on no annotations.

Imported where a kubeconfig is given, and only there: the client takes longer to import than an ADD takes.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from istio_init.cni.plugin.protocol import CONFIGURATION, TRY_AGAIN, PluginError
from istio_init.errors import InitError, shown
from istio_init.formats import yaml_json
from istio_init.kernel.host import files
from istio_init.options.cni_pod import PROXY_CONTAINER, PodDescription, proxy_role

if TYPE_CHECKING:
    from istio_init.cni.plugin.settings import Api
    from istio_init.log import Log

# Status codes that a repeated request gets as well.
FINAL = frozenset({401, 403})


def pod(api: Api, namespace: str, name: str, log: Log) -> PodDescription:
    """The pod from the API server; PluginError if it is not available: the pod must not start then."""
    core = _client(api)
    # To connect, and to read: a single float is no timeout at all to the client's older releases.
    limits = (api.timeout, api.timeout)
    why = ""
    for attempt in range(1, api.attempts + 1):
        if attempt > 1:
            time.sleep(api.pause)
        try:
            return _description(name, core.read_namespaced_pod(name, namespace, _request_timeout=limits).to_dict())
        except InitError:
            raise  # the deadline of the call, or a signal
        except Exception as error:  # noqa: BLE001 (the client lets through what its libraries raise)
            why = _reason(error)
            log.warn(f"the Kubernetes API has no answer for pod {namespace}/{name}, try {attempt}: {why}")
            if getattr(error, "status", 0) in FINAL:
                break
    raise PluginError(
        TRY_AGAIN,
        f"the Kubernetes API does not tell what the pod {namespace}/{name} asks for ({why}): "
        f"see that {api.kubeconfig} is one for this node that may get pods",
    )


def _client(api: Api) -> Any:  # noqa: ANN401 (the client has no types)
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise PluginError(
            CONFIGURATION, f"kubernetes.kubeconfig needs the client: pip install 'kubernetes>=31.0' ({error})"
        ) from error
    try:
        _require_bounded(api.kubeconfig)
        api_client = config.new_client_from_config(api.kubeconfig, persist_config=False)
    except Exception as error:
        raise PluginError(
            TRY_AGAIN, f"kubernetes.kubeconfig: {api.kubeconfig}: can't be used: {_reason(error)}"
        ) from error
    # One attempt is one request; retries are made here.
    api_client.configuration.retries = False
    api_client.rest_client = type(api_client.rest_client)(api_client.configuration)
    return client.CoreV1Api(api_client)


def _require_bounded(path: str) -> None:
    """InitError or ValueError for a kubeconfig that is not a regular file, too large, or a bomb of YAML aliases."""
    content = files.read(path)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    yaml_json.load(content.data.decode())


def _reason(error: Exception) -> str:
    """An exception of the client's in one short line."""
    status = getattr(error, "status", None)
    reason = f"{status} {getattr(error, 'reason', '')}" if status else f"{type(error).__name__}: {error}"
    return shown(" ".join(reason.split()), 200)[1:-1]


def _description(name: str, manifest: dict[str, Any]) -> PodDescription:
    metadata, spec = manifest.get("metadata") or {}, manifest.get("spec") or {}
    if metadata.get("name") != name:
        # Older releases of the client make an empty pod of whatever comes, a proxy's page for one.
        raise ValueError("the answer is not about this pod")
    containers = [*(spec.get("init_containers") or []), *(spec.get("containers") or [])]
    proxy: dict[str, Any] = next((each for each in containers if each.get("name") == PROXY_CONTAINER), {})
    security = proxy.get("security_context") or {}
    words = [*(proxy.get("command") or []), *(proxy.get("args") or [])]
    variables = {each["name"]: each.get("value") or "" for each in proxy.get("env") or []}
    return PodDescription(
        metadata.get("annotations") or {},
        metadata.get("labels") or {},
        tuple(str(each.get("name")) for each in containers),
        variables,
        proxy_role(words),
        security.get("run_as_user") or 0,
        security.get("run_as_group") or 0,
        bool(spec.get("host_network")),
    )
