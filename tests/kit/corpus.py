"""Hundreds of manifests as common tools write them: each kind of workload, by each tool, in each situation."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml

KINDS = {
    "Pod": "v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ReplicaSet": "apps/v1",
    "ReplicationController": "v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "Rollout": "argoproj.io/v1alpha1",
    "DeploymentConfig": "apps.openshift.io/v1",
    "Service": "serving.knative.dev/v1",
}
WAIT = {"name": "wait", "image": "busybox", "command": ["sh", "-c", "until nc -z db 5432; do\n  sleep 1\ndone\n"]}
PROXY = {"name": "istio-proxy", "image": "registry.example/proxy:1", "securityContext": {"runAsUser": 1234}}
# What is in the pod beside the application: init containers, further containers, and annotations.
SITUATIONS: dict[str, dict[str, Any]] = {
    "alone": {},
    "init": {"initContainers": [WAIT, {"name": "migrate", "image": "m", "args": ["up"]}]},
    "empty": {"initContainers": []},
    "null": {"initContainers": None},
    "native": {"initContainers": [{**PROXY, "restartPolicy": "Always"}, WAIT]},
    "plain": {"initContainers": [WAIT], "containers": [PROXY]},
    "annotated": {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "8081", "checksum/config": "0e1f"}},
    "opted out": {"labels": {"sidecar.istio.io/inject": "false"}},
}


def workload(kind: str, situation: dict[str, Any]) -> dict[str, Any]:
    """One object as a program has it before it writes it."""
    app = {
        "name": "shop",
        "image": "registry.example/shop@sha256:abc",
        "env": [{"name": "ON", "value": "yes"}, {"name": "URL", "value": "http://db:5432/?a=b#c"}],
        "ports": [{"containerPort": 8080, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
    }
    spec: dict[str, Any] = {"serviceAccountName": "shop", "containers": [app, *situation.get("containers", [])]}
    if "initContainers" in situation:
        spec["initContainers"] = situation["initContainers"]
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    metadata: dict[str, Any] = {"labels": {"app": "shop", "version": "1.10", **situation.get("labels", {})}}
    if annotations := situation.get("annotations"):
        metadata["annotations"] = annotations
    template = {"metadata": metadata, "spec": spec}
    name = {"name": "shop", "namespace": "default"}
    head = {"apiVersion": KINDS[kind], "kind": kind}
    if kind == "Pod":
        return {**head, "metadata": {**name, **metadata}, "spec": spec}
    if kind == "CronJob":
        return {
            **head,
            "metadata": name,
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": template}}},
        }
    selector = {} if kind in {"Job", "Service"} else {"replicas": 2, "selector": {"matchLabels": {"app": "shop"}}}
    return {**head, "metadata": name, "spec": {**selector, "template": template}}


# -- The tools.


def helm(value: dict[str, Any]) -> str:
    """As `helm template` prints a chart: comments of its own, indented lists, quotes where the chart has them."""
    body = yaml.dump(value, Dumper=Indented, sort_keys=False).replace("name: shop\n", 'name: "shop"\n', 1)
    body = body.replace("spec:\n", "spec:\n  # {} of values.yaml\n  \n", 1)
    account = "# Source: shop/templates/account.yaml\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: shop\n"
    return f"---\n{account}---\n# Source: shop/templates/workload.yaml\n{body}"


def kustomize(value: dict[str, Any]) -> str:
    """As `kustomize build` prints: sorted keys, lists at the column of their key, documents between dashes."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"}, "spec": {"ports": [{"port": 80}]}}
    return "---\n".join(yaml.dump(each, sort_keys=True) for each in (service, value))


def kubectl_yaml(value: dict[str, Any]) -> str:
    """As `kubectl get -o yaml` prints several objects: a List, with what the cluster adds."""
    item = copy.deepcopy(value)
    item["metadata"] |= {
        "uid": "0b1d",
        "resourceVersion": "1",
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
    }
    item["status"] = {"observedGeneration": 1, "conditions": [{"type": "Available", "status": "True"}]}
    return yaml.dump({"apiVersion": "v1", "items": [item], "kind": "List", "metadata": {"resourceVersion": ""}})


def kubectl_json(value: dict[str, Any]) -> str:
    """As `kubectl get -o json` prints one object."""
    return json.dumps(value, indent=4) + "\n"


def jsonnet(value: dict[str, Any]) -> str:
    """As jsonnet manifests a List: sorted keys, three spaces."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [value]}, indent=3, sort_keys=True)


def compact(value: dict[str, Any]) -> str:
    """As programs send it: JSON without a space."""
    return json.dumps(value, separators=(",", ":"))


def by_hand(value: dict[str, Any]) -> str:
    """As people write it on Windows: comments at the ends of lines, short things in brackets, no last line break."""
    lines = yaml.dump(value, sort_keys=False, default_flow_style=None, width=1000).splitlines()
    lines = [f"{line}   # {n}" if n % 3 == 0 and line.endswith(":") else line for n, line in enumerate(lines)]
    return "\r\n".join(["# shop", "", *lines])


def anchored(value: dict[str, Any]) -> str:
    """As templates with anchors are: a part that is defined once, beside the workload, and used in it."""
    shared = copy.deepcopy(value)
    text = yaml.dump(shared, sort_keys=False).replace("labels:\n", "labels: &labels\n", 1)
    return text + "x-labels: *labels\n" if "&labels" in text else text


class Indented(yaml.SafeDumper):
    """Writes the dashes of a list two columns behind its key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT002 (PyYAML's)
        """Begin a level, which PyYAML calls indentless where the dashes are to be at the column of the key."""
        super().increase_indent(flow, False)


TOOLS: tuple[Callable[[dict[str, Any]], str], ...] = (
    helm, kustomize, kubectl_yaml, kubectl_json, jsonnet, compact, by_hand, anchored,
)  # fmt: skip


def corpus() -> Iterator[tuple[str, str]]:
    """Each manifest with its name."""
    for tool, kind, (name, situation) in itertools.product(TOOLS, KINDS, SITUATIONS.items()):
        yield f"{tool.__name__} {kind} {name}", tool(workload(kind, copy.deepcopy(situation)))
