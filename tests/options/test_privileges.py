"""Which of the capabilities that rules take a container's securityContext grants."""

from __future__ import annotations

from typing import Any

import pytest

from istio_init.errors_rare import UsageError
from istio_init.options.from_pod import Reading, read_pod
from istio_init.options.privileges import NEEDED

ARGS = ["istio-iptables", "-p", "15001", "-u", "1337", "-i", "*", "-b", "*"]


def reading(context: Any = None, pod: Any = None, args: list[str] = ARGS) -> Reading:  # noqa: ANN401 (what YAML has)
    container = {"name": "istio-init", "args": args, "securityContext": context}
    spec = {"securityContext": pod, "initContainers": [container], "containers": [{"name": "app"}]}
    return read_pod(
        str({"kind": "Pod", "spec": spec}).replace("None", "null").replace("True", "true").replace("False", "false"),
        "p",
        {},
        _nobody,
    )


def _nobody(_kind: str, _name: str) -> int | None:
    return None


@pytest.mark.parametrize(
    ("capabilities", "lacking"),
    [
        ({}, ["NET_ADMIN"]),
        (None, ["NET_ADMIN"]),
        ({"add": ["NET_ADMIN"]}, []),
        ({"add": ["CAP_NET_ADMIN"]}, []),
        ({"add": ["net_admin"]}, []),
        ({"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}, []),
        ({"add": ["NET_ADMIN"], "drop": ["ALL"]}, ["NET_RAW"]),
        ({"add": ["NET_ADMIN", "NET_RAW"], "drop": ["NET_RAW"]}, ["NET_RAW"]),
        ({"add": ["ALL"]}, []),
        ({"add": ["ALL"], "drop": ["ALL"]}, [*NEEDED]),
        ({"add": ["ALL"], "drop": ["NET_RAW"]}, ["NET_RAW"]),
        ({"drop": ["all"]}, [*NEEDED]),
    ],
)
def test_capabilities(capabilities: dict[str, list[str]] | None, lacking: list[str]) -> None:
    actual = reading({"capabilities": capabilities}).privileges
    assert actual is not None
    assert [*actual.lacking] == lacking


def test_a_privileged_container_lacks_nothing() -> None:
    actual = reading({"privileged": True, "capabilities": {"drop": ["ALL"]}}).privileges
    assert actual is not None
    assert not actual.lacking


@pytest.mark.parametrize(
    ("context", "pod", "user", "refused"),
    [
        (None, None, None, False),
        ({"runAsUser": 0}, {"runAsUser": 1337, "runAsNonRoot": True}, 0, True),
        (None, {"runAsUser": 1337}, 1337, False),
        ({"runAsNonRoot": False}, {"runAsNonRoot": True}, None, False),
    ],
)
def test_the_user(context: Any, pod: Any, user: int | None, refused: bool) -> None:  # noqa: ANN401 (what YAML has)
    actual = reading(context, pod).privileges
    assert actual is not None
    assert (actual.user, actual.root_refused) == (user, refused)


def test_a_container_that_makes_no_rules_needs_nothing() -> None:
    assert reading(args=[*ARGS, "--run-validation", "--skip-rule-apply"]).privileges is None


def test_another_type_than_the_apis_is_an_error() -> None:
    with pytest.raises(UsageError, match="capabilities: 'ALL': not an object"):
        reading({"capabilities": "ALL"})
