"""One call of the plugin: the request, the settings, the log, and the decision for the pod."""

from __future__ import annotations

import time

from istio_init.cni.plugin import protocol, sandbox_state
from istio_init.cni.plugin.decision import Decision, decide
from istio_init.cni.plugin.log import PodLog
from istio_init.cni.plugin.protocol import (
    NAMESPACE,
    POD,
    TRY_AGAIN,
    Request,
)
from istio_init.cni.plugin.sandbox_state import PASSED, SandboxState
from istio_init.cni.plugin.settings import NONE, REQUIRED
from istio_init.errors import InitError
from istio_init.options.annotations import suspicious
from istio_init.runner import access, defaults
from istio_init.runner.run import Interrupts, perform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.cni.plugin.agent_client import AgentClient
    from istio_init.cni.plugin.settings import Api, Settings
    from istio_init.options.cni_pod import PodDescription
    from istio_init.options.table import Options


# What a log calls the decision that there was none: what the pod asks for can't be understood.
REFUSED = "refused"


class PluginCall:
    """One call: the request, the settings, and the log with the pod's name."""

    def __init__(self, request: Request, chosen: Settings, aloud: str = "debug") -> None:
        """`aloud` is the level up to which the log goes to standard error as well."""
        self.request, self.settings = request, chosen
        self.log = PodLog(chosen.log_level, chosen.log_file, chosen.log_bytes, aloud)
        self.log.know(
            command=request.command,
            pod=request.args.get(POD, ""),
            namespace=request.args.get(NAMESPACE, ""),
            sandbox=request.container,
        )
        self._agent: AgentClient | None = None
        if chosen.agent != NONE:
            from istio_init.cni.plugin.agent_client import AgentClient

            self._agent = AgentClient(chosen.agent_socket)
            self.log.kept = []

    def decide(self) -> Decision:
        """The decision for the pod, which each following log line has."""
        if access.is_own_namespace(self.request.netns):
            decision = Decision(PASSED, "the sandbox uses the node's network")
        else:
            try:
                decision = decide(self.request, self.settings, self._fetch, defaults.account, self._ask)
            except InitError as error:
                self.log.know(decision=REFUSED, why=str(error))
                raise
        self.log.know(decision=decision.decision, why=decision.why)
        for warning in decision.warnings:
            self.log.warn(warning)
        if decision.options is not None and suspicious(self.settings.annotations or {}):
            from istio_init.options.annotation_warnings import misspelt

            for warning in misspelt(self.settings.annotations or {}):
                self.log.warn(warning)
        return decision

    def _fetch(self, api: Api, namespace: str, name: str) -> PodDescription:
        from istio_init.cni.plugin.kubernetes_api import pod

        return pod(api, namespace, name, self.log)

    def _ask(self, namespace: str, name: str, uid: str) -> PodDescription | None:
        """The pod from the node agent; None if it does not answer and is optional."""
        if self._agent is None:
            return None
        try:
            return self._agent.pod(namespace, name, uid)
        except protocol.PluginError as error:
            if self.settings.agent == REQUIRED or error.code != TRY_AGAIN:
                raise
            self.log.warn(f"{error}; decided without it")
            return None

    def report(self, code: int, begin: float) -> None:
        """Report the outcome of the call to the node agent: the CNI error's code, or 0; `begin` is the call's start."""
        if self._agent is not None:
            outcome = {"command": self.request.command, "code": code, "seconds": time.monotonic() - begin}
            for fact in ("pod", "namespace", "sandbox", "decision"):
                outcome[fact] = self.log.facts.get(fact, "")
            self._agent.report(outcome, self.log.kept or [])

    def state(self) -> SandboxState | None:
        """The sandbox's state; each following log line has its decision."""
        state = sandbox_state.read(self.request.container, self.settings.run_dir)
        if state is not None:
            self.log.know(decision=state.decision, why=state.why)
        return state


def in_namespace(options: Options, netns: str) -> Options:
    """The options of a sandbox with the path of its network namespace."""
    return options.replace(network_namespace=netns)


def apply_options(options: Options, call: PluginCall, begin: float) -> None:
    """Apply or clean up; changes are rolled back if that fails or a signal ends it."""
    with Interrupts() as interrupts:
        perform(options, {}, call.log, begin, interrupts)
