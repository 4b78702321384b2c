"""What deploy/ says to a cluster: the plain objects, the chart that makes the same, and Kubernetes' own schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from istio_init import __version__
from istio_init.cli.verbs.cni import application
from istio_init.cli.verbs.cni_flags import ON_EXIT
from istio_init.cni.node.conflist import PLUGIN, plugin_configuration
from istio_init.kernel.ebpf.installation import BPF_VARIABLE
from istio_init.kernel.ebpf.pins import BPF_FILE_SYSTEM
from tests.kit.helm import documents, merged, template

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/istio-init-cni"
PLAIN = list(yaml.safe_load_all((ROOT / "deploy/istio-init-cni.yaml").read_text()))
GOLDEN = ROOT / "tests/cni/charts"
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
LOOKUP = {"plugin": {"kubernetes": {"kubeconfig": "/etc/istio-init/kubeconfig"}}}
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())
# The oldest that the chart is for, and the newest that there is a schema of.
RELEASES = (ABOUT["kubeVersion"].removeprefix(">=").removesuffix(".0-0"), kubernetes_validate.latest_version())

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "k3s": {"cniNetDir": "/var/lib/rancher/k3s/agent/etc/cni/net.d", "cniBinDir": "/var/lib/rancher/k3s/data/cni"},
    "installer": {"agent": {"enabled": False}},
    "lookup": {**LOOKUP, "agent": {"enabled": False}},
    "repair": {
        "agent": {"repair": "delete", "repairRate": 2, "untaint": "cni.istio.io/not-ready", "listen": "127.0.0.1"},
        "podLabels": {"k8s-app": "istio-cni-node"},
    },
    "ebpf": {"captureBackend": "ebpf"},
    "ebpf-repair": {"plugin": {"defaults": {"capture-backend": "ebpf"}}, "agent": {"repair": "mend"}},
    "ebpf-installer": {"captureBackend": "ebpf", "agent": {"enabled": False}},
    "label": {"agent": {"repair": "label", "criSocket": "/run/crio/crio.sock"}},
    "seen": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
        "networkPolicy": {"enabled": True, "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    },
    "all": {
        "image": {"repository": "r.example/i", "tag": "1"},
        "imagePullSecrets": [{"name": "pull"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a/b": "c: d"},
        "seLinuxOptions": {"type": "spc_t"},
        "maxUnavailable": "25%",
        "logAsJson": False,
        "tolerations": [],
        "onExit": "keep",
        "updateStrategy": {"type": "OnDelete"},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"},
        "agent": {"enabled": True, "port": 9999, "repair": "report"},
        "plugin": {"exclude_namespaces": [], "defaults": {"istio-inbound-ports": "80"}},
    },
}

# Values that Helm itself has to refuse, by the schema, each with what it is to say.
MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"cniNetdir": "/a"}, "cniNetdir"),
    ({"cniNetDir": "a"}, "/cniNetDir"),
    ({"cniBinDir": "/a b"}, "/cniBinDir"),
    ({"onExit": "stay"}, "/onExit"),
    ({"captureBackend": "nft"}, "/captureBackend"),
    ({"maxUnavailable": 0}, "/maxUnavailable"),
    ({"maxUnavailable": "0%"}, "/maxUnavailable"),
    ({"plugin": {"type": "bridge"}}, "/plugin/type"),
    ({"plugin": {"kubernetes": {}}}, "/plugin/kubernetes"),
    ({"plugin": {"exclude_namespaces": "kube-system"}}, "/plugin/exclude_namespaces"),
    ({"plugin": {"log_bytes": 1}}, "/plugin/log_bytes"),
    ({"image": {"repository": ""}}, "/image/repository"),
    ({"agent": {"repair": "fix"}}, "/agent/repair"),
    ({"agent": {"port": 0}}, "/agent/port"),
    ({"agent": {"taint": "x"}}, "/agent"),
    ({"plugin": {"agent": "always"}}, "/plugin/agent"),
    ({"podLabels": {"a": 1}}, "/podLabels/a"),
    ({"seccompProfile": {"type": "None"}}, "/seccompProfile"),
    ({"serviceMonitor": {"interval": "often"}}, "/serviceMonitor/interval"),
)


def outcomes() -> list[dict[str, str]]:
    """What Helm makes of all values here, of the mistakes last: it is started once."""
    every = [*VALUES.values(), *(values for values, _ in MISTAKES)]
    return template(CHART, "there", *map(json.dumps, every))


def text(name: str) -> str:
    """What Helm makes of values by their name."""
    report = outcomes()[list(VALUES).index(name)]
    assert "text" in report, report
    return report["text"]


def by_kind(objects: list[Any]) -> dict[str, Any]:
    """Objects by their kind, of which there is one each but for the dashboard's ConfigMap."""
    result = {
        each["metadata"]["name"] if each["metadata"]["name"].endswith("dashboard") else each["kind"]: each
        for each in objects
    }
    assert len(result) == len(objects)
    return result


