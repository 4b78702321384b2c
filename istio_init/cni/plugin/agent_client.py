"""The plugin's client of the node agent: requests a pod, and reports the outcome of a call.

A message is one line of JSON in each direction. A request has a `version` and says what it asks for; the answer has
the same version, and an `error` where there is no other. docs/agent.md describes both. Imported only where the
network's configuration names an agent.
"""

from __future__ import annotations

from istio_init.cni.plugin.fast_json import decode, encode
from istio_init.cni.plugin.protocol import CONFIGURATION, TRY_AGAIN, PluginError
from istio_init.kernel.host.unix_stream import UnixStream
from istio_init.options.cni_pod import PodDescription

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = 1
# Bytes of a message. A pod has annotations of at most 256 KiB, which JSON may make six times as long.
LONGEST_REQUEST, LONGEST_ANSWER = 1 << 20, 2 << 20
# Seconds for a question, the agent's own request of the API server included; and for a report.
PATIENCE, REPORT_PATIENCE = 10.0, 1.0
# The fields of a description and their types; a list is one of texts, a dict one of texts by texts.
FIELDS = {
    "annotations": dict,
    "labels": dict,
    "containers": list,
    "variables": dict,
    "role": str,
    "proxy_uid": int,
    "proxy_gid": int,
    "host_network": bool,
}


class AgentClient:
    """A connection to the agent, made when it is first used."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: UnixStream | None = None

    def pod(self, namespace: str, name: str, uid: str) -> PodDescription:
        """The pod as the API server has it; PluginError where the agent does not answer, or does not know it."""
        request = {"version": VERSION, "ask": "pod", "namespace": namespace, "name": name, "uid": uid}
        answer = self.call(request)
        if "error" in answer:
            final = answer.get("final") is True
            raise PluginError(CONFIGURATION if final else TRY_AGAIN, f"pod {namespace}/{name}: {answer['error']}")
        return self._parsed(answer.get("pod"))

    def health(self) -> tuple[str, ...]:
        """What keeps the agent from its work; empty where nothing does. PluginError where it does not answer."""
        troubles = self.call({"version": VERSION, "ask": "health"}).get("troubles")
        if not isinstance(troubles, list):
            raise self._unclear()
        return tuple(map(str, troubles))

    def report(self, outcome: Mapping[str, Any], lines: list[str]) -> None:
        """Report the outcome of a call and its log to the agent. A report that cannot be delivered is lost."""
        message = encode({"version": VERSION, "ask": "report", "outcome": outcome, "lines": lines})
        while len(message) >= LONGEST_REQUEST and lines:
            lines = lines[len(lines) // 2 + 1 :]
            message = encode({"version": VERSION, "ask": "report", "outcome": outcome, "lines": lines})
        try:
            self._connected(REPORT_PATIENCE).send(f"{message}\n".encode())
        except OSError:
            pass

    def close(self) -> None:
        """Close the connection, if there is one. The plugin leaves that to its end."""
        if self._stream is not None:
            self._stream.close()

    def call(self, request: Mapping[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """The agent's answer to a request, within so many seconds (0: PATIENCE). PluginError where there is none."""
        try:
            stream = self._connected(seconds or PATIENCE)
            stream.send(f"{encode(request)}\n".encode())
            answer = decode(stream.line(LONGEST_ANSWER).decode())
        except OSError as error:
            why = error.strerror or str(error)
            raise PluginError(
                TRY_AGAIN,
                f"agent_socket: {self._path}: the node agent does not answer: {why}; see its pod on this node "
                "(istio-init cni agent)",
            ) from error
        except ValueError:
            raise self._unclear() from None
        if not isinstance(answer, dict) or answer.get("version") != VERSION:
            raise self._unclear()
        return answer

    def _connected(self, seconds: float) -> UnixStream:
        if self._stream is None:
            self._stream = UnixStream(self._path, seconds)
        self._stream.extend(seconds)
        return self._stream

    def _unclear(self) -> PluginError:
        why = "is it of another release, or another program?"
        return PluginError(
            TRY_AGAIN, f"agent_socket: {self._path}: the node agent's answer cannot be understood; {why}"
        )

    def _parsed(self, members: object) -> PodDescription:
        if not isinstance(members, dict):
            raise self._unclear()
        values: dict[str, Any] = {name: members.get(name) for name in FIELDS}
        if any(type(value) is not FIELDS[name] for name, value in values.items()):
            raise self._unclear()
        return PodDescription(**{**values, "containers": tuple(values["containers"])})


def description_members(pod: PodDescription) -> dict[str, Any]:
    """A description as a message has it."""
    members = {name: getattr(pod, name) for name in FIELDS}
    return {**members, "containers": list(pod.containers or ())}
