"""Istio's own configuration for a sidecar and five services, as files that a real Envoy loads: its dump, turned back.

The addresses are moved to those of the pod and the peer of integration.kit.pod; every listener, TCP proxy and
connection manager logs what the walk is held against. What Istio keeps in xDS is in files here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integration.containers.envoy_config import TYPES, Json
from tests.envoy import sidecar

Change = Callable[[Any], object]

POD, PEER = "10.77.0.2", "10.99.0.1"
SERVICES = ("10.96.0.10", "10.96.0.20", "10.96.0.30", "10.96.0.40")
MOVED = {"10.44.0.2": POD, "10.44.1.11": PEER}
LOGGED = {
    "chain": "%FILTER_CHAIN_NAME%",
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER_RAW%",
    "flags": "%RESPONSE_FLAGS%",
    "status": "%RESPONSE_CODE%",
    "source": "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "host": "%UPSTREAM_HOST%",
}
CERTIFICATES = "/etc/istio"
SIGNED = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")


def dump(mode: str, *, registry_only: bool = False) -> Any:  # noqa: ANN401 (JSON)
    """The dump for an interception mode, at the addresses of pod and peer."""
    text = sidecar.text("TPROXY" if mode == "TPROXY" else "REDIRECT")
    for old, new in MOVED.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    value = json.loads(text)
    if registry_only:
        close(value)
    return value


def close(value: Any) -> None:  # noqa: ANN401
    """Change a dump as REGISTRY_ONLY does: calls to addresses outside of the mesh are refused."""
    for table in (each["route_config"] for part in value["configs"] for each in part.get("dynamic_route_configs", ())):
        for host in table["virtual_hosts"]:
            if host["name"] == "allow_any":
                host.update(
                    name="block_all",
                    routes=[{"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}],
                )
    for listener in (each for each in _listeners(value) if each.get("traffic_direction") == "OUTBOUND"):
        for chain in (*listener["filter_chains"], listener.get("default_filter_chain", {"filters": []})):
            for config in (each["typed_config"] for each in chain["filters"]):
                if config.get("cluster") == "PassthroughCluster":
                    config["cluster"] = "BlackHoleCluster"


def written(value: Any, admin: Path) -> Json:  # noqa: ANN401
    """The bootstrap for a dump; all that it refers to is written beside the admin socket."""
    directory = admin.parent
    certify(directory)
    resources: dict[str, list[Any]] = {"lds": [], "cds": []}
    for listener in _listeners(value):
        _log(listener, directory)
        for config in _managers(listener):
            if "rds" in config:
                config["rds"]["config_source"] = {
                    "path_config_source": {
                        "path": str(directory / f"rds-{_safe(config['rds']['route_config_name'])}.json")
                    }
                }
        resources["lds"].append(listener)
    for part in value["configs"]:
        for each in part.get("dynamic_active_clusters", ()):
            cluster = each["cluster"]
            if cluster["type"] == "EDS":
                path = str(directory / f"eds-{_safe(cluster['name'])}.json")
                cluster["eds_cluster_config"] = {"eds_config": {"path_config_source": {"path": path}}}
            resources["cds"].append({"connect_timeout": "2s", **cluster})
        for each in part.get("dynamic_route_configs", ()):
            resources[f"rds-{_safe(each['route_config']['name'])}"] = [each["route_config"]]
        for each in part.get("dynamic_endpoint_configs", ()):
            for locality in each["endpoint_config"].get("endpoints", ()):
                # A dump has the weight 0, which Envoy refuses to read.
                locality.pop("load_balancing_weight", None)
            resources[f"eds-{_safe(each['endpoint_config']['cluster_name'])}"] = [each["endpoint_config"]]
    for name, entries in resources.items():
        text = (
            json.dumps({"resources": entries})
            .replace(CERTIFICATES, str(directory))
            .replace("[redacted]", str(directory / "srv.key"))
        )
        (directory / f"{name}.json").write_text(text)
    return {
        "node": {"id": "sidecar", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": str(admin)}}},
        "dynamic_resources": {
            f"{kind}_config": {"path_config_source": {"path": str(directory / f"{kind}.json")}}
            for kind in ("lds", "cds")
        },
    }


def _safe(name: str) -> str:
    return name.replace("|", "_").replace(":", "_")


def _listeners(value: Any) -> list[Any]:  # noqa: ANN401
    result = [each for part in value["configs"] for each in part.get("static_listeners", ())]
    result += [each["active_state"] for part in value["configs"] for each in part.get("dynamic_listeners", ())]
    return [each["listener"] for each in result]


def _filters(listener: Any) -> list[Any]:  # noqa: ANN401
    chains = [
        *listener["filter_chains"],
        *([listener["default_filter_chain"]] if "default_filter_chain" in listener else []),
    ]
    return [each["typed_config"] for chain in chains for each in chain["filters"]]


def _managers(listener: Any) -> list[Any]:  # noqa: ANN401
    return [each for each in _filters(listener) if each["@type"].endswith("HttpConnectionManager")]


def _log(listener: Any, directory: Path) -> None:  # noqa: ANN401
    fields = {"listener": listener["name"], **LOGGED}
    logger = {
        "name": "file",
        "typed_config": {
            "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
            "path": str(directory / "access"),
            "log_format": {"json_format": fields},
        },
    }
    # A listener logs every connection: those that no filter chain takes nobody else does.
    listener["access_log"] = [{**logger, "filter": {"response_flag_filter": {"flags": ["NR"]}}}]
    for each in _filters(listener):
        each["access_log"] = [logger]


def certify(directory: Path) -> None:
    """An authority, a certificate for the server and one for a client."""
    subject = ("-subj", "/CN=test", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name, more in (("ca", ()), ("srv", SIGNED), ("client", SIGNED)):
        command = ["openssl", "req", "-x509", *subject, *more, "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    for path in directory.iterdir():
        path.chmod(0o644)
