"""The CNI protocol: whatever a runtime sends is answered as the spec has it, and nothing is done by mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from istio_init.cni.plugin import plugin, protocol, removal
from istio_init.cni.plugin.protocol import (
    CONFIGURATION,
    DECODING,
    ENVIRONMENT,
    INCOMPATIBLE_VERSION,
    NEEDED,
    NEWEST,
    VERSIONS,
    PluginError,
    arguments,
    read,
)
from istio_init.cni.plugin.settings import CAPABILITY, settings

POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"
PREVIOUS = '{"cniVersion": "1.0.0",\t"ips": [ ]}'
# No namespace: nothing can be done, whatever is understood.
NOWHERE = "/nowhere/at/all"


def environment(command: str = "ADD", **more: str) -> dict[str, str]:
    recorded = {"CNI_COMMAND": command, "CNI_CONTAINERID": "a1", "CNI_NETNS": NOWHERE, "CNI_IFNAME": "eth0"}
    return {**recorded, "CNI_ARGS": POD, **more}


def configuration(version: object = NEWEST, **more: object) -> bytes:
    return json.dumps({"cniVersion": version, "name": "pods", "type": "istio-init-cni", **more}).encode()


def refused(environ: dict[str, str], data: bytes) -> PluginError:
    with pytest.raises(PluginError) as raised:
        settings(read(environ, data).members)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
    return raised.value


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", NEEDED)
def test_each_command_of_each_version(command: str, version: str) -> None:
    data = configuration(version, prevResult={})
    since = protocol.SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) >= VERSIONS.index(since):
        assert read(environment(command), data).version == version
    else:
        assert refused(environment(command), data).code == INCOMPATIBLE_VERSION


@pytest.mark.parametrize("version", ["0.5.0", "0.1", "1.2.0", "2", "1.1.0\n", 1.1, ["1.1.0"], "x" * (1 << 20)])
def test_an_unknown_version_is_said(version: object) -> None:
    error = refused(environment(), configuration(version))
    assert error.code == INCOMPATIBLE_VERSION
    assert "1.1.0" in str(error)


@pytest.mark.parametrize("data", [b'{"name": "pods"}', b'{"name": "pods", "cniVersion": ""}'])
def test_a_configuration_without_a_version_is_one_of_the_oldest(data: bytes) -> None:
    assert read(environment(), data).version == "0.1.0"
    assert protocol.spoken(b'{"name": "pods"}') == "0.1.0"


@pytest.mark.parametrize("command", NEEDED)
def test_each_missing_variable_is_named(command: str) -> None:
    for name in NEEDED[command]:
        for value in (None, ""):
            environ = environment(command) | {name: value or ""}
            if value is None:
                del environ[name]
            error = refused(environ, configuration(prevResult={}))
            assert error.code == ENVIRONMENT
            assert str(error).startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_COMMAND", ""), ("CNI_COMMAND", "add"), ("CNI_COMMAND", "ADD\n"), ("CNI_COMMAND", "x" * (1 << 20)),
        ("CNI_CONTAINERID", "../../etc"), ("CNI_CONTAINERID", "a b"), ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a" * 300), ("CNI_IFNAME", ".."), ("CNI_IFNAME", "a/b"), ("CNI_IFNAME", "a" * 16),
        ("CNI_IFNAME", "a\nb"), ("CNI_ARGS", "K8S_POD_NAME=a\nb"), ("CNI_ARGS", "K8S_POD_NAME=$(reboot)"),
        ("CNI_ARGS", "K8S_POD_NAME=;K8S_POD_NAMESPACE=../x"), ("CNI_ARGS", "K8S_POD_UID=`id`"), ("CNI_ARGS", "a"),
        ("CNI_ARGS", "=b"), ("CNI_ARGS", ";"), ("CNI_ARGS", "A=\udcff"), ("CNI_ARGS", "A=b;" + "C" * (1 << 20)),
    ],
)  # fmt: skip
def test_a_hostile_variable_is_an_error_that_names_it(name: str, value: str) -> None:
    error = refused(environment(**{name: value}), configuration())
    assert error.code == ENVIRONMENT
    assert str(error).startswith(name)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": "\xc3"}', b"{}{}", b"{" * 100_000, b" " * (9 << 20)],
    ids=lambda data: repr(data[:9]),
)  # fmt: skip
def test_what_is_no_object_is_a_decoding_error(data: bytes) -> None:
    assert refused(environment(), data).code == DECODING


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""), ("name", None), ("name", "a\nb"), ("name", 1), ("prevResult", "{}"), ("prevResult", [1]),
        ("runtimeConfig", []), ("runtimeConfig", {CAPABILITY: []}), ("runtimeConfig", {CAPABILITY: {"a": 1}}),
        ("args", 1), ("args", {"istio": []}), ("istio", "-i *"), ("istio", {"nonsense": 1}),
        ("istio", {"envoy-port": 1.5}),
        ("istio", {"network-namespace": "/proc/1/ns/net"}), ("istio", {"envoy-port": {}}),
        ("istio", {"dry-run": True}),
        ("defaults", {"--envoy-port": 1}), ("exclude_namespaces", "kube-system"), ("exclude_namespaces", [1]),
        ("kubernetes", "x"), ("kubernetes", {"kubeconfig": "relative"}),
        ("kubernetes", {"kubeconfig": "/a", "attempts": 0}),
        ("plugin_log_level", "loud"), ("log_file", "relative"), ("log_file", "/a\0"), ("log_bytes", -1),
        ("log_bytes", True), ("run_dir", 7),
    ],
)  # fmt: skip
def test_a_wrong_key_is_an_error_that_names_it(key: str, value: object) -> None:
    error = refused(environment(), configuration(NEWEST, **{key: value}))
    assert error.code == CONFIGURATION
    assert str(error).startswith(key)


def test_check_needs_the_result_of_add() -> None:
    assert refused(environment("CHECK"), configuration()).code == CONFIGURATION


def test_the_previous_result_is_kept_as_it_came() -> None:
    data = b'{"cniVersion":"1.0.0","name":"n","prevResult": ' + PREVIOUS.encode() + b"}"
    assert read(environment(), data).previous == PREVIOUS


def test_arguments_of_other_runtimes_are_no_mistakes() -> None:
    assert arguments("") == {}
    assert arguments("IgnoreUnknown=1;X=a b=c;K8S_POD_NAME=") == {
        "IgnoreUnknown": "1",
        "X": "a b=c",
        "K8S_POD_NAME": "",
    }


def test_options_are_given_by_their_flags() -> None:
    block = {"istio-service-cidr": ["10.0.0.0/8", "fd00::/8"], "envoy_port": 15011, "native-nftables": True}
    data = configuration(istio=block, args={"istio": {"envoy-port": "15012"}})
    actual = settings(read(environment(), data).members).block
    assert actual == {"istio_service_cidr": "10.0.0.0/8,fd00::/8", "envoy_port": "15012", "native_nftables": "true"}


# -- The whole plugin, which is to answer whatever comes. None of these calls has a namespace to do anything in.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "cniVersion", "name", "type", "prevResult", "runtimeConfig", "args", "istio", "defaults", "exclude_namespaces",
        "kubernetes", "plugin_log_level", "log_bytes", removal.ATTACHMENTS,
    ]
)  # fmt: skip
BLOCK = st.dictionaries(st.sampled_from(["istio-service-cidr", "envoy-port", "b", ""]) | st.text(), JSON)
ANNOTATIONS = st.dictionaries(
    st.sampled_from(["sidecar.istio.io/status", "traffic.sidecar.istio.io/includeInboundPorts"]) | st.text(),
    st.text() | JSON,
)
CONFIGURATIONS = st.one_of(
    st.dictionaries(KEYS, JSON),
    st.fixed_dictionaries(
        {"cniVersion": st.sampled_from(VERSIONS), "name": st.just("pods")},
        optional={
            "istio": BLOCK,
            "defaults": BLOCK,
            "runtimeConfig": st.fixed_dictionaries({CAPABILITY: ANNOTATIONS}),
            "prevResult": JSON,
        },
    ),
)
VALUES = st.text(st.characters(exclude_characters="\0"))


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of a call may reach this machine's own directories."""
    place = tmp_path_factory.mktemp("cni")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("istio_init.cni.plugin.settings.Settings._defaults", _elsewhere(place))
        patch.setattr("istio_init.cni.plugin.settings.LOG_FILE", str(place / "log"))
        patch.setattr("istio_init.cni.plugin.settings.DIRECTORY", str(place / "run"))
        yield


