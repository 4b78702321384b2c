"""Text goes in, and nothing else changes: properties over documents of every style, and cases for each style."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.inject.containers import InitSpec, placement
from istio_init.inject.injector import inject, remove
from istio_init.options.workload import workloads
from tests.kit.corpus import KINDS, SITUATIONS, corpus
from tests.kit.manifests import json_texts, yaml_texts

ROOT = Path(__file__).parents[2]
REQUESTS = (InitSpec({}), InitSpec({}, native=False), InitSpec({}, validation=True))
requests = st.builds(
    InitSpec,
    defaults=st.sampled_from([{}, {"istio_service_cidr": "10.0.0.0/8"}, {"redirect_dns": "true"}]),
    native=st.booleans(),
    validation=st.booleans(),
)


def values(text: str, loader: type[Any] = yaml.SafeLoader) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        return list(yaml.load_all(text.removeprefix("\ufeff"), loader))


def edited(documents: list[Any], request: InitSpec) -> list[Any]:
    """The plain edit: the container put into the parsed documents."""
    result = copy.deepcopy([json.loads(json.dumps(document)) for document in documents])
    for document in result:
        for workload in workloads(document) if isinstance(document, dict) else ():
            created = placement(workload, request)
            if not created.why_not:
                spec: dict[str, Any] = workload.spec  # type: ignore[assignment]
                listed = spec.get("initContainers") or []
                spec["initContainers"] = [created.container, *listed] if created.first else [*listed, created.container]
    return result


def is_subsequence(lines: list[str], of: list[str]) -> bool:
    rest = iter(of)
    return all(line in rest for line in lines)


def hold(text: str, request: InitSpec) -> str:
    """The properties of every text."""
    done = inject(text, request)
    # The result is read by another parser than the injector's, which is slow: the text itself is read by the fast one.
    assert values(done.text) == edited(values(text, yaml.CSafeLoader), request)
    assert inject(done.text, request).text == done.text
    assert remove(done.text).text == text
    return done.text


@settings(max_examples=400, deadline=None)
@given(yaml_texts(), requests)
def test_yaml_of_every_style(text: str, request: InitSpec) -> None:
    hold(text, request)


@settings(max_examples=300, deadline=None)
@given(json_texts(), requests)
def test_json_of_every_style(text: str, request: InitSpec) -> None:
    json.loads(hold(text, request))


BLOCK = """\
# A shop.
kind: Deployment
metadata: {{name: shop}}
spec:
  template:
    spec:
      # Before the pod's own.
{init}      containers: # one
      - name: shop   # the shop
        image: 'shop:1'

      # behind
      volumes: []
