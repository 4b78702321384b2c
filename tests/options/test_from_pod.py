"""A pod's manifest as options: injected pods, pods still to be injected, and what is said where a manifest is wrong."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.cli.app import main
from istio_init.errors_rare import UsageError
from istio_init.formats import yaml_json
from istio_init.model.parsers import addresses
from istio_init.model.rules import PortRange
from istio_init.options.from_pod import read_pod, refusal
from istio_init.options.podspec import expanded
from istio_init.options.table import Options
from istio_init.options.workload import only_workload
from tests.kit.options import from_pod_file, options

# As Istio's injection leaves it: deployments' own names, and the proxy beside.
INJECTED = """
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-5b4d6c
  namespace: default
  annotations:
    sidecar.istio.io/status: '{"initContainers":["istio-init"]}'
    traffic.sidecar.istio.io/includeInboundPorts: "1"
spec:
  initContainers:
  - name: istio-init
    image: docker.io/istio/proxyv2:1.29.0
    args: [istio-iptables, -p, "15001", -z, "15006", -u, "1337", -m, REDIRECT, -i, "*", -x, "",
      -b, "*", -d, "15090,15021,15020", "--log_output_level=default:info"]
    env:
    - {name: ISTIO_META_DNS_CAPTURE, value: "true"}
    - {name: INSTANCE_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - name: istio-proxy
    restartPolicy: Always
    args: [proxy, sidecar]
  containers:
  - {name: reviews, image: reviews}
"""
PLAIN = "kind: Pod\nmetadata: {name: web, annotations: {%s}}\nspec: {containers: [{name: web}%s]}\n"


def meant(words: list[str]) -> Options:
    result = options(words, {})
    assert result is not None
    return result


# What Istio's injector means where a pod says nothing, and what its CNI plugin does.
UNSAID = meant(["-u", "1337", "-m", "REDIRECT", "-i", "*", "-b", "*", "-d", "15090,15021,15020"])
BY_PLUGIN = meant(["--cni-mode", "-u", "1337", "-i", "*", "-b", "*", "-d", "15020,15021,15090", "-o", "15020"])


def nobody(_kind: str, _name: str) -> int | None:
    return None


def read(tmp_path: Path, text: str, **flags: str) -> Options:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    return from_pod_file(str(path), flags, nobody)


def refused(tmp_path: Path, text: str, **flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text, **flags)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/pod.yaml: ")
    return message.removeprefix(f"{tmp_path}/pod.yaml: ")


def test_an_injected_pod_is_read_by_its_init_container(tmp_path: Path) -> None:
    desired = options(
        ["-u", "1337", "-i", "*", "-b", "*", "-d", "15090,15021,15020", "--redirect-dns"], {}
    )  # fmt: skip
    assert desired == read(tmp_path, INJECTED)


@pytest.mark.parametrize("name", ["istio-init", "istio-validation"])
@pytest.mark.parametrize(
    "call",
    [
        {"args": ["istio-iptables"]},
        {"command": ["istio-iptables"]},
        {"command": ["/usr/local/bin/pilot-agent"], "args": ["istio-iptables"]},
        {"command": ["/usr/local/bin/istio-iptables"], "args": []},
    ],
)
def test_every_way_that_istio_has_called_it(tmp_path: Path, name: str, call: dict[str, list[str]]) -> None:
    body = {"name": name, "command": [], "args": [], **call}
    body["args"] = [*body["args"], "-p", "15009"]
    spec = {"initContainers": [{"name": "other", "args": ["istio-iptables", "-p", "1"]}, body]}
    assert read(tmp_path, json.dumps({"kind": "Pod", "spec": spec})).envoy_port == 15009


def test_nameservers_are_the_manifests_where_it_has_all_of_them(tmp_path: Path) -> None:
    alone = "  dnsPolicy: None\n  dnsConfig: {nameservers: [10.96.0.10, 'fd00::a']}\n"
    recorded = read(tmp_path, INJECTED + alone)
    assert recorded.dns_servers == addresses("10.96.0.10,fd00::a")
    # The cluster's are added to these, and are not known.
    assert read(tmp_path, INJECTED + alone.replace("None", "ClusterFirst")).dns_servers is None
    assert read(tmp_path, INJECTED + alone, dns_servers="10.0.0.1").dns_servers != recorded.dns_servers
    assert "dnsConfig: nameservers: " in refused(tmp_path, INJECTED + alone.replace("10.96.0.10", "dns.example"))


def test_the_plugin_knows_no_nameservers_of_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It captures all DNS, whatever the pod's dnsConfig says; so nothing is missing, either."""
    dns = ", env: [{name: ISTIO_META_DNS_CAPTURE, value: 'true'}]"
    text = FOR_PLUGIN % ("", "", dns) + "  dnsPolicy: None\n  dnsConfig: {nameservers: [10.96.0.10]}\n"
    assert read(tmp_path, text) == BY_PLUGIN.replace(redirect_dns=True)
    path = tmp_path / "plain.yaml"
    path.write_text(FOR_PLUGIN % ("", "", dns))
    assert main(["explain", "--from-pod", str(path), "--outbound", "--to", "10.1.2.3:443"], {}) == 0
    assert "DNS servers" not in capsys.readouterr().err


def test_a_clean_up_is_one(tmp_path: Path) -> None:
    spec = {"initContainers": [{"name": "istio-init", "args": ["istio-clean-iptables"]}]}
    assert read(tmp_path, json.dumps(spec)).cleanup_only


TEMPLATE = {"metadata": {"labels": {}}, "spec": yaml.safe_load(INJECTED)["spec"]}


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "List", "items": [yaml.safe_load(INJECTED)]},
        {"kind": "PodList", "items": [yaml.safe_load(INJECTED)]},
        {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": TEMPLATE}},
        {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": TEMPLATE}}}},
        {"kind": "PodTemplate", "template": TEMPLATE},
        {"kind": "List", "items": [{"kind": "Service", "spec": {}}, yaml.safe_load(INJECTED)]},
    ],
)
def test_whatever_holds_one_pod_will_do(tmp_path: Path, document: dict[str, Any]) -> None:
    desired = read(tmp_path, INJECTED)
    assert read(tmp_path, json.dumps(document)) == desired
    assert read(tmp_path, "# as kubectl has it\n---\n" + yaml.safe_dump(document) + "---\n") == desired


