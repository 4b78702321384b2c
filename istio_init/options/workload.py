"""Workloads as documents describe them: a Pod, or whatever has a pod's template, known by its shape.

This is the one reading of a manifest. `--from-pod` makes options of it, `inject` an init container, and the verbs take
from it who runs in the pod. Pure; every function parses or raises ValueError, which names the place and the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.errors import shown
from istio_init.model import parsers
from istio_init.options.cni_pod import VARIABLES, PodDescription, proxy_role
from istio_init.options.podspec import Container, account, boolean, entries, identity, mapping, string, strings
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from istio_init.model.rules import Network

# Where the objects that make pods keep the pod's template.
TEMPLATES = (("spec", "template"), ("spec", "jobTemplate", "spec", "template"), ("template",))
# The fields of a pod's specification that list containers, and what an error calls one of them.
INIT_CONTAINERS, CONTAINERS = "initContainers", "containers"
KINDS = {INIT_CONTAINERS: "initContainer", CONTAINERS: "container"}
# `kubectl debug` adds these to a running pod; no injection and no plugin looks at them.
EPHEMERAL_CONTAINERS = "ephemeralContainers"
# What the CNI plugin reads of the proxy's environment.
PLUGIN_VARIABLES = {*VARIABLES.values(), "DISABLE_ENVOY"}


class RunsAs(Record):
    """Who runs in a container, as far as the manifest says; None where the image decides.

    `groups` are the supplementary groups. The owner match compares a process's own uid and gid alone (xt_owner).
    """

    container: str
    init: bool
    uid: int | None
    gid: int | None
    groups: tuple[int, ...] = ()


class Workload(Record):
    """A pod, or the template of one. `title` is what an error calls the object that has it.

    `path` leads from the document to what holds `metadata` and `spec`. A `piece` is a specification without an object
    around it, such as `istio-init manifest` prints.
    """

    title: str
    namespace: str
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]
    path: tuple[str | int, ...] = ()
    piece: bool = False
    status: Mapping[str, Any] = {}

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations."""
        return strings(self.metadata.get("annotations"), "annotation")

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels."""
        return strings(self.metadata.get("labels"), "label")

    @property
    def host_network(self) -> bool:
        """Whether the pod runs in the node's network namespace."""
        return boolean(self.spec, "hostNetwork") is True

    @property
    def out_of_reach(self) -> str:
        """Why no rules can be made for the pod, whatever it asks for; empty where they can."""
        if self.host_network:
            return "hostNetwork: the pod is in the node's own network"
        if mapping(self.spec.get("os"), "os").get("name") == "windows":
            return "os: name: 'windows': the pod's network is not Linux's"
        return ""

    @property
    def nameservers(self) -> list[str]:
        """All nameservers of the pod; none where the cluster's or the node's are added to those that it names."""
        if self.spec.get("dnsPolicy") != "None":
            return []
        return [str(each) for each in entries(mapping(self.spec.get("dnsConfig"), "dnsConfig"), "nameservers")]

    @property
    def hosts(self) -> dict[str, bytes]:
        """The addresses of the names in its hostAliases; the first of each name counts, as in /etc/hosts."""
        addresses: dict[str, bytes] = {}
        for each in entries(self.spec, "hostAliases"):
            alias = mapping(each, "hostAliases")
            address = parsers.address(str(alias.get("ip"))).address
            for name in entries(alias, "hostnames"):
                addresses.setdefault(str(name).lower(), address)
        return addresses

    @property
    def ips(self) -> tuple[Network, ...]:
        """The addresses of a pod that runs, as its status has them; none of one that does not yet."""
        listed = [mapping(each, "status: podIPs").get("ip") for each in entries(self.status, "podIPs", "status: ")]
        addresses = [string(each, "status: podIPs: ip") for each in listed or [self.status.get("podIP")]]
        try:
            return tuple(parsers.address(each) for each in addresses if each)
        except ValueError as error:
            raise ValueError(f"status: podIPs: {shown(', '.join(addresses), 100)}: {error}") from None

    def containers(self) -> Iterator[Container]:
        """Its init containers, then the others."""
        for key in KINDS:
            yield from self._listed(key)

    def residents(self) -> Iterator[Container]:
        """All containers that run in it, those for debugging included."""
        yield from self.containers()
        yield from self._listed(EPHEMERAL_CONTAINERS)

    def init_container(self, name: str) -> Container | None:
        """The init container of this name."""
        return next((each for each in self._listed(INIT_CONTAINERS) if each.name == name), None)

    def proxy(self, name: str) -> Container | None:
        """The proxy's container: an ordinary one, or else a native sidecar, as Istio's injector looks for it."""
        matching = [each for each in self.containers() if each.name == name]
        return next((each for each in matching if not each.init), matching[0] if matching else None)

    def owners(self) -> tuple[RunsAs, ...]:
        """The users and groups of all containers, those of the pod where a container gives none."""
        context = mapping(self.spec.get("securityContext"), "securityContext")
        further = entries(context, "supplementalGroups", "securityContext: ")
        groups = [identity(each, "securityContext: supplementalGroups") for each in further]
        groups += filter(None, [account(self.spec, "fsGroup")])
        return tuple(
            RunsAs(
                each.name, each.init, self._account(each, "runAsUser"), self._account(each, "runAsGroup"), (*groups,)
            )
            for each in self.residents()
        )

    def description(self, proxy: str) -> PodDescription:
        """The pod as the CNI plugin gets it from the Kubernetes API."""
        container = self.proxy(proxy)
        return PodDescription(
            self.annotations,
            self.labels,
            tuple(each.name for each in self.containers()),
            container.environment(PLUGIN_VARIABLES) if container else {},
            role(container),
            (container and container.account("runAsUser")) or 0,
            (container and container.account("runAsGroup")) or 0,
            self.host_network,
        )

    def _account(self, container: Container, key: str) -> int | None:
        own = container.account(key)
        return account(self.spec, key) if own is None else own

    def _listed(self, key: str) -> Iterator[Container]:
        for number, entry in enumerate(entries(self.spec, key)):
            body = mapping(entry, f"{key}[{number}]")
            name = str(body.get("name", ""))
            kind = KINDS.get(key, "ephemeralContainer")
            yield Container(f"{kind} {_plain(name)}", name, body, init=key == INIT_CONTAINERS)