"""
LISTS = {
    "none": "",
    "empty": "      initContainers: []   # none yet\n",
    "null": "      initContainers: ~ # none\n",
    "nothing": "      initContainers:\n",
    "block": "      initContainers:\n      # first\n      - name: a\n        image: b # last\n",
    "indented": "      initContainers: # here\n        - name: a\n          image: b\n          # of a\n",
    "script": "      initContainers:\n      - name: a\n        args:\n        - |\n          echo\n\n",
    "flow": "      initContainers: [{name: a}, {name: b}]\n",
    "flow lines": "      initContainers: [\n        {name: a}, # a\n        {name: b}\n      ]\n",
    "anchored": "      initContainers: &list\n      - &a\n        name: a\n",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", LISTS)
def test_every_line_stays(name: str, native: bool, ending: str) -> None:
    text = BLOCK.format(init=LISTS[name]).replace("\n", ending)
    done = hold(text, InitSpec({}, native=native))
    assert (
        done.count("istio-init\n" if name not in {"empty", "flow", "flow lines"} else '"istio-init"') + done.count("\r")
        >= 1
    )
    kept = [
        line
        for line in text.splitlines()
        if "initContainers: " not in line and "name: a}" not in line and "name: b}" not in line
    ]
    assert is_subsequence(kept, done.splitlines())
    assert ("\r\n" in done) == (ending == "\r\n")
    assert done.replace("\r\n", "").count("\n") == (0 if ending == "\r\n" else done.count("\n"))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["none", "null", "nothing", "block", "indented", "script", "anchored"])
def test_block_style_changes_no_line(name: str, native: bool) -> None:
    text = BLOCK.format(init=LISTS[name])
    done = hold(text, InitSpec({}, native=native)).replace("# filled by istio-init inject, was: ", "")
    assert is_subsequence(text.splitlines(), done.splitlines())


def test_without_a_final_line_break() -> None:
    for text in (
        "kind: Pod\nspec:\n  containers: [{name: a}]\n  initContainers:\n  - name: b",
        "kind: Pod\nspec:\n  containers: [{name: a}]\n  initContainers: null",
        "kind: Pod\nspec:\n  containers: [{name: a}]\n  initContainers:",
    ):
        for native in (True, False):
            assert not hold(text, InitSpec({}, native=native)).endswith("\n")
    alone = "kind: Pod\nspec:\n  containers: [{name: a}]\n  initContainers:\n  - name: istio-init\n    image: x"
    done = inject(alone, InitSpec({})).text
    assert done.startswith(alone)
    assert not done.endswith("\n")
    assert remove(done).text == alone


def test_a_pod_inside_of_a_list() -> None:
    text = "kind: List\nitems:\n- spec:\n    containers:\n    - name: a\n- kind: Service\n"
    text += "-   kind: Pod\n    spec: {containers: [{name: b}]}\n"
    assert hold(text, InitSpec({})).count("name: istio-init\n") == 1
    assert inject(text, InitSpec({})).workloads == 2


def test_a_piece_of_a_specification() -> None:
    assert hold("containers:\n- name: a\n", InitSpec({})).startswith(
        "initContainers: # added by istio-init inject\n- name"
    )
    assert hold("- containers: []\n", InitSpec({})) == "- containers: []\n"


SHARED = """\
x: &template
  spec: &spec
    containers: [{name: a}]
---
kind: List
items:
- kind: Deployment
  spec:
    template: &template
      spec:
        containers:
        - name: a
- kind: Deployment
  spec: {template: *template}
"""


def test_a_template_that_an_alias_shares_is_changed_once() -> None:
    done = hold(SHARED, InitSpec({}))
    assert done.count("name: istio-init") == 1
    merged = "kind: Pod\nx: &x {hostNetwork: false}\nspec:\n  <<: *x\n  containers: [{name: a}]\n"
    assert hold(merged, InitSpec({})).count("istio-init\n") == 1


LEVEL = "sidecar.istio.io/agentLogLevel"


@pytest.mark.parametrize(
    "text",
    [  # Different containers at one place, a list that something else shares, and one that comes by a merge.
        f"items: [spec: &s {{containers: [name: a]}}, {{metadata: {{annotations: {{{LEVEL}: debug}}}}, spec: *s}}]",
        "x: &l [{name: a}]\nkind: Pod\nspec:\n  containers: *l\n  initContainers: *l\n",
        "x: &x {initContainers: [{name: a}]}\nkind: Pod\nspec: {<<: *x, containers: [{name: a}]}\n",
        "kind: Pod\nspec: {initContainers: , containers: [{name: a}]}\n",
        "kind: Pod\nspec:\n  initContainers: !!null\n  containers: [{name: a}]\n",
    ],
)
def test_what_can_not_be_changed_alone_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"share|more than that|no plain list|has no value") as caught:
        inject(text, InitSpec({}))
    assert "\n" not in str(caught.value)


# -- A container that is there.

ISTIOS = """\
kind: Pod
metadata:
  annotations: {sidecar.istio.io/status: '{"initContainers":["istio-init"]}'}
spec:
  initContainers:
  - args: # as it was
    - istio-iptables
    - -p
    - "15001"
    image: docker.io/istio/proxyv2:1.29.0
    name: istio-init
    securityContext: {runAsUser: 0}
  - name: after
  containers: [{name: a}]