def _elsewhere(place: Path) -> dict[str, Any]:
    from istio_init.cni.plugin.settings import Settings

    return {**Settings._defaults, "log_file": str(place / "log"), "run_dir": str(place / "run")}


def answered(environ: dict[str, str], data: bytes) -> dict[str, Any]:
    """What the plugin says; where that is an error, one as the spec has it."""
    code, text = plugin.answer(environ, data)
    assert code in {0, 1}
    assert text.count("\n") <= 1
    document: dict[str, Any] = json.loads(text) if text else {}
    if code:
        assert document["cniVersion"] in VERSIONS
        assert document["code"] not in {0, protocol.FAULT}, document
        assert document["msg"].isprintable()
    return document


@given(st.sampled_from([*NEEDED, ""]), st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_answered(command: str, data: bytes) -> None:
    answer = answered(environment(command), data)
    assert command == "VERSION" or answer["code"] in {ENVIRONMENT, DECODING, INCOMPATIBLE_VERSION}


@settings_of_hypothesis(max_examples=50)
@given(st.sampled_from([each for each in NEEDED if each != "STATUS"]), CONFIGURATIONS, VALUES | st.just(POD))
def test_any_configuration_is_answered(command: str, text: dict[str, object], args: str) -> None:
    answered(environment(command, CNI_ARGS=args), json.dumps(text).encode())


@given(st.dictionaries(st.sampled_from(["CNI_COMMAND", *NEEDED["ADD"], "CNI_ARGS"]), VALUES))
def test_any_environment_is_answered(environ: dict[str, str]) -> None:
    answered(environ, configuration())


@pytest.mark.parametrize("key", ["istio", "runtimeConfig"])
def test_a_megabyte_of_anything_is_an_error_of_one_line(key: str) -> None:
    long = "8080,$(reboot)\n" * 80_000
    pod = {"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": long}
    text = {"istio": {"istio-inbound-ports": long}, "runtimeConfig": {CAPABILITY: pod}}[key]
    answer = answered(environment(), configuration(NEWEST, **{key: text}))
    assert answer["code"] == CONFIGURATION
    assert len(answer["msg"]) < 600


def test_what_libraries_print_does_not_reach_the_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, istio_init.cni.plugin.plugin as plugin\n"
        "inner = plugin.answer\n"
        "def answer(*given):\n"
        "    print('from Python', flush=True); os.write(1, b'from C'); os.system('echo from a child')\n"
        "    return inner(*given)\n"
        "plugin.answer = answer\n"
        "plugin.main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "loud.py")], input=b"", env={"CNI_COMMAND": "VERSION", "PYTHONPATH": str(ROOT)},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"cniVersion": NEWEST, "supportedVersions": list(VERSIONS)}
    assert done.stderr == b"from Python\nfrom Cfrom a child\n"


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "text", "report"),
    [("STATUS", "1.0.0", "1.0.0"), ("ADD", "0.3.1", "0.3.1"), ("nothing", "0.4.0", "0.4.0"), ("ADD", "9", NEWEST)],
)
def test_an_error_is_told_in_the_configurations_version(command: str, text: str, report: str) -> None:
    assert answered(environment(command, CNI_CONTAINERID=""), configuration(text))["cniVersion"] == report


def test_a_fault_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> str:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setitem(plugin.VERBS, "ADD", broken)
    code, text = plugin.answer(environment(), configuration())
    document = json.loads(text)
    assert (code, document["code"]) == (1, protocol.FAULT)
    assert "ZeroDivisionError: a b" in document["msg"]
    assert "test_protocol.py" in document["details"]
