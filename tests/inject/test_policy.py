"""The policies as text: what the API server is asked to do. A real one tries them in integration/cluster."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from istio_init.errors_rare import OptionError
from istio_init.inject.containers import InitSpec
from istio_init.inject.policy import CURRENT, KINDS, printed
from istio_init.options.annotations import ANNOTATIONS
from istio_init.options.manifest import IMAGE
from istio_init.options.table import OPTIONS

IMAGE_POLICY, CAPTURE = "image", "capture"


def policy(kind: str, request: InitSpec, kubernetes: str = CURRENT) -> dict[str, Any]:
    result, binding = yaml.safe_load_all(printed(kind, request, kubernetes))
    assert binding == {
        "apiVersion": result["apiVersion"],
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": result["metadata"],
        "spec": {"policyName": result["metadata"]["name"]},
    }
    spec: dict[str, Any] = result["spec"]
    return {**spec, "version": result["apiVersion"].partition("/")[2]}


def variables(spec: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["expression"] for each in spec["variables"]}


def mutation(spec: dict[str, Any]) -> str:
    (only,) = spec["mutations"]
    text: str = (only.get("jsonPatch") or only["applyConfiguration"])["expression"]
    return text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("kubernetes", "version"),
    [
        ("1.34", "v1beta1"),
        ("v1.34.4", "v1beta1"),
        ("1.35", "v1beta1"),
        ("1.36", "v1"),
        ("1.40.1", "v1"),
        (CURRENT, "v1"),
    ],
)
def test_the_version_of_the_api_follows_the_clusters(kind: str, kubernetes: str, version: str) -> None:
    assert policy(kind, InitSpec({}), kubernetes)["version"] == version


@pytest.mark.parametrize("kubernetes", ["1.33", "2.0", "1", "1.x", "1.-1", "latest", ""])
def test_a_version_without_the_policies_is_refused(kubernetes: str) -> None:
    with pytest.raises(OptionError, match="--kubernetes: "):
        printed(IMAGE_POLICY, InitSpec({}), kubernetes)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_changed_when_they_are_created_and_again_behind_webhooks(kind: str) -> None:
    spec = policy(kind, InitSpec({}))
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert rule == {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    assert spec["reinvocationPolicy"] == "IfNeeded"


def test_the_image_policy_applies_always() -> None:
    spec = policy(IMAGE_POLICY, InitSpec({}, "registry.example/istio-init:0.1.0"))
    # One that did not match before a webhook is not asked again behind it.
    assert "matchConditions" not in spec
    assert spec["failurePolicy"] == "Ignore"
    assert variables(spec)["image"] == "'registry.example/istio-init:0.1.0'"


def test_the_capture_policy_fails_rather_than_let_a_pod_through() -> None:
    spec = policy(CAPTURE, InitSpec({}))
    assert spec["failurePolicy"] == "Fail"
    assert spec["matchConstraints"]["namespaceSelector"] == {"matchLabels": {"istio-injection": "enabled"}}
    assert [each["name"] for each in spec["matchConditions"]] == [
        "own-network", "namespace", "injection-not-refused", "not-injected-yet", "sidecar-template", "mode",
        "sidecar-proxy", "envoy-enabled",
    ]  # fmt: skip
    assert f"image: '{IMAGE}'" in mutation(spec)


def test_every_annotation_that_sets_an_option_is_looked_up() -> None:
    text = printed(CAPTURE, InitSpec({}), CURRENT)
    for each in ANNOTATIONS:
        if each.field and not each.path:
            assert f"'{each.name}' in " in text


def test_options_are_what_a_pod_without_annotations_gets() -> None:
    arguments = {
        "istio_service_cidr": "10.0.0.0/8", "istio_inbound_ports": "80", "istio_local_exclude_ports": "9000",
        "istio_outbound_ports": "443", "proxy_uid": "2000", "istio_inbound_interception_mode": "TPROXY",
        "envoy_port": "15011", "native_nftables": "true", "redirect_dns": "true",
    }  # fmt: skip
    spec = policy(CAPTURE, InitSpec(arguments))
    actual = variables(spec)
    for field in ("istio_service_cidr", "istio_inbound_ports", "istio_outbound_ports", "proxy_uid"):
        assert f": '{arguments[field]}'" in actual[field]
    assert actual["istio_local_exclude_ports"].startswith("'9000' +")
    assert ": 'TPROXY'" in actual["istio_inbound_interception_mode"]
    text = mutation(spec)
    assert "'-p', '15011'" in text
    assert "'-q', variables.istio_outbound_ports]" in text
    assert "'--native-nftables', '--redirect-dns']" in text


def test_variables_are_defined_before_they_are_used() -> None:
    for request in (InitSpec({}), InitSpec({}, validation=True), InitSpec({"istio_exclude_interfaces": "net1"})):
        spec = policy(CAPTURE, request)
        recorded: set[str] = set()
        for name, expression in variables(spec).items():
            assert set(re.findall(r"variables\.(\w+)", expression)) <= recorded
            recorded.add(name)
        assert set(re.findall(r"variables\.(\w+)", mutation(spec))) <= recorded


def test_the_validation_runs_as_the_proxy_and_comes_first() -> None:
    text = mutation(policy(CAPTURE, InitSpec({}, validation=True)))
    assert "name: 'istio-validation'" in text
    assert "path: '/spec/initContainers/' + '0'," in text
    assert "'--run-validation', '--skip-rule-apply']" in text
    assert "int(variables.proxy_uid)" in text


@pytest.mark.parametrize("image", ["it's", "back\\slash", "new\nline", "é\u2028", "${x}"])
def test_a_text_can_not_leave_its_literal(image: str) -> None:
    spec = policy(IMAGE_POLICY, InitSpec({}, image))
    literal = variables(spec)["image"]
    assert re.fullmatch(r"'(?:[^'\\\n]|\\['\\]|\\U[0-9a-f]{8})*'", literal)
    assert literal.encode().decode("unicode_escape" if literal.isascii() else "utf-8") in {f"'{image}'", literal}


def test_a_wrong_value_of_an_option_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--istio-inbound-ports \(-b\): 'http'"):
        printed(CAPTURE, InitSpec({"istio_inbound_ports": "http"}), CURRENT)


def test_every_option_can_be_given() -> None:
    """A value of each option that is not its default gets into the policy."""
    examples = {"boolean": "true", "port": "16000", "ports": "1,2", "interfaces": "net1", "all_or_ports": "7"}
    for each in OPTIONS:
        if text := examples.get(getattr(each.parse, "__name__", "")):
            if each.field in {"skip_rule_apply", "dry_run", "cleanup_only"}:
                continue
            assert printed(CAPTURE, InitSpec({each.field: text}), CURRENT) != printed(CAPTURE, InitSpec({}), CURRENT)
