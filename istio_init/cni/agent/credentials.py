"""The API server's address and credentials: the pod's service account, or a kubeconfig."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from istio_init.cni.agent.http import ServerAddress
from istio_init.errors import InitError, shown
from istio_init.formats import yaml_json
from istio_init.kernel.host import files

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

# What the kubelet mounts into a pod (docs: "Accessing the Kubernetes API from a Pod"). It renews the token there.
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
SCHEMES = {"http": 80, "https": 443}
# Members of a kubeconfig's user and cluster: those that are paths, and those without which the server would be another
# one, or the user.
PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
UNSUPPORTED = frozenset({"exec", "auth-provider", "username", "password", "as", "proxy-url", "tls-server-name"})


class ApiCredentials:
    """The API server's address and the header that authenticates a request.

    The token is read for every request, and the CA's file when it has changed: both are replaced while the agent runs.
    """

    def __init__(self, server: str, user: Mapping[str, Any], cluster: Mapping[str, Any]) -> None:
        """`user` and `cluster` are those of a kubeconfig; InitError where the server is no URL."""
        try:
            url = urlsplit(server)
            host, port = url.hostname, url.port
        except ValueError:
            host = None
        if not host or url.scheme not in SCHEMES:
            raise InitError(f"the API server's address: {shown(server)}: not an http or https URL")
        self._host, self._port = host, port or SCHEMES[url.scheme]
        self.prefix, self._secure = url.path.rstrip("/"), url.scheme == "https"
        self._user, self._cluster = user, cluster
        self._tls: tuple[object, ssl.SSLContext] | None = None

    def address(self) -> ServerAddress:
        """The server's address, with the certificates as they are now. InitError where these cannot be read."""
        return ServerAddress(self._host, self._port, self._context() if self._secure else None)

    def headers(self) -> dict[str, str]:
        """The header that authenticates a request, none where a certificate does. InitError without a token."""
        token, where = str(self._user.get("token") or ""), "token"
        if path := self._user.get("tokenFile"):
            content = files.read(str(path))
            token = content.data.decode("ascii", "replace").strip() if content else ""
            where = files.named(str(path))
            if not token:
                raise InitError(f"{where}: there is no token; is the service account's mounted?")
        if not all("!" <= sign <= "~" for sign in token):
            raise InitError(f"{where}: not a token: it has characters other than letters, digits and signs")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _context(self) -> ssl.SSLContext:
        path = self._cluster.get("certificate-authority")
        version = files.read(str(path)) if path else None
        if self._tls is None or self._tls[0] != version:
            self._tls = version, self._new_context(version.data if version else b"")
        return self._tls[1]

    def _new_context(self, authority: bytes) -> ssl.SSLContext:
        import ssl

        authority = authority or _decoded(self._cluster, "certificate-authority-data")
        try:
            context = ssl.create_default_context(cadata=authority.decode("ascii") if authority else None)
            if self._cluster.get("insecure-skip-tls-verify") is True:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if "client-certificate" in self._user:
                context.load_cert_chain(str(self._user["client-certificate"]), str(self._user.get("client-key")))
            elif "client-certificate-data" in self._user:
                self._load_client(context)
        except (OSError, ValueError) as error:
            raise InitError(f"the API server's certificates: {shown(str(error), 200)[1:-1]}") from error
        return context

    def _load_client(self, context: ssl.SSLContext) -> None:
        """Load a certificate and key that are in the kubeconfig itself; OpenSSL takes files only."""
        parts = [_decoded(self._user, f"client-{each}-data") for each in ("certificate", "key")]
        memory = os.memfd_create("client", os.MFD_CLOEXEC)
        try:
            os.write(memory, b"\n".join(parts))
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)


def in_cluster(environ: Mapping[str, str], directory: str = SERVICE_ACCOUNT) -> ApiCredentials:
    """The credentials that a pod has; InitError outside of one."""
    host, port = environ.get(HOST, ""), environ.get(PORT, "443")
    if not host:
        raise InitError(f"{HOST}: not set: this is no pod with a service account; name a kubeconfig with --kubeconfig")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return ApiCredentials(server, {"tokenFile": f"{directory}/token"}, {"certificate-authority": f"{directory}/ca.crt"})


def from_kubeconfig(path: str) -> ApiCredentials:
    """The credentials of a kubeconfig's current context; InitError, which names the file, where there are none."""
    content = files.read(path)
    if content is None:
        raise InitError(f"--kubeconfig: {files.named(path)}: there is no such file")
    try:
        [document] = yaml_json.load(content.data.decode())
        context = _named(document, "contexts", "context", document["current-context"])
        cluster = _named(document, "clusters", "cluster", context["cluster"])
        user = _named(document, "users", "user", context["user"])
        server = str(cluster["server"])
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error) or "an entry is missing"
        raise InitError(f"--kubeconfig: {files.named(path)}: not a kubeconfig that can be used: {why}") from error
    if unknown := (user.keys() | cluster.keys()) & UNSUPPORTED:
        why = f"{min(unknown)}: not supported; use a token, a tokenFile or a client certificate"
        raise InitError(f"--kubeconfig: {files.named(path)}: {why}")
    return ApiCredentials(server, _resolved(user, path), _resolved(cluster, path))


def _resolved(block: Mapping[str, Any], kubeconfig: str) -> dict[str, Any]:
    """A user or cluster whose relative paths begin at the kubeconfig's directory, as for kubectl."""
    directory = os.path.dirname(os.path.abspath(kubeconfig))
    paths = {key: os.path.join(directory, str(block[key])) for key in PATHS if block.get(key)}
    return {**block, **paths}


def _named(document: Any, kind: str, member: str, name: str) -> dict[str, Any]:  # noqa: ANN401 (YAML)
    value = next(each for each in document[kind] if each["name"] == name)[member]
    return dict(value or {})


def _decoded(block: Mapping[str, Any], key: str) -> bytes:
    try:
        return base64.b64decode(str(block.get(key) or ""), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{key}: {error}") from error