def test_the_chart_makes_what_stands_in_the_plain_file() -> None:
    (report,) = template(CHART, "kube-system", "{}")
    assert by_kind(documents(report["text"])) == by_kind(PLAIN)


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"defaults"}))
def test_the_chart_makes_what_it_made_before(name: str) -> None:
    """`python -m tests.cni.test_deploy` writes the golden files anew."""
    assert by_kind(documents(text(name))) == by_kind(documents((GOLDEN / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_knows_every_field(name: str, release: str) -> None:
    for each in documents(text(name)):
        if each["kind"] == "ServiceMonitor":
            continue  # the Prometheus operator's own
        kubernetes_validate.validate(each, release, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    daemon = by_kind(documents(text("defaults")))["DaemonSet"]
    daemon["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemon, RELEASES[-1], strict=True)


def rule(resource: str, *verbs: str) -> dict[str, list[str]]:
    return {"apiGroups": [""], "resources": [resource], "verbs": list(verbs)}


WATCH, EVENTS = rule("pods", "get", "list", "watch"), rule("events", "create")


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("defaults", [WATCH]),
        ("lookup", [rule("pods", "get")]),
        ("label", [WATCH, EVENTS, rule("pods", "patch")]),
        ("all", [WATCH, EVENTS]),
        ("repair", [WATCH, EVENTS, rule("pods/eviction", "create"), rule("nodes", "get", "patch")]),
    ],
)
def test_each_function_has_the_verbs_that_it_needs(name: str, rules: list[dict[str, list[str]]]) -> None:
    assert by_kind(documents(text(name)))["ClusterRole"]["rules"] == rules


def test_without_the_agent_there_is_no_access_to_the_api() -> None:
    actual = by_kind(documents(text("installer")))
    assert set(actual) == {"ServiceAccount", "ConfigMap", "DaemonSet"}
    pod = actual["DaemonSet"]["spec"]["template"]["spec"]
    assert not pod["automountServiceAccountToken"]
    assert "/run/istio-init" not in {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}


def test_the_least_rights() -> None:
    pod = by_kind(PLAIN)["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"hostPID", "hostIPC"} & set(pod)
    hosts = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert hosts == {DEFAULTS["cniNetDir"], DEFAULTS["cniBinDir"], "/run/istio-init"}
    assert {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")} == hosts


@pytest.mark.parametrize("name", VALUES)
def test_capabilities_come_with_repair_and_ebpf_alone(name: str) -> None:
    (container,) = by_kind(documents(text(name)))["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    repairs = any(each.startswith("--repair=") for each in container["args"])
    keeps_ebpf = "--capture-backend=ebpf" in container["args"] and "agent" in container["command"]
    added = container["securityContext"]["capabilities"].get("add", [])
    needed = {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"} if repairs else set()
    needed |= {"BPF", "NET_ADMIN"} if keeps_ebpf else set()
    assert added == sorted(needed)
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert ({"/var/run/netns", "/var/log/istio-init"} <= mounts) == repairs
    assert ({"/node/bpf", "/node/cgroup"} <= mounts) == keeps_ebpf


def test_the_agent_finds_the_nodes_bpf_file_system_where_it_is_mounted() -> None:
    pod = by_kind(documents(text("ebpf")))["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {each["name"]: each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each}
    mounted = {each["mountPath"]: paths.get(each["name"]) for each in container["volumeMounts"]}
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert mounted[variables[BPF_VARIABLE.decode()]] == BPF_FILE_SYSTEM
    # A node's bpffs may be mounted by the first pod's ADD, after this container's start.
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "bpf"]
    assert mount["mountPropagation"] == "HostToContainer"
    assert mount.get("readOnly") is None


@pytest.mark.parametrize("name", ["ebpf", "ebpf-repair", "ebpf-installer"])
def test_the_plugin_is_told_of_ebpf_by_the_installer(name: str) -> None:
    actual = by_kind(documents(text(name)))
    (container,) = actual["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert "--capture-backend=ebpf" in container["args"]
    if "exec" in container["readinessProbe"]:
        assert "--capture-backend=ebpf" in container["readinessProbe"]["exec"]["command"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    source = (CHART / "dashboards/istio-init-cni.json").read_text()
    dashboard = json.loads(by_kind(documents(text("seen")))["istio-init-cni-dashboard"]["data"]["istio-init-cni.json"])
    assert dashboard == json.loads(source)
    listed = set(re.findall(r"`(istio_init_cni_\w+)`", (ROOT / "docs/agent.md").read_text()))
    listed |= {f"{each}_bucket" for each in listed} | {"process_resident_memory_bytes"}
    assert set(re.findall(r"\b((?:istio_init_cni|process)_\w+)", source)) <= listed
    assert len({each["id"] for each in dashboard["panels"]}) == len(dashboard["panels"])


def test_probes_and_prometheus_ask_the_port_that_the_agent_listens_on() -> None:
    actual = by_kind(documents(text("seen")))
    (container,) = actual["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": DEFAULTS["agent"]["port"]}]
    assert f"--listen=:{DEFAULTS['agent']['port']}" in container["args"]
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
    service, monitor = actual["Service"], actual["ServiceMonitor"]
    assert service["spec"]["ports"][0]["targetPort"] == "metrics"
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("name", VALUES)
def test_what_it_runs_is_a_command_of_ours(name: str) -> None:
    (container,) = by_kind(documents(text(name)))["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    verbs = {
        command.callback.__name__: command.callback for command in application.registered_commands if command.callback
    }
    lines = [[*container["command"], *container["args"]]]
    if "exec" in container["readinessProbe"]:
        lines.append(container["readinessProbe"]["exec"]["command"])
    for words in lines:
        program, group, verb, *flags = words
        assert (program, group) == ("/usr/local/bin/istio-init", "cni")
        fields = {flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags}
        assert fields <= set(verbs[verb].__annotations__)


def test_the_plugins_entry_is_one() -> None:
    for name in VALUES:
        entry = by_kind(documents(text(name)))["ConfigMap"]["data"]["plugin.json"]
        assert plugin_configuration(entry)["type"] == PLUGIN


def test_the_versions() -> None:
    assert ABOUT["appVersion"] == ABOUT["version"] == __version__


def test_every_value_is_described_and_every_description_is_of_a_value() -> None:
    assert set(SCHEMA["properties"]) - {"global"} == set(DEFAULTS)
    assert [path for path, value in values_of(SCHEMA) if not value.get("description")] == []
    assert tuple(SCHEMA["properties"]["onExit"]["enum"]) == ON_EXIT
    for values in VALUES.values():
        jsonschema.validate(merged(DEFAULTS, values), SCHEMA)


def values_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All values that a schema knows, by their paths."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}/{name}", inner
        yield from values_of(inner, f"{path}/{name}")


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_mistakes_are_noticed(number: int) -> None:
    report, (values, why) = outcomes()[len(VALUES) + number], MISTAKES[number]
    assert why in report.get("error", ""), values
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(DEFAULTS, values), SCHEMA)


if __name__ == "__main__":
    for each in set(VALUES) - {"defaults"}:
        (GOLDEN / f"{each}.yaml").write_text(text(each))