def test_flags_beside_it_win_and_the_callers_environment_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path, INJECTED, istio_inbound_ports="80").istio_inbound_ports == (PortRange(80, 80),)
    path = str(tmp_path / "pod.yaml")
    question = ["explain", "--outbound", "--to", "10.1.2.3:443", "--from-pod", path, "--dns-servers", ""]
    assert main(question, {"LOG_OUTPUT_LEVEL": "none", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE": "443"}) == 0
    assert "goes to Envoy's outbound listener" in capsys.readouterr().out
    assert main([*question, "-o", "443"], {}) == 0
    assert "leaves the pod by eth0" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["check", "doctor", "explain", "manifest", "plan", "prove"])
def test_every_verb_that_asks_takes_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--from-pod", "/nonexistent/pod.yaml"], {}) == 255
    assert capsys.readouterr().err == "istio-init: --from-pod: '/nonexistent/pod.yaml': No such file or directory\n"


def test_a_pod_that_is_still_to_be_injected_is_read_by_its_annotations(tmp_path: Path) -> None:
    assert read(tmp_path, PLAIN % ("", "")) == UNSAID
    message = read(tmp_path, PLAIN % ('traffic.sidecar.istio.io/includeInboundPorts: "8080,9090"', ""))
    assert message.istio_inbound_ports == (PortRange(8080, 8080), PortRange(9090, 9090))
    config = r'proxy.istio.io/config: "interceptionMode: TPROXY\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}"'
    message = read(tmp_path, PLAIN % (config, ""))
    assert (message.istio_inbound_interception_mode, message.redirect_dns) == ("TPROXY", True)


def test_an_image_alone_is_for_the_injection_to_fill_in(tmp_path: Path) -> None:
    spec = {"initContainers": [{"name": "istio-init", "image": "registry.example/istio-init:0.1.0"}]}
    assert read(tmp_path, json.dumps({"kind": "Pod", "spec": spec})) == UNSAID


def test_the_proxys_container_tells_its_user_as_istios_injector_takes_it(tmp_path: Path) -> None:
    proxy = (
        ", {name: istio-proxy, securityContext: {runAsUser: 2000, runAsGroup: 3000}, env: ["
        "{name: INVALID_DROP, value: 'true'}, {name: ISTIO_META_INTERCEPTION_MODE, value: TPROXY}, "
        "{name: WAIT, value: '1'}, {name: CA_ADDR, value: $(HOST_IP):1}, {name: HOST_IP, valueFrom: {x: y}}]}"
    )
    # The injector passes no group, and gives the init container nothing of the proxy's environment.
    assert read(tmp_path, PLAIN % ("", proxy)) == UNSAID.replace(proxy_uid=(2000,))
    as_root = PLAIN % ("", ", {name: istio-proxy, securityContext: {runAsUser: 0, runAsGroup: 1337}}")
    assert read(tmp_path, as_root) == UNSAID


# As Istio's injection leaves a pod where its CNI plugin makes the rules.
FOR_PLUGIN = """
kind: Pod
metadata:
  name: web-0
  labels: {%s}
  annotations:
    sidecar.istio.io/status: '{"initContainers":["istio-validation"],"containers":["istio-proxy"]}'
    %s
spec:
  initContainers:
  - name: istio-validation
    image: i
    args: [istio-iptables, -p, "15001", -z, "15006", -u, "1337", -m, REDIRECT, -i, "*", -x, "", -b, "*",
      -d, "15090,15021,15020", --run-validation, --skip-rule-apply]
  containers: [{name: app, image: app}, {name: istio-proxy, image: p%s}]
"""


def test_a_pod_that_the_cni_plugin_captures_has_the_plugins_options(tmp_path: Path) -> None:
    assert read(tmp_path, FOR_PLUGIN % ("", "", "")) == BY_PLUGIN
    proxy = ", securityContext: {runAsUser: 2000, runAsGroup: 3000}, env: [{name: INVALID_DROP, value: 'true'}]"
    message = read(tmp_path, FOR_PLUGIN % ("", 'traffic.sidecar.istio.io/excludeOutboundPorts: "25"', proxy))
    ports = (PortRange(25, 25),)
    by_proxy = {"proxy_uid": (2000,), "proxy_gid": (3000,), "drop_invalid": True}
    assert message == BY_PLUGIN.replace(**by_proxy, istio_local_outbound_ports_exclude=ports)


@pytest.mark.parametrize(
    ("label", "annotation", "proxy", "why"),
    [
        ("sidecar.istio.io/inject: 'false'", "sidecar.istio.io/inject: 'true'", "", "sidecar.istio.io/inject is false"),
        ("", "inject.istio.io/templates: gateway", "", "inject.istio.io/templates is 'gateway'"),
        ("", "", ", args: [proxy, router]", "its proxy is a router, not a sidecar"),
        ("", "", ", env: [{name: DISABLE_ENVOY, value: 'true'}]", "DISABLE_ENVOY"),
        ("", "sidecar.istio.io/interceptionMode: NONE", "", "sidecar.istio.io/interceptionMode is NONE"),
    ],
)
def test_a_pod_that_the_cni_plugin_passes_through_is_refused(
    tmp_path: Path, label: str, annotation: str, proxy: str, why: str
) -> None:
    message = refused(tmp_path, FOR_PLUGIN % (label, annotation, proxy))
    assert message.startswith("no init container makes rules, and the CNI plugin does not capture this pod: ")
    assert why in message


@pytest.mark.parametrize(
    "call",
    [
        {"command": ["/bin/bash", "-c", "exec pilot-agent istio-iptables -p 15001 -u 1337 -i 10.0.0.0/8 -b 9080"]},
        {"args": ["-p", "15001", "-z", "15006", "-u", "1337"]},
        {"command": ["/usr/local/bin/pilot-agent"], "args": ["request", "GET", "/"]},
        {"command": ["istio-init"], "args": ["explain"]},
        {"command": ["istio-iptables.sh"], "args": ["-p", "15001"]},
    ],
)
@pytest.mark.parametrize("name", ["istio-init", "istio-validation"])
def test_a_call_that_can_not_be_read_is_refused(tmp_path: Path, name: str, call: dict[str, list[str]]) -> None:
    message = refused(tmp_path, json.dumps({"kind": "Pod", "spec": {"initContainers": [{"name": name, **call}]}}))
    assert message.startswith(f"initContainer {name}: '")
    assert "its rules can't be known: not a plain call of istio-iptables" in message


def test_a_container_of_another_name_makes_the_rules_too(tmp_path: Path) -> None:
    def pod(*calls: list[str]) -> str:
        listed = [{"name": f"capture-{number}", "command": call} for number, call in enumerate(calls)]
        return json.dumps({"kind": "Pod", "spec": {"initContainers": listed}})

    for call in (["istio-iptables", "-p", "15009"], ["istio-init", "apply", "-p", "15009"]):
        assert read(tmp_path, pod(["wait-for", "istio-init", "$(X)"], call)).envoy_port == 15009
    message = refused(tmp_path, pod(["sh", "-c", "istio-iptables -p 1"]))
    assert message.startswith("initContainer capture-0: 'sh -c istio-iptables -p 1': its rules can't be known")


def pod_of(*init_containers: dict[str, Any], annotations: dict[str, str] | None = None) -> str:
    spec = {"initContainers": [*init_containers], "containers": [{"name": "app"}, {"name": "istio-proxy"}]}
    return json.dumps({"kind": "Pod", "metadata": {"annotations": annotations or {}}, "spec": spec})


def warnings_of(text: str) -> list[str]:
    return list(read_pod(text, "pod.yaml", {}, lambda _kind, _name: None).misfits)


@pytest.mark.parametrize(
    "sparing",
    [
        {"args": ["istio-iptables", "--skip-rule-apply=true"]},
        {"args": ["istio-iptables"], "env": [{"name": "SKIP_RULE_APPLY", "value": "true"}]},
        {"args": ["istio-iptables", "-n"]},
        {"args": ["istio-iptables"], "env": [{"name": "DRY_RUN", "value": "1"}]},
    ],
)
def test_a_container_that_applies_no_rules_does_not_make_them(tmp_path: Path, sparing: dict[str, Any]) -> None:
    validation = {"name": "istio-validation", **sparing}
    assert read(tmp_path, pod_of(validation, annotations={"sidecar.istio.io/status": "{}"})) == BY_PLUGIN
    applying = {"name": "istio-init", "args": ["istio-iptables", "-p", "15009"]}
    assert read(tmp_path, pod_of(validation, applying)).envoy_port == 15009


def test_a_flag_that_applies_rules_takes_precedence_over_the_variable(tmp_path: Path) -> None:
    env = [{"name": "SKIP_RULE_APPLY", "value": "true"}]
    args = ["istio-iptables", "-p", "15009", "--skip-rule-apply=false"]
    assert read(tmp_path, pod_of({"name": "istio-init", "args": args, "env": env})).envoy_port == 15009


def test_what_may_change_the_rules_unseen_is_a_warning() -> None:
    first = {"name": "istio-init", "args": ["istio-iptables", "-p", "15009"]}
    assert warnings_of(pod_of(first)) == []
    assert warnings_of(pod_of({**first, "envFrom": [{"configMapRef": {"name": "mesh"}}]})) == [
        "initContainer istio-init: envFrom: its variables are not in the manifest, and may set options"
    ]
    assert warnings_of(pod_of({"name": "more", "args": ["istio-iptables"]}, first)) == [
        "initContainer more makes rules as well: the answer is for those of initContainer istio-init alone"
    ]


def test_words_that_belong_to_no_flag_are_a_warning(tmp_path: Path) -> None:
    pod = pod_of(
        {"name": "istio-init", "args": ["istio-iptables", "-p", "15009", "--redirect-dns", "true", "--", "-b"]}
    )
    assert read(tmp_path, pod) == options(["-p", "15009", "--redirect-dns"], {})
    (line,) = warnings_of(pod)
    assert line.startswith("initContainer istio-init: 'true -b': ignored: belongs to no flag")


@pytest.mark.parametrize("image", ["docker.io/istio/proxy_init:1.3.0", "registry:5000/istio-init@sha256:0", "proxyv2"])
def test_flags_alone_are_for_a_program_that_is_not_known(tmp_path: Path, image: str) -> None:
    flags = {"name": "capture", "image": image, "args": ["-p", "15001", "-u", "1337"]}
    assert "initContainer capture: '-p 15001 -u 1337': its rules can't be known" in refused(tmp_path, pod_of(flags))
    for other in ({**flags, "image": "example/wait"}, {**flags, "command": ["wait"]}, {**flags, "args": ["proxy"]}):
        assert read(tmp_path, pod_of(other)) == UNSAID


def test_rules_that_other_programs_write_are_a_warning() -> None:
    script = {"name": "firewall", "command": ["sh", "-c", "set -e; iptables -t nat -A OUTPUT -j RETURN"]}
    why = "initContainer firewall calls {}: the answer is without the rules that it writes"
    assert warnings_of(pod_of(script)) == [why.format("iptables")]
    assert warnings_of(pod_of({**script, "command": ["/usr/sbin/nft", "-f", "x"]})) == [why.format("nft")]
    assert warnings_of(pod_of({**script, "command": ["wait-for-nft", "-iptables", "nftables"]})) == []


def test_a_namespace_that_the_pod_names_is_not_this_machines(tmp_path: Path) -> None:
    args = ["istio-iptables", "-p", "15009", "--network-namespace=/proc/1/ns/net"]
    env = [{"name": "NETWORK_NAMESPACE", "value": "/proc/1/ns/net"}]
    for more in ({"args": args}, {"args": args[:3], "env": env}):
        pod = pod_of({"name": "istio-init", **more})
        assert read(tmp_path, pod) == options(["-p", "15009"], {})
        (line,) = warnings_of(pod)
        assert line.endswith("a path in the container: it names no namespace here")
    assert read(tmp_path, pod, network_namespace="/run/netns/x").network_namespace == "/run/netns/x"


@pytest.mark.parametrize("flag", ["--log_output_level=default:none", "--log_as_json", "--log_target=LOG"])
def test_how_a_pod_logs_is_not_how_this_program_logs(
    tmp_path: Path, flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    args = ["istio-iptables", "-i", "*", "-b", "*", flag.replace("LOG", str(log))]
    pod = tmp_path / "pod.json"
    pod.write_text(pod_of({"name": "istio-init", "args": args, "envFrom": [{"configMapRef": {"name": "x"}}]}))
    for verb in (["explain", "--outbound", "--to", "203.0.113.9:443"], ["prove"], ["draw"], ["options"]):
        assert main([*verb, "--from-pod", str(pod)], {}) == 0
        assert "\twarn\tinitContainer istio-init: envFrom" in capfd.readouterr().err, verb
    assert not log.exists()
    assert main(["options", "--from-pod", str(pod), "--log_as_json"], {}) == 0
    assert capfd.readouterr().err.startswith('{"level":"warn"')
    # The container that this verb prints logs as the pod's does.
    assert main(["manifest", "--from-pod", str(pod)], {}) == 0
    assert args[-1] in capfd.readouterr().out


RUNNING = """
kind: Pod
status: {podIPs: [%s]}
spec: {initContainers: [{name: istio-init, args: [istio-iptables, -i, '*', -b, '*'%s]}]}
"""


@pytest.mark.parametrize(
    ("ips", "flags", "to", "verdict"),
    [
        ("{ip: 10.1.2.3}, {ip: 'fd00::3'}", "", "[2001:db8::9]:443", "not captured"),
        ("{ip: 'fd00::3'}, {ip: 10.1.2.3}", "", "[2001:db8::9]:443", "not captured"),
        ("{ip: 10.1.2.3}, {ip: 'fd00::3'}", ", --dual-stack", "[2001:db8::9]:443", "captured"),
        ("{ip: 'fd00::3'}", "", "[2001:db8::9]:443", "captured"),
        ("{ip: 'fd00::3'}", ", --enable-ipv6=false", "[2001:db8::9]:443", "not captured"),
        ("{ip: 10.1.2.3}", ", --dual-stack", "203.0.113.9:443", "captured"),
        ("", "", "[2001:db8::9]:443", "captured"),
    ],
)
def test_a_running_pods_addresses_decide_on_ipv6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ips: str, flags: str, to: str, verdict: str
) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(RUNNING % (ips, flags))
    assert main(["explain", "--from-pod", str(path), "--outbound", "--to", to], {}) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Verdict: {verdict}: ")
    if ips:
        assert ("fd00::3" if to.startswith("[") else "10.1.2.3") in out


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        ({"istio.io/dataplane-mode": "ambient"}, True),
        ({"istio.io/dataplane-mode": "none"}, False),
        ({"istio.io/dataplane-mode": "ambient", "sidecar.istio.io/inject": "true"}, False),
    ],
)
def test_a_pod_for_ambient_mode_is_a_warning(labels: dict[str, str], *, warned: bool) -> None:
    pod = {"kind": "Pod", "metadata": {"labels": labels}, "spec": {"containers": [{"name": "app"}]}}
    assert [line.split(":")[0] for line in warnings_of(json.dumps(pod))] == ["label istio.io/dataplane-mode"] * warned


