"""Prometheus of Debian's archive: unpacked, not installed, and run on a directory of its own."""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from integration.kit.debian import unpacked_once

SUITE = "bookworm"
# A directory in which one was unpacked before.
MADE_BEFORE = "ISTIO_INIT_TEST_PROMETHEUS"


class Prometheus:
    """A server that runs, at a port of the loopback interface."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query. OSError where the server does not run yet."""
        result: list[dict[str, Any]] = self._ask("/api/v1/query", query=expression)["result"]
        return result

    def values(self, label: str, metric: str) -> list[str]:
        """The values that a label has in a metric's series."""
        result: list[str] = self._ask(f"/api/v1/label/{label}/values", **{"match[]": metric})
        return result

    def _ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 (JSON)
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as client:
            client.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            response = client.getresponse()
            text = response.read().decode()
        if response.status == 503:
            raise ConnectionError(text)
        answer = json.loads(text)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]


@contextmanager
def prometheus(
    shared: pathlib.Path, directory: pathlib.Path, target: str, labels: Mapping[str, str]
) -> Iterator[Prometheus]:
    """A server that scrapes a target (address:port) each second, and gives its series these labels, `job` included."""
    program = unpacked_once(SUITE, "prometheus", shared, MADE_BEFORE, re.compile("prometheus$")) / "usr/bin/prometheus"
    scrape = {"job_name": labels["job"], "static_configs": [{"targets": [target], "labels": dict(labels)}]}
    config = directory / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program), f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
    with (
        (directory / "prometheus.log").open("wb") as log,
        subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log) as process,
    ):
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
