"""Manifests as people and programs write them: values of every shape, and YAML text of every style for a value."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import strategies as st

from istio_init.formats import yaml_json

Draw = Any  # hypothesis' function, which has no type of its own
Values = st.SearchStrategy[Any]

words = st.sampled_from(
    [
        "app",
        "web",
        "a: b",
        "# no comment",
        "- x",
        "'quoted'",
        '"',
        "yes",
        "null",
        "~",
        "1e3",
        "0x10",
        "é",
        "漢字",
        "",
        " ",
    ]
)
labels = st.dictionaries(st.sampled_from(["app", "tier", "version"]), words, max_size=2)
names = st.sampled_from(["migrate", "warm", "setup"])
container: Values = st.fixed_dictionaries(
    {"name": names},
    optional={
        "image": st.sampled_from(["a", "registry.example/a:1", "a@sha256:0"]),
        "args": st.lists(words, max_size=3),
        "command": st.just(["sh", "-c", "echo one\necho two\n"]),
        "env": st.lists(st.fixed_dictionaries({"name": st.just("A"), "value": words}), max_size=2),
        "resources": st.just({}),
        "restartPolicy": st.just("Always"),
    },
)
proxy: Values = st.fixed_dictionaries(
    {"name": st.just("istio-proxy")},
    optional={"image": words, "securityContext": st.just({"runAsUser": 1234}), "resources": st.none()},
)
pod_annotations: Values = st.fixed_dictionaries(
    {},
    optional={
        "traffic.sidecar.istio.io/includeInboundPorts": st.sampled_from(["*", "80", "80,443", ""]),
        "traffic.sidecar.istio.io/excludeOutboundPorts": st.just("25"),
        "sidecar.istio.io/nativeSidecar": st.sampled_from(["true", "false"]),
        "sidecar.istio.io/inject": st.sampled_from(["true", "false", "maybe"]),
        "sidecar.istio.io/interceptionMode": st.sampled_from(["REDIRECT", "TPROXY", "NONE"]),
        "inject.istio.io/templates": st.sampled_from(["sidecar", "gateway"]),
        "example.com/note": words,
    },
)
specification: Values = st.fixed_dictionaries(
    {"containers": st.lists(container | proxy, min_size=1, max_size=3)},
    optional={
        "initContainers": st.none() | st.lists(container | proxy, max_size=3),
        "hostNetwork": st.booleans(),
        "serviceAccountName": words,
        "volumes": st.none() | st.just([{"name": "tmp", "emptyDir": {}}]),
    },
)
metadata: Values = st.fixed_dictionaries({}, optional={"labels": labels, "annotations": pod_annotations | st.none()})
template = st.fixed_dictionaries({"spec": specification}, optional={"metadata": metadata})
named = st.fixed_dictionaries(
    {"name": st.sampled_from(["shop", "cart"])}, optional={"namespace": st.just("kube-system")}
)


def _shuffled(value: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(value.items())).map(dict)


workload: Values = st.one_of(
    st.fixed_dictionaries({"kind": st.just("Pod"), "metadata": metadata, "spec": specification.flatmap(_shuffled)}),
    st.fixed_dictionaries(
        {
            "apiVersion": st.just("apps/v1"),
            "kind": st.sampled_from(["Deployment", "Rollout", "DeploymentConfig"]),
            "metadata": named,
            "spec": st.fixed_dictionaries({"template": template}, optional={"replicas": st.just(2)}),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("CronJob"),
            "metadata": named,
            "spec": st.fixed_dictionaries(
                {"jobTemplate": st.fixed_dictionaries({"spec": st.fixed_dictionaries({"template": template})})}
            ),
        }
    ),
)
other = st.sampled_from(
    [{"kind": "Service", "spec": {"ports": [{"port": 80}]}}, {"kind": "ConfigMap", "data": {"a": "b\nc\n"}}]
)
document = (
    workload | other | st.fixed_dictionaries({"kind": st.just("List"), "items": st.lists(workload | other, max_size=3)})
)


@st.composite
def yaml_texts(draw: Draw) -> str:
    """The text of one to three documents, in a style of its own at each place."""
    values = draw(st.lists(document, min_size=1, max_size=3))
    lines: list[str] = []
    for number, value in enumerate(values):
        if number or draw(st.booleans()):
            lines.append(str(draw(st.sampled_from(["---", "--- # document", "--- "]))))
        lines += _comments(draw, 0)
        lines += _block(draw, value, 0)
        lines += [""] * draw(st.integers(0, 1))
    ending: str = draw(st.sampled_from(["\n", "\r\n"]))
    mark: str = draw(st.sampled_from(["", "\ufeff"]))
    last: list[str] = draw(st.sampled_from([[], [""]]))
    return mark + ending.join([*lines, *last])


@st.composite
def json_texts(draw: Draw) -> str:
    """The text of one document in JSON."""
    value, indent = draw(document), draw(st.sampled_from([None, 2, 4, "\t"]))
    ending: str = draw(st.sampled_from(["", "\n"]))
    return json.dumps(value, indent=indent, ensure_ascii=draw(st.booleans())) + ending


def _block(draw: Draw, value: object, column: int) -> list[str]:
    """A collection in block style, as lines that are indented by `column`."""
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _entry(draw, key, inner, column)]
    assert isinstance(value, list)
    lines: list[str] = []
    for inner in value:
        lines += _comments(draw, column)
        if isinstance(inner, dict) and inner and draw(st.integers(0, 3)):
            first, *rest = _block(draw, inner, column + 2)
            while first.lstrip().startswith("#") or not first.strip():
                # No comment between the dash and the first key on its line.
                lines.append(first)
                first, *rest = rest
            lines += [" " * column + "- " + first[column + 2 :], *rest]
        else:
            lines.append(" " * column + "- " + _flow(draw, inner) + _tail(draw))
    return lines


def _entry(draw: Draw, key: str, value: object, column: int) -> list[str]:
    lead, name = " " * column, draw(st.sampled_from([key, key, f'"{key}"', f"'{key}'"]))
    before = _comments(draw, column)
    if isinstance(value, str) and value.endswith("\n") and draw(st.booleans()):
        return [*before, f"{lead}{name}: |", *(f"{lead}  {line}" for line in value.split("\n")[:-1])]
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        step = draw(st.sampled_from([0, 2, 4] if isinstance(value, list) else [1, 2, 4]))
        return [*before, f"{lead}{name}:{_tail(draw)}", *_block(draw, value, column + step)]
    if value is None:
        return [*before, f"{lead}{name}:{draw(st.sampled_from(['', ' null', ' ~', ' Null']))}{_tail(draw)}"]
    return [*before, f"{lead}{name}: {_flow(draw, value)}{_tail(draw)}"]


def _flow(draw: Draw, value: object) -> str:
    """A value on one line."""
    space: str = draw(st.sampled_from(["", " "]))
    if isinstance(value, dict):
        pairs = [f"{_scalar(draw, key)}: {_flow(draw, inner)}" for key, inner in value.items()]
        return "{" + space + ", ".join(pairs) + space + "}"
    if isinstance(value, list):
        return "[" + space + ", ".join(_flow(draw, inner) for inner in value) + space + "]"
    return _scalar(draw, value)


def _scalar(draw: Draw, value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    styles = [json.dumps(value, ensure_ascii=False)]
    if "\n" not in value:
        styles.append("'" + value.replace("'", "''") + "'")
    if value and all(each.isalnum() or each in "./-" for each in value) and _is_text(value):
        styles.append(value)
    chosen: str = draw(st.sampled_from(styles))
    return chosen


def _is_text(word: str) -> bool:
    """Whether a plain word is text to Kubernetes and to PyYAML."""
    return [[word]] == yaml_json.load(f"[{word}]") == [yaml.safe_load(f"[{word}]")]


def _tail(draw: Draw) -> str:
    chosen: str = draw(st.sampled_from(["", "", "", "  # a note", " #"]))
    return chosen


def _comments(draw: Draw, column: int) -> list[str]:
    comments = [" " * column + "# a comment", "# at the margin", "", " " * (column + 3) + "# far"]
    chosen: list[str] = draw(st.lists(st.sampled_from(comments), max_size=1))
    return chosen
