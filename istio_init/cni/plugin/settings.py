"""The plugin's own part of a network configuration, as values."""

from __future__ import annotations

from istio_init.cni.plugin.protocol import CONFIGURATION, PluginError
from istio_init.cni.plugin.sandbox_state import DIRECTORY
from istio_init.errors import shown
from istio_init.model import parsers
from istio_init.options.table import OPTIONS
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CAPABILITY = "io.kubernetes.cri.pod-annotations"
LOG_FILE = "/var/log/istio-init/cni.log"
LOG_BYTES = 10 << 20
AGENT_SOCKET = "/run/istio-init/agent.sock"
# Whether the node agent is asked: it must answer, it may answer, or it is not asked.
REQUIRED, PREFERRED, NONE = "required", "preferred", "none"

# Options that the plugin sets itself, or that have no meaning in a call.
NOT_CONFIGURABLE = frozenset(
    {"dry_run", "network_namespace", "cleanup_only", "skip_rule_apply", "run_validation", "probe_timeout", "cni_mode"}
    | {"iptables_probe_port", "ip_family", "reconcile"}
    | {each.field for each in OPTIONS if each.field.startswith("log_")}
)
_FIELDS = {each.flag: each.field for each in OPTIONS if each.field not in NOT_CONFIGURABLE}


class Api(Record):
    """Requests to the Kubernetes API: kubeconfig, attempts, seconds between two attempts and for one."""

    kubeconfig: str
    attempts: int = 10
    pause: float = 1.0
    timeout: float = 5.0


class Settings(Record):
    """The settings of a configuration that the CNI specification does not define.

    `annotations` are the pod's, None where the runtime hands on none. `block` has the options that every sandbox of
    the network gets, by field, None where there is none; `defaults` what options are where a pod says nothing.
    """

    annotations: Mapping[str, str] | None = None
    block: Mapping[str, str] | None = None
    defaults: Mapping[str, str] = {}
    exclude_namespaces: tuple[str, ...] = ()
    api: Api | None = None
    log_level: str = "info"
    log_file: str = LOG_FILE
    log_bytes: int = LOG_BYTES
    run_dir: str = DIRECTORY
    agent: str = NONE
    agent_socket: str = AGENT_SOCKET


def settings(members: Mapping[str, Any]) -> Settings:
    """The settings of a configuration; PluginError (invalid network config) names the key that is wrong."""
    runtime, args = _object(members, "runtimeConfig"), _object(members, "args")
    blocks = [_texts("istio", members["istio"])] if members.get("istio") is not None else []
    if args.get("istio") is not None:
        blocks.append(_texts("args.istio", args["istio"]))
    return Settings(
        _annotations(runtime[CAPABILITY]) if CAPABILITY in runtime else None,
        {field: text for block in blocks for field, text in block.items()} if blocks else None,
        _texts("defaults", members.get("defaults") or {}),
        _names("exclude_namespaces", members.get("exclude_namespaces") or []),
        _api({f"kubernetes.{key}": value for key, value in _object(members, "kubernetes").items()}),
        _level(members.get("plugin_log_level")),
        _path(members, "log_file", LOG_FILE),
        _number(members, "log_bytes", LOG_BYTES, 4096, 1 << 40),
        _path(members, "run_dir", DIRECTORY),
        _choice(members, "agent", (NONE, PREFERRED, REQUIRED)),
        _path(members, "agent_socket", AGENT_SOCKET),
    )


def _wrong(key: str, value: object, why: str) -> PluginError:
    return PluginError(CONFIGURATION, f"{key}: {shown(str(value))}: {why}")


def _object(members: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = members.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(key, value, "not an object")
    return value


def _annotations(value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong(f"runtimeConfig: {CAPABILITY}", value, "not an object of texts")
    return value


def _texts(key: str, block: object) -> dict[str, str]:
    """A block of options by flag (or, as Istio spells keys, with underscores), as texts by field."""
    if not isinstance(block, dict):
        raise _wrong(key, block, "not an object of options by their flags")
    texts = {}
    for name, value in block.items():
        field = _FIELDS.get(name.replace("_", "-"))
        if field is None:
            raise PluginError(CONFIGURATION, f"{key}: {shown(name)}: no option that can be set here; docs/cni.md")
        texts[field] = _text(f"{key}: {name}", value)
    return texts


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, list):
        return ",".join(_text(key, each) for each in value)
    raise _wrong(key, value, "use a text, a number, true, false, or a list of texts")


def _names(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "not a list of names")
    return tuple(value)


def _api(block: Mapping[str, Any]) -> Api | None:
    path = _path(block, "kubernetes.kubeconfig", "")
    if not path:
        return None
    return Api(
        path,
        _number(block, "kubernetes.attempts", 10, 1, 100),
        _number(block, "kubernetes.pause_ms", 1000, 0, 60_000) / 1000,
        _number(block, "kubernetes.timeout_ms", 5000, 1, 60_000) / 1000,
    )


def _number(members: Mapping[str, Any], key: str, default: int, lowest: int, highest: int) -> int:
    value = members.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise _wrong(key, value, f"not a number from {lowest} to {highest}")
    return value


def _path(members: Mapping[str, Any], key: str, default: str) -> str:
    value = members.get(key, default)
    if not isinstance(value, str) or (value and not value.startswith("/")) or "\0" in value or len(value) > 4095:
        raise _wrong(key, value, "not an absolute path")
    return value


def _choice(members: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """One of the choices, the first where the key is missing."""
    value = members.get(key, choices[0])
    if value not in choices:
        raise _wrong(key, value, f"use {', '.join(choices[:-1])} or {choices[-1]}")
    return str(value)


def _level(value: object) -> str:
    if value is None:
        return "info"
    try:
        return parsers.log_level(value if isinstance(value, str) else str(value))
    except ValueError as error:
        raise _wrong("plugin_log_level", value, str(error)) from None
