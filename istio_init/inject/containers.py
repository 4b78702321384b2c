"""The init container that a workload is to get, by Istio's rules, and what is to be done about one that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors_rare import OptionError
from istio_init.options.container_call import call
from istio_init.options.from_pod import IMAGE_ACCOUNTS
from istio_init.options.injection import Injection, injection
from istio_init.options.manifest import IMAGE, INIT, VALIDATION, container
from istio_init.options.table import PROXY_UID, resolve
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.options.podspec import Container
    from istio_init.options.table import Options
    from istio_init.options.workload import Workload

PROXY_IMAGE = "sidecar.istio.io/proxyImage"
# Options by field that an init container passes as numbers, instead of as written.
RESOLVED = {"proxy_uid", "proxy_gid"}
# The fields of an init container that a pod may leave to the injection, in the order in which they are filled in. In
# that order no container is written that was not there before: `args` come last.
FILLED = ("securityContext", "resources", "env", "args")


class InitSpec(Record):
    """What is to be injected: option texts by field in the place of the mesh's values, and which container.

    `image` is empty if there is no --image: then it is that of a container that is there, or of PROXY_IMAGE.
    """

    defaults: Mapping[str, str]
    image: str = ""
    proxy: str = "istio-proxy"
    native: bool = True
    validation: bool = False

    @property
    def name(self) -> str:
        """The container's name."""
        return VALIDATION if self.validation else INIT


class Placement(Record):
    """The container for one workload, and its place; or why there is none."""

    why_not: str = ""
    container: Mapping[str, Any] = {}
    first: bool = True
    warning: str = ""


def placement(workload: Workload, request: InitSpec) -> Placement:
    """The init container that a workload is to get; AnnotationError or ValueError where Istio would refuse the pod."""
    defaults = dict(request.defaults)
    if request.validation:
        defaults |= {"run_validation": "true", "skip_rule_apply": "true"}
    decision = injection(workload, defaults, request.proxy, native=request.native)
    if decision.why_not:
        return Placement(decision.why_not)
    other = INIT if request.validation else VALIDATION
    if workload.init_container(other) is not None:
        return Placement(f"it has an init container {other} already: take that out first (--remove)")
    options = _options(decision, defaults)
    image = _image(workload, request)
    texts = {field: text for field, text in decision.texts.items() if field not in RESOLVED}
    body = container(options, image, texts, decision.environ, _account(workload, request, options))
    return Placement("", body, request.validation or decision.native, _warning(workload, request))


def _options(decision: Injection, defaults: Mapping[str, str]) -> Options:
    try:
        return options_of(decision.texts)
    except OptionError as error:
        if any(defaults.get(field) == error.value for field in defaults):
            raise
        raise ValueError(str(error)) from None


def options_of(texts: Mapping[str, str]) -> Options:
    """The options of these texts by field; users have the names of Istio's images. OptionError for a wrong one."""
    try:
        return resolve(texts, {}, lambda _kind, name: IMAGE_ACCOUNTS.get(name))
    except OptionError as error:
        # Not with Istio's exit code 1 for a value: here that is what --check ends with.
        raise OptionError(error.source, error.value, error.why) from None


def _image(workload: Workload, request: InitSpec) -> str:
    """The image: one that a pod chose for its init container stays, as with Istio; then the one that was asked for."""
    present = workload.init_container(request.name)
    own = str((present and present.body.get("image")) or "")
    if present is not None and own and (is_placeholder(present) or filled(present)):
        return own
    annotated = workload.annotations.get(PROXY_IMAGE, "")
    # Istio takes the proxy's image only where it names a registry; it has istio-iptables as well.
    return request.image or own or (annotated if "/" in annotated else IMAGE)


def _account(workload: Workload, request: InitSpec, options: Options) -> tuple[int, int]:
    """Whom a container that validates runs as: the proxy, but for TPROXY, where the proxy is root."""
    proxy = workload.proxy(request.proxy)
    if proxy is None or options.istio_inbound_interception_mode == "TPROXY":
        return PROXY_UID, PROXY_UID
    return options.proxy_uid[0], proxy.account("runAsGroup") or PROXY_UID


def _warning(workload: Workload, request: InitSpec) -> str:
    """What goes wrong with init containers that run before a native sidecar: Istio moves them, a file is left alone."""
    names = [each.name for each in workload.containers() if each.init]
    if request.validation or request.proxy not in names:
        return ""
    before = [name for name in names[: names.index(request.proxy)] if name != request.name]
    return f"{', '.join(before)}: captured before {request.proxy} runs; move {request.proxy} first" if before else ""


# -- What is there already.


def is_placeholder(present: Container) -> bool:
    """Whether a container is there for its image alone, and the injection is to fill in the rest."""
    return not present.words


def calls_istio_iptables(present: Container) -> bool:
    """Whether a container calls istio-iptables in a way that can be read."""
    try:
        return call(present, named=True) is not None
    except ValueError:
        return False


def is_placed(present: Container) -> bool:
    """Whether a container looks as `placement` makes it, but for its image, arguments and variables."""
    like = container(resolve({}, {}, lambda _kind, _name: None))
    fixed = {key: value for key, value in like.items() if key not in {"name", "image", "args", "securityContext"}}
    keys = [key for key in present.body if key != "env"]
    return keys == list(like) and all(present.body[key] == value for key, value in fixed.items())


def filled(present: Container) -> int:
    """How many of a container's last fields were filled in beside an image of the pod's own; 0 where it is not so."""
    keys = list(present.body)
    if keys[-1:] != ["args"]:
        return 0
    like = container(resolve({}, {}, lambda _kind, _name: None))
    count = 1
    for key in reversed(FILLED[:-1]):
        if count >= len(keys) or keys[-count - 1] != key:
            continue
        if key == "resources" and present.body[key] != like[key]:
            break
        count += 1
    return count if count > 1 else 0
