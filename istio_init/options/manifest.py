"""Options to the init container that a pod's specification names, with no more rights than it needs."""

from __future__ import annotations

from istio_init.options.arguments import arguments
from istio_init.options.table import PROXY_UID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from istio_init.options.table import Options

INIT, VALIDATION = "istio-init", "istio-validation"
# What scripts/image TAG makes in docs/deploy.md; a user names the one that the nodes can pull.
IMAGE = "localhost/istio-init:test"
CAPABILITIES = ("NET_ADMIN", "NET_RAW")
# An apply takes some 15 MB and some 10 ms (docs/speed.md). The limits are for namespaces whose quota wants some.
RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}


def container(
    options: Options,
    image: str = IMAGE,
    spelled: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    account: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The container as Kubernetes' API has it (core/v1 Container); one that validates only gets no capability.

    `spelled` are the options' texts to pass as they are, `environ` its variables, `account` the uid and gid of one that
    validates. A dollar in an argument is doubled: Kubernetes would take $(NAME) for a variable's value.
    """
    validates = options.skip_rule_apply
    variables = [{"name": name, "value": value} for name, value in sorted((environ or {}).items())]
    return {
        "name": VALIDATION if validates else INIT,
        "image": image,
        "args": ["istio-iptables", *(word.replace("$", "$$") for word in arguments(options, spelled))],
        **({"env": variables} if variables else {}),
        "securityContext": _validating(*(account or _account(options))) if validates else _applying(),
        "resources": {kind: dict(amounts) for kind, amounts in RESOURCES.items()},
    }


def _account(options: Options) -> tuple[int, int]:
    return options.proxy_uid[0], options.proxy_groups[0]


def _applying() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "runAsUser": 0,
        "capabilities": {"add": list(CAPABILITIES), "drop": ["ALL"]},
    }


def _validating(uid: int, gid: int) -> dict[str, Any]:
    """The proxy's rights: it is its connections that have to pass the rules."""
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": gid or PROXY_UID,
        "runAsNonRoot": True,
        "runAsUser": uid or PROXY_UID,
        "capabilities": {"drop": ["ALL"]},
    }
