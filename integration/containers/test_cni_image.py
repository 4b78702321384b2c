"""The image for nodes: what is in it, and that the DaemonSet's container puts a plugin that works on a host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.containers.conftest import Built, build
from integration.containers.engine import ROOT, Engine
from integration.containers.test_image import MEGABYTE, contents
from integration.kit import program
from integration.kit.bare import BarePlugin
from integration.kit.cni import INJECTED
from integration.kit.endpoints import awaited
from integration.kit.namespace import Namespace
from istio_init.cni.node.conflist import PLUGIN, types
from tests.cni.networks import LISTS

TAG = "localhost/istio-init-cni:test"
OBJECTS = {each["kind"]: each for each in yaml.safe_load_all((ROOT / "deploy/istio-init-cni.yaml").read_text())}
CONTAINER: dict[str, Any] = OBJECTS["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
FLANNEL = LISTS["10-flannel"]


@pytest.fixture(scope="module")
def nodes(engine: Engine, image: Built, sources: Path, base: str) -> Built:
    """The image for nodes, built upon what the other left in the cache."""
    return build(engine, sources, base, TAG, "--target=cni")


def test_it_is_the_image_with_little_besides(engine: Engine, image: Built, nodes: Built) -> None:
    """Interpreter, libraries and modules are there once, for the image and for the bundle that it installs."""
    # OpenSSL has half of it: the agent asks the API server over TLS.
    assert nodes.size <= image.size + 14 * MEGABYTE
    assert nodes.compressed <= image.compressed + 5 * MEGABYTE
    files = contents(engine, nodes.tag)
    assert {f"usr/lib/istio-init/cni/{name}" for name in ("ld.so", "python3", "launcher.py")} <= files.keys()
    for name, file in files.items():
        assert (file.uid, file.gid) == (0, 0), name
        assert file.issym() or file.mode & 0o6022 == 0, f"{name}: {file.mode:o}"
    facts, others = (json.loads(engine.cli("inspect", tag))[0]["Config"] for tag in (nodes.tag, image.tag))
    assert facts["Entrypoint"] == ["/usr/local/bin/istio-init"]
    assert facts["Labels"] == others["Labels"]
    bill = subprocess.run(
        ["scripts/sbom"], cwd=ROOT, input=engine.cli("save", nodes.tag), capture_output=True, check=True
    )
    names = {each["name"] for each in json.loads(bill.stdout)["components"]}
    assert {"h2", "h11", "hpack", "hyperframe", "prometheus_client", "libssl3", "typer", "libc6", "libip4tc2"} <= names
    assert not names & {"libnftables1", "libjansson4", "libnftnl11", "libgmp10"}


class Host:
    """The host's directories by the paths that they have for the container."""

    def __init__(self, directory: Path) -> None:
        mounts = CONTAINER["volumeMounts"]
        self.places = {each["mountPath"]: directory / each["name"] for each in mounts}
        for place in self.places.values():
            place.mkdir()
        for name, text in OBJECTS["ConfigMap"]["data"].items():
            (directory / "plugin" / name).write_text(text)
        self.volumes = {
            str(self.places[each["mountPath"]]): {
                "bind": each["mountPath"],
                "mode": "ro" if each.get("readOnly") else "rw",
            }
            for each in mounts
        }
        self.network = self.places["/etc/cni/net.d"] / "10-flannel.conflist"
        self.network.write_text(FLANNEL)
        self.programs = self.places["/opt/cni/bin"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def installer(engine: Engine, nodes: Built, host: Host) -> Iterator[Any]:
    """The DaemonSet's container, with its command and no right besides its own."""
    may = CONTAINER["securityContext"]
    result = engine.client.containers.run(
        nodes.tag, entrypoint=CONTAINER["command"], command=CONTAINER["args"], detach=True, network_mode="none",
        # No API server is there: the plugin is installed all the same.
        environment={"NODE_NAME": "node", "KUBERNETES_SERVICE_HOST": "127.0.0.1"},
        read_only=may["readOnlyRootFilesystem"], cap_drop=may["capabilities"]["drop"], volumes=host.volumes,
        security_opt=["no-new-privileges"], user=f"{may['runAsUser']}:{may['runAsGroup']}",
    )  # fmt: skip
    yield result
    result.remove(force=True)


def test_the_daemonsets_container_installs_a_plugin_that_works_alone(
    engine: Engine,
    nodes: Built,
    installer: Any,  # noqa: ANN401 (docker's have no types)
    host: Host,
    namespace: Namespace,
    tmp_path: Path,
) -> None:
    awaited(lambda: PLUGIN in types(host.network.read_text()), "the entry")
    entry = json.loads(host.network.read_text())["plugins"][-1]
    assert entry["exclude_namespaces"] == ["istio-system", "kube-system"]
    places = ["--cni-net-dir=/etc/cni/net.d", "--cni-bin-dir=/opt/cni/bin"]
    assert installer.exec_run(["/usr/local/bin/istio-init", "cni", "status", *places]).exit_code == 0
    assert entry["agent"] == "required"
    assert (host.places["/run/istio-init"] / "agent.sock").is_socket()
    (tmp_path / "bare").mkdir()
    plugin = BarePlugin(tmp_path / "bare", host.programs)
    plugin.done("ADD", namespace.path, INJECTED)
    assert program.standing(namespace) == plugin.promised()
    plugin.done("DEL", namespace.path)

    # It has all that asking a runtime takes, but for one that answers.
    repair = ["/usr/local/bin/istio-init", "cni", "repair", "--cri-socket=/nowhere"]
    request = installer.exec_run([*repair, "--cni-net-dir=/etc/cni/net.d"])
    assert (request.exit_code, b"/nowhere': no runtime answers" in request.output) == (1, True), request.output
    installer.stop()
    assert installer.wait()["StatusCode"] == 0
    # Without an answer of the API server everything stays for the next agent.
    assert PLUGIN in types(host.network.read_text())
    assert b"the DaemonSet kube-system/istio-init-cni can't be looked up: " in installer.logs()
    uninstall = ["/usr/local/bin/istio-init", "cni", "uninstall"]
    engine.client.containers.run(
        nodes.tag, entrypoint=uninstall, command=places, remove=True, network_mode="none", read_only=True,
        cap_drop=["ALL"], volumes=host.volumes,
    )  # fmt: skip
    assert host.network.read_text() == FLANNEL
    assert list(host.programs.iterdir()) == []
