"""Options to the init container that a pod's specification names, with no more rights than it needs."""

from __future__ import annotations

from istio_init.options.arguments import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from istio_init.options.table import Options

INIT, VALIDATION = "istio-init", "istio-validation"
# What scripts/image TAG makes in docs/deploy.md; a user names the one that the nodes can pull.
IMAGE = "localhost/istio-init:test"
CAPABILITIES = ("NET_ADMIN", "NET_RAW")
# An apply takes some 15 MB and some 10 ms (docs/speed.md). The limits are for namespaces whose quota wants some.
RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}


def container(options: Options, image: str = IMAGE) -> dict[str, Any]:
    """The container as Kubernetes' API has it (core/v1 Container); one that validates only gets no capability.

    A dollar in an argument is doubled: Kubernetes would take $(NAME) for a variable's value.
    """
    validates = options.skip_rule_apply
    return {
        "name": VALIDATION if validates else INIT,
        "image": image,
        "args": ["istio-iptables", *(word.replace("$", "$$") for word in arguments(options))],
        "securityContext": _validating(options) if validates else _applying(),
        "resources": {kind: dict(amounts) for kind, amounts in RESOURCES.items()},
    }


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


def _validating(options: Options) -> dict[str, Any]:
    """The proxy's rights: it is its connections that have to pass the rules."""
    uid = options.proxy_uid[0] or 1337
    gid = (options.proxy_gid or options.proxy_uid)[0] or 1337
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": gid,
        "runAsNonRoot": True,
        "runAsUser": uid,
        "capabilities": {"drop": ["ALL"]},
    }
