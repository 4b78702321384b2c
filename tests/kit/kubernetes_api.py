"""An API server that has one answer after the other for requests of a pod, and the kubeconfig for it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# An answer: the status, and the body as JSON or as it is. None: no answer until the client has gone.
Answer = tuple[int, Any] | None


class Api:
    """The server: `asked` are the paths that it was asked for, each with the credentials; the last answer stays."""

    def __init__(self, kubeconfig: Path, *answers: Answer) -> None:
        self.kubeconfig, self.answers = str(kubeconfig), list(answers)
        self.requests: list[tuple[str, str]] = []
        self.over = threading.Event()


def pod(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:  # noqa: ANN401 (JSON)
    """A pod as the API writes it."""
    spec.setdefault("containers", [{"name": "app"}, {"name": "istio-proxy"}])
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web-0", "annotations": annotations}, "spec": spec}


def refusal(code: int, reason: str) -> Answer:
    """How the API says no."""
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}


@contextmanager
def serving(directory: Path, *answers: Answer) -> Iterator[Api]:
    """The server while it runs."""
    api = Api(directory / "kubeconfig", *answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.requests.append((self.path, self.headers.get("Authorization", "")))
            answer = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
            if answer is None:
                api.over.wait()
                return
            code, body = answer
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        write_kubeconfig(Path(api.kubeconfig), f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield api
        finally:
            api.over.set()
            server.shutdown()
            thread.join()


def write_kubeconfig(path: Path, server: str) -> None:
    """A kubeconfig for a server, with a token."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "node",
        "contexts": [{"name": "node", "context": {"cluster": "here", "user": "plugin"}}],
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "plugin", "user": {"token": "secret-words"}}],
    }
    path.write_text(json.dumps(document))
