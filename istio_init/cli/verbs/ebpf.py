"""Output of check, plan and show with --capture-backend ebpf."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.cli.verbs.output import CHECK_EXIT_CODES, print_json
from istio_init.errors import printable
from istio_init.errors_rare import UsageError
from istio_init.formats.socket_capture import as_json
from istio_init.inspect.socket_capture import inspect

if TYPE_CHECKING:
    from istio_init.inspect.socket_capture import SocketInspection
    from istio_init.log import Log
    from istio_init.options.table import Options


def check(options: Options, log: Log, form: str) -> int:
    """Print whether the capture is in place; returns check's exit code."""
    inspection = _inspect(options, log)
    code = CHECK_EXIT_CODES[inspection.conformance]
    if form == "json":
        print_json("check", {**_state(inspection), "code": code, "warnings": []})
    else:
        print(_line(inspection))  # noqa: T201 (a verb's output)
    return code


def plan(options: Options, log: Log, form: str) -> int:
    """Print the requested capture, whether it is in place, and what an apply would do."""
    inspection = _inspect(options, log)
    action = "nothing" if inspection.conformance == "in place" else "write"
    if form == "json":
        print_json(
            "plan-ebpf", {**_state(inspection), "capture": as_json(inspection.capture), "apply": {"does": action}}
        )
    else:
        print(_line(inspection))  # noqa: T201
        print(json.dumps(as_json(inspection.capture), indent=2))  # noqa: T201
        print("apply would do nothing" if action == "nothing" else "apply would write this")  # noqa: T201
    return 0


def show(options: Options, log: Log, form: str) -> int:
    """Print the capture with the node's counters."""
    inspection = _inspect(options, log)
    if form == "json":
        print_json(
            "show-ebpf", {**_state(inspection), "capture": as_json(inspection.capture), "counters": inspection.counts}
        )
    else:
        print(_line(inspection))  # noqa: T201
        for name, count in inspection.counts.items():
            print(f"  {count:>12}  {COUNTERS[name]}")  # noqa: T201
    return 0


# The node's counters, which start when the programs are installed.
COUNTERS = {
    "captured": "outbound connections sent to the proxy",
    "taken": "captured connections that the proxy accepted with their destination",
    "answered": "answers to SO_ORIGINAL_DST",
    "lost": "connections that the proxy accepted without a destination",
    "no_room": "connections refused, since the kernel had no memory for their destination",
    "listening": "proxy listeners recorded",
    "no_slot": "proxy listeners beyond the sixteenth of a pod",
    "inbound_given": "inbound connections redirected to the proxy",
    "no_listener": "inbound connections refused, since no proxy was listening",
    "dns": "DNS queries sent to the agent",
}


def _inspect(options: Options, log: Log) -> SocketInspection:
    if not options.network_namespace:
        raise UsageError(
            "--capture-backend ebpf: name the pod: --netns PATH, --pid PID or --container ID, from the node"
        )
    return inspect(options, log)


def _state(inspection: SocketInspection) -> dict[str, Any]:
    return {"state": inspection.conformance, "backend": "ebpf", "findings": list(inspection.findings)}


def _line(inspection: SocketInspection) -> str:
    more = f": {'; '.join(inspection.findings)}" if inspection.findings else ""
    return printable(f"{inspection.conformance} (ebpf){more}")
