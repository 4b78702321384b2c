"""Captured or passed through: Istio's questions in Istio's order, and options that the command line would give."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from istio_init.cni.plugin.decision import Decision, decide, decide_for_pod, pod_from_annotations
from istio_init.cni.plugin.protocol import CONFIGURATION, PluginError, Request
from istio_init.cni.plugin.sandbox_state import CAPTURED, PASSED
from istio_init.cni.plugin.settings import Api, Settings
from istio_init.errors_rare import OptionError
from istio_init.options.annotations import INJECT, MODE, PROXY_CONFIG, STATUS, TEMPLATES, AnnotationError
from istio_init.options.cni_pod import PodDescription
from istio_init.runner.defaults import account
from tests.kit.options import options

INJECTED = {STATUS: json.dumps({"initContainers": ["istio-validation"], "containers": ["istio-proxy"]})}
NATIVE = {STATUS: json.dumps({"initContainers": ["istio-validation", "istio-proxy"], "containers": None})}
FULL = PodDescription(INJECTED, {}, ("istio-validation", "app", "istio-proxy"), {}, "sidecar")
REQUEST = Request("ADD", "1.1.0", args={"K8S_POD_NAME": "web-0", "K8S_POD_NAMESPACE": "default"})
EVERYTHING = "--cni-mode -i * -b * -d 15020,15021,15090 -o 15020 -u 1337"


def nobody(api: Api, namespace: str, name: str) -> PodDescription:
    raise AssertionError(f"{namespace}/{name} was asked for")


def meant(text: str) -> object:
    return options(text.split(), {})


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (FULL.replace(host_network=True), "the node's own network"),
        (FULL.replace(containers=("istio-init", "istio-proxy")), "init container istio-init"),
        (FULL.replace(variables={"DISABLE_ENVOY": "true"}), "DISABLE_ENVOY"),
        (FULL.replace(containers=("app",)), "no container istio-proxy"),
        (FULL.replace(role="router"), "a router"),
        (FULL.replace(annotations={**INJECTED, INJECT: "false"}), f"{INJECT} is false"),
        (FULL.replace(labels={INJECT: "false"}), f"{INJECT} is false"),
        (FULL.replace(labels={INJECT: "false"}, annotations={**INJECTED, INJECT: "true"}), f"{INJECT} is false"),
        (FULL.replace(annotations={}), f"no annotation {STATUS}"),
        (FULL.replace(annotations={**INJECTED, TEMPLATES: "gateway"}), "no sidecar's"),
        (FULL.replace(annotations={**INJECTED, MODE: "NONE"}), f"{MODE} is NONE"),
        (pod_from_annotations({}), f"no annotation {STATUS}"),
        (
            pod_from_annotations({STATUS: '{"initContainers": ["istio-init"], "containers": ["istio-proxy"]}'}),
            "istio-init",
        ),
        (pod_from_annotations({STATUS: '{"containers": ["other"]}'}), "no container istio-proxy"),
    ],
)
def test_pods_that_are_passed_through_and_why(pod: PodDescription, why: str) -> None:
    found = decide_for_pod(pod, Settings())
    assert found.decision == PASSED
    assert why in found.why
    assert found.flags() == ("--cni-mode",)


@pytest.mark.parametrize(
    "pod",
    [
        FULL,
        FULL.replace(labels={INJECT: "true"}, annotations={**INJECTED, INJECT: "false"}),
        FULL.replace(annotations={**INJECTED, INJECT: "what?"}),
        FULL.replace(annotations={**INJECTED, TEMPLATES: "sidecar,custom"}),
        pod_from_annotations(INJECTED),
        pod_from_annotations(NATIVE),
        pod_from_annotations({STATUS: "not JSON"}),
        pod_from_annotations({STATUS: "{}"}),
        pod_from_annotations({STATUS: '{"containers": 7}'}),
        pod_from_annotations({STATUS: "[" * 100_000}),
        pod_from_annotations({**INJECTED, "example.com/other": "\n$(reboot)"}),
    ],
)
def test_pods_that_are_captured(pod: PodDescription) -> None:
    found = decide_for_pod(pod, Settings())
    assert found.decision == CAPTURED
    assert found.options(account) == meant(EVERYTHING)


def test_what_the_sidecars_container_says() -> None:
    said = {"ISTIO_META_DNS_CAPTURE": "true", "INVALID_DROP": "1", "ISTIO_DUAL_STACK": "false", "OTHER": "x"}
    found = decide_for_pod(FULL.replace(variables=said, proxy_uid=1000, proxy_gid=1001), Settings())
    wanted = f"{EVERYTHING} --redirect-dns --drop-invalid --no-dual-stack -u 1000 -g 1001"
    assert found.options(account) == meant(wanted)
    with pytest.raises(OptionError, match="INVALID_DROP of the container istio-proxy: 'x': not true or false"):
        decide_for_pod(FULL.replace(variables={"INVALID_DROP": "x"}), Settings())


@pytest.mark.parametrize(
    "text",
    [
        'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "true"\n  # INVALID_DROP: "true"\n',
        "proxyMetadata: {A: b, ISTIO_META_DNS_CAPTURE: 'true'}",
        '{"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true", "B": "c"}}',
        "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: true # on\n",
    ],
)
def test_what_the_pods_proxy_configuration_says(text: str) -> None:
    found = decide_for_pod(pod_from_annotations({**INJECTED, PROXY_CONFIG: text}), Settings())
    assert found.options(account) == meant(f"{EVERYTHING} --redirect-dns")


def test_a_proxy_configuration_that_can_not_be_read_is_said() -> None:
    with pytest.raises(AnnotationError, match=PROXY_CONFIG):
        decide_for_pod(pod_from_annotations({**INJECTED, PROXY_CONFIG: "ISTIO_META_DNS_CAPTURE: *anchor"}), Settings())


def test_defaults_count_where_a_pod_says_nothing() -> None:
    chosen = Settings(defaults={"istio_service_cidr": "10.0.0.0/8", "native_nftables": "true", "proxy_uid": "5"})
    found = decide_for_pod(FULL, chosen).options(account)
    assert found == meant(EVERYTHING.replace("-i *", "-i 10.0.0.0/8").replace("1337", "5") + " --native-nftables")
    asked = {**INJECTED, "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.9.0.0/16"}
    again = decide_for_pod(FULL.replace(annotations=asked), chosen).options(account)
    assert again == found.replace(istio_service_cidr=options(["-i", "10.9.0.0/16"], {}).istio_service_cidr)  # type: ignore[union-attr]


def test_the_mark_flags_mean_the_same_options() -> None:
    found = decide_for_pod(FULL.replace(variables={"INVALID_DROP": "1"}), Settings(defaults={"envoy_port": "15011"}))
    assert options(found.flags(), {}) == found.options(account)


# -- The sources, in their order.


def decided(chosen: Settings, args: Mapping[str, str] = REQUEST.args) -> Decision:
    return decide(REQUEST.replace(args=args), chosen, nobody)


def test_annotations_come_first() -> None:
    everything = Settings({}, {"istio_service_cidr": "*"}, {}, (), Api("/kubeconfig"))
    assert decided(everything).decision == PASSED
    assert decided(everything.replace(annotations=INJECTED)).decision == CAPTURED


def test_then_the_block() -> None:
    found = decided(Settings(None, {"istio_service_cidr": "10.0.0.0/8"}, api=Api("/kubeconfig")))
    assert found.options(account) == meant(EVERYTHING.replace("-i *", "-i 10.0.0.0/8"))
    assert decided(Settings(block={}), {}).options(account) == meant(EVERYTHING)


def test_then_the_api() -> None:
    asked = []

    def ask(api: Api, namespace: str, name: str) -> PodDescription:
        asked.append((api.kubeconfig, namespace, name))
        return FULL

    assert decide(REQUEST, Settings(api=Api("/kubeconfig")), ask).decision == CAPTURED
    assert asked == [("/kubeconfig", "default", "web-0")]


def test_nothing_to_go_by_is_an_error() -> None:
    with pytest.raises(PluginError, match="nothing tells what the pod default/web-0 asks for") as raised:
        decided(Settings())
    assert raised.value.code == CONFIGURATION


@pytest.mark.parametrize("args", [{}, {"K8S_POD_NAME": "a"}, {"K8S_POD_NAMESPACE": "b"}])
def test_what_is_no_pod_is_passed_through(args: dict[str, str]) -> None:
    assert decided(Settings(api=Api("/kubeconfig")), args).decision == PASSED


def test_excluded_namespaces_are_passed_through_before_anything_is_asked() -> None:
    chosen = Settings(INJECTED, {}, {}, ("kube-system", "default"), Api("/kubeconfig"))
    assert decided(chosen).why == "the namespace default is excluded"
