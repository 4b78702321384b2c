"""The plugin with an interpreter of its own: on a host that has nothing else, and the same each time it is built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from integration.kit import program
from integration.kit.bare import PROGRAMS, BarePlugin
from integration.kit.cni import INJECTED, PREVIOUS
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT
from istio_init.cni.node.conflist import PLUGIN
from istio_init.options.annotations import PROXY_CONFIG

EPOCH = "1700000000"
MEGABYTE = 1_000_000
# What a host's environment may do to a Python that listens to it.
HOSTILE = ("PYTHONPATH=/nowhere", "PYTHONHOME=/nowhere", "PYTHONSTARTUP=/x", "LD_LIBRARY_PATH=/nowhere", "LANG=C")
# The launcher as far as it only reads the bundle; then every module in that.
LOADING = """
import sys
exec(open(sys.argv[1]).read().partition("from istio_init.cni.plugin.plugin")[0])
first, others = list(sys.modules), list(sys.meta_path[0]._extents)
for name in others: __import__(name)
print(len(first), len(others))
"""


def built(out: Path, *prefix: str) -> Path:
    """What scripts/bundle-cni makes; `prefix` is a command to run it by."""
    command = [*prefix, str(ROOT / "scripts/bundle-cni"), str(out)]
    done = subprocess.run(
        command, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("bundle") / "out")


@pytest.fixture
def host(tmp_path: Path, programs: Path) -> BarePlugin:
    return BarePlugin(tmp_path, programs, *HOSTILE)


def test_a_sandboxs_life_on_a_host_that_has_nothing(namespace: Namespace, host: BarePlugin) -> None:
    assert "1.1.0" in host.done("VERSION")
    assert host.done("STATUS") == ""
    host.done("ADD", namespace.path, INJECTED, prevResult=PREVIOUS)
    assert program.standing(namespace) == host.promised()
    assert host.done("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS) == ""
    namespace.run("iptables-legacy", "-t", "nat", "-F")
    assert "rule 1 missing" in host.call("CHECK", namespace.path, INJECTED, prevResult=PREVIOUS).error["msg"]
    native = {"native-nftables": True, "istio-inbound-ports": "*"}
    host.done("ADD", namespace.path, istio=native)
    assert "table inet" in namespace.run("nft", "list", "tables")
    host.done("DEL", namespace.path, istio=native)
    assert namespace.run("nft", "list", "ruleset").count("ISTIO") == 0
    assert host.state() is None
    assert '"pod": "pod-a1"' in host.log.read_text()
    assert "pip install 'kubernetes" in host.call("ADD", namespace.path, kubernetes={"kubeconfig": "/k"}).error["msg"]


def test_a_proxy_configuration_is_read_as_yaml_there(namespace: Namespace, host: BarePlugin) -> None:
    config = "proxyMetadata:\n  # INVALID_DROP: 'true'\n  ISTIO_META_DNS_CAPTURE: >-\n    true\n"
    host.done("ADD", namespace.path, {**INJECTED, PROXY_CONFIG: config}, prevResult=PREVIOUS)
    state = host.state()
    assert state
    assert state.options
    assert (state.options.redirect_dns, state.options.drop_invalid) == (True, False)
    assert program.standing(namespace) == host.promised()


def test_every_module_of_the_bundle_loads_there(host: BarePlugin) -> None:
    (bundle,) = (path for path in (host.root / PROGRAMS[1:]).iterdir() if path.is_dir())
    inside = f"{PROGRAMS}/{bundle.name}"
    interpreter = [*host.command[:-1], f"{inside}/ld.so", f"{inside}/python3"]
    command = [*interpreter, "-c", LOADING, f"{inside}/launcher.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(int(count) > 10 for count in done.stdout.split())
    libraries = [f"{inside}/lib/{path.name}" for path in (bundle / "lib").iterdir()]
    script = "import ctypes, sys\nfor name in sys.argv[1:]: ctypes.CDLL(name)\nprint(sys.flags.isolated, sys.path)"
    done = subprocess.run([*interpreter, "-c", script, *libraries], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"1 ['{inside}/python']\n", "")


def facts(tree: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a directory: mode, time and content by path."""
    return {
        str(path.relative_to(tree)): (
            path.stat().st_mode, int(path.stat().st_mtime), path.read_bytes() if path.is_file() else b"",
        )
        for path in tree.rglob("*")
    }  # fmt: skip


def test_the_same_input_makes_the_same_bytes_and_not_many(programs: Path, tmp_path: Path) -> None:
    again = built(tmp_path / "again", "sh", "-c", 'umask 077; exec "$@"', "-")
    first = facts(programs)
    assert facts(again) == first
    assert {time for _, time, _ in first.values()} == {int(EPOCH)}
    assert sum(len(content) for _, _, content in first.values()) <= 25 * MEGABYTE
    runnable = {Path(path).name for path, (mode, _, content) in first.items() if content and mode & 0o111}
    assert {name for name in runnable if ".so" not in name} == {PLUGIN, "python3"}
    assert not [path for path in first if path.endswith(".py") and not path.endswith("launcher.py")]
    packages = {Path(path).name for path in first if "dpkg/status.d/" in path}
    assert {"libc6", "libip4tc2", "libip6tc2", "python3-yaml"} <= packages
    copyrights = {Path(path).parent.name for path in first if path.endswith("/copyright")}
    assert copyrights == packages


def test_who_is_called_wrongly_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, why in ((tmp_path, "the directory is not empty"), (Path("--what"), "scripts/bundle-cni OUT")):
        done = subprocess.run([ROOT / "scripts/bundle-cni", out], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert why in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