"""


def test_istios_container_gets_the_image_and_the_arguments() -> None:
    done = inject(ISTIOS, InitSpec({}, "registry.example/istio-init:0.1.0")).text
    result = values(done)[0]["spec"]["initContainers"][0]
    assert result["image"] == "registry.example/istio-init:0.1.0"
    assert result["args"][:3] == ["istio-iptables", "-p", "15001"]
    assert result["args"][-1] == "--log_output_level=default:info"
    assert result["securityContext"] == {"runAsUser": 0}
    assert "  - args: # as it was\n" in done
    assert inject(done, InitSpec({}, "registry.example/istio-init:0.1.0")).text == done
    assert remove(done).text == remove(ISTIOS).text
    assert values(remove(ISTIOS).text)[0]["spec"]["initContainers"] == [{"name": "after"}]


@pytest.mark.parametrize("call", ["command: [pilot-agent], args: [istio-iptables, -p, '1']", "args: [istio-iptables]"])
def test_other_calls_of_istio_iptables(call: str) -> None:
    text = f"kind: Pod\nspec: {{initContainers: [{{name: istio-init, {call}}}], containers: [{{name: a}}]}}\n"
    (result,) = values(inject(text, InitSpec({})).text)[0]["spec"]["initContainers"]
    assert [*result.get("command", []), *result["args"]].count("istio-iptables") == 1
    assert "-z" in result["args"]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("command: [sh, -c, istio-iptables]", "initContainer istio-init is no plain call of istio-iptables: rename it"),
        ("command: [istio-iptables, -p, '1']", "initContainer istio-init: its command has the arguments"),
    ],
)
def test_a_container_that_can_not_be_changed_is_named(call: str, why: str) -> None:
    text = "kind: Pod\nmetadata: {name: x}\nspec: {initContainers: [{name: istio-init, %s}], containers: [{name: a}]}\n"
    with pytest.raises(ValueError, match=f"^Pod x: {why}"):
        inject(text % call, InitSpec({}))


def test_other_options_take_the_place_of_those_before() -> None:
    text = BLOCK.format(init=LISTS["block"])
    first = inject(text, InitSpec({})).text
    second = inject(first, InitSpec({"istio_service_cidr": "10.0.0.0/8"}, native=False)).text
    assert second == inject(text, InitSpec({"istio_service_cidr": "10.0.0.0/8"}, native=False)).text
    assert remove(second).text == text


def test_one_container_or_the_other() -> None:
    text = BLOCK.format(init="")
    done = inject(text, InitSpec({}))
    again = inject(done.text, InitSpec({}, validation=True))
    assert again.text == done.text
    assert again.notes == (
        ("Deployment shop", "skipped: it has an init container istio-init already: take that out first (--remove)"),
    )


def test_both_are_removed() -> None:
    text = "kind: Pod\nspec:\n  initContainers:\n  - &i {name: istio-init, args: [istio-iptables]}\n  - name: a\n"
    text += "  - name: istio-validation\n    args: [istio-iptables, --skip-rule-apply]\n  containers: [{name: a}]\n"
    assert values(remove(text).text)[0]["spec"]["initContainers"] == [{"name": "a"}]


def test_what_runs_before_a_native_proxy_is_told() -> None:
    text = "kind: Pod\nspec:\n  containers: [{name: a}]\n  initContainers: [{name: m}, {name: istio-proxy}]\n"
    assert inject(text, InitSpec({})).notes == (
        ("Pod without a name", "m: captured before istio-proxy runs; move istio-proxy first"),
    )


# -- A corpus: what the tools of the trade write, and every manifest of this repository.


@pytest.mark.parametrize("tool", sorted({name.split()[0] for name, _ in corpus()}))
def test_manifests_as_tools_write_them(tool: str) -> None:
    actual = [text for name, text in corpus() if name.split()[0] == tool]
    assert len(actual) == len(KINDS) * len(SITUATIONS)
    for text, request in zip(
        actual, itertools.cycle([InitSpec({}), InitSpec({}, native=False), InitSpec({}, validation=True)])
    ):
        assert (hold(text, request) == text) == ("sidecar.istio.io/inject" in text)


def manifests() -> Iterator[tuple[str, str]]:
    for pattern in ("deploy/*.yaml", "tests/inject/cases/*/input.yaml", "integration/**/*.yaml"):
        for path in sorted(ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)):
            yield f"{path.name} {number}", block


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_manifests_of_this_repository(request_: InitSpec) -> None:
    actual = 0
    for name, text in manifests():
        if "bad-port" in name or "name: istio-init\n" in text or "istio-validation" in text:
            continue
        actual += sum(1 for document in values(text) if isinstance(document, dict) for _ in workloads(document))
        hold(text, request_)
    assert actual > 10