def role(container: Container | None) -> str:
    """The role that a proxy's container starts with, such as sidecar or router; empty where it names none."""
    if container is None:
        return ""
    return proxy_role(container.words)


def only_workload(documents: Sequence[Any]) -> Workload:
    """The one workload in these documents: a Pod, a Deployment or the like, or a piece of a specification."""
    matching = [workload for document in documents for workload in workloads(document)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise ValueError("no pod in it, and nothing that makes pods")
    names = ", ".join(each.title for each in matching[:5]) + (" ..." if len(matching) > 5 else "")
    raise ValueError(f"{len(matching)} pods in it ({names}): give one")


def workloads(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[Workload]:  # noqa: ANN401 (whatever YAML has)
    """The workloads of a document in their order, those of a List included."""
    body = mapping(document, "document")
    if isinstance(body.get("items"), list):
        for number, item in enumerate(body["items"]):
            yield from workloads(item, (*path, "items", number))
        return
    kind, metadata = str(body.get("kind") or ""), _at(body, ("metadata",))
    name = str(metadata.get("name") or metadata.get("generateName") or "without a name")
    title = f"{_plain(kind or 'pod')} {_plain(name)}"
    namespace = str(metadata.get("namespace") or "")
    if kind in {"", "Pod"} and isinstance(body.get("spec"), dict) and not _template(body):
        parts = mapping(body.get("metadata"), "metadata"), body["spec"]
        yield Workload(title, namespace, *parts, path, status=mapping(body.get("status"), "status"))
    elif not kind and any(key in body for key in KINDS):
        yield Workload(title, "", {}, body, path, piece=True)
    elif (keys := _template(body)) is not None:
        template = _at(body, keys)
        inner = mapping(template.get("metadata"), "metadata")
        yield Workload(title, str(inner.get("namespace") or namespace), inner, template["spec"], (*path, *keys))


def _template(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Where an object keeps the template of its pods; None where it has none."""
    for keys in TEMPLATES:
        spec = _at(_at(body, keys), ("spec",))
        if any(key in spec for key in KINDS):
            return keys
    return None


def _at(body: Any, keys: tuple[str, ...]) -> Mapping[str, Any]:  # noqa: ANN401 (whatever YAML has)
    """The object at these keys; empty where there is none."""
    for key in keys:
        body = body.get(key) if isinstance(body, dict) else None
    return body if isinstance(body, dict) else {}


def _plain(text: str) -> str:
    """A name from a manifest as it may appear in a line of output."""
    return text if text.isprintable() and len(text) <= 253 else shown(text)
