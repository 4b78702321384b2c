"""A pod's manifest to the options that its rules are made from: `--from-pod`.

What an injected pod's own init container is called with counts: its arguments, and its environment in the place of
the caller's. A pod without one is read as Istio's injection and its CNI plugin would: by its annotations and its proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats import yaml_json
from istio_init.options.annotations import INJECT, MODE, NO_CAPTURE, texts
from istio_init.options.argv import parse
from istio_init.options.manifest import INIT, VALIDATION
from istio_init.options.podspec import Container, Pod, containers, only_pod, proxy_metadata, strings
from istio_init.options.table import OPTIONS, PROXY_UID, PROXY_USER, Options, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.options.table import Lookup

FLAG = "--from-pod"
PROXY = "istio-proxy"
PROGRAMS = {"istio-iptables", "istio-clean-iptables", "pilot-agent"}
# What Istio's CNI plugin reads of the proxy's environment (cni/pkg/plugin/sidecar_redirect.go); the rest is Envoy's.
PROXY_VARIABLES = ("ISTIO_META_DNS_CAPTURE", "INVALID_DROP", "ISTIO_DUAL_STACK")
PROXY_MODE = "ISTIO_META_INTERCEPTION_MODE"
# Whom the names in a pod's arguments mean: its image's users, Istio's as ours, not this machine's.
IMAGE_ACCOUNTS = {"root": 0, PROXY_USER: PROXY_UID}


def from_pod(text: str, name: str, given: Mapping[str, str], lookup: Lookup) -> Options:
    """The Options that the pod in a manifest asks for; those that are `given`, by field, win. Errors name it by `name`.

    UsageError, one line that names the file, the container or annotation, and the value.
    """
    try:
        pod = only_pod(yaml_json.load(text))
        where, told, environ = _asked(pod, given)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None

    def account(kind: str, user: str) -> int | None:
        return IMAGE_ACCOUNTS[user] if user in IMAGE_ACCOUNTS else lookup(kind, user)

    try:
        return resolve({**told, **given}, environ, account)
    except OptionError as error:
        if error.source in {each.names() for each in OPTIONS if each.field in given}:
            raise
        raise OptionError(f"{name}: {where}: {error.source}", error.value, error.why) from None


def _asked(pod: Pod, given: Mapping[str, str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """What tells a pod's options, the options' texts by field, and the variables that count."""
    found = {each.name: each for each in containers(pod)}
    for name in (INIT, VALIDATION):
        if name in found and (argv := _argv(found[name])) is not None:
            return found[name].title, _parsed(found[name], argv), found[name].environment(_variables(given))
    if pod.spec.get("hostNetwork") is True:
        raise ValueError("hostNetwork: the pod has no network of its own, and so no rules of ours")
    return "annotations", *_annotated(pod, found.get(PROXY))


def _argv(container: Container) -> list[str] | None:
    """A container's arguments behind the program's name; None where it does not call istio-iptables.

    The image's entry point is the program where there is no command; the template of a pod may lay an image alone over
    what the injection is to put in.
    """
    rest, named = container.argv, ""
    while rest and rest[0].rpartition("/")[2] in PROGRAMS:
        named = rest.pop(0).rpartition("/")[2]
    if named == "istio-clean-iptables":
        return ["--cleanup-only", *rest]
    return rest if named == "istio-iptables" else None


def _parsed(container: Container, argv: list[str]) -> dict[str, str]:
    """The options' texts; ValueError where an argument is none of istio-iptables'."""
    given = parse(argv)
    if given is not None:
        return given
    # The first argument with which, and with whatever follows it, the command line stops making sense.
    ends = [parse(argv[: end + 1]) is None for end in range(len(argv))]
    wrong = next(n for n, bad in enumerate(ends) if bad and all(ends[n : n + 2]))
    raise ValueError(
        f"{container.title}: args: {shown(argv[wrong])}: no option of istio-iptables, or without its value"
    )


def _variables(given: Mapping[str, str]) -> set[str]:
    """The variables that count beside the options that are given."""
    return {variable for each in OPTIONS if each.field not in given for variable in each.variables} | {"ENVOY_USER"}


def _annotated(pod: Pod, proxy: Container | None) -> tuple[dict[str, str], dict[str, str]]:
    """The options' texts that a pod's annotations and its proxy mean, and the variables that count.

    ValueError where the pod is not captured at all.
    """
    given = strings(pod.metadata.get("annotations"), "annotation")
    labels = strings(pod.metadata.get("labels"), "label")
    config, metadata = proxy_metadata(given)
    meant = texts(given)
    environ = metadata | (proxy.environment({*PROXY_VARIABLES, PROXY_MODE}) if proxy else {})
    mode = given.get(MODE) or config.get("interceptionMode") or environ.get(PROXY_MODE, "")
    if mode == NO_CAPTURE:
        raise ValueError(f"interception mode {mode}: nothing is captured in this pod")
    for kind, found in (("label", labels), ("annotation", given)):
        if found.get(INJECT) == "false":
            raise ValueError(f"{kind} {INJECT}: 'false': nothing is captured in this pod")
    if mode:
        meant["istio_inbound_interception_mode"] = str(mode)
    return meant | _owner(proxy), {name: environ[name] for name in PROXY_VARIABLES if name in environ}


def _owner(proxy: Container | None) -> dict[str, str]:
    """Whose the proxy is. With TPROXY it runs as root, and its rules are made for 1337 all the same."""
    if proxy is None:
        return {}
    ids = {"proxy_uid": proxy.user("runAsUser"), "proxy_gid": proxy.user("runAsGroup")}
    return {field: str(number) for field, number in ids.items() if number}
