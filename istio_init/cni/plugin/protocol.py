"""The CNI protocol: the environment and standard input of a call to a request, and errors as the spec has them.

https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md, section 2 (execution protocol) and its error codes.
"""

from __future__ import annotations

from istio_init.cni.plugin.fast_json import encode, members
from istio_init.cni.plugin.sandbox_state import is_identity
from istio_init.errors import InitError, shown
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Lists of plugins came with 0.2.0, prevResult with 0.3.0; ADD hands that on as it came, so that the formats of results,
# which changed with 0.3.0 and 1.0.0, are the business of the plugins before.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]

# The spec's codes, and from 100 on the plugin's own.
INCOMPATIBLE_VERSION, ENVIRONMENT, DECODING, CONFIGURATION, TRY_AGAIN, UNAVAILABLE = 1, 4, 6, 7, 11, 50
FAILED, DRIFTED, FAULT = 100, 101, 102

# The variables that each command needs (CNI_PATH is for plugins that call others), and since when there is such.
NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
    "VERSION": (),
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

# More than any configuration has: annotations have at most 256 KiB.
LONGEST_INPUT = 8 << 20
LONGEST_ARGS = 64 << 10
LONGEST_INTERFACE = 15

POD, NAMESPACE, UID = "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID"


class PluginError(InitError):
    """Ends a call: a code of the specification, one line, and details if there are any."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.details = code, details


class Request(Record):
    """One call of a runtime's. `args` are the pairs of CNI_ARGS, `members` those of the configuration.

    `previous` is the text of prevResult as it came, empty where there is none.
    """

    command: str
    version: str
    network: str = ""
    container: str = ""
    netns: str = ""
    interface: str = ""
    args: Mapping[str, str] = {}
    members: Mapping[str, Any] = {}
    previous: str = ""


def read(environ: Mapping[str, str], data: bytes) -> Request:
    """The request that a runtime makes; PluginError where it can't be understood."""
    command = environ.get("CNI_COMMAND", "")
    if command not in NEEDED:
        raise PluginError(ENVIRONMENT, f"CNI_COMMAND: {shown(command)}: use one of {', '.join(NEEDED)}")
    members = _configuration(data, command)
    values = {name: value for name, (value, _) in members.items()}
    version = _version(command, values.get("cniVersion", ""))
    if command == "VERSION":
        return Request(command, version)
    missing = [name for name in NEEDED[command] if not environ.get(name)]
    if missing:
        raise PluginError(ENVIRONMENT, f"{', '.join(missing)}: missing from the environment")
    container, interface = environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")
    if container and not is_identity(container):
        raise PluginError(ENVIRONMENT, f"CNI_CONTAINERID: {shown(container)}: not a container's identity")
    if interface and not _is_interface(interface):
        raise PluginError(ENVIRONMENT, f"CNI_IFNAME: {shown(interface)}: not an interface's name")
    previous = members.get("prevResult", (None, ""))
    if previous[0] is not None and not isinstance(previous[0], dict):
        raise PluginError(CONFIGURATION, "prevResult: not an object")
    if command == "CHECK" and previous[0] is None:
        raise PluginError(CONFIGURATION, "prevResult: missing; CHECK needs the result of ADD")
    return Request(
        command, version, _network(values.get("name")), container, environ.get("CNI_NETNS", ""), interface,
        arguments(environ.get("CNI_ARGS", "")), values, previous[1] if previous[0] is not None else "",
    )  # fmt: skip


def _configuration(data: bytes, command: str) -> Mapping[str, tuple[Any, str]]:
    if command == "VERSION" and not data.strip():
        return {}
    if len(data) > LONGEST_INPUT:
        raise PluginError(DECODING, f"the configuration on standard input is longer than {LONGEST_INPUT} bytes")
    try:
        return members(data.decode())
    except ValueError as error:
        # UnicodeDecodeError is one.
        raise PluginError(DECODING, f"the configuration on standard input can't be read: {str(error)[:200]}") from error


def _version(command: str, requested: object) -> str:
    if command == "VERSION":
        return requested if isinstance(requested, str) and requested in VERSIONS else NEWEST
    # A configuration without a version is one of 0.1.0 (SPEC.md of 0.2.0).
    version = requested or OLDEST
    if not isinstance(version, str) or version not in VERSIONS:
        raise PluginError(
            INCOMPATIBLE_VERSION, f"cniVersion: {shown(str(version))}: unknown, use one of {', '.join(VERSIONS)}"
        )
    since = SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise PluginError(INCOMPATIBLE_VERSION, f"cniVersion: {version} has no {command}, which came with {since}")
    return version


def spoken(data: bytes) -> str:
    """The version of an error's format: the configuration's if it is supported, else the newest."""
    try:
        version = members(data.decode()).get("cniVersion", (OLDEST, ""))[0]
    except ValueError:
        return NEWEST
    return version if isinstance(version, str) and version in VERSIONS else NEWEST


def _network(name: object) -> str:
    if not isinstance(name, str) or not is_identity(name):
        raise PluginError(CONFIGURATION, f"name: {shown(str(name or ''))}: not a network's name")
    return name


def _is_interface(name: str) -> bool:
    if len(name) > LONGEST_INTERFACE or name in {".", ".."}:
        return False
    return name.isascii() and name.isprintable() and not any(sign in " /:" for sign in name)


def arguments(text: str) -> dict[str, str]:
    """The pairs of CNI_ARGS, KEY=VALUE;KEY=VALUE; PluginError where it is not such, or a pod's name can't be one."""
    if len(text) > LONGEST_ARGS:
        raise PluginError(ENVIRONMENT, f"CNI_ARGS: longer than {LONGEST_ARGS} characters")
    pairs: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or not key or not pair.isprintable():
            raise PluginError(ENVIRONMENT, f"CNI_ARGS: {shown(pair)}: not a pair KEY=VALUE")
        pairs[key] = value
    for key in (POD, NAMESPACE, UID):
        # Kubernetes' names are narrower; other runtimes hand over a container's name as the pod's.
        if (value := pairs.get(key, "")) and not is_identity(value):
            raise PluginError(ENVIRONMENT, f"CNI_ARGS: {key}: {shown(value)}: not a name that a pod can have")
    return pairs


def error_text(error: InitError, version: str) -> str:
    """An error as the spec has it, one line of JSON."""
    error_object = {"cniVersion": version, "code": code_of(error), "msg": message_of(error)}
    if details := getattr(error, "details", ""):
        error_object["details"] = details
    return encode(error_object) + "\n"


def message_of(error: InitError) -> str:
    """An error's message with its notes."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def code_of(error: InitError) -> int:
    """The code of an error for the runtime."""
    from istio_init.errors import Interrupted
    from istio_init.errors_rare import Drifted, Locked, UsageError

    match error:
        case PluginError():
            return error.code
        case UsageError():
            return CONFIGURATION
        case Drifted():
            return DRIFTED
        case Locked() | Interrupted():
            return TRY_AGAIN
        case _:
            return FAILED
