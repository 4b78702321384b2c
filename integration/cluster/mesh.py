"""Istio's own control plane on the node, by its charts, with a plain Envoy as the proxy and the image under test."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from integration.cluster.archive import image_archive
from integration.cluster.build_istio import BOOTSTRAP, CHARTS, PROGRAM, istio
from integration.cluster.node import KubernetesNode
from integration.containers.conftest import BASE, IMAGE
from integration.containers.envoy import binary

SYSTEM = "istio-system"
ISTIOD, PROXY = "localhost/istio/pilot:1", "localhost/istio/proxy:1"
VALUES = {
    "image": ISTIOD,
    "autoscaleEnabled": False,
    "resources": {"requests": {"cpu": "10m", "memory": "100Mi"}},
    "global": {
        "proxy": {"image": PROXY, "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}}},
        "proxy_init": {"image": IMAGE},
    },
    # What Istio's own build of Envoy has beyond a plain one.
    "telemetry": {"enabled": False},
    "env": {"PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false"},
}
# The app: it answers with the headers that reached it, as JSON.
ECHO = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Echo).serve_forever()
"""
# What it prints: the status and the body, or the error's name.
ASK = """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10)
try:
    client.request("GET", "/")
    answer = client.getresponse()
    print(answer.status, answer.read().decode())
except OSError as error:
    print(type(error).__name__)
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""


@contextlib.contextmanager
def control_plane(node: KubernetesNode) -> Iterator[None]:
    """Istiod from its charts, until it is uninstalled."""
    build = istio()
    node.load(image_archive(ISTIOD, ("/usr/local/bin/pilot-discovery",), _program(build, "pilot-discovery"), "1337"))
    node.load(image_archive(PROXY, ("/usr/local/bin/pilot-agent",), _proxy(build), "1337"))
    node.kubectl("create", "namespace", SYSTEM)
    try:
        node.run("helm", "install", "base", str(build / CHARTS / "base"), f"--namespace={SYSTEM}")
        istiod(node, "install", json.dumps(VALUES), "--values=-")
        yield
    finally:
        for release in ("istiod", "base"):
            node.completed("helm", "uninstall", release, f"--namespace={SYSTEM}", "--wait", "--timeout=60s")
        node.kubectl("delete", "namespace", SYSTEM, "--timeout=90s")


def istiod(node: KubernetesNode, verb: str, text: str = "", *arguments: str) -> None:
    """Install or upgrade the control plane's release, and wait until it serves."""
    chart = str(istio() / CHARTS / "istio-control" / "istio-discovery")
    node.run("helm", verb, "istiod", chart, f"--namespace={SYSTEM}", *arguments, text=text)
    node.kubectl("-n", SYSTEM, "rollout", "status", "deployment/istiod", "--timeout=240s")


def _program(build: Path, name: str) -> dict[str, Path]:
    return {f"usr/local/bin/{name}": build / PROGRAM}


def _proxy(build: Path) -> dict[str, Path]:
    """As Istio's image has it: the proxy's agent, the bootstrap's template, and Envoy with its libraries."""
    envoy = binary()
    listed = subprocess.run(["ldd", envoy], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in listed.split() if word.startswith("/")]
    return {
        **_program(build, "pilot-agent"),
        "usr/local/bin/envoy": envoy,
        "var/lib/istio/envoy/envoy_bootstrap_tmpl.json": build / BOOTSTRAP,
        **{path.removeprefix("/"): Path(path) for path in libraries},
    }


def app(name: str, namespace: str, **annotations: str) -> str:
    """A pod that answers at port 8080, and its service, as the injector is given them."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name,
                        "namespace": namespace,
                        "labels": {"app": name},
                        "annotations": annotations,
                    },
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [
                            {
                                "name": "app",
                                "image": BASE,
                                "command": ["python3", "-c", ECHO],
                                "ports": [{"containerPort": 8080}],
                                "readinessProbe": probe,
                            }
                        ],
                    },
                },
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
                },
            ],
        }
    )


def ask(node: KubernetesNode, namespace: str, name: str, host: str, port: int = 80) -> str:
    """What the app of a pod is answered by a host: the status and the body, or an error's name."""
    command = ["python3", "-c", ASK, host, str(port)]
    return node.kubectl("-n", namespace, "exec", name, "-c", "app", "--", *command).strip()
