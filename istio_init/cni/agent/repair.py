"""Continuous repair: finds pods that the plugin missed or whose rules changed, reports them, and repairs them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Never
from urllib.parse import quote

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.inspection import states
from istio_init.cni.agent.kubernetes import CONFLICT, NOT_FOUND, TOO_MANY
from istio_init.cni.node.repair import DRIFTED, FIXABLE, UNCAPTURED
from istio_init.errors import InitError
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from istio_init.cni.agent.inspection import InspectedPod, Inspector
    from istio_init.cni.agent.kubernetes import KubernetesApi
    from istio_init.cni.agent.pods import NodePod
    from istio_init.log import Log

OFF, REPORT, LABEL, MEND, DELETE = "off", "report", "label", "mend", "delete"
MODES = (OFF, REPORT, LABEL, MEND, DELETE)
# The label of Istio's own repair (cni/pkg/config, RepairLabelKey).
LABEL_NAME, LABEL_VALUE = "cni.istio.io/uninitialized", "true"
COMPONENT = "istio-init-cni"
# Seconds to collect changes before the pods are inspected, and until findings are checked again.
GATHER, CONFIRM = 3.0, 10.0
# Inspections take at most one part in this many of the time, however many changes there are.
SHARE = 5
EVENT_REASONS = {UNCAPTURED: "NotCaptured", DRIFTED: "RulesChanged"}


class RepairSettings(Record):
    """Settings of repair: the mode, namespaces whose pods are never deleted, and the limit of evictions a minute.

    `interval` is in seconds: how often the pods are inspected where nothing changes.
    """

    mode: str = OFF
    protected: tuple[str, ...] = ()
    rate: int = 5
    interval: float = 300.0


class Repair:
    """Inspects the pods at the start, after changes and periodically, and repairs what is wrong.

    `counted` is called with a state, what was done, and how that ended; `by_state` has the last inspection's counts.
    """

    def __init__(self, settings: RepairSettings, node: str, inspector: Inspector, api: KubernetesApi, log: Log) -> None:
        self._settings, self._node, self._inspector, self._api, self._log = settings, node, inspector, api, log
        self._wake = asyncio.Event()
        self._evictions: list[float] = []
        # Wrong pods of the last inspection, by uid, and those that were reported.
        self._before: dict[str, str] = {}
        self._reported_pods: set[tuple[str, str]] = set()
        self._failure = ""
        self.by_state: Counter[str] = Counter()
        self.counted: Callable[[str, str, str], None] = lambda _state, _action, _result: None

    def note(self, new: NodePod | None, old: NodePod | None) -> None:
        """Handle a change of a pod (PodStore): request an inspection if it may affect capture."""
        if new is not None and (old is None or _state(new) != _state(old)):
            self._wake.set()

    async def run(self) -> Never:
        """Inspect until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            unfinished = await self._inspect()
            gather = max(GATHER, SHARE * (loop.time() - begin))
            pause = CONFIRM if unfinished else self._settings.interval
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue
            # Wait for further changes, and inspect them together.
            await asyncio.sleep(gather)
            self._wake.clear()

    async def _inspect(self) -> bool:
        """Inspect all pods once; returns whether to check again soon."""
        try:
            document = await self._inspector.inspect(fix=self._settings.mode == MEND)
        except InitError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                self._log.warn(f"the pods cannot be inspected: {error}")
            return False
        self._failure = ""
        return await self.take(states(document))

    async def take(self, pods: Sequence[InspectedPod]) -> bool:
        """Handle the pods of an inspection; returns whether to check again soon."""
        self.by_state = Counter(each.state for each in pods if not each.fixed)
        wrong = [each for each in pods if each.state in FIXABLE]
        left = False
        for pod in wrong:
            left |= await self._deal_with(pod)
        # A problem that persists is reported once; it is reported again only after the pod was in order.
        uids = {each.uid for each in wrong if not each.fixed}
        self._reported_pods = {each for each in self._reported_pods if each[0] in uids}
        self._before = {each.uid: each.state for each in wrong if not each.fixed}
        return left

    async def _deal_with(self, pod: InspectedPod) -> bool:
        """Handle a wrong pod as the mode says; returns whether to check it again soon."""
        if pod.fixed:
            await self._tell(pod, MEND, "its rules have been made")
            return False
        if (pod.uid, pod.state) not in self._reported_pods:
            self._reported_pods.add((pod.uid, pod.state))
            await self._tell(pod, REPORT, "see istio-init cni repair")
        try:
            match self._settings.mode:
                case "label":
                    return await self._label(pod)
                case "delete":
                    return await self._delete(pod)
                case _:
                    return False
        except InitError as error:
            self.counted(pod.state, self._settings.mode, "failed")
            self._log.warn(f"pod {pod.title}: {self._settings.mode}: {error}")
            return True

    async def _label(self, pod: InspectedPod) -> bool:
        if (pod.uid, LABEL) in self._reported_pods:
            return False
        change = {"metadata": {"uid": pod.uid, "labels": {LABEL_NAME: LABEL_VALUE}}}
        await self._api.patch(_path(pod), change)
        self._reported_pods.add((pod.uid, LABEL))
        self._done(pod, LABEL, f"labelled {LABEL_NAME}={LABEL_VALUE}")
        return False

    async def _delete(self, pod: InspectedPod) -> bool:
        """Evict a pod that was wrong in two inspections, if its namespace and the rate allow it."""
        if pod.namespace in self._settings.protected:
            return False
        if self._before.get(pod.uid) != pod.state or not self._may_evict():
            return True
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            # Not the next pod of this name.
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        try:
            await self._api.create(f"{_path(pod)}/eviction", body)
        except HttpError as error:
            if error.status in {NOT_FOUND, CONFLICT}:
                return False  # it has gone by itself
            if error.status == TOO_MANY:
                self.counted(pod.state, DELETE, "refused")
                self._log.info(f"pod {pod.title}: not evicted yet: {error}")
                return True
            raise
        self._evictions.append(time.monotonic())
        self._done(pod, DELETE, "evicted, so that its next pod is captured")
        return False

    def _may_evict(self) -> bool:
        begin = time.monotonic() - 60
        self._evictions = [each for each in self._evictions if each > begin]
        return len(self._evictions) < self._settings.rate

    def _done(self, pod: InspectedPod, action: str, what: str) -> None:
        self.counted(pod.state, action, "done")
        self._log.info(f"pod {pod.title}: {pod.state}: {what}")

    async def _tell(self, pod: InspectedPod, action: str, what: str) -> None:
        """A log line, a count, and an Event on the pod."""
        differing = f"; {pod.differences[0]}" if pod.differences and not pod.fixed else ""
        message = f"{pod.state}: {pod.why}{differing}; {what}"
        self.counted(pod.state, action, "done")
        (self._log.info if pod.fixed else self._log.warn)(f"pod {pod.title}: {message}")
        reason = "Captured" if pod.fixed else EVENT_REASONS[pod.state]
        kind = "Normal" if pod.fixed else "Warning"
        try:
            path = f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/events"
            await self._api.create(path, event(pod, self._node, kind, reason, message))
        except InitError as error:
            self._log.warn(f"pod {pod.title}: no Event: {error}")


def event(pod: InspectedPod, node: str, kind: str, reason: str, message: str) -> Mapping[str, object]:
    """An Event on a pod (core/v1)."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{pod.name}.{time.time_ns():x}", "namespace": pod.namespace},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid
        },
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
    }  # fmt: skip


def _state(pod: NodePod) -> tuple[object, ...]:
    """What of a pod may change how it is captured."""
    return pod.phase, pod.validation, pod.description


def _path(pod: InspectedPod) -> str:
    return f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}"
