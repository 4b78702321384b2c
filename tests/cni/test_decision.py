"""Captured or passed through: Istio's questions in Istio's order, and options that the command line would give."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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
        (FULL.replace(host_network=True), "the node's network"),
        (FULL.replace(containers=("istio-init", "istio-proxy")), "init container istio-init"),
        (FULL.replace(variables={"DISABLE_ENVOY": "true"}), "DISABLE_ENVOY"),
        (FULL.replace(containers=("app",)), "no container istio-proxy"),
        (FULL.replace(role="router"), "its proxy is a router"),
        (FULL.replace(annotations={**INJECTED, INJECT: "false"}), f"{INJECT} is false"),
        (FULL.replace(labels={INJECT: "false"}), f"{INJECT} is false"),
        (FULL.replace(labels={INJECT: "false"}, annotations={**INJECTED, INJECT: "true"}), f"{INJECT} is false"),
        (FULL.replace(annotations={}), f"no annotation {STATUS}"),
        (FULL.replace(annotations={**INJECTED, TEMPLATES: "gateway"}), "not injected with the sidecar template"),
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
    decision = decide_for_pod(pod, Settings(), account)
    assert decision.decision == PASSED
    assert why in decision.why
    assert decision.options is None


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
    decision = decide_for_pod(pod, Settings(), account)
    assert decision.decision == CAPTURED
    assert decision.options == meant(EVERYTHING)


def test_what_the_sidecars_container_says() -> None:
    message = {"ISTIO_META_DNS_CAPTURE": "true", "INVALID_DROP": "1", "ISTIO_DUAL_STACK": "false", "OTHER": "x"}
    decision = decide_for_pod(FULL.replace(variables=message, proxy_uid=1000, proxy_gid=1001), Settings(), account)
    desired = f"{EVERYTHING} --redirect-dns --drop-invalid --no-dual-stack -u 1000 -g 1001"
    assert decision.options == meant(desired)


@pytest.mark.parametrize(
    ("pod", "place"),
    [
        (FULL.replace(variables={"INVALID_DROP": "yes"}), "INVALID_DROP of the container istio-proxy"),
        (
            FULL.replace(annotations={**FULL.annotations, PROXY_CONFIG: "proxyMetadata: {INVALID_DROP: 'yes'}"}),
            "annotation proxy.istio.io/config: proxyMetadata.INVALID_DROP",
        ),
    ],
)
def test_a_variable_that_is_no_boolean_counts_as_false_as_for_istios_plugin(pod: PodDescription, place: str) -> None:
    decision = decide_for_pod(pod, Settings(), account)
    assert decision.options == meant(EVERYTHING)
    assert decision.warnings == (f"{place}: 'yes': not true or false; taken for false, as in Istio's program",)
    with pytest.raises(OptionError, match=f"{place}: 'yes': not true or false"):
        decide_for_pod(pod, Settings(defaults={"strict_env": "true"}), account)


@pytest.mark.parametrize(
    "text",
    [
        'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "true"\n  # INVALID_DROP: "true"\n',
        "proxyMetadata: {A: b, ISTIO_META_DNS_CAPTURE: 'true'}",
        '{"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true", "B": "c"}}',
        "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: true # on\n",
        'proxy_metadata:\n  ISTIO_META_DNS_CAPTURE: "1"\n',
        'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "true"\n  OTHER: "true" # with ISTIO_META_DNS_CAPTURE only\n',
        "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE_ALL: 'no'\n  ISTIO_META_DNS_CAPTURE: >-\n    true\n",
        "proxyMetadata: {SINCE: 2020-01-01, ISTIO_META_DNS_CAPTURE: 'true'}\nruntimeValues: {INVALID_DROP: 'true'}\n",
    ],
)
def test_what_the_pods_proxy_configuration_says(text: str) -> None:
    decision = decide_for_pod(pod_from_annotations({**INJECTED, PROXY_CONFIG: text}), Settings(), account)
    assert decision.options == meant(f"{EVERYTHING} --redirect-dns")


@pytest.mark.parametrize(
    "text",
    [
        "", "# proxyMetadata: {INVALID_DROP: 'true'}", "proxyMetadata:", "proxyMetadata: {}", "concurrency: 2",
        "proxyMetadata: {MY_INVALID_DROP: 'true', INVALID_DROP_2: 'true', NOTE: 'INVALID_DROP: \"true\"'}",
        "other: {proxyMetadata: {INVALID_DROP: 'true'}}", "INVALID_DROP: 'true'",
    ],
)  # fmt: skip
def test_only_the_key_itself_counts_in_a_proxy_configuration(text: str) -> None:
    decision = decide_for_pod(pod_from_annotations({**INJECTED, PROXY_CONFIG: text}), Settings(), account)
    assert decision.options == meant(EVERYTHING)


@given(st.dictionaries(st.text(), st.text() | st.booleans() | st.integers() | st.dates() | st.lists(st.text())))
def test_any_yaml_around_the_key_leaves_its_meaning(others: dict[str, object]) -> None:
    config = {**others, "proxyMetadata": {"INVALID_DROP": "true"}, "proxy_metadata": None, "interceptionMode": "TPROXY"}
    decision = decide_for_pod(
        pod_from_annotations({**INJECTED, PROXY_CONFIG: yaml.safe_dump(config)}), Settings(), account
    )
    assert decision.options == meant(f"{EVERYTHING} --drop-invalid -m TPROXY")


def test_the_mode_in_a_proxy_configuration_counts_where_no_annotation_sets_it() -> None:
    config = {**INJECTED, PROXY_CONFIG: "interceptionMode: NONE"}
    assert decide_for_pod(pod_from_annotations(config), Settings(), account).decision == PASSED
    decision = decide_for_pod(pod_from_annotations({**config, MODE: "TPROXY"}), Settings(), account)
    assert decision.options == meant(f"{EVERYTHING} -m TPROXY")


# A few hundred bytes of aliases that would be gigabytes of text.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        "proxyMetadata: []", "proxyMetadata: 5", "[]", "5", "{", "proxyMetadata: {INVALID_DROP: [1]}",
        "interceptionMode: HALF", "interceptionMode: {}", "[" * 50_000,
        f"{BOMB}proxyMetadata: {{INVALID_DROP: *a11}}", f"{BOMB}proxyMetadata: *a11", "a: *b", "\0",
    ],
)  # fmt: skip
def test_what_is_no_proxy_configuration_is_one_short_line(text: str) -> None:
    with pytest.raises(AnnotationError) as raised:
        decide_for_pod(pod_from_annotations({**INJECTED, PROXY_CONFIG: text}), Settings(), account)
    message = str(raised.value)
    assert message.startswith(f"annotation {PROXY_CONFIG}")
    assert message.isprintable()
    assert len(message) < 400


def test_a_proxy_configuration_that_can_not_be_read_is_said() -> None:
    with pytest.raises(AnnotationError, match=PROXY_CONFIG):
        decide_for_pod(
            pod_from_annotations({**INJECTED, PROXY_CONFIG: "ISTIO_META_DNS_CAPTURE: *anchor"}), Settings(), account
        )


def test_defaults_count_where_a_pod_says_nothing() -> None:
    chosen = Settings(defaults={"istio_service_cidr": "10.0.0.0/8", "native_nftables": "true", "proxy_uid": "5"})
    decision = decide_for_pod(FULL, chosen, account).options
    assert decision == meant(EVERYTHING.replace("-i *", "-i 10.0.0.0/8").replace("1337", "5") + " --native-nftables")
    request = {**INJECTED, "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.9.0.0/16"}
    again = decide_for_pod(FULL.replace(annotations=request), chosen, account).options
    assert again == decision.replace(istio_service_cidr=options(["-i", "10.9.0.0/16"], {}).istio_service_cidr)  # type: ignore[union-attr]


# -- The sources, in their order.


def decided(chosen: Settings, args: Mapping[str, str] = REQUEST.args) -> Decision:
    return decide(REQUEST.replace(args=args), chosen, nobody, account)


def test_annotations_come_first() -> None:
    everything = Settings({}, {"istio_service_cidr": "*"}, {}, (), Api("/kubeconfig"))
    assert decided(everything).decision == PASSED
    assert decided(everything.replace(annotations=INJECTED)).decision == CAPTURED


def test_then_the_block() -> None:
    decision = decided(Settings(None, {"istio_service_cidr": "10.0.0.0/8"}, api=Api("/kubeconfig")))
    assert decision.options == meant(EVERYTHING.replace("-i *", "-i 10.0.0.0/8"))
    assert decided(Settings(block={}), {}).options == meant(EVERYTHING)


def test_then_the_api() -> None:
    request = []

    def ask(api: Api, namespace: str, name: str) -> PodDescription:
        request.append((api.kubeconfig, namespace, name))
        return FULL

    assert decide(REQUEST, Settings(api=Api("/kubeconfig")), ask, account).decision == CAPTURED
    assert request == [("/kubeconfig", "default", "web-0")]


def test_nothing_to_go_by_is_an_error() -> None:
    with pytest.raises(PluginError, match="pod default/web-0: its annotations are not available") as raised:
        decided(Settings())
    assert raised.value.code == CONFIGURATION


@pytest.mark.parametrize("args", [{}, {"K8S_POD_NAME": "a"}, {"K8S_POD_NAMESPACE": "b"}])
def test_what_is_no_pod_is_passed_through(args: dict[str, str]) -> None:
    assert decided(Settings(api=Api("/kubeconfig")), args).decision == PASSED


def test_excluded_namespaces_are_passed_through_before_anything_is_asked() -> None:
    chosen = Settings(INJECTED, {}, {}, ("kube-system", "default"), Api("/kubeconfig"))
    assert decided(chosen).why == "the namespace default is excluded"
