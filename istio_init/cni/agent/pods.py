"""The pods of a node as the agent stores them: only the fields that decide about capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.options.annotations import INJECT, NAMES
from istio_init.options.cni_pod import PROXY_CONTAINER, PodDescription
from istio_init.options.manifest import VALIDATION
from istio_init.options.workload import Workload
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# The annotations with a static pod's uid in the kubelet, which differs from that of its object in the API.
MIRROR = "kubernetes.io/config.mirror"
ENDED = frozenset({"Succeeded", "Failed"})


class NodePod(Record):
    """A pod. `description` is None if it cannot be understood, and `why` says what is wrong then.

    `version` is the object's resource version, `phase` the pod's, `validation` the exit code of istio-validation's
    last run, None where it has not ended yet.
    """

    namespace: str
    name: str
    uid: str
    version: str
    description: PodDescription | None
    why: str = ""
    mirror: str = ""
    phase: str = ""
    validation: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Its namespace and name."""
        return self.namespace, self.name

    @property
    def ended(self) -> bool:
        """Whether it has ended, and so has no network."""
        return self.phase in ENDED

    def has_uid(self, uid: str) -> bool:
        """Whether a runtime that names this uid means this pod; one that names none may."""
        return uid in {"", self.uid, self.mirror}


def from_object(manifest: Any) -> NodePod:  # noqa: ANN401 (JSON)
    """A pod from the API's JSON; ValueError where that is no pod."""
    metadata, spec, status = (_member(manifest, name) for name in ("metadata", "spec", "status"))
    namespace, name, uid, version = (
        text_member(metadata, key) for key in ("namespace", "name", "uid", "resourceVersion")
    )
    description, why = None, "" if spec else "the API server has no specification of it"
    try:
        if spec:
            description = _trimmed(Workload(f"pod {name}", namespace, metadata, spec).description(PROXY_CONTAINER))
    except (ValueError, AttributeError, TypeError) as error:
        why = str(error)
    mirror = _member(metadata, "annotations").get(MIRROR, "")
    phase, validation = str(status.get("phase", "")), _validation(status)
    return NodePod(namespace, name, uid, version, description, why, str(mirror), phase, validation)


def _member(value: object, name: str) -> dict[str, Any]:
    """An object's member that is an object itself; empty where there is none."""
    member = value.get(name) if isinstance(value, dict) else None
    return member if isinstance(member, dict) else {}


def text_member(metadata: object, name: str) -> str:
    """A member of an object's metadata that is always there; ValueError where it is not."""
    text = metadata.get(name) if isinstance(metadata, dict) else None
    if not isinstance(text, str) or not text:
        raise ValueError(f"metadata.{name} is missing")
    return text


def _trimmed(pod: PodDescription) -> PodDescription:
    """The description without irrelevant fields; of the annotations only those with a name like Istio's are kept."""
    annotations = {name: text for name, text in pod.annotations.items() if name in NAMES or "istio.io/" in name}
    return pod.replace(
        annotations=annotations, labels={name: text for name, text in pod.labels.items() if name == INJECT}
    )


def _validation(status: Mapping[str, Any]) -> int | None:
    """The exit code of the last run of the container istio-validation."""
    statuses = status.get("initContainerStatuses")
    for each in statuses if isinstance(statuses, list) else ():
        if not isinstance(each, dict) or each.get("name") != VALIDATION:
            continue
        for state in ("state", "lastState"):
            if ended := _member(_member(each, state), "terminated"):
                code = ended.get("exitCode")
                return code if isinstance(code, int) else 0
    return None


class PodStore:
    """This node's pods by namespace and name, and the resource version up to which they are known.

    `listen` gets every pod that was added or changed, and the one before it; a pod that is gone as its last state and
    None.
    """

    def __init__(self, listen: Callable[[NodePod | None, NodePod | None], None] = lambda _new, _old: None) -> None:
        self._pods: dict[tuple[str, str], NodePod] = {}
        self._listen = listen
        self.version = ""

    def __len__(self) -> int:
        return len(self._pods)

    def __iter__(self) -> Iterator[NodePod]:
        return iter(tuple(self._pods.values()))

    def get(self, namespace: str, name: str) -> NodePod | None:
        """The pod of this name, if the agent knows it."""
        return self._pods.get((namespace, name))

    def replace(self, pods: Iterable[NodePod], version: str) -> None:
        """Take a whole list: what is not in it is gone."""
        listed = {pod.key: pod for pod in pods}
        for key in self._pods.keys() - listed.keys():
            self._listen(None, self._pods.pop(key))
        for pod in listed.values():
            self._put(pod)
        self.version = version

    def apply(self, kind: str, pod: NodePod) -> None:
        """Take one event of a watch: ADDED, MODIFIED or DELETED."""
        if kind == "DELETED":
            stored = self._pods.get(pod.key)
            # The next pod of the same name may be known by a direct request already.
            if stored is not None and stored.uid == pod.uid:
                self._listen(None, self._pods.pop(pod.key))
        else:
            self._put(pod)
        self.version = pod.version

    def _put(self, pod: NodePod) -> None:
        before = self._pods.get(pod.key)
        if before is None or before.version != pod.version:
            self._pods[pod.key] = pod
            self._listen(pod, before)
