"""Where the API server is and what proves who asks: over TLS, with tokens and certificates that are replaced."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from istio_init.cni.agent.credentials import ApiCredentials, from_kubeconfig, in_cluster
from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.errors import InitError
from tests.kit.lying_api import Answer, LyingApi, Request, pod_list


async def empty(_request: Request, answer: Answer) -> None:
    await answer.json(pod_list(7))


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key, by OpenSSL."""
    result, key = directory / f"{name}.crt", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", result], check=True, capture_output=True)
    return result, key


def server_side(directory: Path, name: str = "server") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(directory, name))
    return context


def listed(credentials: Callable[[str], ApiCredentials], tls: ssl.SSLContext | None) -> list[Request]:
    """The requests of one list."""

    async def test() -> list[Request]:
        async with LyingApi(empty).serving(tls) as server:
            await KubernetesApi(credentials(server.url), 20).pods("n", "0")
            return server.requests

    return asyncio.run(asyncio.wait_for(test(), 60))


def test_a_pods_own_credentials(tmp_path: Path) -> None:
    tls = server_side(tmp_path)
    (tmp_path / "server.crt").rename(tmp_path / "ca.crt")
    token = tmp_path / "token"
    token.write_text("first\n")

    async def test() -> list[str]:
        async with LyingApi(empty).serving(tls) as server:
            environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": server.url.rpartition(":")[2]}
            api = KubernetesApi(in_cluster(environ, str(tmp_path)), 20)
            await api.pods("n", "0")
            token.write_text("second")  # as the kubelet renews it
            await api.pods("n", "0")
            return [each.headers["authorization"] for each in server.requests]

    assert asyncio.run(asyncio.wait_for(test(), 60)) == ["Bearer first", "Bearer second"]


def test_a_server_that_another_authority_signed_is_refused_until_that_is_the_authority(tmp_path: Path) -> None:
    tls = server_side(tmp_path)
    certificate(tmp_path, "other")
    authority = tmp_path / "ca.crt"
    authority.write_bytes((tmp_path / "other.crt").read_bytes())

    async def test() -> None:
        async with LyingApi(empty).serving(tls) as server:
            api = KubernetesApi(ApiCredentials(server.url, {}, {"certificate-authority": str(authority)}), 20)
            with pytest.raises(HttpError, match=r"(?i)certificate.verify.failed"):
                await api.pods("n", "0")
            assert server.requests == []
            # The cluster's authority is replaced on the disk.
            authority.write_bytes((tmp_path / "server.crt").read_bytes())
            await api.pods("n", "0")

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("inline", [False, True])
def test_a_kubeconfig_with_a_client_certificate(tmp_path: Path, inline: bool) -> None:
    tls = server_side(tmp_path)
    result, key = certificate(tmp_path, "client")
    tls.load_verify_locations(result)
    tls.verify_mode = ssl.CERT_REQUIRED

    def file_or_data(name: str, path: Path) -> dict[str, str]:
        return {f"{name}-data": base64.b64encode(path.read_bytes()).decode()} if inline else {name: str(path)}

    def credentials(url: str) -> ApiCredentials:
        user = {**file_or_data("client-certificate", result), **file_or_data("client-key", key)}
        cluster = {"server": url, **file_or_data("certificate-authority", tmp_path / "server.crt")}
        return from_kubeconfig(kubeconfig(tmp_path, user, cluster))

    [request] = listed(credentials, tls)
    assert "authorization" not in request.headers


def kubeconfig(directory: Path, user: dict[str, Any], cluster: dict[str, Any]) -> str:
    document = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    (directory / "kubeconfig").write_text(json.dumps(document))
    return str(directory / "kubeconfig")


def test_a_server_below_a_path(tmp_path: Path) -> None:
    def credentials(url: str) -> ApiCredentials:
        return from_kubeconfig(kubeconfig(tmp_path, {"token": "t"}, {"server": f"{url}/k8s/clusters/c/"}))

    [request] = listed(credentials, None)
    assert request.path == "/k8s/clusters/c/api/v1/pods"


@pytest.mark.parametrize("text", ["", "{", "kind: Config", "[]", "current-context: a\ncontexts: [{name: b}]", "\0"])
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(InitError, match="not a kubeconfig that can be used") as raised:
        from_kubeconfig(str(tmp_path / "kubeconfig"))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"exec": {"command": "reboot"}}, {}),
        ({"auth-provider": {}}, {}),
        ({"username": "a", "password": "b"}, {}),
        ({"as": "somebody"}, {}),
        ({}, {"proxy-url": "http://127.0.0.1:3128"}),
        ({}, {"tls-server-name": "kubernetes"}),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any]) -> None:
    name = min({**user, **cluster})
    with pytest.raises(InitError, match=f"{name}: not supported"):
        from_kubeconfig(kubeconfig(tmp_path, user, {"server": "https://127.0.0.1", **cluster}))


def test_files_beside_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths begin at the kubeconfig's own directory, as for kubectl."""
    tls = server_side(tmp_path)
    (tmp_path / "token").write_text("beside")
    monkeypatch.chdir("/")

    def credentials(url: str) -> ApiCredentials:
        user, cluster = {"tokenFile": "token"}, {"server": url, "certificate-authority": "server.crt"}
        return from_kubeconfig(kubeconfig(tmp_path, user, cluster))

    [request] = listed(credentials, tls)
    assert request.headers["authorization"] == "Bearer beside"


@pytest.mark.parametrize("token", ["two\nlines", "a\0b", "caf\u00e9", "\u2603"])
def test_a_token_that_is_no_header_is_an_error(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    for user in ({"tokenFile": str(tmp_path / "token")}, {"token": token}):
        with pytest.raises(InitError, match="token") as raised:
            listed(lambda url, user=user: ApiCredentials(url, user, {}), None)  # type: ignore[misc]
        assert token not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:6443", "ftp://x", "https://", "https://x:99999", "https://x:a", "https://[", "https://[::1"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InitError, match="not an http or https URL"):
        ApiCredentials(url, {}, {})


def test_without_a_token_it_is_said_what_is_missing(tmp_path: Path) -> None:
    credentials = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}, str(tmp_path))
    with pytest.raises(InitError, match="there is no token"):
        credentials.headers()
    assert str(ApiCredentials("http://[fd00::1]:80", {}, {}).address()) == "[fd00::1]:80"
    with pytest.raises(InitError, match="KUBERNETES_SERVICE_HOST: not set"):
        in_cluster({})