def test_a_variable_that_is_no_boolean_is_a_warning() -> None:
    annotations = {"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'yes'}"}
    why = "ISTIO_META_DNS_CAPTURE: 'yes': not true or false; taken for false, as in Istio's program"
    assert warnings_of(pod_of(annotations=annotations)) == [why]
    injected = {**annotations, "sidecar.istio.io/status": "{}"}
    assert warnings_of(pod_of(annotations=injected)) == [f"annotation proxy.istio.io/config: proxyMetadata.{why}"]
    env = [{"name": "ISTIO_META_DNS_CAPTURE", "value": "yes"}]
    assert warnings_of(pod_of({"name": "istio-init", "args": ["istio-iptables"], "env": env})) == [why]


INJECTOR = [
    ("metadata: {labels: {sidecar.istio.io/inject: 'false'}, annotations: {sidecar.istio.io/inject: 'true'}}",
     "label sidecar.istio.io/inject: 'false': nothing is captured in this pod"),
    ("metadata: {namespace: kube-system}", "namespace kube-system: Istio injects nothing there"),
    ("metadata: {annotations: {inject.istio.io/templates: gateway}}",
     "annotation inject.istio.io/templates: 'gateway': no sidecar: nothing is captured in this pod"),
    ("metadata: {annotations: {inject.istio.io/templates: 'grpc-agent, custom'}}",
     "annotation inject.istio.io/templates: 'grpc-agent, custom': no sidecar: nothing is captured in this pod"),
    ("metadata: {annotations: {inject.istio.io/templates: ''}}",
     "annotation inject.istio.io/templates: '': names no template; use sidecar, or leave the annotation out"),
    ("metadata: {annotations: {proxy.istio.io/config: 'interceptionMode: NONE'}}",
     "interception mode NONE: nothing is captured in this pod"),
    ("metadata: {annotations: {proxy.istio.io/config: 'proxyMetadata: {DISABLE_ENVOY: \"true\"}'}}",
     "DISABLE_ENVOY is set on istio-proxy: nothing is captured in this pod"),
    ("metadata: {annotations: {proxy.istio.io/config: 'interception_mode: 2'}}",
     "interception mode NONE: nothing is captured in this pod"),
    ("metadata: {annotations: {proxy.istio.io/config: 'proxyMetadata: {SKIP_RULE_APPLY: \"1\"}'}}",
     "SKIP_RULE_APPLY in proxyMetadata: the init container applies no rules: nothing is captured in this pod"),
    ("spec: {containers: [{name: istio-proxy, args: [proxy, router]}]}",
     "istio-proxy runs as 'router', not as a sidecar: nothing is captured in this pod"),
    ("spec: {containers: [{name: istio-proxy, env: [{name: DISABLE_ENVOY, value: 'true'}]}]}",
     "DISABLE_ENVOY is set on istio-proxy: nothing is captured in this pod"),
    ("metadata: {annotations: {ambient.istio.io/redirection: enabled}}",
     "annotation ambient.istio.io/redirection: ambient mode: ztunnel captures this pod's traffic, without a sidecar"),
    ("spec: {hostNetwork: true, initContainers: [{name: istio-init, args: [istio-iptables, -p, '1']}]}",
     "hostNetwork: the pod is in the node's own network: nothing is captured in this pod"),
    ("spec: {os: {name: windows}, initContainers: [{name: istio-init, args: [istio-iptables, -p, '1']}]}",
     "os: name: 'windows': the pod's network is not Linux's: nothing is captured in this pod"),
    ("metadata: {annotations: {traffic.sidecar.istio.io/includeInboundPorts: 80-90}}",
     "annotation traffic.sidecar.istio.io/includeInboundPorts: '80-90': '80-90' is not a port: Istio takes no ranges"),
    ("metadata: {annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.1.2.3}}",
     "annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: '10.1.2.3': not a CIDR: Istio takes no bare IP"),
    ("metadata: {annotations: {traffic.sidecar.istio.io/excludeInterfaces: '0net'}}",
     "annotation traffic.sidecar.istio.io/excludeInterfaces: '0net': '0net' is not an interface's name"),
    ("metadata: {annotations: {status.sidecar.istio.io/port: ''}}",
     "annotation status.sidecar.istio.io/port: '': '' is not a port: Istio takes no ranges"),
    ("metadata: {annotations: {sidecar.istio.io/proxyCPU: much}}",
     "annotation sidecar.istio.io/proxyCPU: 'much': not a quantity such as 100m or 128Mi"),
    ("metadata: {annotations: {prometheus.istio.io/merge-metrics: 'yes'}}",
     "annotation prometheus.istio.io/merge-metrics: 'yes': not true or false"),
    ("metadata: {annotations: {readiness.status.sidecar.istio.io/periodSeconds: '-1'}}",
     "annotation readiness.status.sidecar.istio.io/periodSeconds: '-1': not a number of 32 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "why"), INJECTOR)
def test_a_pod_that_istios_injector_leaves_alone_or_refuses(tmp_path: Path, part: str, why: str) -> None:
    text = "kind: Pod\n" + part + "\n" + ("" if part.startswith("spec") else "spec: {containers: [{name: a}]}\n")
    assert refused(tmp_path, text) == why


@pytest.mark.parametrize(
    ("annotations", "flags"),
    [
        ("sidecar.istio.io/inject: what", ""),
        ("inject.istio.io/templates: 'sidecar,custom'", ""),
        ("status.sidecar.istio.io/port: '0'", "-d 15090,15021"),
        ("status.sidecar.istio.io/port: '15099'", "-d 15090,15021,15099"),
        ("traffic.sidecar.istio.io/excludeInboundPorts: '15020,22'", "-d 15090,15021,15020,22"),
        ("traffic.sidecar.istio.io/excludeInboundPorts: ' 22, 23'", "-d 15090,15021,22,23,15020"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts: '25'", "-o 25"),
        ("traffic.sidecar.istio.io/includeOutboundPorts: '443'", "-q 443"),
        ("istio.io/reroute-virtual-interfaces: tap0, traffic.sidecar.istio.io/kubevirtInterfaces: old0", "-k tap0"),
        ("sidecar.istio.io/agentLogLevel: 'default:debug'", "--log_output_level debug"),
        # As protobuf's JSON: the proto's own name, and the number of an enumeration.
        ("proxy.istio.io/config: 'interception_mode: TPROXY'", "-m TPROXY"),
        ("proxy.istio.io/config: 'interceptionMode: 1'", "-m TPROXY"),
        # What a template leaves empty is an empty text to the API.
        ("traffic.sidecar.istio.io/includeOutboundIPRanges: ", "-i ''"),
        ("build: 2026-08-22, at: 12:30:45", ""),
    ],
)
def test_annotations_mean_what_istios_injector_makes_of_them(tmp_path: Path, annotations: str, flags: str) -> None:
    plain = ["-u", "1337", "-i", "*", "-b", "*", "-d", "15090,15021,15020"]
    assert read(tmp_path, PLAIN % (annotations, "")) == options([*plain, *shlex.split(flags)], {})


def test_names_in_arguments_are_those_of_the_image(tmp_path: Path) -> None:
    spec = {"initContainers": [{"name": "istio-init", "args": ["istio-iptables", "-u", "istio-proxy,root"]}]}
    assert read(tmp_path, json.dumps(spec)).proxy_uid == (1337, 0)


@pytest.mark.parametrize(
    ("text", "recorded", "meant"),
    [
        ("$(A)-$(B)", {"A": "1"}, "1-$(B)"),
        ("$$(A) $$$(A) $A $", {"A": "1"}, "$(A) $1 $A $"),
        ("$(A", {"A": "1"}, "$(A"),
        ("$(A$(A))", {"A": "1"}, "$(A$(A))"),
        ("$(A)", {"A": None}, None),
        ("$$(A)", {"A": None}, "$(A)"),
    ],
)
def test_references_to_variables_are_kubernetes(text: str, recorded: dict[str, str | None], meant: str | None) -> None:
    assert expanded(text, recorded) == meant


def test_arguments_and_variables_refer_to_variables(tmp_path: Path) -> None:
    env = [{"name": "ONE", "value": "80"}, {"name": "ISTIO_OUTBOUND_PORTS", "value": "$(ONE),$(TWO)"}]
    body = {"name": "istio-init", "args": ["istio-iptables", "-b", "$(ONE)"], "env": env}
    assert read(tmp_path, json.dumps({"initContainers": [body]}), istio_outbound_ports="1").istio_inbound_ports == (
        PortRange(80, 80),
    )
    assert "istio-init: ISTIO_OUTBOUND_PORTS: '80,$(TWO)'" in refused(tmp_path, json.dumps({"initContainers": [body]}))


def injected(*args: object, **more: object) -> str:
    return json.dumps({"kind": "Pod", "spec": {"initContainers": [{"name": "istio-init", "args": args, **more}]}})


INIT = "initContainer istio-init"
REFERRED = [{"name": "ISTIO_INBOUND_PORTS", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (injected("istio-iptables", "-b", "80,http"),
         f"{INIT}: --istio-inbound-ports (-b): '80,http': entry 'http'"),
        (injected("istio-iptables", "-p", 15001), f"{INIT}: args[2]: '15001': not a string"),
        (injected("istio-iptables", "-p", "1", "stray", "--redistribute"),
         f"{INIT}: args: '--redistribute': no option"),
        (injected("istio-iptables", "-p"), f"{INIT}: args: '-p': no option"),
        (injected("istio-iptables", env=REFERRED),
         f"{INIT}: env ISTIO_INBOUND_PORTS: only the cluster"),
        (injected("istio-iptables", "-b", "$(ISTIO_INBOUND_PORTS)", env=REFERRED),
         INIT + ": '$(ISTIO_INBOUND_PORTS)': only"),
        (injected("istio-iptables", env=[{"name": "WAIT", "value": 30}]),
         f"{INIT}: env WAIT: '30': not a string"),
        (injected("istio-iptables", env=[{"name": "ISTIO_INBOUND_PORTS", "value": "soon"}]),
         f"{INIT}: ISTIO_INBOUND_PORTS: 'soon': not a port"),
        (injected("istio-iptables", env={"WAIT": "30"}), f"{INIT}: env: "),
        (injected("istio-iptables", securityContext={"privileged": "yes"}),
         f"{INIT}: securityContext: privileged: 'yes': not true or false"),
        (PLAIN % ("", ", {name: istio-proxy, securityContext: {runAsUser: -1}}"),
         "container istio-proxy: securityContext: runAsUser: '-1': not an id from 0 to 4294967294"),
        (PLAIN % ("", "], securityContext: {supplementalGroups: [x]}, volumes: ["),
         "securityContext: supplementalGroups: 'x': not a number"),
        (PLAIN.replace("spec", "status: {podIP: here}\nspec") % ("", ""), "status: podIPs: 'here': not an IP address"),
        ('{"kind": "Pod", "spec": {"hostNetwork": "true"}}', "hostNetwork: 'true': not true or false without quotes"),
        ('{"kind": "Pod", "spec": {"initContainers": ["istio-init"]}}',
         "initContainers[0]: 'istio-init': not an object"),
        (PLAIN % ('traffic.sidecar.istio.io/includeInboundPorts: "80,http"', ""),
         "annotation traffic.sidecar.istio.io/includeInboundPorts: '80,http': entry 'http'"),
        (PLAIN % ("traffic.sidecar.istio.io/includeInboundPorts: 80", ""),
         "annotation traffic.sidecar.istio.io/includeInboundPorts: '80': not a string"),
        (PLAIN % ("proxy.istio.io/config: '{'", ""), "annotation proxy.istio.io/config: '{': not YAML: line "),
        (PLAIN % ("proxy.istio.io/config: 'interceptionMode: HALF'", ""),
         "annotation proxy.istio.io/config: 'HALF': interceptionMode: unknown: use REDIRECT"),
        (PLAIN % ("sidecar.istio.io/interceptionMode: NONE", ""), "interception mode NONE: nothing is captured"),
        (PLAIN % ("sidecar.istio.io/inject: 'false'", ""), "annotation sidecar.istio.io/inject: 'false': nothing"),
        (PLAIN % ("", ", {name: istio-proxy, securityContext: {runAsUser: proxy}}"),
         "container istio-proxy: securityContext: runAsUser: 'proxy': not a number"),
        ("kind: Pod\nspec: {hostNetwork: true}\n", "hostNetwork: "),
        ("kind: Pod\nspec: {os: {name: windows}}\n", "os: name: 'windows': "),
        ("kind: Service\nspec: {}\n", "no pod in it"),
        ("", "no pod in it"),
        (f"{INJECTED}\n---\n{INJECTED}", "2 pods in it (Pod reviews-v1-5b4d6c, Pod reviews-v1-5b4d6c): give one"),
        ("a: b: c", "not YAML: line 1: "),
        ("just words", "document: 'just words': not an object"),
        ("[" * 100_000, "nested too deeply"),
        ("when: !!int 2026-13-45", "not YAML: "),
        ("\x00", "not YAML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    answer = refused(tmp_path, text)
    assert answer.startswith(message)
    assert "\n" not in answer


def test_a_flag_that_is_wrong_is_not_the_pods_fault(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(INJECTED)
    with pytest.raises(UsageError, match=r"^--istio-inbound-ports \(-b\): 'http'"):
        from_pod_file(str(path), {"istio_inbound_ports": "http"}, nobody)
    # A value that a flag replaces does not matter, whatever it is.
    for text in (injected("istio-iptables", "-b", "http"), injected("istio-iptables", env=REFERRED)):
        assert read(tmp_path, text, istio_inbound_ports="80").istio_inbound_ports == (PortRange(80, 80),)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a named pipe"):
        from_pod_file(str(tmp_path / "pipe"), {}, nobody)
    (tmp_path / "pod.yaml").write_bytes(b"\xff\xfe")
    for path, why in ((tmp_path / "pod.yaml", "not text in UTF-8"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=why):
            from_pod_file(str(path), {}, nobody)


FIELDS = [
    "kind", "items", "spec", "template", "initContainers", "containers", "name", "args", "command", "env", "value",
    "securityContext",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["-b", "$(A)", "istio-iptables"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner | st.just("istio-init"),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(json_values)
def test_whatever_a_document_holds_it_is_options_or_one_line(value: object) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(value, file)
        file.flush()
        assert complaint(lambda: from_pod_file(file.name, {}, nobody)).count("\n") == 0


@given(st.text())
def test_whatever_a_text_is_it_is_documents_or_one_line(text: str) -> None:
    assert complaint(lambda: yaml_json.load(text)).count("\n") == 0


def complaint(read_it: Callable[[], object]) -> str:
    """What is wrong with it; empty where nothing is. Any other error is the program's fault and passes."""
    try:
        read_it()
    except (UsageError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        # Injected, for the CNI plugin: what counts is what the plugin decides, not whether it would be injected anew.
        ("namespace: kube-system, annotations: {sidecar.istio.io/status: '{}'}", ""),
        ("namespace: a, annotations: {sidecar.istio.io/status: '{}'}", ""),
        ("annotations: {sidecar.istio.io/status: '{}', sidecar.istio.io/inject: 'false'}", "inject is false"),
        ("namespace: kube-system", "kube-system"),
    ],
)
def test_whether_an_injected_pod_is_captured_is_the_plugins_decision(metadata: str, why: str) -> None:
    text = (
        f"kind: Pod\nmetadata: {{name: web, {metadata}}}\nspec: {{containers: [{{name: istio-proxy}}, {{name: web}}]}}"
    )
    reason = refusal(only_workload(yaml_json.load(text)))
    assert (why in reason) if why else not reason
