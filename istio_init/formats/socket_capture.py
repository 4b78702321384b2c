"""A SocketCapture as JSON: what a dry run prints with capture by eBPF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.formats.addresses import network_text, ports_text
from istio_init.model.rules import Network, PortRange

if TYPE_CHECKING:
    from istio_init.model.socket_capture import SocketCapture


def dump(capture: SocketCapture) -> str:
    """The capture as one JSON object, field by field; networks as CIDRs, ports as numbers or "low-high"."""
    members = {name: _plain(getattr(capture, name)) for name in capture.__match_args__}
    return json.dumps({"captureBackend": "ebpf", **members}, indent=2) + "\n"


def _plain(value: object) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, Network):
        return network_text(value)
    if isinstance(value, PortRange):
        return value.low if value.low == value.high else ports_text(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
