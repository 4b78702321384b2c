"""The agent's tasks, from start to end. A signal ends them in an order in which no pod is missed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Never

from istio_init.cni.agent.answers import Answers
from istio_init.cni.agent.departure import is_final
from istio_init.cni.agent.ebpf import EbpfKeeper, EbpfMetrics
from istio_init.cni.agent.endpoint import HttpEndpoint
from istio_init.cni.agent.health import Health
from istio_init.cni.agent.inspection import Inspector
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.metrics import Metrics
from istio_init.cni.agent.pods import PodStore
from istio_init.cni.agent.repair import OFF, Repair, RepairSettings
from istio_init.cni.agent.reports import Reports
from istio_init.cni.agent.server import MOST, PluginServer
from istio_init.cni.agent.taint import Untaint
from istio_init.cni.agent.watch import PodWatch
from istio_init.cni.node import install
from istio_init.cni.node.keep import Keeper, watched
from istio_init.errors import shown
from istio_init.kernel.host.inotify import ENDING, DirectoryWatch
from istio_init.kernel.host.process import termination_requested
from istio_init.kernel.host.service import never_wait_for_reader, raise_open_files
from istio_init.log import STDERR
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from istio_init.cni.agent.credentials import ApiCredentials
    from istio_init.cni.agent.departure import DaemonSetName
    from istio_init.cni.agent.pods import NodePod
    from istio_init.cni.agent.server import Handler
    from istio_init.cni.node.directories import Directories
    from istio_init.log import Log

KEEP = "keep"


class AgentSettings(Record):
    """The agent's settings. `entry` returns the plugin's entry in the network, `interval` is in seconds.

    `ending` is what the last agent leaves; an agent whose `daemonset` goes on leaves everything to its successor.
    """

    node: str
    credentials: ApiCredentials
    places: Directories
    source: str
    plugin_config: str
    entry: Callable[[], Mapping[str, Any]]
    interval: float
    ending: str
    listen: str
    socket: str
    repair: RepairSettings
    inspection_flags: tuple[str, ...] = ()
    untaint: str = ""
    daemonset: DaemonSetName | None = None
    ebpf: bool = False


class Agent:
    """The node's agent; `run` lasts until a signal asks it to end."""

    def __init__(self, settings: AgentSettings, log: Log) -> None:
        self._settings, self._log = settings, log
        self._stop = asyncio.Event()
        # An exception that was logged, and until when it is not logged again.
        self._exceptions: dict[str, float] = {}
        self.health = Health()
        self.store = PodStore(self._note)
        self._api = KubernetesApi(settings.credentials)
        self._watch = PodWatch(self._api, settings.node, self.store, log)
        self._inspector = Inspector(settings.inspection_flags)
        self._repair = Repair(settings.repair, settings.node, self._inspector, self._api, log)
        self._answers = Answers(self._api, self.store, self.health)
        self._reports = Reports(log)
        self._ebpf = EbpfKeeper(log) if settings.ebpf else None
        self.metrics = Metrics()
        self._connect_metrics()

    def _connect_metrics(self) -> None:
        metrics, health = self.metrics, self.health
        self._watch.listed = self._listed
        self._watch.failed = metrics.count_api_failure
        self._reports.counted = metrics.count_report
        self._answers.count_request = metrics.direct.inc
        self._repair.counted = metrics.count_repair
        metrics.states = lambda: self._repair.by_state
        metrics.add(EbpfMetrics(self._ebpf))
        metrics.gauge("pods", "Pods of this node that are known.", lambda: len(self.store))
        metrics.gauge("entry_in_place", "1 if program and entry are in place.", lambda: health.installed)
        metrics.gauge("watching", "1 if the watch of the node's pods works.", lambda: self._watch.connected)
        metrics.gauge("ready", "1 if the agent is ready, as /readyz has it.", lambda: not health.troubles())

    async def run(self) -> None:
        """Run all tasks until a signal arrives; then uninstall what the settings say."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._report_exception)
        never_wait_for_reader(STDERR)
        for number in ENDING:
            loop.add_signal_handler(number, self._stop.set)
        # A signal may have arrived while the program started.
        if termination_requested():
            self._stop.set()
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            if self._settings.listen:
                pages = {
                    "/healthz": self.health.alive,
                    "/readyz": self.health.ready,
                    "/metrics": self.metrics.page,
                }
                port = await stack.enter_async_context(HttpEndpoint(pages).serving(self._settings.listen))
                self._log.info(f"listening on port :{port} for {', '.join(pages)}")
            await stack.enter_async_context(self._server().serving(self._settings.socket))
            self.health.serving = True
            tasks: list[asyncio.Task[None]] = [group.create_task(self._watch.run(), name="watch")]
            if self._settings.repair.mode != OFF:
                tasks.append(group.create_task(self._repair_when_listed(), name="repair"))
            if self._settings.untaint:
                untaint = Untaint(self._settings.untaint, self._settings.node, self._api, self.health, self._log)
                tasks.append(group.create_task(untaint.run(), name="untaint"))
            if self._ebpf:
                tasks.append(group.create_task(self._ebpf.run(), name="ebpf"))
            await self._keep_installed()
            await self._leave()
            for task in tasks:
                task.cancel()

    def _note(self, new: NodePod | None, old: NodePod | None) -> None:
        self._repair.note(new, old)

    async def _repair_when_listed(self) -> Never:
        """Repair pods once the agent can answer for each of them, since inspections use its answers."""
        await self._watch.synced.wait()
        await self._repair.run()

    async def _repair_on_request(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer `istio-init cni repair`."""
        if self._settings.repair.mode == OFF:
            return {"error": "this agent is not set up to inspect pods", "final": True}
        return {"report": await self._inspector.inspect(fix=request.get("fix") is True)}

    def _server(self) -> PluginServer:
        handlers: dict[str, Handler] = {
            "pod": self._answers.pod,
            "health": self._answers.health,
            "report": self._reports.take,
            "repair": self._repair_on_request,
        }
        # Half of the files that may be open are left for everything else.
        return PluginServer(handlers, self._log, min(MOST, raise_open_files() // 2))

    def _report_exception(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Log an exception that reached the event loop: one line, and the same one once a minute."""
        error = context.get("exception")
        why = f": {type(error).__name__}: {shown(str(error), 200)[1:-1]}" if error else ""
        line, now = f"internal error: {context['message']}{why}", loop.time()
        if now >= self._exceptions.get(line, 0.0):
            self._exceptions = {line: now + 60.0}
            self._log.error(line)

    async def _keep_installed(self) -> None:
        """Restore the installation whenever it is incomplete, until the agent must end."""
        settings = self._settings
        with (
            DirectoryWatch(watched(settings.places, settings.plugin_config)) as watch,
            Keeper(self._log, settings.places, settings.source, settings.entry) as keeper,
        ):
            while not self._stop.is_set():
                # In a thread: it waits for file locks and for the disk, and pods must not wait for it.
                self.health.installed = await asyncio.to_thread(keeper.attempt)
                if keeper.rest:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), keeper.rest)
                await self._change(watch)

    async def _change(self, watch: DirectoryWatch) -> None:
        """Wait for a change in the watched directories, for the interval at the longest, or until the end."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        if watch.descriptor >= 0:
            loop.add_reader(watch.descriptor, changed.set)
        waiting = [asyncio.create_task(event.wait()) for event in (self._stop, changed)]
        try:
            await asyncio.wait(waiting, timeout=self._settings.interval, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(watch.descriptor)
            for task in waiting:
                task.cancel()
        if changed.is_set():
            watch.drain()
        else:
            watch.renew()

    async def _leave(self) -> None:
        """Uninstall from the node what the settings say, at the agent's end."""
        ending, places, daemonset = self._settings.ending, self._settings.places, self._settings.daemonset
        if ending != KEEP and daemonset and not await is_final(self._api, daemonset, self._log):
            ending = KEEP
        self._log.info(f"terminating: {ending}")
        self.health.installed = False
        if ending != KEEP:
            actions = await asyncio.to_thread(install.uninstall, places, keep_program=ending == "unchain")
            for line in actions:
                self._log.info(line)

    def _listed(self) -> None:
        self.metrics.lists.inc()
        if not self.health.synced:
            self.health.synced = True
            self._log.info(f"{len(self.store)} pods of the node {self._settings.node} are known")
