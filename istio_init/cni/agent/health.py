"""Whether the agent can do its work, and what is missing if not: for probes, and for the plugin's STATUS."""

from __future__ import annotations

from istio_init.cni.agent.endpoint import Page


class Health:
    """The conditions for scheduling pods on this node. Each is set by the task that it is about."""

    def __init__(self) -> None:
        self.installed = False
        self.synced = False
        self.serving = False

    def troubles(self) -> list[str]:
        """What is missing, each in one line; empty where all is well."""
        parts = {
            "the plugin is not in place on this node": self.installed,
            "the node's pods have not been listed yet": self.synced,
            "the plugin's socket is not served": self.serving,
        }
        return [text for text, is_well in parts.items() if not is_well]

    def ready(self) -> Page:
        """/readyz: 200, or 503 with what is missing."""
        troubles = self.troubles()
        return Page(503, "".join(f"{line}\n" for line in troubles)) if troubles else Page(200, "ready\n")

    @staticmethod
    def alive() -> Page:
        """/healthz: answered as long as the event loop runs."""
        return Page(200, "ok\n")
