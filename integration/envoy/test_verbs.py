"""explain, prove and doctor --live, with the admin interface of the Envoy in the pod."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from integration.envoy.world import ARTICLE, World
from integration.kit.namespace import Namespace
from istio_init.cli.app import main

QUIET = {"ENVOY_USER": "0"}
FLAGS = [
    "--no-enable-ipv6",
    "-u",
    "1337",
    "-i",
    "*",
    "-b",
    "*",
    "-d",
    "15090,15020",
    "--force-iptables-binary",
    "legacy",
]


@contextmanager
def admin_port(world: World, port: int = 15000) -> Iterator[None]:
    """The admin interface at a port of the pod's loopback, where Istio has it."""

    class Relay(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += self.rfile.readline()
            with socket.socket(socket.AF_UNIX) as admin:
                admin.connect(str(world.envoy.path))
                admin.sendall(request)
                while answer := admin.recv(65536):
                    self.wfile.write(answer)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    server = world.pod.namespace.inside(lambda: Server(("127.0.0.1", port), Relay))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answered(capsys: pytest.CaptureFixture[str], *command: str, codes: frozenset[int] = frozenset({0})) -> Any:  # noqa: ANN401
    """What a verb prints as JSON."""
    assert main([command[0], *FLAGS, *command[1:], "--output", "json"], QUIET) in codes
    return json.loads(capsys.readouterr().out)


def proxy_checks(result: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    return [(each["name"], each["status"]) for each in result["checks"] if each["name"].startswith("Envoy")]


def test_the_verbs_ask_the_pods_own_envoy(capsys: pytest.CaptureFixture[str]) -> None:
    with World("REDIRECT", ARTICLE) as world, admin_port(world):
        live = ("--live", "--netns", world.pod.namespace.path)
        for admin in (f"--envoy=unix:{world.envoy.path}", "--envoy=http://127.0.0.1:15000", "--host=ratings"):
            answer = answered(capsys, "explain", *live, admin, "--url", "http://ratings:9080/")
            (path,) = answer["answers"][0]["paths"]
            assert (path["stages"][1]["envoy"]["route"], path["end"]) == ("rest", "wire")
        assert answered(capsys, "prove", *live, "--envoy=http://127.0.0.1:15000")["envoy"]["fits"] is True
        assert proxy_checks(answered(capsys, "doctor", *live, codes=frozenset({0, 1}))) == [("Envoy", "ok")]


def test_doctor_names_a_misfit(capsys: pytest.CaptureFixture[str]) -> None:
    with World("REDIRECT", f"{ARTICLE} -x 10.96.0.0/24") as world, admin_port(world):
        live = ("--live", "--netns", world.pod.namespace.path, "-x", "10.96.0.0/24")
        actual = proxy_checks(answered(capsys, "doctor", *live, codes=frozenset({1})))
        assert {*actual} == {("Envoy P12 ipv4", "fail")}


def test_doctor_without_a_proxy(capsys: pytest.CaptureFixture[str], namespace: Namespace) -> None:
    answer = answered(capsys, "doctor", "--live", "--netns", namespace.path, codes=frozenset({0, 1}))
    assert proxy_checks(answer) == [("Envoy", "ok")]
