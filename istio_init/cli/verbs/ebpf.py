"""What check, plan and show say with --capture-backend ebpf."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from istio_init.cli.verbs.output import CHECK_EXIT_CODES
from istio_init.errors_rare import UsageError
from istio_init.formats.socket_capture import as_json
from istio_init.inspect.socket_capture import inspect

if TYPE_CHECKING:
    from istio_init.inspect.socket_capture import SocketInspection
    from istio_init.log import Log
    from istio_init.options.table import Options


def check(options: Options, log: Log, form: str) -> int:
    """Print whether the capture is in place; returns check's exit code."""
    found = _inspected(options, log)
    code = CHECK_EXIT_CODES[found.conformance]
    if form == "json":
        _print({**_state(found), "code": code})
    else:
        print(_line(found))  # noqa: T201 (a verb's output)
    return code


def plan(options: Options, log: Log, form: str) -> int:
    """Print the requested capture, whether it is in place, and what an apply would do."""
    found = _inspected(options, log)
    does = "nothing" if found.conformance == "in place" else "write"
    if form == "json":
        _print({**_state(found), "capture": as_json(found.capture), "apply": {"does": does}})
    else:
        print(_line(found))  # noqa: T201
        print(json.dumps(as_json(found.capture), indent=2))  # noqa: T201
        print("apply would do nothing" if does == "nothing" else "apply would write this")  # noqa: T201
    return 0


def show(options: Options, log: Log, form: str) -> int:
    """Print the capture with the node's counters."""
    found = _inspected(options, log)
    if form == "json":
        _print({**_state(found), "capture": as_json(found.capture), "counters": found.counts})
    else:
        print(_line(found))  # noqa: T201
        for name, count in found.counts.items():
            print(f"  {count:>12}  {COUNTERS[name]}")  # noqa: T201
    return 0


# What each counter of the node counts since the programs were installed.
COUNTERS = {
    "captured": "outbound connections sent to the proxy",
    "taken": "of these, accepted by the proxy with their destination",
    "answered": "answers to SO_ORIGINAL_DST",
    "lost": "connections that the proxy accepted without a destination",
    "no_room": "calls refused, as the kernel had no memory for their destination",
    "listening": "listeners of proxies noted",
    "no_slot": "listeners of proxies beyond the sixteenth of a pod",
    "inbound_given": "inbound connections given to the proxy",
    "no_listener": "inbound connections refused, as no proxy listened",
    "dns": "DNS queries sent to the agent",
}


def _inspected(options: Options, log: Log) -> SocketInspection:
    if not options.network_namespace:
        raise UsageError(
            "--capture-backend ebpf: name the pod: --netns PATH, --pid PID or --container ID, from the node"
        )
    return inspect(options, log)


def _state(found: SocketInspection) -> dict[str, Any]:
    return {"state": found.conformance, "backend": "ebpf", "findings": list(found.findings)}


def _line(found: SocketInspection) -> str:
    more = f": {'; '.join(found.findings)}" if found.findings else ""
    return f"{found.conformance} (ebpf){more}"


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
